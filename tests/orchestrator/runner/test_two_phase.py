"""A tournament on a Ray in this process: many in round one, warm and on cached features; the best in round two."""

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
from support.resources_freed import assert_freed
from support.sweep_without_ray import assert_same, without_ray
from support.wandb_files import read_runs
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runner.callback import Bookkeeping
from tailsweep.orchestrator.runs.candidates import CandidateRecord
from tailsweep.orchestrator.runs.directory import open_run
from tailsweep.orchestrator.runs.records import read_records
from tailsweep.trainables import report_keys

pytestmark = pytest.mark.ray

METRIC = "validation/macro_f1"


@dataclass
class Tournament:
    run: Path
    bundles: list[str]  # of every placement group that it asked for
    most_quarters: int  # groups of a quarter of a GPU, held at the same time


@pytest.fixture(scope="module")
def tournament(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Tournament:
    """c001, the best, has a trunk that is not a function of the row: it trains as a Ray Train run in both rounds, in
    the second with two settings of stage two. c003's loss is not a number.

    Between the rounds, so between two runs of Tune, with c001 promoted by half, the process has a SIGTERM; the sweep is
    resumed.
    """
    storage = tmp_path_factory.mktemp("runs")
    rates = [(1e-7, False), (3e-3, True), (1e-6, False), (1e30, False), (1e-5, False)]
    sweep = small_sweep(
        search="random",
        num_candidates=len(rates),
        points=[{"stage_one": {"learning_rate": rate, "frozen_dropout": live}} for rate, live in rates],
        promote=1,
        asha=None,
        max_concurrent="auto",
        stage_one={
            "trains": {"top_layers": 3},
            "loss": {"name": "cross_entropy"},
            "learning_rate": {"loguniform": [1e-8, 1e31]},
            "frozen_dropout": {"choice": [False, True]},
            "epochs": 2,
            "batch_size": 4,
        },
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": {"choice": [4, 8]}},
        round_two={"settings": 2},
        resources={"stage_one": {"gpus_per_worker": 0.25}, "stage_two": {"gpus_per_worker": 1}},
    )
    before = groups()
    with pytest.MonkeyPatch.context() as patch, watching() as quarters:
        drawing = Bookkeeping.draw

        def draw_one_and_be_stopped(self: Bookkeeping, candidate: CandidateRecord) -> None:
            drawing(self, candidate)
            signal.raise_signal(signal.SIGTERM)

        patch.setattr(Bookkeeping, "draw", draw_one_and_be_stopped)
        assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=tournament"]) == 1
    run = storage / "tournament"
    assert [path.name for path in (run / "state/drawn").iterdir()] == ["c001.1.json"]
    assert not (run / "state/outcomes/c001.json").exists()
    assert main(["resume", str(run)]) == 0
    assert_freed()
    bundles = [bundle for key, (_, bundle) in groups().items() if key not in before]
    return Tournament(run, bundles, max(quarters))


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
            counts.append(sum(state == "CREATED" and '"GPU": 0.25' in of for state, of in groups().values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield counts
    finally:
        done.set()
        watcher.join()


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {row["candidate"]: row for row in pq.read_table(run / "results.parquet").to_pylist()}


def test_the_best_of_round_one_goes_on_and_the_others_say_why_not(tournament: Tournament):
    rows = rows_of(tournament.run)
    history = pq.read_table(tournament.run / "history.parquet").to_pylist()
    last = {
        row["candidate"]: row[METRIC]
        for row in history
        if (row[report_keys.STAGE], row[report_keys.EPOCH]) == ("stage_one", 2)
    }
    assert max(last, key=lambda name: last[name]) == "c001"
    assert set(last) == {"c000", "c001", "c002", "c004"}
    assert {name: (row["state"], row["parent"]) for name, row in rows.items()} == {
        "c000": ("not_promoted", None),
        "c001.1": ("completed", "c001"),
        "c001.2": ("completed", "c001"),
        "c002": ("not_promoted", None),
        "c003": ("failed", None),
        "c004": ("not_promoted", None),
    }
    assert "of 4 by validation/macro_f1 after stage one; the best 1 go on" in rows["c000"]["reason"]
    assert "learning_rate 1e+30" in rows["c003"]["reason"]
    assert [(row["stage_one_epochs"], row["stage_two_epochs"]) for row in rows.values()] == [
        (2, 0),
        (2, 1),
        (2, 1),
        (2, 0),
        (0, 0),
        (2, 0),
    ]
    assert {rows[name]["stage_two.batch_size"] for name in ("c001.1", "c001.2")} == {4, 8}
    best = max(("c001.1", "c001.2"), key=lambda name: rows[name][METRIC])
    assert json.loads((tournament.run / "best/metrics.json").read_text())["candidate"] == best


def test_every_setting_of_stage_two_goes_on_from_the_promoted_candidates_stage_one(tournament: Tournament):
    records = read_records(open_run(str(tournament.run)))
    for name in ("c001.1", "c001.2"):
        trial = records.candidate(name).trial
        assert trial["stage_one"] == records.candidate("c001").trial["stage_one"]
        reports, _ = without_ray(tournament.run, name)
        assert_same(records.history_of(name), reports, 1e-6)


def test_round_one_trains_on_cached_features_where_the_trunk_is_a_function_of_the_row(
    tournament: Tournament,
):
    history = pq.read_table(tournament.run / "history.parquet").to_pylist()
    # Stage two trains the embeddings of the words that occur, and says how many those are.
    roads = {
        (row["candidate"], row[report_keys.STAGE]): re.sub(r", \d+ of \d+ word.*", "", row[report_keys.ROAD])
        for row in history
    }
    assert roads == {
        ("c000", "stage_one"): "cached tokens entering layer 1, packed",
        ("c001", "stage_one"): "packed",
        ("c001.1", "stage_two"): "packed",
        ("c001.2", "stage_two"): "packed",
        ("c002", "stage_one"): "cached tokens entering layer 1, packed",
        ("c004", "stage_one"): "cached tokens entering layer 1, packed",
    }
    assert not (tournament.run / "state/features").exists()


def test_a_loser_never_asks_for_what_stage_two_needs(tournament: Tournament):
    """Of all the groups that the sweep asked for, two held a whole GPU: a Train run for each setting of stage two."""
    assert sum('"GPU": 1.0' in bundle for bundle in tournament.bundles) == 2


def test_a_quarter_of_a_gpu_each_packs_four_candidates_to_a_gpu(tournament: Tournament):
    assert tournament.most_quarters == 4


def test_only_the_judged_checkpoints_of_completed_candidates_are_left(tournament: Tournament):
    checkpoints = tournament.run / "state/checkpoints"
    left = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob("*/stage_*") if path.is_dir())
    assert left == ["c001.1/stage_two_epoch_001", "c001.2/stage_two_epoch_001"]


def test_every_setting_of_a_promoted_candidate_is_a_wandb_run_from_its_first_step_on(tournament: Tournament):
    runs = read_runs(tournament.run / "wandb")
    assert {name: run.summary.get("state") for name, run in runs.items() if name != "tournament-sweep"} == {
        "tournament-c000": "not_promoted",
        "tournament-c001": "promoted",
        "tournament-c001.1": "completed",
        "tournament-c001.2": "completed",
        "tournament-c002": "not_promoted",
        "tournament-c003": "failed",
        "tournament-c004": "not_promoted",
    }
    for name in ("tournament-c001.1", "tournament-c001.2"):
        assert runs[name].steps == [0, 1, 2]
        assert f"stage_one/{METRIC}" in runs[name].history[1]
        assert f"stage_two/{METRIC}" in runs[name].history[2]
