"""Rays for the tests that need one, each with a temporary folder of its own, and sweeps small enough for them."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import yaml
from support.killing import WORKER, watched
from support.memory_store import WholeFiles
from support.object_store import ObjectStore, serving
from support.resources_freed import assert_freed
from tailsweep.orchestrator.runs import directory
from tailsweep.orchestrator.runs.directory import RunDirectory

LEARNING_RATES = [3e-3, 1e-7, 1e30]  # good, hopeless, and one whose loss is not a number


@pytest.fixture(scope="session")
def ray_temp() -> Iterator[str]:
    """A short path: Ray makes sockets below it, whose paths may have 107 characters."""
    folder = tempfile.mkdtemp(prefix="tsr", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A new run directory."""
    run = RunDirectory(str(tmp_path / "runs" / "demo"))
    run.create()
    return run


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunDirectory:
    """A run directory on storage that is not local and has no locks; it is kept in memory, one for the process."""
    store = pafs.PyFileSystem(pafs.FSSpecHandler(WholeFiles()))
    monkeypatch.setattr(directory, "open_location", lambda location: (store, location.removeprefix("memory://")))
    return RunDirectory(f"memory://{tmp_path}/demo")


@pytest.fixture(scope="session")
def keys_in_the_environment() -> Iterator[list[str]]:
    """What looks like the user's keys is there while Ray runs; none of it may be written anywhere."""
    names = ("WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    keys = {name: f"{name.lower()}-{uuid.uuid4().hex}" for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, key in keys.items():
            patch.setenv(name, key)
        yield list(keys.values())


@pytest.fixture(scope="session")
def local_ray(ray_temp: str, keys_in_the_environment: list[str]) -> Iterator[None]:
    """A Ray of four CPUs and a GPU that are only declared, in this process."""
    import ray
    from ray._raylet import AuthenticationTokenLoader
    from tailsweep.orchestrator.planning.ray_session import start_local_ray

    AuthenticationTokenLoader.instance().reset_cache()  # Ray keeps the token that an earlier test has had it read
    start_local_ray(num_cpus=4, num_gpus=1, _temp_dir=ray_temp)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, keys_in_the_environment: list[str]) -> Iterator[ObjectStore]:
    """An S3-compatible server that accepts the user's keys; only its URL must be given."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        with serving(tmp_path_factory.mktemp("store")) as served:
            yield served


@pytest.fixture(scope="session")
def small_sweep(
    tiny_model: Callable[..., Path], rows_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``small_sweep(**fields)``: a sweep over the tiny DistilBERT, one trial at a time, fields replaced."""

    def write(**fields: object) -> Path:
        tree = {
            "search": "grid",
            "max_concurrent": 1,
            "asha": {"grace_epochs": 2, "reduction_factor": 2},
            "data": {"train": str(rows_csv), "max_length": 40, "validation": 0.2},
            "model": {"name": str(tiny_model("distilbert", 0.0))},
            "stage_one": {
                "trainable": "all",
                "learning_rate": {"grid": LEARNING_RATES},
                "epochs": 2,
                "batch_size": 4,
            },
            "stage_two": {"learning_rate": 3e-3, "epochs": 2, "batch_size": 4},
            # A trial becomes the model: linear classifiers are better than tiny random encoders.
            "selection": {"baselines": False, "stage_one": False, "max_members": 1},
            **fields,
        }
        path = tmp_path_factory.mktemp("sweep") / "small.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(scope="session")
def workers_of_finished() -> set[int]:
    """The pids of the Train workers of ``finished``, once that is there."""
    return set()


@pytest.fixture(scope="session")
def finished(
    local_ray: None,
    small_sweep: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    workers_of_finished: set[int],
) -> Path:
    """A run directory: t000 is completed, t001 pruned, t002 failed. Within 10 s of its end, Ray is free again."""
    from tailsweep.orchestrator.cli.main import main

    storage = tmp_path_factory.mktemp("runs with a space")
    sweep = small_sweep(resources={"stage_two": {"gpus_per_worker": 1}})
    with watched(WORKER) as pids:
        assert main(["run", str(sweep), "--storage", str(storage), "--set", "name=first"]) == 0
    workers_of_finished |= pids
    assert_freed()
    return storage / "first"
