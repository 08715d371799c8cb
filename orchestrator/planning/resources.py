"""What one trial asks for, and how many trials a cluster can run at once."""

import math
import os

import ray
from tailsweep.clusters.capacity import grown_nodes, workers_on
from tailsweep.clusters.definition import DRIVER_RESOURCE
from tailsweep.orchestrator.config.sweep import Sweep
from tailsweep.trainables.distributed.settings import Placement
from tailsweep.trainables.errors import InputError
from tailsweep.trainables.report_keys import Stage


class ClusterError(InputError):
    """The Ray asked for cannot be reached, or cannot give what a trial asks for."""


def trial_slots(placement: Placement, stage: Stage = Stage.TWO) -> int:
    """How many trials the cluster's nodes can hold at once, at least 1; where it grows by itself, once it has grown.

    Args:
        stage: whose resources these are, for the message.

    Raises:
        ClusterError: not even one; says what is missing.
    """
    nodes = grown_nodes(os.environ) or _resources_of_nodes()
    workers_that_fit = sum(_workers_on(node, placement) for node in nodes)
    if workers_that_fit < placement.min_workers:
        largest_cpu = max(node.get("CPU", 0) for node in nodes)
        largest_gpu = max(node.get("GPU", 0) for node in nodes)
        raise ClusterError(
            f"resources.{stage} asks for {placement.min_workers} worker(s) of {placement.cpus_per_worker:g} CPU "
            f"and {placement.gpus_per_worker:g} GPU each, but the cluster's {len(nodes)} node(s) hold "
            f"{workers_that_fit} of these (the largest has {largest_cpu:g} CPU and {largest_gpu:g} GPU): ask for "
            "less, or add nodes"
        )
    return max(1, workers_that_fit // placement.workers)


def driver_bundle() -> dict[str, float]:
    """Return what the waiting driver of a Train run requests: a byte costs its workers nothing, a CPU would.

    Where some nodes are there for drivers, because others may be taken away, it goes to one of these.
    """
    apart = any(DRIVER_RESOURCE in node for node in _resources_of_nodes())
    return {"memory": 1, **({DRIVER_RESOURCE: 1} if apart else {})}


def driver_slots() -> float:
    """How many drivers of Train runs there can be at once; infinite where no node is there for them."""
    slots = [node[DRIVER_RESOURCE] for node in _resources_of_nodes() if DRIVER_RESOURCE in node]
    return sum(slots) if slots else math.inf


def _resources_of_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _workers_on(node: dict[str, float], placement: Placement) -> int:
    return workers_on(node, placement.cpus_per_worker, placement.gpus_per_worker)


def placement(sweep: Sweep, stage: Stage) -> Placement:
    """Return what one trial requests in a stage."""
    asked = getattr(sweep.config.resources, stage)
    return Placement(
        workers=asked.workers,
        min_workers=asked.min_workers or asked.workers,
        cpus_per_worker=asked.cpus_per_worker,
        gpus_per_worker=asked.gpus_per_worker,
    )
