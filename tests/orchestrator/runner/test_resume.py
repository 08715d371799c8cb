"""SIGTERM and kill -9 of a sweep's process in its middle, `tailsweep resume` after each: as if nothing had happened."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support.ending import still_running
from support.event_files import outcomes
from support.killing import num_reports
from support.processes import run, start, tailsweep
from support.wandb_files import read_runs
from tailsweep.trainables import report_keys

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray_sweeps"),
]  # a sweep, twice on a Ray of its own


@pytest.fixture(scope="module")
def resumed(
    finished: Path, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, ray_temp: str
) -> tuple[Path, dict[str, Any]]:
    """The run directory of the sweep that ``finished`` ran undisturbed, terminated in t000's stage one, resumed, killed
    and resumed; the outcomes at the kill.

    t000 is completed before the kill, t001 is in stage one then, t002 has not begun. The processes start a Ray of
    their own next to the one of these tests: several Rays on a host must not take each other for their own.

    Its epochs take milliseconds, so that a busy machine would come too late to stop it in one: they are reported a
    second apart, and it is halted while another process is refused because of it.
    """
    killed = tmp_path_factory.mktemp("runs") / "killed"
    surroundings = {"RAY_TMPDIR": ray_temp, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
    arguments = ("run", small_sweep(), "--storage", killed.parent, "--set", "name=killed")
    process = start(*tailsweep(*arguments), **surroundings)
    _wait_until(lambda: num_reports(killed) >= 1, process)
    process.terminate()
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 1, printed
    assert printed.rstrip().endswith(f"interrupted; to continue: tailsweep resume {killed}")
    assert num_reports(killed) < 4, "it continued for too long to tell"

    process = start(*tailsweep("resume", killed), **surroundings)
    try:
        _wait_until(lambda: num_reports(killed) >= 3, process)
        working = psutil.Process(process.pid).children()[0]  # behind the one that was started
        working.suspend()
        status, printed = run(*tailsweep("resume", killed))
        working.resume()
        assert (status, f"is being worked on by process {process.pid} on " in printed) == (2, True), printed
        _wait_until(lambda: num_reports(killed) >= 5, process)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    alive = still_running(family, 15)
    training = [process for process in alive if "Agent" not in process.name()]
    for process in alive:  # Ray's agents look for their raylet now and then only
        process.kill()
    assert not training, f"left over after kill -9: {training}"
    ended = outcomes(killed)
    assert set(ended) == {"t000"}
    status, printed = run(*tailsweep("resume", killed), RAY_TMPDIR=ray_temp)
    assert status == 0, printed
    assert "2 of 3 trials left" in printed
    return killed, ended


def test_a_finished_trial_stays_finished(resumed: tuple[Path, dict[str, Any]]):
    killed, ended = resumed
    assert {name: outcomes(killed)[name] for name in ended} == ended


def test_the_same_seed_gives_the_same_sweep_also_over_a_kill(finished: Path, resumed: tuple[Path, dict[str, Any]]):
    """With one trial at a time: the same epochs in the same order, values to 1e-6, states and reasons, rungs."""
    killed, _ = resumed
    expected, after = (pq.read_table(folder / "history.parquet").to_pylist() for folder in (finished, killed))
    assert len(after) == len(expected)
    for before, now in zip(expected, after, strict=True):
        for key in before.keys() - {report_keys.SECONDS}:
            value = before[key]
            assert now[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)
    ends = [
        [(row["trial"], row["state"], row["reason"]) for row in pq.read_table(folder / "trials.parquet").to_pylist()]
        for folder in (finished, killed)
    ]
    assert ends[0] == ends[1]


def test_wandb_has_every_step_of_the_resumed_trial_once(resumed: tuple[Path, dict[str, Any]]):
    killed, _ = resumed
    history = pq.read_table(killed / "history.parquet").to_pylist()
    logged = read_runs(killed / "wandb")
    for trial in ("t000", "t001", "t002"):
        reports = [row for row in history if row["trial"] == trial]
        run_of_trial = logged[f"killed-{trial}"]
        assert run_of_trial.steps == list(range(len(reports)))
        for row, report in zip(run_of_trial.history, reports, strict=True):
            for key in ("train/loss", "validation/macro_f1"):
                assert row[f"{report[report_keys.STAGE]}/{key}"] == report[key]


def _wait_until(reached: Callable[[], bool], process: object, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the sweep did not get far enough to be killed"
        time.sleep(0.05)
