"""That nothing of a sweep is left on Ray: no CPU, no GPU, no placement group, no process."""

import time

from support.killing import TRIAL, WORKER, processes

CONTROLLER = "ray::TrainController"


def assert_freed(seconds: float = 10) -> None:
    """Of the Ray that this process is connected to, within so many seconds."""
    deadline = time.monotonic() + seconds
    while held := still_held():
        assert time.monotonic() < deadline, f"still held after {seconds} s: {held}"
        time.sleep(0.2)


def still_held() -> list[str]:
    import ray
    from ray.util import placement_group_table

    total, free = ray.cluster_resources(), ray.available_resources()
    held = [f"{total[kind] - free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU") if free.get(kind) != total[kind]]
    held += [f"group {key}" for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    return held + [str(process) for title in (TRIAL, WORKER, CONTROLLER) for process in processes(title)]
