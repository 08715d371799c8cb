"""The rendered scripts with Ray itself: an interrupted Slurm job that continues, and a local multi-node cluster."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.cluster_definitions import ROOT, SPOT, definition
from support.ending import still_running
from support.event_files import reports
from support.fake_slurm import Job, free_job_id
from tailsweep.clusters.render import local, slurm

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]  # several Rays start, one after another

CPU = {"name": "cpu", "nodes": 2, "cpus": 1, "memory_gb": 4}


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_until(condition: Callable[[], object], seconds: float, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "too late"
        time.sleep(0.2)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they have ended, within a few seconds of each other."""
    return still_running(processes, 30) == []


@pytest.fixture
def ended_at_last() -> Iterator[Callable[[subprocess.Popen[str]], subprocess.Popen[str]]]:
    """Ends what a test that fails leaves running."""
    started: list[subprocess.Popen[str]] = []

    def remember(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        started.append(process)
        return process

    yield remember
    for process in started:
        if process.poll() is None:
            for member in [*family(process), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def test_a_slurm_job_that_meets_its_time_limit_continues_when_it_is_queued_again(
    tmp_path: Path, rows_csv: Path, tiny_model: Callable[..., Path], ended_at_last: Callable[..., subprocess.Popen[str]]
):
    """A small sweep over two "nodes": the job gets the signal before its time limit and is queued again."""
    sweep = f"""
name: small
data: {{train: {rows_csv}, validation: 0.2, test: 0.2, max_length: 32}}
model: {{name: {tiny_model("bert")}}}
num_trials: 2
asha: null
stage_one: {{trainable: {{top_layers: 1}}, learning_rate: 1e-3, epochs: 2, batch_size: 16}}
stage_two: {{learning_rate: {{choice: [1e-4, 1e-3]}}, epochs: 2, batch_size: 16}}
wandb: {{mode: disabled}}
"""
    runs = tmp_path / "runs"
    described = definition(groups=[CPU], storage={"path": str(runs)}, time_limit_hours=1)
    script = slurm.sbatch_script(described, "small.yaml", ["--storage", str(runs), "--set", "name=small"])
    here = Job(tmp_path / "job", script, free_job_id(), real_ray=True)
    (here.folder / "small.yaml").write_text(sweep)
    environment = {name: os.environ[name] for name in ("TAILSWEEP_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")}
    environment["PYTHONPATH"] = str(ROOT)

    job = ended_at_last(here.start(**environment))
    wait_until(lambda: bool(reports(runs / "small")), 240, job)
    started = family(job)
    assert sum("raylet" in process.name() for process in started) == 2
    job.send_signal(signal.SIGUSR1)
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 1, output + errors
    assert f"to continue: tailsweep resume {runs}/small" in output
    assert here.calls[-1] == f"scontrol requeue {here.job_id}"
    assert gone(started)
    assert here.left_behind == []
    assert not (runs / "small/best").exists()

    again = ended_at_last(here.start(**environment))
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, output + errors
    assert "of 2 trials left" in output
    states = pq.read_table(runs / "small/trials.parquet").column("state").to_pylist()
    assert states == ["completed", "completed"]
    history = pq.read_table(runs / "small/history.parquet").to_pylist()
    places = [(row["trial"], row["stage"], row["epoch"]) for row in history]
    assert len(places) == len(set(places)) == 8
    assert here.left_behind == []


WHERE_DRIVERS_GO = """
import ray
from tailsweep.clusters.definition import DRIVER_RESOURCE
from tailsweep.orchestrator.planning.resources import driver_bundle, driver_slots, trial_slots
from tailsweep.trainables.distributed.settings import Placement

ray.init(log_to_driver=False)

@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
def address():
    import time
    time.sleep(0.2)
    return ray.util.get_node_ip_address()

bundle = driver_bundle()
assert bundle == {"memory": 1, DRIVER_RESOURCE: 1}, bundle
ask = address.options(memory=1, resources={DRIVER_RESOURCE: 1})
print("drivers", *sorted(set(ray.get([ask.remote() for _ in range(8)]))))
asked = Placement(workers=1, min_workers=1, cpus_per_worker=1, gpus_per_worker=1)
print("slots", driver_slots(), trial_slots(asked))
print("nodes", *sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
"""


def test_drivers_stay_off_spot_nodes_and_the_raylets_end_with_their_script(
    tmp_path: Path, ended_at_last: Callable[..., subprocess.Popen[str]]
):
    """The local script without a sweep, as a cluster of a head, a plain node and two spot ones."""
    spot = SPOT | {"nodes": 2, "cpus": 1, "memory_gb": 4}
    described = definition(
        head={"cpus": 1, "memory_gb": 6}, groups=[CPU | {"nodes": 1, "memory_gb": 5}, spot], storage={"path": "/tmp"}
    )
    (tmp_path / "local.sh").write_text(local.local_script(described, None, []))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)
    command = ["bash", tmp_path / "local.sh"]
    cluster = subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    ended_at_last(cluster)
    started: list[psutil.Process] = []
    try:
        assert cluster.stdout is not None
        lines = [cluster.stdout.readline() for _ in range(3)]
        started = family(cluster)
        match = re.match(r"Ray on 4 raylets at (127\.0\.0\.2:\d+);", lines[0])
        assert match, lines
        address = match[1]
        token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", lines[1])[1]
        assert oct(Path(token).stat().st_mode & 0o777) == "0o600"
        asked = subprocess.run(
            [sys.executable, "-c", WHERE_DRIVERS_GO],
            env=environment | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token},
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert asked.stdout.splitlines() == [
            "drivers 127.0.0.2 127.0.0.3",
            "slots 3.0 2",
            "nodes 127.0.0.2 127.0.0.3 127.0.0.4 127.0.0.5",
        ], asked.stderr
    finally:
        cluster.terminate()
        cluster.wait(timeout=60)
    assert gone(started)
    assert not Path(token).parent.exists()
