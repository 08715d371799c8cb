"""Rays for the tests that need one, each with a temporary folder of its own, and sweeps small enough for them."""

import shutil
import tempfile
import time
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


@pytest.fixture(scope="session")
def local_ray(ray_temp: str) -> Iterator[None]:
    """A Ray of four CPUs and a GPU that are only declared, in this process."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
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


@pytest.fixture(scope="session")
def finished(local_ray: None, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: c000 is completed, c001 pruned, c002 failed. Within 10 s of its end, Ray is free again."""
    import ray

    from orchestrator.__main__ import main

    storage = tmp_path_factory.mktemp("runs with a space")
    sweep = small_sweep(resources={"stage_two": {"gpus_per_worker": 1}})
    assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=first"]) == 0
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != 4 or ray.available_resources().get("GPU") != 1:
        assert time.monotonic() < deadline, f"still held after 10 s: {ray.available_resources()}"
        time.sleep(0.2)
    return storage / "first"
