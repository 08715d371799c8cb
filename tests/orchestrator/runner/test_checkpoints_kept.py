"""Which checkpoints a sweep keeps and which it goes on from, where some were written within an epoch. Starts no Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tailsweep.orchestrator.config.sweep import load_sweep
from tailsweep.orchestrator.runner.run_sweep import _drop_spent_checkpoints
from tailsweep.orchestrator.runner.tune_run import Playing, _of_tune
from tailsweep.orchestrator.runs.candidates import CandidateRecord, Outcome, Records, made_of
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, RunDirectory
from tailsweep.trainables.distributed.tune_trainables import FirstRoundRuntime
from tailsweep.trainables.training.checkpoint import checkpoint_name

METRIC = "validation/macro_f1"


def report(stage: str, epoch: float, score: float = 0.5) -> dict[str, Any]:
    return {"candidate": "c000", "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "small"))
    run.create()
    return run


def folders(run: RunDirectory, *places: tuple[str, float]) -> Path:
    """A candidate's folder of checkpoints, with these in it."""
    folder = Path(run.path) / CHECKPOINTS_FOLDER / "c000"
    for stage, epoch in places:
        (folder / checkpoint_name(stage, epoch)).mkdir(parents=True)
    return folder


def test_a_first_round_keeps_the_latest_checkpoint(run: RunDirectory, tmp_path: Path) -> None:
    kept = folders(run)
    epochs = (1 / 3, 2 / 3, 1, 4 / 3)
    runtime = FirstRoundRuntime(str(kept), {("stage_one", epoch) for epoch in epochs})  # heard: Tune is not told
    for epoch in epochs:
        name = checkpoint_name("stage_one", epoch)
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(epoch))
        runtime.report(report("stage_one", epoch), tmp_path / name)
        assert [path.name for path in kept.iterdir()] == [name]
        assert json.loads((kept / name / "progress.json").read_text()) == epoch


def test_a_candidate_is_told_where_its_checkpoints_lie_and_what_was_heard(run: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "{name: small, num_candidates: 2, promote: 1, data: {train: rows.csv}, "
        "stage_one: {evaluations_per_epoch: 3, learning_rate: {loguniform: [1e-5, 1e-2]}}}"
    )
    sweep = load_sweep(path)
    candidate = CandidateRecord("c000", {}, sweep.candidates()[0].trial.model_dump(mode="json"))
    history = [report("stage_one", epoch) for epoch in (1 / 3, 2 / 3, 1, 4 / 3)]
    environment = {"made_of": {made_of(candidate.trial): {"data": "rows", "features": None}}}
    nobody = cast(Any, None)
    child = replace(candidate, name="c000.1", parent="c000")
    playing = Playing(run, sweep, Records([candidate, child], history), environment, None, nobody, nobody)
    told = json.loads(json.dumps(_of_tune(playing, "stage_one_run", {}, candidate)))
    assert told["worker"]["checkpoints"] == [f"{run.path}/state/checkpoints/c000"]
    of_parent = _of_tune(playing, "both_stages", {}, child)
    assert of_parent["worker"]["checkpoints"] == [f"{run.path}/state/checkpoints/{name}" for name in ("c000.1", "c000")]
    # The same floats after a journey, so that a report made again is known.
    assert {tuple(place) for place in told["heard"]} == {("stage_one", epoch) for epoch in (1 / 3, 2 / 3, 1, 4 / 3)}


def test_of_a_completed_candidate_the_checkpoint_it_is_judged_by_is_left(run: RunDirectory) -> None:
    history = [report("stage_one", 1, 0.9), report("stage_two", 2 / 3, 0.7), report("stage_two", 1, 0.6)]
    outcome = Outcome("c000", "completed", "all its epochs are done", 3.0)
    folder = folders(run, ("stage_two", 1 / 3), ("stage_two", 2 / 3), ("stage_two", 1))
    records = Records([CandidateRecord("c000", {}, {})], history, {"c000": outcome})
    _drop_spent_checkpoints(run, records, METRIC)
    assert [path.name for path in folder.iterdir()] == ["stage_two_epoch_000.667"]
