"""Every way in which a sweep can end: signals to the process and to its group, and kills of what it runs on."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.ending import still_running
from support.killing import num_reports, wait_until
from support.processes import start, tailsweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("endings")]

ENDS_WITHIN_S, GONE_WITHIN_S = 15, 10
CALIBRATION = 20_000_000  # iterations of an empty loop: 1 s on the machine that the limits are meant for
Ending = Callable[["subprocess.Popen[str]"], None]


@pytest.fixture
def sweep(small_sweep: Callable[..., Path]) -> Path:
    """A trial of many epochs."""
    return small_sweep(
        search="random",
        num_trials=2,
        asha=None,
        stage_one={"trainable": "head", "learning_rate": 1e-3, "epochs": 1},
        stage_two={"learning_rate": 1e-4, "epochs": 500},
        wandb={"mode": "offline"},
    )


def slowness() -> float:
    """How many times slower than it is meant for this machine is just now, at least 1."""
    began = time.process_time()
    for _ in range(CALIBRATION):
        pass
    return max(1.0, time.process_time() - began)


def to_process(number: signal.Signals) -> Ending:
    return lambda process: process.send_signal(number)


def to_group(number: signal.Signals) -> Ending:
    return lambda process: os.killpg(process.pid, number)


def kill(name: str) -> Ending:
    def kill_it(process: "subprocess.Popen[str]") -> None:
        family = psutil.Process(process.pid).children(recursive=True)
        matches = [member for member in family if name in " ".join(member.cmdline()[:4])]
        assert matches, [member.cmdline()[:4] for member in family]
        matches[0].kill()

    return kill_it


ENDINGS: dict[str, Ending] = {
    **{
        f"{number.name} to the process": to_process(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    },
    **{f"{number.name} to the group": to_group(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)},
    "kill -9 of the GCS": kill("gcs_server"),
    "kill -9 of the raylet": kill("raylet/raylet"),
    "kill -9 of the dashboard": kill("dashboard.py"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ends_in_order_and_says_how_to_resume(sweep: Path, tmp_path: Path, ray_temp: str, ending: str) -> None:
    run = tmp_path / "ended"
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=ended"), RAY_TMPDIR=ray_temp)
    try:
        wait_until(lambda: process.poll() is not None or num_reports(run) >= 3)
        assert process.poll() is None, process.stdout.read()
        family = psutil.Process(process.pid).children(recursive=True)
        times = slowness()
        ENDINGS[ending](process)
        printed, _ = process.communicate(timeout=ENDS_WITHIN_S * times)
    finally:
        process.kill()
    assert process.returncode == 1, printed
    assert printed.splitlines()[0] == f"run directory {run}; if it is interrupted: tailsweep resume {run}"
    assert printed.rstrip().endswith(f"to continue: tailsweep resume {run}"), printed
    assert "Traceback" not in printed
    assert "rank  trial" in printed
    assert not still_running(family, GONE_WITHIN_S)
    rows = pq.read_table(run / "history.parquet").to_pylist()
    assert len(rows) == num_reports(run) >= 3


def test_a_kill_of_wandbs_process_costs_the_log_and_not_the_sweep(
    small_sweep: Callable[..., Path], tmp_path: Path, ray_temp: str
) -> None:
    stage = {"learning_rate": 1e-3, "epochs": 3}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, stage_one={**stage, "trainable": "head"}, stage_two=stage
    )
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=ended"), RAY_TMPDIR=ray_temp)
    wait_until(lambda: process.poll() is not None or num_reports(tmp_path / "ended") >= 1)
    kill("wandb-core")(process)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert (tmp_path / "ended/best/model.safetensors").exists()


def test_kill_9_of_the_process_in_front_leaves_nothing_behind(sweep: Path, tmp_path: Path, ray_temp: str) -> None:
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=ended"), RAY_TMPDIR=ray_temp)
    wait_until(lambda: process.poll() is not None or num_reports(tmp_path / "ended") >= 1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    alive = still_running(family, GONE_WITHIN_S)
    assert not [survivor for survivor in alive if "Agent" not in survivor.name()]
