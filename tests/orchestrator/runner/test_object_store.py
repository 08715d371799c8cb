"""Sweeps whose run directories lie in a bucket of an S3-compatible server: killed, cut off, resumed, reported.

(What a bucket does to a run directory without a sweep: ``test_bucket.py``.)
"""

import io
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from support.ending import still_running
from support.killing import wait_until
from support.object_store import BUCKET, ObjectStore
from support.processes import run, start, tailsweep
from support.resources_freed import assert_freed
from support.sweep_without_ray import assert_same, without_ray
from support.wandb_files import read_runs
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.runs.directory import TRIALS_FILE
from tailsweep.orchestrator.runs.lock import OWNER_FILE, RELEASED
from tailsweep.trainables import report_keys
from tailsweep.trainables.storage import retry

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray_sweeps"), pytest.mark.timeout(900)]


@dataclass
class Killed:
    key: str  # of the run directory, in the bucket
    outcomes: dict[str, bytes]  # at the kill, by their keys
    printed: str  # by the process that brought it to its end
    copy: Path  # of the run directory


@pytest.fixture(scope="module")
def killed(
    store: ObjectStore, small_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, ray_temp: str
) -> Killed:
    """The sweep that ``finished`` ran undisturbed on a disk, killed when t000 is completed, and resumed.

    The server's address comes from the environment, as its keys do.
    """
    location, key = f"s3://{BUCKET}/my%20runs", "my runs/killed"
    environment = {"RAY_TMPDIR": ray_temp, "AWS_ENDPOINT_URL": store.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    process = start(*tailsweep("run", small_sweep(), "--storage", location, "--set", "name=killed"), **environment)
    try:
        # As soon as it is there: once they have begun, the trials are over before a second process has started.
        _wait_for(lambda: bool(list(store.keys(f"{key}/{TRIALS_FILE}"))), process)
        status, printed = run(*tailsweep("resume", f"{location}/killed"), **environment)
        assert (status, f"is being worked on by process {process.pid} on " in printed) == (2, True), printed
        # Its four reports and its end. They are counted and not read: the other trials end within a second.
        _wait_for(lambda: len(list(store.keys(f"{key}/state/events/"))) >= 5, process)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for survivor in still_running(family, 15):  # Ray's agents look for their raylet now and then only
            survivor.kill()
    ended = _outcomes(store, key)
    _let_the_lease_lapse(store, f"{key}/{OWNER_FILE}")
    status, printed = run(*tailsweep("resume", f"{location}/killed"), timeout=500, **environment)
    assert status == 0, printed
    return Killed(key, ended, printed, store.copied(f"{key}/", tmp_path_factory.mktemp("copy")))


def _wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    wait_until(lambda: process.poll() is not None or reached())
    assert process.poll() is None, process.stdout.read()


def _events(store: ObjectStore, key: str) -> Iterator[dict[str, Any]]:
    for name in store.keys(f"{key}/state/events/"):
        yield from map(json.loads, store.read(name).splitlines())


def _outcomes(store: ObjectStore, key: str) -> dict[str, dict[str, Any]]:
    ended = (event["record"] for event in _events(store, key) if event["kind"] == "outcome")
    return {outcome["trial"]: outcome for outcome in ended}


def _let_the_lease_lapse(store: ObjectStore, key: str) -> None:
    """As by waiting for it."""
    owner = json.loads(store.read(key))
    owner["renewed"] = RELEASED
    store.client.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(owner).encode())


def test_no_finished_work_is_done_twice(store: ObjectStore, killed: Killed) -> None:
    assert "t000" in killed.outcomes
    assert len(killed.outcomes) < 3
    after = _outcomes(store, killed.key)
    assert {trial: after[trial] for trial in killed.outcomes} == killed.outcomes
    assert f"{3 - len(killed.outcomes)} of 3 trials left" in killed.printed


def test_its_values_are_those_of_the_same_sweep_on_a_disk(killed: Killed, finished: Path) -> None:
    expected, actual = (pq.read_table(folder / "history.parquet").to_pylist() for folder in (finished, killed.copy))
    assert len(actual) == len(expected)
    for before, now in zip(expected, actual, strict=True):
        for key in before.keys() - {report_keys.SECONDS}:
            value = before[key]
            assert now[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)
    ends = [
        [(row["trial"], row["state"], row["reason"]) for row in pq.read_table(folder / "trials.parquet").to_pylist()]
        for folder in (finished, killed.copy)
    ]
    assert ends[0] == ends[1]
    scores = [json.loads((folder / "best/metrics.json").read_text()) for folder in (finished, killed.copy)]
    assert scores[0]["test/macro_f1"] == pytest.approx(scores[1]["test/macro_f1"], abs=1e-6)


def test_what_lies_in_the_bucket_is_what_lies_on_a_disk(killed: Killed, finished: Path) -> None:
    def files(folder: Path) -> set[str]:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        return {name for name in names if not name.startswith(("wandb/", "state/lock"))}

    assert files(killed.copy) == files(finished)
    runs = read_runs(killed.copy / "wandb")
    assert {len(logged.folders) for logged in runs.values()} == {1}
    history = pq.read_table(killed.copy / "history.parquet").to_pylist()
    for trial in ("t000", "t001", "t002"):  # the kill took t000's with it
        steps = sum(row["trial"] == trial for row in history)
        assert runs[f"killed-{trial}"].steps == list(range(steps))
        assert runs[f"killed-{trial}"].summary["state"]
    assert "killed-sweep" in runs


def test_it_is_reported_and_its_model_predicts_from_the_bucket(
    store: ObjectStore, killed: Killed, rows_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.client.delete_object(Bucket=BUCKET, Key=f"{killed.key}/trials.parquet")
    location = store.uri(f"{BUCKET}/my%20runs/killed")
    assert main(["report", location]) == 0
    printed = capsys.readouterr().out
    assert "chosen by validation/macro_f1: t000" in printed
    restored = pq.read_table(io.BytesIO(store.read(f"{killed.key}/trials.parquet"))).to_pylist()
    assert restored == pq.read_table(killed.copy / "trials.parquet").to_pylist()
    both = []
    for model in (store.uri(f"{BUCKET}/my%20runs/killed/best"), str(killed.copy / "best")):
        assert main(["predict", model, str(rows_csv), "--output", str(tmp_path / "predicted.csv")]) == 0
        both.append((tmp_path / "predicted.csv").read_bytes())
    assert both[0] == both[1]


def test_a_two_phase_sweep_without_access_stops_and_resumes_once_access_is_back(
    local_ray: None, store: ObjectStore, small_sweep: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As by keys that have expired; on features published in the bucket. The server's address is in the URI."""
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.2,))  # of this process; the workers wait as long as ever
    stage = {"learning_rate": 1e-3, "epochs": 4, "batch_size": 8}
    sweep = small_sweep(
        search="random", num_trials=1, asha=None, promote=1, retries=0,
        stage_one={**stage, "trainable": {"top_layers": 1}, "loss": {"name": "cross_entropy"}}, stage_two=stage,
    )  # fmt: skip
    here = {path.name for path in Path.cwd().iterdir()}
    with _shut_after(store, "runs/cut-off/state/events/", reports=2):
        assert main(["run", str(sweep), "--storage", store.uri(f"{BUCKET}/runs/"), "--set", "name=cut-off"]) == 1
    location = store.uri(f"{BUCKET}/runs/cut-off")
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last.startswith("storage refused s3://bucket/runs/cut-off/state/")
    assert last.endswith(f"to continue: tailsweep resume '{location}'")
    assert_freed()

    assert main(["resume", location]) == 2  # nor could it give back its lease
    assert "is being worked on by process" in capsys.readouterr().err
    _let_the_lease_lapse(store, f"runs/cut-off/{OWNER_FILE}")
    assert main(["resume", location]) == 0
    assert_freed()
    run = store.copied("runs/cut-off/", tmp_path)
    history = pq.read_table(run / "history.parquet").to_pylist()
    reports, _ = without_ray(run, "t000")
    assert_same(history, reports, 1e-6)
    assert "cached" in history[0][report_keys.EXECUTION]
    assert not (run / "state/features").exists()
    kept = [
        path.name for path in (run / "state/checkpoints/t000").iterdir() if path.name.startswith(report_keys.STAGES)
    ]
    assert len(kept) == 1
    assert {path.name for path in Path.cwd().iterdir()} == here
    assert not list(run.rglob("*.pkl"))
    assert not [key for key in store.keys("") if "?" in key or "endpoint_override" in key]


@contextmanager
def _shut_after(store: ObjectStore, prefix: str, reports: int) -> Iterator[None]:
    """Within it, the server refuses everything from when it holds so many objects below ``prefix``."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if len(store.keys(prefix)) >= reports:
                store.door.write_text("403 Forbidden")
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
        store.door.unlink(missing_ok=True)


def test_doctor_finds_a_bucket_that_all_nodes_see_and_one_that_is_not_there(
    local_ray: None, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    location = store.uri(f"{BUCKET}/doctor")
    main(["doctor", "--storage", location])
    assert f"{location} is written and read here" in capsys.readouterr().out
    assert store.keys("doctor") in ([], ["doctor/"])
    missing = store.uri("no-such-bucket/doctor")
    assert main(["doctor", "--storage", missing]) == 2
    printed = capsys.readouterr().out
    assert f"{missing} cannot be written: Bucket 'no-such-bucket' not found" in printed


def test_a_sweep_into_a_bucket_that_is_not_there_does_not_start(
    local_ray: None, store: ObjectStore, small_sweep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    missing = store.uri("no-such-bucket/runs")
    assert main(["run", str(small_sweep()), "--storage", missing]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tailsweep")]
    assert said.startswith(f"tailsweep: not started: storage: {missing} cannot be written: Bucket 'no-such-bucket'")
