"""Sweeps on a Ray that is there already: one that takes jobs, with token authentication, and one of two nodes."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from processes import run, start, tailsweep
from without_ray import assert_same, without_ray

pytestmark = pytest.mark.ray


@pytest.fixture
def head_with_token(ray_temp: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`ray start --head` with token authentication on; gives what a client's environment must hold."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    dashboard, gcs, agent = _free_port(), _free_port(), _free_port()
    head = start(
        "ray", "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=2", f"--temp-dir={ray_temp}/head", "--disable-usage-stats",
        **client,
    )  # fmt: skip
    try:
        _wait_for_port(dashboard, head)
        yield client | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        _kill_family(head)


def test_the_demo_runs_as_a_job(head_with_token: dict[str, str], tmp_path: Path):
    """The README's `ray job submit`, with fewer and shorter candidates, and refused without the token."""
    command = (
        "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator", "run",
        "orchestrator/sweeps/demo.yaml", "--storage", tmp_path, "--set", "name=job", "--set", "num_candidates=1",
        "--set", "stage_one.epochs=1", "--set", "stage_two.epochs=0", "--set", "data.max_length=8",
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while "No available agent" in (job := run(*command, **head_with_token))[1]:  # the head is still starting
        assert time.monotonic() < deadline, job[1]
    status, printed = job
    assert status == 0, printed
    assert "chosen by validation/macro_f1: c000" in printed
    metrics = json.loads((tmp_path / "job/best/metrics.json").read_text())
    assert metrics["labels"] == ["absorption", "distribution", "excretion", "metabolism", "other"]
    wrong = {**head_with_token, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}
    status, printed = run("ray", "job", "list", **wrong)
    assert status != 0, printed


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of two nodes, each with one CPU and one declared GPU; gives what a client's environment must hold."""
    # Nodes and clients must agree on the token, and a process settles for itself at its first look whether it has one.
    (tmp_path / "token").write_text("fedcba9876543210" * 4)
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    cluster = start(sys.executable, Path(__file__).with_name("two_nodes.py"), _free_port(), **client)
    try:
        printed = []
        while not (printed and printed[-1].startswith("address ")):
            printed.append(cluster.stdout.readline())
            assert printed[-1], "".join(printed)
        yield client | {"RAY_ADDRESS": printed[-1].split()[1]}
    finally:
        _kill_family(cluster)


def test_two_workers_on_two_nodes_with_shared_storage_give_what_one_gives_without_ray(
    two_nodes: dict[str, str], small_sweep: Callable[..., Path], tmp_path: Path
):
    """Each worker asks for a GPU and each node declares one, so that only both nodes together can run a candidate."""
    sweep = small_sweep(
        stage_one={"trains": "head", "learning_rate": 1e-2, "epochs": 1},
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 32},
        search="random",
        asha=None,
        resources={"stage_two": {"workers": 2, "gpus_per_worker": 1}},
    )
    status, printed = run(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=nodes"), **two_nodes)
    assert status == 0, printed
    (row,) = pq.read_table(tmp_path / "nodes/results.parquet").to_pylist()
    assert (row["state"], row["stage_one_epochs"], row["stage_two_epochs"]) == ("completed", 1, 1)
    nodes = json.loads((tmp_path / "nodes/environment.json").read_text())["nodes"]
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(1, 1), (1, 1)]
    # Without dropout, the workers' gradients are the shares of one's, and their metrics sums over both.
    history = pq.read_table(tmp_path / "nodes/history.parquet").to_pylist()
    assert_same(history, without_ray(tmp_path / "nodes", "c000")[0], 1e-4)


def _kill_family(process: subprocess.Popen[str]) -> None:
    family = [parent := psutil.Process(process.pid), *parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with its parent
            member.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=30)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)
