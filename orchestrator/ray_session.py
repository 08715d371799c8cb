"""The Ray a sweep runs on: connecting to one or starting one here, and how many trials it can hold at once."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from trainables.errors import InputError
from trainables.ray_trial import Placement


class ClusterError(InputError):
    """The Ray asked for cannot be reached, or cannot give what a trial asks for."""


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Within it, Ray is connected: to ``address``, else ``$RAY_ADDRESS``, else to one started here and ended after.

    A Ray that somebody has initialised in this process already is used as it is and left running.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            # The dashboard stays on: without it, Ray Train 2.60 does not free what a pruned trial held.
            ray.init(
                address="local",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f'cannot connect to Ray at "{address or "local"}": {first}; check the address, and that '
            "RAY_AUTH_MODE=token is exported where the cluster was started with token authentication"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def trial_slots(placement: Placement, stage: str = "stage_two") -> int:
    """How many trials the cluster's nodes can hold at once, at least 1.

    Args:
        stage: whose resources these are, for the message.

    Raises:
        ClusterError: not even one; says what is missing.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers_that_fit = sum(_workers_on(node, placement) for node in nodes)
    if workers_that_fit < placement["workers"]:
        largest_cpu = max(node.get("CPU", 0) for node in nodes)
        largest_gpu = max(node.get("GPU", 0) for node in nodes)
        raise ClusterError(
            f"resources.{stage} asks for {placement['workers']} worker(s) of {placement['cpus_per_worker']:g} CPU "
            f"and {placement['gpus_per_worker']:g} GPU each, but the cluster's {len(nodes)} node(s) hold "
            f"{workers_that_fit} of these (the largest has {largest_cpu:g} CPU and {largest_gpu:g} GPU): ask for "
            "less, or add nodes"
        )
    return workers_that_fit // placement["workers"]


def _workers_on(node: dict[str, float], placement: Placement) -> int:
    cpus, gpus = placement["cpus_per_worker"], placement["gpus_per_worker"]
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    if not gpus:
        return by_cpu
    # A share lies on one GPU: three GPUs hold nine workers of 0.3, not ten.
    whole = math.floor(node.get("GPU", 0))
    return min(by_cpu, whole * math.floor(1 / gpus) if gpus < 1 else math.floor(whole / gpus))
