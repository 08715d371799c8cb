"""`tailsweep cluster` and `ray job submit` on a real head that asks for a token: one head, a few real jobs."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.killing import wait_until
from support.processes import ROOT, free_port, kill_family, run, start, tailsweep, wait_for_port
from tailsweep.orchestrator.cli.main import main

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster_commands")]

SweepFile = Callable[..., Path]


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text("0123456789abcdef" * 4)
    return path


@pytest.fixture(scope="module")
def head(ray_temp: str, token: Path) -> Iterator[str]:
    """`ray start --head` with token authentication on; the address of its job server."""
    dashboard, gcs, agent = free_port(), free_port(), free_port()
    process = start(
        "ray", "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=2", f"--temp-dir={ray_temp}/head", "--disable-usage-stats",
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token),
    )  # fmt: skip
    try:
        wait_for_port(dashboard, process)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        kill_family(process)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, rows_csv: Path) -> Path:
    """A checkout in use: the source, rows, and files that must not be uploaded."""
    folder = tmp_path_factory.mktemp("checkout") / "tailsweep"
    for package in ("tailsweep", "trainables", "orchestrator", "clusters"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(rows_csv, folder / "rows.csv")
    for name in (".git/packed", ".venv/lib/torch.so", "runs/old/model.safetensors"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"0" * 30_000_000)
    return folder


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, token: Path, checkout: Path) -> None:
    """Work in the checkout with the token, but without RAY_AUTH_MODE."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.chdir(checkout)


def test_ray_job_submit_runs_the_demo(head: str, token: Path, tmp_path: Path):
    """The README's command, with fewer and shorter trials."""
    environment = {"RAY_API_SERVER_ADDRESS": head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = (
        "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "tailsweep", "run",
        "orchestrator/sweeps/demo.yaml", "--storage", tmp_path, "--set", "name=job", "--set", "num_trials=1",
        "--set", "stage_one.epochs=1", "--set", "stage_two.epochs=0", "--set", "data.max_length=8",
    )  # fmt: skip
    job = [0, "No available agent"]

    def is_over() -> bool:
        job[:] = run(*command, **environment)
        return "No available agent" not in str(job[1])  # the head is still starting

    wait_until(is_over)
    status, printed = job
    assert status == 0, printed
    assert "chosen by validation/macro_f1: " in str(printed)
    metrics = json.loads((tmp_path / "job/best/metrics.json").read_text())
    assert metrics["labels"] == ["absorption", "distribution", "excretion", "metabolism", "other"]


@pytest.fixture(scope="module")
def sweep(small_sweep: SweepFile, checkout: Path) -> Path:
    """A sweep in the checkout with one trial that takes a while, on uploaded rows; its relative path."""
    stage = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 32}
    written = small_sweep(
        name="one", search="random", num_trials=1, asha=None, stage_one=stage, stage_two={**stage, "epochs": 40},
        data={"train": "rows.csv", "max_length": 40, "validation": 0.2},
    )  # fmt: skip
    return Path(shutil.move(written, checkout / "one.yaml")).relative_to(checkout)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


def test_a_sweep_is_submitted_left_running_followed_and_stopped(
    head: str, user: None, checkout: Path, sweep: Path, storage: Path, capsys: pytest.CaptureFixture[str]
):
    """Ctrl-C stops following; the job continues."""
    address = ("--address", head)
    submit = ("cluster", "submit", str(sweep), "--storage", str(storage), *address)
    follower = start(*tailsweep(*submit), cwd=checkout, PYTHONPATH=str(checkout))
    begun = storage / "one/state/trials.json"  # the trial itself takes seconds to start
    wait_until(lambda: begun.exists() or follower.poll() is not None)
    follower.send_signal(signal.SIGINT)
    printed, _ = follower.communicate(timeout=60)
    assert follower.returncode == 1, printed
    assert re.search(r"uploading \d{3} files", printed), printed
    assert f"job one submitted to {head}; its run directory is {storage}/one" in printed
    assert f"job one continues. Follow it: `tailsweep cluster logs one --address {head} --follow`; end it: " in printed
    assert "B; the largest: " in printed
    assert "Ignoring upload" not in printed

    assert main(["cluster", "status", "one", *address]) == 0
    assert "job one: RUNNING, started 20" in capsys.readouterr().out
    assert main([*submit]) == 2
    message = (
        f"job one is RUNNING already and works on one: see `tailsweep cluster status one --address {head}`, end it by "
    )
    assert message in capsys.readouterr().err
    assert main(["cluster", "logs", "one", *address]) == 0
    assert "sweep one: 1 trials" in capsys.readouterr().out

    assert main(["cluster", "stop", "one", *address]) == 0
    printed = capsys.readouterr().out
    assert printed == f"job one: STOPPED; to continue: `tailsweep cluster resume {storage}/one --address {head}`\n"
    assert main(["cluster", "logs", "one", "--follow", *address]) == 1
    printed = capsys.readouterr()
    assert f"interrupted; to continue: tailsweep resume {storage}/one" in printed.out
    assert "Traceback" not in printed.out
    assert "job one was stopped after" in printed.err
    assert not (storage / "one/best").exists()


def test_a_stopped_sweep_continues_to_its_end_with_exit_status_0(
    head: str, user: None, storage: Path, capsys: pytest.CaptureFixture[str]
):
    """The one that was stopped above, under the next id."""
    assert main(["cluster", "resume", f"{storage}/one", "--address", head]) == 0
    printed = capsys.readouterr()
    assert "job one-2 succeeded after" in printed.err
    assert "chosen by validation/macro_f1: t000" in printed.out
    (row,) = pq.read_table(storage / "one/trials.parquet").to_pylist()
    assert (row["state"], row["stage_one_epochs"], row["stage_two_epochs"]) == ("completed", 1, 40)
    assert main(["cluster", "status", "--address", head]) == 0
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines() if line.startswith("one")] == [
        ["one", "STOPPED"],
        ["one-2", "SUCCEEDED"],
    ]


@pytest.mark.slow
def test_a_comparison_is_submitted_and_ends_with_its_report(
    head: str, user: None, storage: Path, sweep: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
):
    written = yaml.safe_load((checkout / sweep).read_text())
    for field in ("method", "num_trials"):
        written.pop(field, None)
    written |= {"name": "which", "methods": {"vanilla": {"stage_one": {"epochs": 0}}}, "budget": {"trials": 1}}
    written |= {"seeds": [7], "baselines": ["tfidf"], "stage_two": {**written["stage_two"], "epochs": 2}}
    written["data"]["test"] = 0.2
    (checkout / "which.yaml").write_text(yaml.safe_dump(written))
    assert main(["cluster", "submit", "which.yaml", "--storage", str(storage), "--address", head]) == 0
    printed = capsys.readouterr()
    assert "job which succeeded after" in printed.err
    assert "| tfidf | " in (storage / "which/comparison.md").read_text()
    assert "| **vanilla** | " in printed.out
    assert (storage / "which/methods/vanilla/seeds/best/model.safetensors").is_file()


def test_a_sweep_that_the_job_refuses_gives_2_and_the_code_goes_along_from_any_folder(
    head: str, user: None, storage: Path, sweep: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    """Its run directory exists already; the folder has no source of ours."""
    for name in (sweep, "rows.csv"):
        shutil.copy(checkout / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "submit", str(sweep), "--storage", str(storage), "--address", head]) == 2
    printed = capfd.readouterr()
    assert f"the run directory {storage}/one is there already" in printed.out
    assert "uploading 2 files" in printed.err
    assert "and tailsweep itself: " in printed.err
    assert "job one-3 failed after" in printed.err
    assert "cluster resume" not in printed.err
    from tailsweep.clusters.jobs.client import connect

    environment = connect(head).get_job_info("one-3").runtime_env
    assert len(environment["py_modules"]) == 1


def test_a_job_that_fails_gives_1(head: str, user: None, capsys: pytest.CaptureFixture[str]):
    from tailsweep.clusters.jobs.client import connect

    connect(head).submit_job(entrypoint="echo so far && python -m no_such_package", submission_id="failing")
    assert main(["cluster", "logs", "failing", "--follow", "--address", head]) == 1
    printed = capsys.readouterr()
    assert "so far" in printed.out
    assert "its environment lacks the package no_such_package" in printed.err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses the token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN_PATH": ""}, "asks for a token, and there is none here"),
    ],
)
def test_a_wrong_or_missing_token_gives_2(
    head: str, user: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    variables: dict[str, str], expected: str,
):  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["cluster", "status", "--address", head]) == 2
    assert expected in capsys.readouterr().err


def test_a_job_that_is_not_there_gives_2(head: str, user: None, capsys: pytest.CaptureFixture[str]):
    for command in ("status", "logs", "stop"):
        assert main(["cluster", command, "fialing", "--address", head]) == 2
        assert f'there is no job "fialing" on {head}' in capsys.readouterr().err
