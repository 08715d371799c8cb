"""Check that a sweep has freed everything on Ray: CPUs, GPUs, placement groups and processes."""

import time

from support.killing import TRIAL, WORKER, processes

CONTROLLER = "ray::TrainController"


def assert_freed(seconds: float = 10) -> None:
    """Check that nothing is in use, within so many seconds, on the Ray that this process is connected to."""
    deadline = time.monotonic() + seconds
    while resources := resources_in_use():
        assert time.monotonic() < deadline, f"still in use after {seconds} s: {resources}"
        time.sleep(0.2)


def resources_in_use() -> list[str]:
    import ray
    from ray.util import placement_group_table

    total, free = ray.cluster_resources(), ray.available_resources()
    resources = [
        f"{total[kind] - free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU") if free.get(kind) != total[kind]
    ]
    resources += [f"group {key}" for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    return resources + [str(process) for title in (TRIAL, WORKER, CONTROLLER) for process in processes(title)]
