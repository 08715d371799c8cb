"""The private names of Ray that trials use are where Ray 2.60 has them."""

import subprocess
import sys
from importlib import import_module

import pytest
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from tailsweep.trainables.distributed import ray_compat

NAMES = [
    ("ray.train.v2._internal.constants", "ENV_VARS_TO_PROPAGATE"),
    ("ray.train.v2._internal.exceptions", "RayTrainError"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_private_name_is_where_it_was(module: str, name: str) -> None:
    assert getattr(import_module(module), name) is getattr(ray_compat, name)


def test_the_names_mean_what_they_did() -> None:
    assert isinstance(ray_compat.ENV_VARS_TO_PROPAGATE, set)
    assert issubclass(WorkerHealthCheckFailedError, ray_compat.RayTrainError)


def test_train_passes_on_the_variables_of_that_very_set() -> None:
    controller = import_module("ray.train.v2.api.data_parallel_trainer")
    environment = import_module("ray.train.v2._internal.constants")
    assert environment.ENV_VARS_TO_PROPAGATE is ray_compat.ENV_VARS_TO_PROPAGATE
    assert hasattr(controller, "get_env_vars_to_propagate")


def test_only_a_call_changes_what_ray_propagates() -> None:
    script = (
        "from tailsweep.trainables.distributed import ray_compat, tune_trainables\n"
        "assert 'RAY_ADDRESS' not in ray_compat.ENV_VARS_TO_PROPAGATE\n"
        "ray_compat.propagate_ray_address()\n"
        "assert 'RAY_ADDRESS' in ray_compat.ENV_VARS_TO_PROPAGATE\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
