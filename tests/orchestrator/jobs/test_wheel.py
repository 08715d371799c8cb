"""A built wheel, run from a user's folder that holds packages named like the folders of this repository.

An editable install would hide a shadowed package: its finder fills in missing submodules. So the wheel is unpacked into
an environment of its own, which borrows only the third-party packages of this one.
"""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import ROOT, free_port, kill_family, run, start, wait_for_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHADOWS = ("orchestrator", "trainables", "clusters", "tests")
DATA_FILES = (
    "py.typed",
    "orchestrator/sweeps/demo.yaml",
    "orchestrator/sweeps/papers/sst2.yaml",
    "trainables/augmentation/synonyms.txt",
    "clusters/definitions/slurm.yaml",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, f"--wheel-dir={folder}", str(source_copy(folder / "source"))], check=True)
    (built,) = folder.glob("*.whl")
    return built


def source_copy(folder: Path) -> Path:
    """Copy what git does not ignore: a build leaves folders of its own behind."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # A folder named in a .pth file is searched, and its own .pth files are not read: no editable install is seen.
    (packages / "third_party.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


@pytest.fixture(params=["with __main__", "without __main__"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, small_sweep: Callable[..., Path], rows_csv: Path) -> Path:
    """A user's folder whose packages end every process that imports them."""
    user = tmp_path / "project"
    for name in SHADOWS:
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise SystemExit('a package of the user was imported')\n")
        if request.param == "with __main__":
            (user / name / "__main__.py").write_text("print('a package of the user was run')\n")
    (user / "keys.py").write_text("raise SystemExit('a module of the user was imported')\n")
    stage = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 32}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, stage_one={**stage, "trainable": "head"}, stage_two=stage,
        data={"train": "rows.csv", "max_length": 40, "validation": 0.2},
    )  # fmt: skip
    (user / "sweep.yaml").write_text(sweep.read_text())
    (user / "rows.csv").write_text(rows_csv.read_text())
    return user


@pytest.fixture(scope="module")
def head(python: Path, ray_temp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables of a client of a head that runs on the wheel's interpreter."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef" * 4)
    dashboard, gcs, agent = free_port(), free_port(), free_port()
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    process = start(
        python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=2", f"--temp-dir={ray_temp}/wheel", "--disable-usage-stats",
        **secret, **first_on_path(python),
    )  # fmt: skip
    try:
        wait_for_port(dashboard, process)
        yield {**secret, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}", **first_on_path(python)}
    finally:
        kill_family(process)


def first_on_path(python: Path) -> dict[str, str]:
    """Return the PATH on which `python` is the wheel's interpreter."""
    return {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ""}


def chosen_trial(storage: Path, name: str) -> str:
    metrics = json.loads((storage / name / "best" / "metrics.json").read_text())
    return str(metrics["trial"])


def test_a_wheel_holds_one_name_and_all_that_lies_below_it(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"tailsweep"}
    modules = {
        f"tailsweep/{path.relative_to(ROOT).as_posix()}"
        for package in ("orchestrator", "trainables", "clusters")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules - set(names) == set()
    assert {f"tailsweep/{name}" for name in DATA_FILES} - set(names) == set()


def test_a_sweep_runs_locally_in_a_folder_with_packages_of_these_names(python: Path, folder: Path, tmp_path: Path):
    words = ("run", "sweep.yaml", "--storage", tmp_path / "runs", "--set", "name=local")
    status, printed = run(python, "-m", "tailsweep", *words, cwd=folder, **first_on_path(python))
    assert status == 0, printed
    assert chosen_trial(tmp_path / "runs", "local") == "t000"


def test_ray_job_submit_runs_a_sweep_of_such_a_folder(python: Path, folder: Path, head: dict[str, str], tmp_path: Path):
    words = ("run", "sweep.yaml", "--storage", tmp_path / "runs", "--set", "name=job")
    submit = ("job", "submit", "--working-dir", ".", "--", "python", "-m", "tailsweep", *words)
    status, printed = run(python, "-m", "ray.scripts.scripts", *submit, cwd=folder, **head)
    assert status == 0, printed
    assert chosen_trial(tmp_path / "runs", "job") == "t000"


def test_cluster_submit_runs_a_sweep_of_such_a_folder(python: Path, folder: Path, head: dict[str, str], tmp_path: Path):
    address = head["RAY_API_SERVER_ADDRESS"]
    words = ("cluster", "submit", "sweep.yaml", "--storage", tmp_path / "runs", "--set", "name=sent")
    status, printed = run(python, "-m", "tailsweep", *words, "--address", address, cwd=folder, **head)
    assert status == 0, printed
    assert chosen_trial(tmp_path / "runs", "sent") == "t000"
