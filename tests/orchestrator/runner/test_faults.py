"""Processes of a running sweep are killed; what it gives is what an undisturbed one gives.

(The sweep's own process: ``test_resume.py``; a node: ``test_clusters.py``.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.tune.execution.tune_controller import TuneController
from safetensors.torch import load_file
from support.ending import still_running
from support.killing import TRIAL, WORKER, kills, processes
from support.resources_freed import assert_freed
from support.sweep_without_ray import assert_same, without_ray
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables import report_keys

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray_phases")]

EPOCHS = 10


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """Completed, every epoch once, values and the kept epoch's parameters those of the trial without Ray.

    Args:
        undisturbed: a folder for the checkpoints of that.
    """
    (row,) = pq.read_table(run / "trials.parquet").to_pylist()
    assert (row["state"], row["reason"]) == ("completed", "all its epochs are done")
    history = pq.read_table(run / "history.parquet").to_pylist()
    assert [(row[report_keys.STAGE], row[report_keys.EPOCH]) for row in history] == [
        (stage, epoch) for stage in report_keys.STAGES for epoch in range(1, EPOCHS + 1)
    ]
    reports, _ = without_ray(run, "t000", undisturbed)
    assert_same(history, reports, 1e-6)
    (kept,) = (path for path in (run / "state/checkpoints/t000").iterdir() if path.name.startswith(report_keys.STAGES))
    actual, expected = (load_file(folder / "parameters.safetensors") for folder in (kept, undisturbed / kept.name))
    assert actual.keys() == expected.keys()
    assert max((actual[name] - expected[name]).abs().max() for name in expected) <= 1e-6


def test_workers_killed_in_stage_one_at_the_boundary_and_in_stage_two(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stage = {"learning_rate": 1e-3, "epochs": EPOCHS, "batch_size": 8}
    sweep = small_sweep(search="random", num_trials=1, asha=None, stage_one=stage, stage_two=stage, retries=3)
    run = tmp_path / "killed"
    plan = [(3, WORKER), (EPOCHS, WORKER), (EPOCHS + 4, WORKER)]
    with kills(run, plan) as killed:
        assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=killed"]) == 0
    assert_freed()
    assert len(killed) == len(plan)
    printed = capsys.readouterr().out
    for retry in (1, 2, 3):
        assert f"continues from its last checkpoint (retry {retry} of 3)" in printed
    assert_as_undisturbed(run, tmp_path / "undisturbed")


def test_trials_killed_in_both_rounds_of_a_two_phase(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The phase one's process, which trains; in the second, one that waits for its Train run, and a damaged
    checkpoint next to."""
    stage = {"learning_rate": 1e-3, "epochs": EPOCHS, "batch_size": 8}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, promote=1, retries=2,
        stage_one={**stage, "trainable": {"top_layers": 1}}, stage_two=stage,
    )  # fmt: skip
    run = tmp_path / "killed"
    plan = [(3, TRIAL), (EPOCHS + 3, TRIAL)]
    with kills(run, plan) as killed:
        assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=killed"]) == 0
    assert_freed()
    assert len(killed) == len(plan)
    assert capsys.readouterr().out.count("its process died (killed, or its node lost); continues") == len(plan)
    assert_as_undisturbed(run, tmp_path / "undisturbed")


def test_a_process_killed_as_it_is_handed_on_costs_no_trial(
    local_ray: None,
    small_sweep: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Tune gives up the trial that was to begin in it, in spite of its retries."""
    rates = [1e-3, 1e-4, 1e-5]
    sweep = small_sweep(
        asha=None, promote=1, retries=1,
        stage_one={"trainable": {"top_layers": 1}, "learning_rate": {"grid": rates}, "epochs": 2, "batch_size": 8},
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 8},
    )  # fmt: skip
    hand_on = TuneController._schedule_trial_reset
    handed_on: list[str] = []

    def kill_and_hand_on(self: TuneController, trial_config: Any, *arguments: Any) -> None:
        handed_on.append(trial_config.config["trial"]["name"])
        if len(handed_on) == 1:
            (process,) = processes(TRIAL)
            process.kill()
            assert still_running([process], 10) == []
        hand_on(self, trial_config, *arguments)

    monkeypatch.setattr(TuneController, "_schedule_trial_reset", kill_and_hand_on)
    assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=killed"]) == 0
    assert_freed()
    printed = capsys.readouterr().out
    unlucky = handed_on[0]
    assert printed.count("before it had begun; is started again") == 1, printed
    assert f"{unlucky}  its process died (killed, or its node lost) before it had begun" in printed
    rows = pq.read_table(tmp_path / "killed/trials.parquet").to_pylist()
    assert sorted(row["state"] for row in rows) == ["completed", "not_promoted", "not_promoted"]
    history = pq.read_table(tmp_path / "killed/history.parquet").to_pylist()
    ends = sorted((row["trial"], row[report_keys.EPOCH]) for row in history if row[report_keys.STAGE] == "stage_one")
    assert ends == [(f"t00{number}", epoch) for number in range(3) for epoch in (1, 2)]
