"""`tailsweep doctor` and `run` on a Ray of two nodes, the second of which is not as the first, and what they say.

    python doctor_on_two_nodes.py SWEEP.yaml FOLDER DASHBOARD_PORT

A process of its own, since the tests' own has a Ray already. Prints one JSON document: by situation, the exit status
and what was written to standard output and standard error.
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.preflight import doctor


def called(*arguments: object) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def add_second_node(cluster: Cluster, folder: Path) -> Any:
    """With another numpy, a cache of its own, and a GPU that is only declared."""
    # What importlib.metadata finds first is what it tells.
    (folder / "numpy-1.2.3.dist-info").mkdir(parents=True)
    (folder / "numpy-1.2.3.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 1.2.3\n")
    environment = {"PYTHONPATH": str(folder), "TAILSWEEP_CACHE": str(folder / "cache")}
    return cluster.add_node(num_cpus=1, num_gpus=1, env_vars=environment)


def situations(sweep: Path, folder: Path, cluster: Cluster) -> dict[str, dict[str, object]]:
    second = add_second_node(cluster, folder / "second")
    said = {
        "whole": called("doctor", sweep, "--json", "--storage", folder / "runs"),
        "not shared": called("doctor", "--json", "--storage", "mock://memory/runs"),
        "not shared, run": called("run", sweep, "--storage", "mock://memory/runs"),
    }
    # Its processes stop as they do on a machine that hangs: the node counts as alive, but begins no task.
    asked = doctor.run_on_nodes
    doctor.run_on_nodes = lambda *arguments: asked(*arguments, seconds=8.0)
    raylet = second.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        return said | {"silent": called("doctor", "--json", "--storage", folder / "runs")}
    finally:
        os.kill(raylet, signal.SIGCONT)


if __name__ == "__main__":
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[3])}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **dashboard})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        print("\n" + json.dumps(situations(Path(sys.argv[1]), Path(sys.argv[2]), cluster)), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
