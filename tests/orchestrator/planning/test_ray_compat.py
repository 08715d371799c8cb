"""The private names of Ray that the orchestrator uses are where Ray 2.60 has them, and changed only for a time."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import import_module

import pytest
from tailsweep.orchestrator.planning import ray_compat


def settings() -> dict[str, object]:
    """All that the context managers may change."""
    constants = import_module("ray._private.ray_constants")
    return {
        "propagated": set(import_module("ray.tune.execution.class_cache").ENV_VARS_TO_PROPAGATE),
        "levels": [logging.getLogger(name).level for name in ray_compat.LOG_LEVELS],
        "variables": dict(os.environ),
        "cluster": constants.ENABLE_RAY_CLUSTER,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)],
    }


def test_the_private_names_are_where_they_were() -> None:
    constants = import_module("ray._private.ray_constants")
    assert isinstance(constants.ENABLE_RAY_CLUSTER, bool)
    assert constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    propagated = import_module("ray.tune.execution.class_cache").ENV_VARS_TO_PROPAGATE
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= propagated


def test_tune_reads_the_variables_of_that_very_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class_cache = import_module("ray.tune.execution.class_cache")
    passed: list[dict[str, dict[str, str]]] = []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(class_cache.ray, "remote", lambda runtime_env: passed.append(runtime_env) or (lambda cls: cls))
    class_cache._ActorClassCache().get(object)
    with ray_compat.quiet_tune(1):
        class_cache._ActorClassCache().get(object)
    assert ["AWS_SECRET_ACCESS_KEY" in environment["env_vars"] for environment in passed] == [True, False]


def test_running_tune_restores_what_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    before = settings()
    with suppress(RuntimeError), ray_compat.quiet_tune(3), ray_compat.signal_handlers_kept():
        assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "3"
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"
        assert logging.getLogger("ray.tune").level == logging.ERROR
        propagated = import_module("ray.tune.execution.class_cache").ENV_VARS_TO_PROPAGATE
        assert not any(name.startswith("AWS_") for name in propagated)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise RuntimeError("the run failed")
    assert settings() == before


def test_a_local_ray_changes_nothing_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = import_module("ray._private.ray_constants")
    variable = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    monkeypatch.delenv(variable, raising=False)
    before = settings()
    with ray_compat.loopback_only():
        assert (os.environ[variable], constants.ENABLE_RAY_CLUSTER) == ("0", False)
    assert settings() == before
    monkeypatch.setenv(variable, "1")
    before = settings()
    with ray_compat.loopback_only():
        assert settings() == before, "the user has decided"


def test_importing_the_runner_changes_nothing_in_ray() -> None:
    script = (
        "import logging, os\n"
        "from ray.tune.execution import class_cache\n"
        "before = set(class_cache.ENV_VARS_TO_PROPAGATE), dict(os.environ), logging.getLogger('ray.tune').level\n"
        "import tailsweep.orchestrator.runner.run_sweep\n"
        "assert before == (class_cache.ENV_VARS_TO_PROPAGATE, dict(os.environ), logging.getLogger('ray.tune').level)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.ray
@pytest.mark.xdist_group("ray_sweeps")
def test_the_processes_of_a_local_ray_are_known_by_name(local_ray: None) -> None:
    processes = ray_compat.local_processes()
    assert set(processes) == {"gcs_server", "raylet", "dashboard"}
    assert all(process.poll() is None for process in processes.values())
