"""A run directory in a bucket, without a sweep: what is written, read, locked and refused.

(Sweeps: ``test_object_store.py``.)
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.object_store import BUCKET, ObjectStore
from support.processes import free_port
from tailsweep.orchestrator.cli.main import main
from tailsweep.orchestrator.monitoring.wandb_tracker import upload_runs, uploaded_runs
from tailsweep.orchestrator.runs import directory, lock
from tailsweep.orchestrator.runs.directory import EVENTS_FOLDER, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.lock import OWNER_BYTES, OWNER_FILE, run_lock
from tailsweep.orchestrator.runs.records import RecordWriter, read_records, write_trials
from tailsweep.orchestrator.runs.trials import TrialRecord
from tailsweep.trainables import report_keys
from tailsweep.trainables.config.data import DataSource
from tailsweep.trainables.config.trial import TrialConfig
from tailsweep.trainables.data.tokenized import fetch_prepared
from tailsweep.trainables.distributed.tune_trainables import StageOneRuntime
from tailsweep.trainables.errors import DataError, StorageError
from tailsweep.trainables.execution import feature_store
from tailsweep.trainables.execution.feature_plan import FeaturePlan, plan_features
from tailsweep.trainables.execution.feature_store import PartSet, make_features, make_part
from tailsweep.trainables.models.classifier import build_classifier
from tailsweep.trainables.preparation import prepare
from tailsweep.trainables.storage import retry
from tailsweep.trainables.training.checkpoint import Progress, newest_checkpoint, save_checkpoint

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("bucket")]


@pytest.fixture
def run(store: ObjectStore, request: pytest.FixtureRequest) -> RunDirectory:
    run = RunDirectory(store.uri(f"{BUCKET}/{request.node.name[:40]}/demo"))
    run.create()
    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts, one after the other."""
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.0,))


@contextmanager
def opened_after(store: ObjectStore, seconds: float) -> Iterator[None]:
    """The server refuses everything for so long, in a way that pyarrow by itself does not try again."""
    store.door.write_text("403 Forbidden")
    opening = threading.Timer(seconds, store.door.unlink)
    opening.start()
    try:
        yield
    finally:
        opening.join()


# --- files


def test_what_is_written_is_read_listed_and_deleted(run: RunDirectory, store: ObjectStore, tmp_path: Path) -> None:
    for number in range(40):
        run.write_text(f"state/events/{number:08d}.json", str(number))
    run.write_text("state/seal.json", "an outcome")
    names = [f"{number:08d}.json" for number in range(40)]
    assert run.list("state/events") == names
    assert list(run.read_files("state/events", names)) == [(name, str(int(name[:8])).encode()) for name in names]
    assert (run.exists("state/events"), run.exists("state/none")) == (True, False)
    (tmp_path / "a folder" / "below").mkdir(parents=True)
    (tmp_path / "a folder" / "below" / "50% #1").write_text("odd")
    run.upload(tmp_path / "a folder", "best")
    run.download("best", tmp_path / "back")
    assert (tmp_path / "back/below/50% #1").read_text() == "odd"
    folder = run.path.removeprefix(f"{BUCKET}/")
    assert store.read(f"{folder}/best/below/50% #1") == b"odd"
    for _ in range(2):  # also where there is none
        run.delete_folder("state/events")
    assert [key for key in store.keys(folder) if not key.endswith("/")] == [
        f"{folder}/best/below/50% #1",
        f"{folder}/state/format.json",
        f"{folder}/state/seal.json",
    ]
    with pytest.raises(FileNotFoundError):
        run.read_text("sweep.yaml")
    with pytest.raises(FileNotFoundError):
        run.download("state/none", tmp_path / "none")


def test_records_are_read_many_at_once(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of hundreds of trials has thousands, and each takes its time on the way."""
    writer = RecordWriter(run)
    for epoch in range(directory.READ_AT_ONCE):
        writer.report({"trial": "t000", "stage": "stage_one", "epoch": epoch, "seconds": 1.0})
    write_trials(run, [TrialRecord("t000", {}, {})])
    all_at_once = threading.Barrier(directory.READ_AT_ONCE)
    reading = RunDirectory.read_bytes

    def read(run: RunDirectory, relative: str) -> bytes:
        if relative.startswith(EVENTS_FOLDER):
            all_at_once.wait(30)
        return reading(run, relative)

    monkeypatch.setattr(RunDirectory, "read_bytes", read)
    assert [row["epoch"] for row in read_records(run).history] == list(range(directory.READ_AT_ONCE))


def test_wandb_folders_of_an_earlier_process_are_replaced_by_those_of_the_same_runs(
    run: RunDirectory, store: ObjectStore, tmp_path: Path
) -> None:
    for folder in ("offline-run-20260131_120000-demo-t000", "offline-run-20260131_120000-demo-t001"):
        run.write_text(f"wandb/{folder}/run.wandb", "earlier")
    (tmp_path / "wandb/offline-run-20260131_130000-demo-t001").mkdir(parents=True)
    (tmp_path / "wandb/offline-run-20260131_130000-demo-t001/run.wandb").write_text("later")
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-20260131_130000-demo-t001")
    (tmp_path / "wandb/debug.log").write_text("W&B's own")
    upload_runs(tmp_path, run)
    assert run.list("wandb") == ["offline-run-20260131_120000-demo-t000", "offline-run-20260131_130000-demo-t001"]
    assert uploaded_runs(run) == {"demo-t000", "demo-t001"}
    upload_runs(tmp_path / "nothing", run)


# --- a server that refuses, or is gone


def test_a_server_that_comes_back_is_waited_for(run: RunDirectory, store: ObjectStore, tmp_path: Path) -> None:
    run.write_text("state/seal.json", "old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("content")
    for ask in (
        lambda: run.write_text("state/seal.json", "new"),
        lambda: run.read_text("state/seal.json"),
        lambda: run.exists("state"),
        lambda: run.list("state"),
        lambda: run.upload(tmp_path / "folder", "best"),
        lambda: run.download("best", tmp_path / "back"),
        lambda: run.delete_folder("best"),
    ):
        with opened_after(store, 0.3):
            ask()
    assert run.read_text("state/seal.json") == "new"
    assert (tmp_path / "back/file").read_text() == "content"
    assert not run.exists("best")


@pytest.mark.usefixtures("impatient")
def test_what_is_refused_for_good_is_a_storage_error_and_the_old_file_stays(
    run: RunDirectory, store: ObjectStore
) -> None:
    run.write_text("state/seal.json", "old")
    with store.shut("403 Forbidden"):
        for ask in (
            lambda: run.write_text("state/seal.json", "new"),
            lambda: run.read_text("state/seal.json"),
            lambda: run.list("state"),
        ):
            with pytest.raises(StorageError, match=r"storage refused s3://.*state.* 2 times .*ACCESS_DENIED"):
                ask()
    assert run.read_text("state/seal.json") == "old"


@pytest.mark.parametrize(
    ("command", "why"),
    [(command, "access denied") for command in ("run", "compare", "resume", "report", "predict")]
    + [("run", "no one listens"), ("predict", "no one listens")],
)
def test_a_server_that_does_not_answer_at_the_start_is_reported_at_once(
    command: str, why: str, store: ObjectStore, rows_csv: Path, tiny_model: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    port = store.port if why == "access denied" else free_port()
    storage = f"s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    file = tmp_path / "sweep.yaml"
    methods = "methods: [vanilla]\n" if command == "compare" else ""
    file.write_text(f"{methods}name: demo\ndata: {{train: {rows_csv}}}\nmodel: {{name: {tiny_model('bert')}}}\n")
    run = storage.replace("/runs", "/runs/demo")
    arguments = {"predict": [run, str(rows_csv)], "resume": [run], "report": [run]}
    capsys.readouterr()
    began = time.monotonic()
    with store.shut("403 Forbidden"):
        assert main([command, *arguments.get(command, [str(file), "--storage", storage])]) == 2
    assert time.monotonic() - began < 20  # pyarrow asks a silent port three times, for 6 s
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("tailsweep: ")
    assert ("Could not connect" if why == "no one listens" else "ACCESS_DENIED") in said[0]


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_google_cloud_storage_that_does_not_answer_is_reported_in_one_line(
    scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    query = f"endpoint_override=127.0.0.1:{free_port()}&scheme=http&retry_limit_seconds=1"
    assert main(["report", f"{scheme}://anonymous@bucket/runs/demo?{query}"]) == 2
    assert time.monotonic() - began < 30
    (said,) = capsys.readouterr().err.splitlines()
    assert "does not answer: google::cloud::Status(UNAVAILABLE" in said


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (f"s3://{BUCKET}/none", "is not a run directory"),
        ("s3://no-such-bucket/none", "is not a run directory"),
        (f"s3://{BUCKET}/my runs", "write %20"),
        (f"s3:/{BUCKET}/runs", "two slashes after s3:"),
    ],
)
def test_a_run_that_does_not_exist_is_reported_in_one_line(
    run: str, said: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    for command in ("report", "resume"):
        assert main([command, run]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


# --- the lease


def test_of_two_processes_the_second_is_refused_until_the_first_gives_back(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.05)
    with (
        run_lock(run),
        pytest.raises(RunDirectoryError, match=rf"process {os.getpid()} on .*'s3://.*&scheme=http"),
        run_lock(run),
    ):
        pass
    with run_lock(run):
        pass


@pytest.mark.usefixtures("impatient")
def test_a_lease_is_kept_while_the_server_is_away(
    run: RunDirectory, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.05)
    monkeypatch.setattr(lock, "RENEWED_EVERY_S", 0.05)
    with run_lock(run):
        with store.shut("403 Forbidden"):
            time.sleep(0.5)
        first = run.read_text(OWNER_FILE)
        deadline = time.monotonic() + 20
        while (renewed := run.read_text(OWNER_FILE)) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(renewed) == len(first) == OWNER_BYTES  # so that a reader never has the end of another
        store.door.write_text("403 Forbidden")  # also at its end
    store.door.unlink()


def test_a_lease_is_as_old_as_the_store_says_whatever_the_clock_of_its_host(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.05)
    for behind in (-7200, 90, 7200):
        owner = {"host": "elsewhere", "pid": 1, "nonce": "x", "renewed": time.time() - behind}
        run.write_text(OWNER_FILE, json.dumps(owner))
        with pytest.raises(RunDirectoryError, match="process 1 on elsewhere"), run_lock(run):
            pass
    monkeypatch.setattr(lock, "LEASE_S", 2)
    time.sleep(3.1)  # a store's times are whole seconds
    with run_lock(run):
        pass


def test_who_has_slept_through_its_lease_stops_and_leaves_the_others_alone(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, messages_logged: list[str]
) -> None:
    monkeypatch.setattr(lock, "SETTLING_S", 0.05)
    monkeypatch.setattr(lock, "RENEWED_EVERY_S", 0.05)
    other = json.dumps({"host": "elsewhere", "pid": 1, "nonce": "x", "renewed": time.time()})
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt), run_lock(run):
            _sleep_while_another_takes_over(run, other)
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.read_text(OWNER_FILE) == other
    assert any("is being worked on by process 1 on elsewhere" in message for message in messages_logged)


def _sleep_while_another_takes_over(run: RunDirectory, owner: str) -> None:
    for _ in range(40):  # a renewal that had begun may come between; the other tries again then
        run.write_text(OWNER_FILE, owner)
        time.sleep(0.5)


# --- rows, features and checkpoints


def test_rows_and_features_of_a_bucket_are_read_by_a_node_that_lacks_them(
    run: RunDirectory, store: ObjectStore, rows_csv: Path, tiny_model: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Made and published by one node, in two parts; the other has a cache of its own, and never runs the trunk."""
    name = str(tiny_model("distilbert", 0.0))
    trial_config = TrialConfig.model_validate(
        {
            "data": {"train": str(rows_csv), "max_length": 40},
            "model": {"name": name},
            "stage_one": {"trainable": {"top_layers": 1}},
            "stage_two": {},
        }
    )
    here, there = tmp_path / "here", tmp_path / "there"
    data = prepare(trial_config.data, name, here)
    model = build_classifier(trial_config.model, data.label_names, 0)
    cpu = torch.device("cpu")
    plan = plan_features(model, trial_config.stage_one, data, "fp32", cpu)
    assert isinstance(plan, FeaturePlan)
    run.upload(data.folder, f"state/data/{data.key}")
    run.make_folder("state/features")
    for part in range(2):
        with opened_after(store, 0.2):
            make_part(plan, model, data, PartSet(run.uri("state/features"), 2), part, cpu)
    expected = make_features(plan, model, data, here, cpu)

    monkeypatch.setattr(feature_store, "_write_part", lambda *arguments: pytest.fail("the trunk is run"))
    with opened_after(store, 0.2):
        copied = fetch_prepared(
            DataSource(key=data.key, published=run.uri(f"state/data/{data.key}"), digest=data.digest), there
        )
    assert (copied.folder.parents[1], copied.key) == (there, data.key)
    with opened_after(store, 0.2):
        features = make_features(plan, model, copied, there, cpu, PartSet(run.uri("state/features"), 2))
    assert torch.equal(features.train, expected.train)
    assert torch.equal(features.validation, expected.validation)


@pytest.mark.usefixtures("impatient")
def test_rows_that_a_bucket_lacks_are_the_runs_fault_and_those_it_refuses_are_not(
    run: RunDirectory, store: ObjectStore, tmp_path: Path
) -> None:
    nowhere = DataSource(key="0" * 64, published=run.uri("state/data/none"), digest="0" * 64)
    with pytest.raises(DataError, match="cannot be copied"):
        fetch_prepared(nowhere, tmp_path)
    with store.shut("403 Forbidden"), pytest.raises(StorageError, match="ACCESS_DENIED"):
        fetch_prepared(nowhere, tmp_path)


def test_of_phase_one_the_last_checkpoint_in_a_bucket_is_kept_and_resumed_from(
    run: RunDirectory, store: ObjectStore, tmp_path: Path
) -> None:
    runtime = StageOneRuntime(run.uri("state/checkpoints/t000"), reported={("stage_one", 1), ("stage_one", 2)})
    model = torch.nn.Linear(2, 2)
    for epoch in (1, 2):
        progress = Progress("stage_one", epoch, ())
        folder = tmp_path / progress.name
        folder.mkdir()
        save_checkpoint(folder, progress, model, {"weight"}, None)
        with opened_after(store, 0.2):
            runtime.report({report_keys.STAGE: "stage_one", report_keys.EPOCH: epoch}, folder)
    assert run.list("state/checkpoints/t000") == ["stage_one_epoch_002"]
    checkpoints = [run.uri("state/checkpoints/t000"), run.uri("state/checkpoints/t001")]
    with newest_checkpoint(checkpoints) as (checkpoint, damaged):
        assert checkpoint is not None
        assert (checkpoint.name, damaged) == ("stage_one_epoch_002", [])

    # A second one, of a process that was killed while it wrote, and one of the parent's of the same name.
    run.upload(tmp_path / "stage_one_epoch_002", "state/checkpoints/t001/stage_one_epoch_002")
    run.write_text("state/checkpoints/t000/stage_one_epoch_002/parameters.safetensors", "half")
    with opened_after(store, 0.2), newest_checkpoint(checkpoints) as (checkpoint, damaged):
        assert checkpoint is not None
        assert (checkpoint.name, damaged) == ("stage_one_epoch_002", ["stage_one_epoch_002"])
