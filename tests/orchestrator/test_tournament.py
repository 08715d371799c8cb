"""A tournament on a Ray in this process: many in round one, warm and on cached features; the best in round two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from wandb_files import read_runs

from orchestrator.__main__ import main
from trainables import keys

pytestmark = pytest.mark.ray

METRIC = "validation/macro_f1"


def bundles() -> set[tuple[str, str]]:
    """(placement group, bundle) of everything that Ray was ever asked for."""
    from ray.util import placement_group_table

    return {(key, json.dumps(group["bundles"], sort_keys=True)) for key, group in placement_group_table().items()}


@pytest.fixture(scope="module")
def tournament(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run directory, and the bundles it asked for. c003's loss is not a number; c001, the best of the others, has a
    trunk that is not a function of the row, and trains as a Ray Train run in both rounds.

    The candidates are points given to an adaptive search, which Tune asks for one after the other.
    """
    storage = tmp_path_factory.mktemp("runs")
    sweep = small_sweep(
        search="optuna",
        num_candidates=4,
        points=[
            {"stage_one": {"learning_rate": rate, "frozen_dropout": live}}
            for rate, live in ((1e-7, False), (3e-3, True), (1e-6, False), (1e30, False))
        ],
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
        stage_two={"learning_rate": 1e-3, "epochs": 1},
        resources={"stage_one": {"gpus_per_worker": 0.25}, "stage_two": {"gpus_per_worker": 1}},
    )
    before = bundles()
    assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=tournament"]) == 0
    return storage / "tournament", sorted(bundle for _, bundle in bundles() - before)


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {row["candidate"]: row for row in pq.read_table(run / "results.parquet").to_pylist()}


def test_the_best_of_round_one_goes_on_and_the_others_say_why_not(tournament: tuple[Path, list[str]]):
    rows = rows_of(tournament[0])
    history = pq.read_table(tournament[0] / "history.parquet").to_pylist()
    last = {row["candidate"]: row[METRIC] for row in history if (row[keys.STAGE], row[keys.EPOCH]) == ("stage_one", 2)}
    assert max(last, key=lambda name: last[name]) == "c001"
    assert {name: row["state"] for name, row in rows.items()} == {
        "c000": "not_promoted",
        "c001": "completed",
        "c002": "not_promoted",
        "c003": "failed",
    }
    assert "of 3 by validation/macro_f1 after stage one; the best 1 go on" in rows["c000"]["reason"]
    assert "learning_rate 1e+30" in rows["c003"]["reason"]
    assert [(rows[name]["stage_one_epochs"], rows[name]["stage_two_epochs"]) for name in ("c000", "c001")] == [
        (2, 0),
        (2, 1),
    ]
    assert json.loads((tournament[0] / "best/metrics.json").read_text())["candidate"] == "c001"


def test_round_one_trains_on_cached_features_where_the_trunk_is_a_function_of_the_row(
    tournament: tuple[Path, list[str]],
):
    history = pq.read_table(tournament[0] / "history.parquet").to_pylist()
    roads = {(row["candidate"], row[keys.STAGE]): row[keys.ROAD] for row in history}
    assert roads == {
        ("c000", "stage_one"): "cached tokens entering layer 1, packed",
        ("c001", "stage_one"): "packed",
        ("c001", "stage_two"): "packed",
        ("c002", "stage_one"): "cached tokens entering layer 1, packed",
    }
    assert not (tournament[0] / "state/features").exists()


def test_a_loser_never_asks_for_what_stage_two_needs(tournament: tuple[Path, list[str]]):
    """Of all placement groups that the sweep made, one held a whole GPU: the promoted candidate's Train run."""
    quarter = [bundle for bundle in tournament[1] if '"GPU": 0.25' in bundle]
    whole = [bundle for bundle in tournament[1] if '"GPU": 1.0' in bundle]
    assert len(whole) == 1
    assert len(quarter) >= 2


def test_only_the_chosen_checkpoint_is_left(tournament: tuple[Path, list[str]]):
    checkpoints = tournament[0] / "state/checkpoints"
    left = {path.parent.name: path.name for path in checkpoints.glob("*/stage_*") if path.is_dir()}
    assert left["c001"] == "stage_two_epoch_001"
    assert "c000" not in left
    assert "c002" not in left


def test_the_promoted_candidates_wandb_run_is_one_run(tournament: tuple[Path, list[str]]):
    runs = read_runs(tournament[0] / "wandb")
    assert {name: run.summary.get("state") for name, run in runs.items() if name != "tournament-sweep"} == {
        "tournament-c000": "not_promoted",
        "tournament-c001": "completed",
        "tournament-c002": "not_promoted",
        "tournament-c003": "failed",
    }
    assert runs["tournament-c001"].steps == [0, 1, 2]
    assert f"stage_two/{METRIC}" in runs["tournament-c001"].history[2]
