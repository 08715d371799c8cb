"""The Ray a sweep runs on: connecting to one or starting one here, and how many trials it can hold at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from tailsweep.orchestrator.planning.resources import ClusterError
from tailsweep.trainables.errors import InputError, StorageError


@contextmanager
def ray_session(address: str | None) -> Iterator[bool]:
    """Within it, Ray is connected: to ``address``, else ``$RAY_ADDRESS``, else to one started here and ended after.

    A Ray that somebody has initialised in this process already is used as it is and left running. Yields whether it was
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
            start_ray_here()
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
        yield not address
    finally:
        ray.shutdown()


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Around a run of Tune, which puts handlers of its own in place and leaves them there (2.60): a Ctrl-C after the
    run's end would tell that run to stop, and nobody else."""
    if threading.current_thread() is not threading.main_thread():  # where Tune does not, either
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_ray_here(**settings: Any) -> None:
    """Start a Ray of this machine alone and connect to it. It listens on 127.0.0.1 only: whoever reaches Ray's ports
    can run programs.

    Args:
        settings: of ``ray.init``, beyond those of every sweep.
    """
    with _no_cluster():
        # The dashboard stays on: without it, Ray Train 2.60 does not free what a pruned trial held.
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
            **settings,
        )


@contextmanager
def _no_cluster() -> Iterator[None]:
    """A Ray started within is for this machine alone.

    Ray 2.60 listens on every interface, whatever address it is given, except on platforms where it makes no clusters
    (Windows, macOS). Its own variable decides which those are; this process has read it when it imported Ray, the
    processes that Ray starts will read it.
    """
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if variable in os.environ:  # the user has decided
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[variable] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[variable]


def result_of(task: Any) -> Any:
    """What a task has returned. What the user or storage is to blame for is raised as the task raised it, without the
    traceback that Ray makes part of its message."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError | StorageError):
            raise error.cause from None
        raise
