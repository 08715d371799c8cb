"""Sweeps on a Ray that is there already: one that takes jobs, with token authentication, and one of two nodes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import run, start, tailsweep

pytestmark = pytest.mark.ray


@pytest.fixture
def head_with_token(ray_temp: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`ray start --head` with token authentication on; gives what a client's environment must hold."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    dashboard, gcs = _free_port(), _free_port()
    head = start(
        "ray", "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={ray_temp}/head", "--disable-usage-stats",
        **client,
    )  # fmt: skip
    try:
        _wait_for_port(dashboard, head)
        yield client | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=30)


def test_the_demo_runs_as_a_job(head_with_token: dict[str, str], tmp_path: Path):
    """The README's `ray job submit`, with fewer and shorter candidates, and refused without the token."""
    command = (
        "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "orchestrator", "run",
        "orchestrator/sweeps/demo.yaml", "--storage", tmp_path, "--set", "name=job", "--set", "num_candidates=1",
        "--set", "stage_one.epochs=1", "--set", "stage_two.epochs=0", "--set", "data.max_length=8",
    )  # fmt: skip
    status, printed = run(*command, **head_with_token)
    assert status == 0, printed
    assert "chosen by validation/macro_f1: c000" in printed
    metrics = json.loads((tmp_path / "job/best/metrics.json").read_text())
    assert metrics["labels"] == ["absorption", "distribution", "excretion", "metabolism", "other"]
    assert "token" in (tmp_path / "token").name
    wrong = {**head_with_token, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}
    status, printed = run("ray", "job", "list", **wrong)
    assert status != 0, printed


def test_two_workers_train_on_two_nodes_with_shared_storage(
    small_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each worker asks for a GPU and each node declares one, so that only both nodes together can run a candidate."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 1}
    temp = f"/tmp/tsc{os.getpid()}"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**node, "include_dashboard": True, "dashboard_host": "127.0.0.1", "temp_dir": temp},
    )
    try:
        cluster.add_node(**node)
        sweep = small_sweep(
            stage_one={"trains": "head", "learning_rate": 1e-2, "epochs": 1},
            stage_two={"learning_rate": 1e-3, "epochs": 1},
            search="random",
            resources={"stage_two": {"workers": 2, "gpus_per_worker": 1}},
        )
        status, printed = run(
            *tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=nodes", "--address", cluster.address),
            RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE", "token"),
        )
    finally:
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)
    assert status == 0, printed
    (row,) = pq.read_table(tmp_path / "nodes/results.parquet").to_pylist()
    assert (row["state"], row["stage_one_epochs"], row["stage_two_epochs"]) == ("completed", 1, 1)
    nodes = json.loads((tmp_path / "nodes/environment.json").read_text())["nodes"]
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(1, 1), (1, 1)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.2)
