"""Rays for the tests that need one, each with a temporary folder of its own, and sweeps small enough for them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

LEARNING_RATES = [3e-3, 1e-7, 1e30]  # good, hopeless, and one whose loss is not a number


@pytest.fixture(scope="session")
def ray_temp() -> Iterator[str]:
    """A short path: Ray makes sockets below it, whose paths may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="tsr", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def local_ray(ray_temp: str) -> Iterator[None]:
    """A Ray of two CPUs and two GPUs that are only declared, in this process."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=ray_temp,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_sweep(
    tiny_model: Callable[..., Path], rows_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``small_sweep(**fields)``: a sweep over the tiny DistilBERT, one candidate at a time, fields replaced."""

    def write(**fields: object) -> Path:
        tree = {
            "search": "grid",
            "max_concurrent": 1,
            "asha": {"grace_epochs": 2, "reduction_factor": 2},
            "data": {"train": str(rows_csv), "max_length": 40, "validation": 0.2},
            "model": {"name": str(tiny_model("distilbert", 0.0))},
            "stage_one": {
                "trains": "all",
                "learning_rate": {"grid": LEARNING_RATES},
                "epochs": 2,
                "batch_size": 4,
            },
            "stage_two": {"learning_rate": 3e-3, "epochs": 2, "batch_size": 4},
            **fields,
        }
        path = tmp_path_factory.mktemp("sweep") / "small.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
