"""Sweeps on a Ray of two nodes that is there already."""

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from support.killing import TRIAL, WORKER, num_reports, processes, wait_until
from support.processes import free_port, kill_family, run, start, tailsweep
from support.sweep_without_ray import assert_same, without_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("clusters")]


@pytest.fixture
def two_nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A cluster of two nodes, each with two CPUs and one declared GPU; gives what a client's environment must hold.

    Their caches are ``caches/node0`` and ``caches/node1`` in ``tmp_path``. With parameter 0, as many GPUs as the head
    has then, there are two such nodes next to it.
    """
    # Nodes and clients must agree on the token, and a process settles for itself at its first look whether it has one.
    (tmp_path / "token").write_text("fedcba9876543210" * 4)
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    program = Path(__file__).resolve().parents[2] / "support" / "two_nodes.py"
    gpus_of_head = getattr(request, "param", 1)
    cluster = start(sys.executable, program, free_port(), tmp_path / "caches", gpus_of_head, **client)
    try:
        printed = []
        while not (printed and printed[-1].startswith("address ")):
            printed.append(cluster.stdout.readline())
            assert printed[-1], "".join(printed)
        yield client | {"RAY_ADDRESS": printed[-1].split()[1]}
    finally:
        kill_family(cluster)


def test_two_workers_on_two_nodes_with_shared_storage_give_what_one_gives_without_ray(
    two_nodes: dict[str, str], small_sweep: Callable[..., Path], tmp_path: Path
):
    """Each worker asks for a GPU and each node declares one, so that only both nodes together can run a trial."""
    sweep = small_sweep(
        stage_one={"trainable": "head", "learning_rate": 1e-2, "epochs": 1},
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 32},
        search="random",
        asha=None,
        resources={"stage_two": {"workers": 2, "gpus_per_worker": 1}},
    )
    status, printed = run(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=nodes"), **two_nodes)
    assert status == 0, printed
    (row,) = pq.read_table(tmp_path / "nodes/trials.parquet").to_pylist()
    assert (row["state"], row["stage_one_epochs"], row["stage_two_epochs"]) == ("completed", 1, 1)
    nodes = json.loads((tmp_path / "nodes/environment.json").read_text())["nodes"]
    assert [(node["CPU"], node["GPU"]) for node in nodes] == [(2, 1), (2, 1)]
    # Without dropout, the workers' gradients are the shares of one's, and their metrics sums over both.
    history = pq.read_table(tmp_path / "nodes/history.parquet").to_pylist()
    assert_same(history, without_ray(tmp_path / "nodes", "t000")[0], 1e-4)


def test_a_two_phase_packs_stage_one_on_shares_of_gpus_and_spreads_stage_two_over_nodes(
    two_nodes: dict[str, str], small_sweep: Callable[..., Path], tmp_path: Path
):
    """A node's GPU holds two trials of phase one; the promoted one trains on both. One node makes features."""
    sweep = small_sweep(
        promote=1, asha=None, max_concurrent=4,
        stage_one={"trainable": "head", "learning_rate": {"grid": [1e-2, 3e-3, 1e-3, 1e-4]}, "epochs": 20},
        stage_two={"learning_rate": 1e-3, "epochs": 1, "batch_size": 32},
        resources={
            "stage_one": {"gpus_per_worker": 0.5},
            "stage_two": {"workers": 2, "gpus_per_worker": 1},
        },
    )  # fmt: skip
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=packed"), **two_nodes)
    at_once = 0  # processes of trials; each holds its share of a GPU while it lives
    while process.poll() is None:
        raylets = _raylets(two_nodes["RAY_ADDRESS"], heads=True)
        at_once = max(at_once, sum(len(processes(TRIAL, raylet.pid)) for raylet in raylets))
        time.sleep(0.2)
    printed = process.stdout.read()
    assert process.returncode == 0, printed
    rows = {row["trial"]: row for row in pq.read_table(tmp_path / "packed/trials.parquet").to_pylist()}
    (promoted,) = (name for name, row in rows.items() if row["state"] == "completed")
    assert sorted(row["state"] for row in rows.values()) == ["completed", *["not_promoted"] * 3]
    assert at_once == 4, printed  # a node holds two
    computed, copied = ({path.name for path in (tmp_path / f"caches/node{n}/features").iterdir()} for n in (0, 1))
    assert computed == copied
    assert printed.count("making features") == 1
    history = pq.read_table(tmp_path / "packed/history.parquet").to_pylist()
    promoted_history = [row for row in history if row["trial"] == promoted]
    assert_same(promoted_history, without_ray(tmp_path / "packed", promoted)[0], 1e-4)


@pytest.mark.parametrize("lost", ["removed", pytest.param("killed", marks=pytest.mark.soak)])
def test_a_run_that_loses_a_node_resumes_fewer_workers_and_the_same_batches(
    two_nodes: dict[str, str], small_sweep: Callable[..., Path], tmp_path: Path, lost: str
):
    """The second node is removed as Ray's ``Cluster`` does it, or its raylet is killed; its worker goes with it."""
    stage = {"learning_rate": 1e-3, "epochs": 10, "batch_size": 8}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, stage_one=stage, stage_two=stage,
        resources={"stage_two": {"workers": 2, "min_workers": 1, "gpus_per_worker": 1}},
    )  # fmt: skip
    folder = tmp_path / "elastic"
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=elastic"), **two_nodes)
    try:
        wait_until(lambda: num_reports(folder) >= 3)
        (raylet,) = _raylets(two_nodes["RAY_ADDRESS"])
        workers = processes(WORKER, raylet.pid)
        assert len(workers) == 1
        if lost == "killed":
            raylet.kill()
        else:
            raylet.parent().send_signal(signal.SIGUSR1)
        printed, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, printed
    (row,) = pq.read_table(folder / "trials.parquet").to_pylist()
    assert row["state"] == "completed", printed
    history = pq.read_table(folder / "history.parquet").to_pylist()
    assert len(history) == 2 * 10
    assert_same(history, without_ray(folder, "t000")[0], 1e-4)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("two_nodes", [0], indirect=True)
def test_a_node_that_is_taken_back_with_notice_costs_no_retry(
    two_nodes: dict[str, str], small_sweep: Callable[..., Path], tmp_path: Path
):
    """The node that trains is drained as a cloud drains one, and a little later gone; no retry is allowed."""
    stage = {"learning_rate": 1e-3, "epochs": 15, "batch_size": 8}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, retries=0, stage_one=stage, stage_two={**stage, "epochs": 150},
        resources={"stage_two": {"gpus_per_worker": 1}},
    )  # fmt: skip
    folder = tmp_path / "drained"
    process = start(*tailsweep("run", sweep, "--storage", tmp_path, "--set", "name=drained"), **two_nodes)
    try:
        wait_until(lambda: num_reports(folder) >= 3)
        (raylet,) = [raylet for raylet in _raylets(two_nodes["RAY_ADDRESS"]) if processes(WORKER, raylet.pid)]
        (node,) = [argument.split("=", 1)[1] for argument in raylet.cmdline() if argument.startswith("--node_id=")]
        status, printed = run(
            "ray", "drain-node", "--address", two_nodes["RAY_ADDRESS"], "--node-id", node,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "5",
            **two_nodes,
        )  # fmt: skip
        assert status == 0, printed
        with contextlib.suppress(psutil.TimeoutExpired):
            raylet.wait(5)  # it may leave by itself
        if raylet.is_running():
            raylet.kill()
        printed, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, printed
    assert "continues elsewhere" in printed, printed
    (row,) = pq.read_table(folder / "trials.parquet").to_pylist()
    assert row["state"] == "completed", printed
    history = pq.read_table(folder / "history.parquet").to_pylist()
    assert len(history) == 15 + 150
    assert_same(history, without_ray(folder, "t000")[0], 1e-6)


def _raylets(address: str, heads: bool = False) -> list[psutil.Process]:
    """Of the nodes of the Ray there, and of its head only if asked for."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "raylet" in (process.info["cmdline"] or [""])[0]
        and address in " ".join(process.info["cmdline"])
        and (heads or "--head" not in process.info["cmdline"])
    ]
