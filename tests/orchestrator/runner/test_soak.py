"""Half an hour of bad luck: a two_phase's phase one of 300 trials, its processes killed every few seconds."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil
import pyarrow.parquet as pq
import pytest
from support.ending import still_running
from support.event_files import outcomes
from support.killing import TRIAL, num_reports, processes, wait_until
from support.processes import start, tailsweep
from support.resources_freed import assert_freed
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables import report_keys

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

TRIALS = 300
METRIC = "validation/macro_f1"


@pytest.fixture
def sweep_of(small_sweep: Callable[..., Path]) -> Callable[..., Path]:
    def write(**fields: object) -> Path:
        return small_sweep(
            search="random",
            num_trials=TRIALS,
            promote=1,
            retries=1000,
            max_concurrent=2,
            stage_one={
                "trainable": {"top_layers": 1},
                "learning_rate": {"loguniform": [1e-6, 1e-1]},
                "epochs": 4,
                "batch_size": 8,
            },
            stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 8},
            wandb={"mode": "disabled"},
            **fields,
        )

    return write


def disturbed(sweep: Path, run: Path, ray_temp: str) -> Counter[str]:
    """The sweep to its end, under kills of its trials' processes and of itself; how many of each."""
    luck = random.Random(0)
    deaths: Counter[str] = Counter()
    command = tailsweep("run", sweep, "--storage", run.parent, "--set", f"name={run.name}")
    while True:
        process = start(*command, RAY_TMPDIR=ray_temp)
        while process.poll() is None:
            time.sleep(luck.uniform(2, 6))
            if luck.random() < 0.05 and (run / "state/events").exists():
                family = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGKILL)
                still_running(family, 20)
                deaths["sweep"] += 1
                break
            if len(outcomes(run)) == TRIALS - 1 and luck.random() < 0.7:
                continue  # the promoted one's Ray Train run takes longer to start than luck would leave it
            with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                if alive := processes(TRIAL, process.pid):
                    luck.choice(alive).kill()
                    deaths["trial"] += 1
        printed, _ = process.communicate()
        if process.returncode == 0:
            return deaths
        assert process.returncode == -signal.SIGKILL, printed
        command = tailsweep("resume", run)


def values(run: Path) -> dict[tuple[str, str, float], float]:
    history = pq.read_table(run / "history.parquet").to_pylist()
    scores = {(row["trial"], row[report_keys.STAGE], row[report_keys.EPOCH]): row[METRIC] for row in history}
    assert len(scores) == len(history), "a report is there twice"
    return scores


def test_without_pruning_every_value_is_that_of_an_undisturbed_sweep(
    sweep_of: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    sweep = sweep_of(asha=None)
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=calm"), RAY_TMPDIR=ray_temp)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    deaths = disturbed(sweep, tmp_path / "storm", ray_temp)
    calm, storm = values(tmp_path / "calm"), values(tmp_path / "storm")
    assert calm.keys() == storm.keys()
    assert len(calm) == 4 * TRIALS + 1
    assert max(abs(calm[place] - storm[place]) for place in calm) <= 1e-6
    assert deaths["trial"] >= 5, deaths
    print(f"{len(calm)} values equal after {dict(deaths)} kills")
    shutil.rmtree(tmp_path / "calm")


def test_with_pruning_every_trial_ends_in_exactly_one_state(
    sweep_of: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    deaths = disturbed(sweep_of(asha={"grace_epochs": 1, "reduction_factor": 3}), tmp_path / "storm", ray_temp)
    rows = pq.read_table(tmp_path / "storm/trials.parquet").to_pylist()
    assert sorted(row["trial"] for row in rows) == [f"t{number:03d}" for number in range(TRIALS)]
    states = Counter(row["state"] for row in rows)
    assert set(states) == {"pruned", "not_promoted", "completed"}
    assert states["completed"] == 1
    reports = Counter(place[0] for place in values(tmp_path / "storm"))
    for row in rows:
        assert reports[row["trial"]] == row["stage_one_epochs"] + row["stage_two_epochs"]
    print(f"{dict(states)} after {dict(deaths)} kills")


def test_a_two_phase_killed_in_both_rounds_and_between_them_is_the_undisturbed_one(
    small_sweep: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    """One trial at a time, so that every decision of ASHA depends on those before."""
    sweep = small_sweep(
        search="random", num_trials=6, promote=2, asha={"grace_epochs": 1, "reduction_factor": 2},
        stage_one={
            "trainable": {"top_layers": 1}, "learning_rate": {"loguniform": [1e-4, 1e-1]}, "epochs": 4, "batch_size": 8,
        },
        stage_two={"learning_rate": 1e-3, "epochs": 4, "batch_size": 8},
    )  # fmt: skip
    calm, storm = tmp_path / "calm", tmp_path / "storm"
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=calm"), RAY_TMPDIR=ray_temp)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    in_phase_one = len([row for row in values(calm) if row[1] == report_keys.STAGE_ONE])
    moments = [
        lambda: num_reports(storm) >= in_phase_one // 2,
        lambda: any(outcome["state"] == "not_promoted" for outcome in outcomes(storm).values()),
        lambda: num_reports(storm) >= in_phase_one + 2,
        lambda: num_reports(storm) >= in_phase_one + 6,
    ]
    command = tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=storm")
    for moment in moments:
        process = start(*command, RAY_TMPDIR=ray_temp)
        wait_until(moment)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        still_running(family, 20)
        command = tailsweep("resume", storm)
    process = start(*command, RAY_TMPDIR=ray_temp)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert values(storm) == pytest.approx(values(calm), abs=1e-6)
    ends = [
        [(row["trial"], row["state"], row["reason"]) for row in pq.read_table(run / "trials.parquet").to_pylist()]
        for run in (calm, storm)
    ]
    assert ends[0] == ends[1]
    assert {state for _, state, _ in ends[0]} == {"pruned", "not_promoted", "completed"}


def test_ctrl_c_twice_stops_at_once_and_the_sweep_can_be_resumed(
    small_sweep: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    """As a terminal sends it: to every process of the group."""
    sweep = small_sweep(stage_two={"learning_rate": 3e-3, "epochs": 8, "batch_size": 4})
    settings = ("run", sweep, "--storage", tmp_path, "--set")
    process = start(*tailsweep(*settings, "name=calm"), RAY_TMPDIR=ray_temp)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    run = tmp_path / "twice"
    process = start(*tailsweep(*settings, "name=twice"), RAY_TMPDIR=ray_temp)
    wait_until(lambda: num_reports(run) >= 3)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    printed, _ = process.communicate(timeout=60)
    print(f"ended {time.monotonic() - began:.1f} s after the second Ctrl-C")
    assert process.returncode == 1, printed
    assert f"tailsweep resume {run}" in printed
    assert "Traceback" not in printed, printed
    assert not [process for process in still_running(family, 20) if "ray::" in " ".join(process.cmdline())]
    process = start(*tailsweep("resume", run), RAY_TMPDIR=ray_temp)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert values(run) == pytest.approx(values(tmp_path / "calm"), abs=1e-6)


def test_fifty_pruned_in_a_row_and_a_second_sweep_leave_nothing_on_ray(
    local_ray: None, small_sweep: Callable[..., Path], tmp_path: Path
):
    """In single-phase mode, so that each of them is a Train run that is stopped."""
    rates = [3e-3] + [1e-7 * (50 - number) for number in range(50)]  # each of the fifty worse than the one before
    sweep = small_sweep(
        asha={"grace_epochs": 1, "reduction_factor": 50},
        stage_one={"trainable": "all", "learning_rate": {"grid": rates}, "epochs": 2, "batch_size": 4},
        stage_two={"learning_rate": 3e-3, "epochs": 1, "batch_size": 4},
        max_concurrent=3,
    )
    assert main(["run", str(sweep), "--storage", str(tmp_path), "--set", "name=many"]) == 0
    assert_freed()
    states = Counter(row["state"] for row in pq.read_table(tmp_path / "many/trials.parquet").to_pylist())
    assert states["pruned"] >= 45, states
    arguments = ["--storage", str(tmp_path), "--set", "name=second", "--set", "stage_one.learning_rate=1e-3"]
    assert main(["run", str(sweep), *arguments]) == 0
    assert_freed()


MANY = 10_000
DESCRIPTORS = 512


@pytest.mark.timeout(4 * 3600)
def test_many_light_trials_under_a_low_limit_of_descriptors(
    small_sweep: Callable[..., Path], tmp_path: Path, ray_temp: str
):
    """Ray's processes have the limit, too: the shell sets it for all that it starts."""
    sweep = small_sweep(
        search="random", num_trials=MANY, promote=1, asha=None, max_concurrent=2,
        stage_one={
            "trainable": "head", "learning_rate": {"loguniform": [1e-5, 1e-1]}, "epochs": 1, "batch_size": 64,
        },
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 8},
    )  # fmt: skip
    run, began = tmp_path / "many", time.monotonic()
    process = start(
        "bash", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "bash",
        *tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=many"), RAY_TMPDIR=ray_temp,
    )  # fmt: skip
    most_open = 0
    with (tmp_path / "printed").open("w") as printed:
        Thread(target=shutil.copyfileobj, args=(process.stdout, printed), daemon=True).start()
        while process.poll() is None:
            time.sleep(5)
            for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children()]:
                with suppress(psutil.Error):
                    most_open = max(most_open, child.num_fds())
    assert process.returncode == 0, (tmp_path / "printed").read_text()[-5000:]
    states = Counter(row["state"] for row in pq.read_table(run / "trials.parquet").to_pylist())
    assert states == {"not_promoted": MANY - 1, "completed": 1}
    files = sum(path.is_file() for path in run.rglob("*"))
    assert files < 2 * MANY, files
    assert most_open < DESCRIPTORS
    seconds = time.monotonic() - began
    print(f"{MANY} trials in {seconds:.0f} s, {files} files, at most {most_open} descriptors of the driver")
