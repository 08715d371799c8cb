"""kill -9 of a sweep's process in the middle of it, then `tailsweep resume`: as if nothing had happened."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from processes import run, start, tailsweep
from wandb_files import read_runs

from trainables import keys

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]  # three sweeps, each on a Ray of its own


@pytest.fixture(scope="module")
def runs(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, ray_temp: str
) -> tuple[Path, Path, dict[str, bytes]]:
    """The run directories of an undisturbed sweep and of one killed and resumed, and the outcomes known at the kill.

    c000 is completed before the kill, c001 is in stage one then, c002 has not begun. Each sweep starts a Ray of its
    own beside the one of these tests: several Rays on a host must not take each other for their own.
    """
    storage = tmp_path_factory.mktemp("runs")
    swept = {"trains": "all", "learning_rate": {"grid": [3e-3, 5e-3, 1e-7]}, "epochs": 2, "batch_size": 4}
    sweep = small_sweep(stage_one=swept)
    status, printed = run(
        *tailsweep("run", sweep, "--storage", storage, "--set", "name=undisturbed"), RAY_TMPDIR=ray_temp
    )
    assert status == 0, printed
    killed = storage / "killed"
    process = start(*tailsweep("run", sweep, "--storage", storage, "--set", "name=killed"), RAY_TMPDIR=ray_temp)
    try:
        _wait_until(lambda: len(list((killed / "state/history").glob("*.json"))) >= 5, process)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    training = [process for process in alive if "Agent" not in process.name()]
    for process in alive:  # Ray's agents look for their raylet now and then only
        process.kill()
    assert not training, f"left over after kill -9: {training}"
    outcomes = {path.name: path.read_bytes() for path in (killed / "state/outcomes").iterdir()}
    assert set(outcomes) == {"c000.json"}
    assert not (killed / "results.parquet").exists()
    status, printed = run(*tailsweep("resume", killed), RAY_TMPDIR=ray_temp)
    assert status == 0, printed
    assert "2 of 3 candidates left" in printed
    return storage / "undisturbed", killed, outcomes


def test_a_finished_candidate_stays_finished(runs: tuple[Path, Path, dict[str, bytes]]):
    _, killed, outcomes = runs
    assert {name: (killed / "state/outcomes" / name).read_bytes() for name in outcomes} == outcomes


def test_the_rungs_are_as_they_were_and_no_epoch_is_lost_or_doubled(runs: tuple[Path, Path, dict[str, bytes]]):
    undisturbed, killed, _ = runs
    expected, resumed = (pq.read_table(folder / "history.parquet").to_pylist() for folder in (undisturbed, killed))
    states = {row["candidate"]: row["state"] for row in pq.read_table(killed / "results.parquet").to_pylist()}
    assert states == {"c000": "completed", "c001": "pruned", "c002": "pruned"}
    assert len(resumed) == len(expected)
    for before, after in zip(expected, resumed, strict=True):
        for key in before.keys() - {keys.SECONDS}:
            assert after[key] == (
                pytest.approx(before[key], abs=1e-6) if isinstance(before[key], float) else before[key]
            )
    assert [row["reason"] for row in pq.read_table(killed / "results.parquet").to_pylist()] == [
        row["reason"] for row in pq.read_table(undisturbed / "results.parquet").to_pylist()
    ]


def test_wandb_has_every_step_of_the_resumed_candidate_once(runs: tuple[Path, Path, dict[str, bytes]]):
    _, killed, _ = runs
    history = pq.read_table(killed / "history.parquet").to_pylist()
    logged = read_runs(killed / "wandb")
    for candidate in ("c000", "c001", "c002"):
        reports = [row for row in history if row["candidate"] == candidate]
        run_of_candidate = logged[f"killed-{candidate}"]
        assert run_of_candidate.steps == list(range(len(reports)))
        for row, report in zip(run_of_candidate.history, reports, strict=True):
            for key in ("train/loss", "validation/macro_f1"):
                assert row[f"{report[keys.STAGE]}/{key}"] == report[key]


def _wait_until(reached: Callable[[], bool], process: object, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the sweep did not get far enough to be killed"
        time.sleep(0.05)
