"""Which checkpoints a sweep keeps and which it continues from, where some were written within an epoch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tailsweep.orchestrator.config.sweep import load_sweep
from tailsweep.orchestrator.planning.environment import DataSummary, Environment
from tailsweep.orchestrator.planning.plan import plan_unprepared
from tailsweep.orchestrator.planning.preparation import TrialInputs
from tailsweep.orchestrator.runner.run_sweep import drop_spent_checkpoints
from tailsweep.orchestrator.runner.tune_run import Phase, TuneRunner
from tailsweep.orchestrator.runs.directory import CHECKPOINTS_FOLDER, RunDirectory
from tailsweep.orchestrator.runs.trials import Outcome, Records, TrialRecord, inputs_key
from tailsweep.trainables.distributed.settings import TuneTrialConfig
from tailsweep.trainables.distributed.tune_trainables import StageOneRuntime
from tailsweep.trainables.training.checkpoint import checkpoint_name

METRIC = "validation/macro_f1"


def report(stage: str, epoch: float, score: float = 0.5) -> dict[str, Any]:
    return {"trial": "t000", "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "small"))
    run.create()
    return run


def folders(run: RunDirectory, *places: tuple[str, float]) -> Path:
    """A trial's folder of checkpoints, with these in it."""
    folder = Path(run.path) / CHECKPOINTS_FOLDER / "t000"
    for stage, epoch in places:
        (folder / checkpoint_name(stage, epoch)).mkdir(parents=True)
    return folder


def test_phase_one_keeps_the_latest_checkpoint(run: RunDirectory, tmp_path: Path) -> None:
    kept = folders(run)
    epochs = (1 / 3, 2 / 3, 1, 4 / 3)
    runtime = StageOneRuntime(str(kept), {("stage_one", epoch) for epoch in epochs})  # recorded: not reported to Tune
    for epoch in epochs:
        name = checkpoint_name("stage_one", epoch)
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(epoch))
        runtime.report(report("stage_one", epoch), tmp_path / name)
        assert [path.name for path in kept.iterdir()] == [name]
        assert json.loads((kept / name / "progress.json").read_text()) == epoch


def test_the_config_of_a_trial_names_its_checkpoints_and_recorded_reports(run: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "{name: small, num_trials: 2, promote: 1, data: {train: rows.csv}, "
        "stage_one: {evaluations_per_epoch: 3, learning_rate: {loguniform: [1e-5, 1e-2]}}}"
    )
    sweep = load_sweep(path)
    trial = TrialRecord("t000", {}, sweep.trials()[0].config.model_dump(mode="json"))
    history = [report("stage_one", epoch) for epoch in (1 / 3, 2 / 3, 1, 4 / 3)]
    summary = DataSummary(labels=(), train_rows=(), notes=(), digest="digest")
    environment = Environment.model_construct(
        inputs={inputs_key(trial.config): TrialInputs("rows", None)}, data={"rows": summary}
    )
    no_callback = cast(Any, None)
    child = replace(trial, name="t000.1", parent="t000")
    records = Records([trial, child], history)
    runner = TuneRunner(run, plan_unprepared(sweep), environment, records, None, no_callback)
    config = json.loads(json.dumps(runner.tune_config(Phase.STAGE_ONE_RUN, {}, trial).dump()))
    assert config["worker"]["data"] == {"key": "rows", "published": f"{run.path}/state/data/rows", "digest": "digest"}
    assert config["worker"]["resume_from"] == [f"{run.path}/state/checkpoints/t000"]
    child_config = runner.tune_config(Phase.BOTH_STAGES, {}, child)
    assert child_config.worker.resume_from == tuple(
        f"{run.path}/state/checkpoints/{name}" for name in ("t000.1", "t000")
    )
    # The same floats after a round trip, so that a repeated report is recognized.
    assert TuneTrialConfig.model_validate(config).reported_places == {
        ("stage_one", epoch) for epoch in (1 / 3, 2 / 3, 1, 4 / 3)
    }


def test_of_a_completed_trial_the_checkpoint_it_is_judged_by_is_left(run: RunDirectory) -> None:
    history = [report("stage_one", 1, 0.9), report("stage_two", 2 / 3, 0.7), report("stage_two", 1, 0.6)]
    outcome = Outcome("t000", "completed", "all its epochs are done", 3.0)
    folder = folders(run, ("stage_two", 1 / 3), ("stage_two", 2 / 3), ("stage_two", 1))
    records = Records([TrialRecord("t000", {}, {})], history, {"t000": outcome})
    drop_spent_checkpoints(run, records, METRIC)
    assert [path.name for path in folder.iterdir()] == ["stage_two_epoch_000.667"]
