"""The Ray a sweep runs on: connecting to one or starting one here, and how many trials it can hold at once."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from tailsweep.orchestrator.planning.ray_compat import local_processes, loopback_only
from tailsweep.orchestrator.planning.resources import ClusterError
from tailsweep.orchestrator.runs import front
from tailsweep.trainables.errors import InputError, StorageError

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 0.3
SLOW_START_S = 20.0  # Ray 2.60 waits 30 s for its processes; an error comes sooner


@contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Within it, Ray is connected: to ``address``, else ``$RAY_ADDRESS``, else to one started here and ended after.

    A Ray that somebody has initialized in this process already is used as it is and left running. Yields whether it was
    started here: then its one node is this machine, with this environment.

    Raises:
        ClusterError: there is no Ray at the address.
    """
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        else:
            _start_local_ray_in_two_attempts()
    except Exception as error:  # a process of Ray's that does not start is a bare Exception (Ray 2.60)
        cause = " ".join(str(error).split())[:500] or type(error).__name__  # versions that differ take several lines
        if not address:
            raise ClusterError(
                f"cannot start Ray here: {cause}; see the logs in /tmp/ray/session_latest/logs, or name a running Ray "
                "by --address"
            ) from None
        raise ClusterError(
            f'cannot connect to Ray at "{address}": {cause}; check the address, and that '
            "RAY_AUTH_MODE=token is exported where the cluster was started with token authentication"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put one in its place that ends the process at once
    try:
        with nullcontext() if address else _watch(local_processes()):
            yield not address
    finally:
        ray.shutdown()


def _start_local_ray_in_two_attempts() -> None:
    """Start a local Ray; once more if it was too slow: its files may have come from a slow disk for the first time."""
    began = time.monotonic()
    try:
        start_local_ray()
    except Exception as error:
        if time.monotonic() - began < SLOW_START_S:
            raise
        logger.warning(f"Ray did not start in time ({' '.join(str(error).split())[:200]}): trying once more")
        ray.shutdown()
        start_local_ray()


@contextmanager
def _watch(processes: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Tell the process in front of this one when a process of Ray's ends; Ray's C++ code would end this one for it.

    Args:
        processes: by name.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_EVERY_S):
            for name, process in processes.items():
                if process.poll() is not None:
                    front.tell(lost=f"Ray's {name}")
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def start_local_ray(**settings: Any) -> None:
    """Start a Ray of this machine alone and connect to it.

    It listens on 127.0.0.1 only: whoever reaches Ray's ports can run programs.

    Args:
        settings: of ``ray.init``, beyond those of every sweep.
    """
    with loopback_only():
        # The dashboard stays on: without it, Ray Train 2.60 does not free what a pruned trial held.
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
            **settings,
        )


def result_of(task: Any) -> Any:
    """Return what a task has returned.

    An error of the input or of storage is raised as the task raised it, without the traceback that Ray puts into its
    message.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | StorageError):
            raise error.cause from None
        raise
