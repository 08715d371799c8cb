"""How many workers nodes can hold, and how far a cluster with an autoscaler can grow.

Growth is said by the definition and read by the sweep that runs on the cluster: 2.60 tells a program what nodes
there are, not what nodes there may be, and a cluster without a single worker could not be told from one that will never
have any.
"""

import json
import math
from collections.abc import Mapping, Sequence

from tailsweep.clusters.definition import Group

GROWTH_VARIABLE = "TAILSWEEP_GROWS_TO"  # in the environment of the head's Ray


def growth(groups: Sequence[Group]) -> str:
    """The variable's value: a list of groups, each with the resources of one node and the most nodes it can have."""
    return json.dumps([{"nodes": group.max_nodes, "CPU": group.cpus, "GPU": group.gpus} for group in groups])


def grown_nodes(environment: Mapping[str, str]) -> list[dict[str, float]]:
    """The resources of every node that there can be; empty where the cluster does not grow."""
    groups = json.loads(environment.get(GROWTH_VARIABLE, "[]"))
    return [{"CPU": group["CPU"], "GPU": group["GPU"]} for group in groups for _ in range(group["nodes"])]


def workers_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers of so many CPUs and GPUs each a node with these resources holds."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    if not gpus:
        return by_cpu
    # A share lies on one GPU: three GPUs hold nine workers of 0.3, not ten.
    whole = math.floor(node.get("GPU", 0))
    return min(by_cpu, whole * math.floor(1 / gpus) if gpus < 1 else math.floor(whole / gpus))
