"""The private names of Ray that the orchestrator uses, in one place. Read against Ray 2.60.0.

``tests/orchestrator/planning/test_ray_compat.py`` fails when a Ray release moves one of them. Importing this module
changes nothing in Ray; what the context managers change is put back when they end.
"""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray._private import ray_constants, worker
from ray.tune.execution import class_cache

__all__ = ["local_processes", "loopback_only", "quiet_tune", "signal_handlers_kept"]

# Tune's loggers, and how little of each is shown. It prints a traceback of a state that storage refuses; no one reads
# that state, and what refuses ours reports it.
LOG_LEVELS = {"ray.tune": logging.ERROR, "ray.tune.execution.experiment_state": logging.CRITICAL}

TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's own loggers would write every report a second time
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box of its own at every verbosity (Ray 2.60)
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # the relative path of a model leads where it leads from the driver's folder
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report may be a notice without the metric
}


@contextmanager
def quiet_tune(max_pending_trials: int) -> Iterator[None]:
    """Run Tune without its own output, and without credentials in its trials' runtime environments.

    ``class_cache.ENV_VARS_TO_PROPAGATE`` (Ray 2.60) names the variables that Tune passes on to its trials in a runtime
    environment, which Ray's logs and dashboard show in clear. The AWS keys are among them, and Tune has no option to
    leave them out. Trials have the environment of their node's Ray anyway.

    Args:
        max_pending_trials: how many trials may wait for resources.
    """
    propagated = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    levels = {name: logging.getLogger(name).level for name in LOG_LEVELS}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(propagated)
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    try:
        with _variables({**TUNE_VARIABLES, "TUNE_MAX_PENDING_TRIALS_PG": str(max_pending_trials)}):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        class_cache.ENV_VARS_TO_PROPAGATE.update(propagated)


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Restore the signal handlers that a run of Tune replaces and does not put back (Ray 2.60).

    After the run's end, Ctrl-C would tell that run to stop, and no one else.
    """
    if threading.current_thread() is not threading.main_thread():  # where Tune replaces none, either
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def local_processes() -> dict[str, "subprocess.Popen[bytes]"]:
    """Return those processes of the Ray started here that a sweep cannot do without, by name.

    ``ray._private.worker._global_node`` (Ray 2.60) has started them; the public API does not say which they are.
    """
    node = worker._global_node
    needed = ("gcs_server", "raylet", "dashboard")
    return {name: node.all_processes[name][0].process for name in needed if node.all_processes.get(name)}


@contextmanager
def loopback_only() -> Iterator[None]:
    """Make a Ray that is started within listen on this machine alone.

    Ray 2.60 listens on every interface, whatever address it is given, except on platforms where it makes no clusters
    (Windows, macOS). Its own variable decides which those are. This process has read it when it imported Ray
    (``ray_constants.ENABLE_RAY_CLUSTER``); the processes that Ray starts will read it.
    """
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if variable in os.environ:  # the user has decided
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _variables({variable: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
