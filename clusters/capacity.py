"""How many workers nodes can hold, and how far a cluster with an autoscaler can grow.

The definition states the growth, and the sweep on the cluster reads it. Ray 2.60 lists the nodes that exist, not those
that the autoscaler may add: a cluster that has no worker yet would look like one that never gets any.
"""

import json
import math
from collections.abc import Mapping, Sequence

from tailsweep.clusters.definition import Group

GROWTH_VARIABLE = "TAILSWEEP_GROWS_TO"  # in the environment of the head's Ray


def growth(groups: Sequence[Group]) -> str:
    """Return the variable's value: a list of groups, each with the resources of a node and the maximum of nodes."""
    return json.dumps([{"nodes": group.max_nodes, "CPU": group.cpus, "GPU": group.gpus} for group in groups])


def grown_nodes(environment: Mapping[str, str]) -> list[dict[str, float]]:
    """Return the resources of every node that the cluster can have; empty if it does not grow."""
    groups = json.loads(environment.get(GROWTH_VARIABLE, "[]"))
    return [{"CPU": group["CPU"], "GPU": group["GPU"]} for group in groups for _ in range(group["nodes"])]


def workers_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers of so many CPUs and GPUs each fit on a node with these resources."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    if not gpus:
        return by_cpu
    # A share lies on one GPU: three GPUs hold nine workers of 0.3, not ten.
    whole = math.floor(node.get("GPU", 0))
    return min(by_cpu, whole * math.floor(1 / gpus) if gpus < 1 else math.floor(whole / gpus))
