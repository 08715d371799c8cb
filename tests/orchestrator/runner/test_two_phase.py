"""A two-phase sweep on a Ray in this process: many in phase one, warm and on cached features; the best in phase two."""

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.event_files import drawn, outcomes
from support.resources_freed import assert_freed
from support.sweep_without_ray import assert_same, without_ray
from support.wandb_files import read_runs
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runner.callback import SweepCallback
from tailsweep.orchestrator.runs.directory import open_run
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.orchestrator.runs.trials import TrialRecord
from tailsweep.trainables import report_keys

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray_phases")]

METRIC = "validation/macro_f1"


@dataclass
class TwoPhaseRun:
    run: Path
    bundles: list[str]  # of every placement group that it asked for
    most_quarters: int  # groups of a quarter of a GPU, held at the same time


@pytest.fixture(scope="module")
def two_phase(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> TwoPhaseRun:
    """t001, the best, has a trunk that is not a function of the row: it trains as a Ray Train run in both rounds, in
    the second with two settings of stage two. t003's loss is not a number.

    Between the rounds, so between two runs of Tune, with t001 promoted by half, the process has a SIGTERM; the sweep is
    resumed.
    """
    storage = tmp_path_factory.mktemp("runs")
    rates = [(1e-7, False), (3e-3, True), (1e-6, False), (1e30, False), (1e-5, False)]
    sweep = small_sweep(
        search="random",
        num_trials=len(rates),
        initial_points=[{"stage_one": {"learning_rate": rate, "frozen_dropout": live}} for rate, live in rates],
        promote=1,
        asha=None,
        max_concurrent="auto",
        stage_one={
            "trainable": {"top_layers": 3},
            "loss": {"name": "cross_entropy"},
            "learning_rate": {"loguniform": [1e-8, 1e31]},
            "frozen_dropout": {"choice": [False, True]},
            "epochs": 2,
            "batch_size": 4,
        },
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": {"choice": [4, 8]}},
        stage_two_search={"settings": 2},
        resources={"stage_one": {"gpus_per_worker": 0.25}, "stage_two": {"gpus_per_worker": 1}},
    )
    before = groups()
    with pytest.MonkeyPatch.context() as patch, watching() as quarters:
        drawing = SweepCallback.draw

        def draw_one_and_be_stopped(self: SweepCallback, trial: TrialRecord) -> None:
            drawing(self, trial)
            signal.raise_signal(signal.SIGTERM)

        patch.setattr(SweepCallback, "draw", draw_one_and_be_stopped)
        assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=two_phase"]) == 1
    run = storage / "two_phase"
    assert drawn(run) == ["t001.1"]
    assert "t001" not in outcomes(run)
    assert main(["resume", str(run)]) == 0
    assert_freed()
    bundles = [bundle for key, (_, bundle) in groups().items() if key not in before]
    return TwoPhaseRun(run, bundles, max(quarters))


def groups() -> dict[str, tuple[str, str]]:
    """State and bundles of all that Ray was ever asked for."""
    from ray.util import placement_group_table

    return {
        key: (group["state"], json.dumps(group["bundles"], sort_keys=True))
        for key, group in placement_group_table().items()
    }


@contextmanager
def watching() -> Iterator[list[int]]:
    """Counts the groups of a quarter of a GPU that are held, over and over."""
    counts = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            counts.append(sum(state == "CREATED" and '"GPU": 0.25' in bundles for state, bundles in groups().values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield counts
    finally:
        done.set()
        watcher.join()


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {row["trial"]: row for row in pq.read_table(run / "trials.parquet").to_pylist()}


def test_the_best_of_phase_one_continue_and_the_others_say_why_not(two_phase: TwoPhaseRun):
    rows = rows_of(two_phase.run)
    history = pq.read_table(two_phase.run / "history.parquet").to_pylist()
    last = {
        row["trial"]: row[METRIC]
        for row in history
        if (row[report_keys.STAGE], row[report_keys.EPOCH]) == ("stage_one", 2)
    }
    assert max(last, key=lambda name: last[name]) == "t001"
    assert set(last) == {"t000", "t001", "t002", "t004"}
    assert {name: (row["state"], row["parent"]) for name, row in rows.items()} == {
        "t000": ("not_promoted", None),
        "t001.1": ("completed", "t001"),
        "t001.2": ("completed", "t001"),
        "t002": ("not_promoted", None),
        "t003": ("failed", None),
        "t004": ("not_promoted", None),
    }
    assert "of 4 by validation/macro_f1 after stage one; the best 1 continue" in rows["t000"]["reason"]
    assert "learning_rate 1e+30" in rows["t003"]["reason"]
    assert [(row["stage_one_epochs"], row["stage_two_epochs"]) for row in rows.values()] == [
        (2, 0),
        (2, 1),
        (2, 1),
        (2, 0),
        (0, 0),
        (2, 0),
    ]
    assert {rows[name]["stage_two.batch_size"] for name in ("t001.1", "t001.2")} == {4, 8}
    best = max(("t001.1", "t001.2"), key=lambda name: rows[name][METRIC])
    assert json.loads((two_phase.run / "best/metrics.json").read_text())["trial"] == best


def test_every_setting_of_stage_two_continues_from_the_promoted_trials_stage_one(two_phase: TwoPhaseRun):
    records = read_records(open_run(str(two_phase.run)))
    for name in ("t001.1", "t001.2"):
        trial_config = records.trial(name).config
        assert trial_config["stage_one"] == records.trial("t001").config["stage_one"]
        reports, _ = without_ray(two_phase.run, name)
        assert_same(records.history_of(name), reports, 1e-6)


def test_phase_one_trains_on_cached_features_where_the_trunk_is_a_function_of_the_row(
    two_phase: TwoPhaseRun,
):
    history = pq.read_table(two_phase.run / "history.parquet").to_pylist()
    # Stage two trains the embeddings of the words that occur, and says how many those are.
    executions = {
        (row["trial"], row[report_keys.STAGE]): re.sub(r", \d+ of \d+ word.*", "", row[report_keys.EXECUTION])
        for row in history
    }
    assert executions == {
        ("t000", "stage_one"): "cached tokens entering layer 1, packed",
        ("t001", "stage_one"): "packed",
        ("t001.1", "stage_two"): "packed",
        ("t001.2", "stage_two"): "packed",
        ("t002", "stage_one"): "cached tokens entering layer 1, packed",
        ("t004", "stage_one"): "cached tokens entering layer 1, packed",
    }
    assert not (two_phase.run / "state/features").exists()


def test_a_loser_never_asks_for_what_stage_two_needs(two_phase: TwoPhaseRun):
    """Of all the groups that the sweep asked for, one held a whole GPU: the Train run of both settings of stage two."""
    assert sum('"GPU": 1.0' in bundle for bundle in two_phase.bundles) == 1


def test_a_quarter_of_a_gpu_each_packs_four_trials_to_a_gpu(two_phase: TwoPhaseRun):
    assert two_phase.most_quarters == 4


def test_only_the_judged_checkpoints_of_completed_trials_are_left(two_phase: TwoPhaseRun):
    checkpoints = two_phase.run / "state/checkpoints"
    remaining = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob("*/stage_*") if path.is_dir())
    assert remaining == ["t001.1/stage_two_epoch_001", "t001.2/stage_two_epoch_001"]


def test_every_setting_of_a_promoted_trial_is_a_wandb_run_from_its_first_step_on(two_phase: TwoPhaseRun):
    runs = read_runs(two_phase.run / "wandb")
    assert {name: run.summary.get("state") for name, run in runs.items() if name != "two_phase-sweep"} == {
        "two_phase-t000": "not_promoted",
        "two_phase-t001": "promoted",
        "two_phase-t001.1": "completed",
        "two_phase-t001.2": "completed",
        "two_phase-t002": "not_promoted",
        "two_phase-t003": "failed",
        "two_phase-t004": "not_promoted",
    }
    for name in ("two_phase-t001.1", "two_phase-t001.2"):
        assert runs[name].steps == [0, 1, 2]
        assert f"stage_one/{METRIC}" in runs[name].history[1]
        assert f"stage_two/{METRIC}" in runs[name].history[2]
