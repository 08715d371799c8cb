"""Waiting for processes of others to end."""

import time
from collections.abc import Iterable

import psutil


def still_running(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return those that have not ended within ``seconds``.

    A zombie has ended: who was killed along with its parent waits for an init to read its exit status, which a
    container's may not do, and which ``psutil.wait_procs`` would wait for.
    """
    remaining, deadline = list(processes), time.monotonic() + seconds
    while (remaining := [process for process in remaining if _is_running(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return remaining


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
