"""The run directory: whole files or none, on any storage, and what is read back from it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest

from orchestrator import records
from orchestrator.config import Sweep, SweepConfigError, load_sweep, to_yaml
from orchestrator.records import (
    CANDIDATES_FILE,
    HISTORY_FOLDER,
    SWEEP_FILE,
    CandidateRecord,
    HistoryWriter,
    Outcome,
    Records,
    RunDirectory,
    RunDirectoryError,
    best_epoch,
    last_stage,
    open_run,
    read_records,
    read_sweep,
    write_candidates,
    write_drawn,
    write_outcome,
)

METRIC = "validation/macro_f1"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "runs" / "demo"))
    run.create()
    return run


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunDirectory:
    """A run directory on storage that is not local, as an object store; it is kept in memory, one for the process."""
    store = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
    monkeypatch.setattr(records, "open_location", lambda location: (store, location.removeprefix("memory://")))
    return RunDirectory(f"memory://{tmp_path}/demo")


def a_sweep(folder: Path) -> Sweep:
    path = folder / "small.yaml"
    path.write_text(
        "{name: small, num_candidates: 3, data: {train: rows.csv}, "
        "stage_one: {learning_rate: {loguniform: [1e-5, 1e-2]}, trains: {choice: [head, {top_layers: 1}]}}}"
    )
    return load_sweep(path)


def report(candidate: str, stage: str, epoch: int, score: float) -> dict[str, Any]:
    return {"candidate": candidate, "stage": stage, "epoch": epoch, METRIC: score, "seconds": 1.25}


class FullDisk:
    """A stream that takes half of what it is given, then fails."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, content: bytes) -> None:
        self.path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")


def fill_disk(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    local = run.filesystem

    class Full:
        open_output_stream = staticmethod(FullDisk)

        def __getattr__(self, name: str) -> Any:
            return getattr(local, name)

    monkeypatch.setattr(RunDirectory, "local", property(lambda run: Path(run.path)))
    monkeypatch.setattr(run, "filesystem", Full())


def test_a_failing_write_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("state/outcomes/c000.json", "old")
    fill_disk(run, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run.write_text("state/outcomes/c000.json", "the new content")
    assert run.read_text("state/outcomes/c000.json") == "old"


def test_what_was_half_written_is_not_listed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("state/history/00000000.json", "{}")
    fill_disk(run, monkeypatch)
    with pytest.raises(OSError):
        run.write_text("state/history/00000001.json", "{}")
    assert len(list(Path(run.path, "state/history").iterdir())) == 2, "else nothing was half written"
    assert run.list("state/history") == ["00000000.json"]


def test_writing_again_replaces_the_file_and_leaves_nothing_aside(run: RunDirectory) -> None:
    for text in ("one", "zwei \N{SNOWMAN}"):
        run.write_text("environment.json", text)
    assert run.read_text("environment.json") == "zwei \N{SNOWMAN}"
    assert run.list("") == ["environment.json", "state"]


def test_a_new_run_directory_holds_nothing(run: RunDirectory) -> None:
    assert [path.name for path in Path(run.path).rglob("*")] == ["state"]


def test_an_existing_run_directory_is_refused_and_resume_is_named(run: RunDirectory) -> None:
    run.write_text(SWEEP_FILE, "name: demo")
    with pytest.raises(RunDirectoryError, match=r"is there already") as raised:
        RunDirectory(run.location).create()
    assert f"`tailsweep resume {run.location}`" in str(raised.value)
    assert run.read_text(SWEEP_FILE) == "name: demo"


def test_storage_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    location = tmp_path / "file" / "runs" / "demo"
    with pytest.raises(RunDirectoryError) as raised:
        RunDirectory(str(location)).create()
    message = str(raised.value)
    assert message.startswith(f"storage {location} cannot be written: ")
    assert "Not a directory" in message
    assert "\n" not in message


@pytest.mark.parametrize("location", ["nosuch://bucket/runs", "file://relative/runs"])
def test_storage_that_cannot_be_opened_is_one_clear_line(location: str) -> None:
    with pytest.raises(RunDirectoryError, match=f'^storage "{location}" cannot be used: .+$'):
        RunDirectory(location)


@pytest.mark.parametrize("folder", ["with space", "50%20off#1", "ümläut?&=+", "a'b\"c"])
def test_a_local_path_may_hold_any_character(tmp_path: Path, folder: str) -> None:
    run = RunDirectory(f"{tmp_path / folder}/")
    run.create()
    run.write_text("a/b.txt", "here")
    assert (tmp_path / folder / "a" / "b.txt").read_text() == "here"
    assert run.local == tmp_path / folder
    assert (run.name, run.uri("best")) == (folder, f"{tmp_path / folder}/best")
    assert RunDirectory(run.location).read_text("a/b.txt") == "here"


def test_a_relative_location_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory("runs/demo").location == str(tmp_path / "runs" / "demo")


def test_a_file_uri_is_local_storage(tmp_path: Path) -> None:
    run = RunDirectory((tmp_path / "with space").as_uri())
    run.create()
    run.write_text("a.txt", "here")
    assert run.local == tmp_path / "with space"
    assert (tmp_path / "with space" / "a.txt").read_text() == "here"
    assert RunDirectory(run.location).read_text("a.txt") == "here"


def test_an_object_store_holds_a_run_too(object_store: RunDirectory, tmp_path: Path) -> None:
    run = object_store
    run.create()
    fill(run)
    assert run.local is None
    assert run.uri("best") == f"memory://{tmp_path}/demo/best"
    assert not (tmp_path / "demo").exists(), "else it was local storage after all"
    assert read_records(run) == the_records()
    (tmp_path / "best" / "deep").mkdir(parents=True)
    (tmp_path / "best" / "deep" / "model.bin").write_bytes(b"weights")
    run.upload(tmp_path / "best", "best")
    run.download("best", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "model.bin").read_bytes() == b"weights"
    run.delete_folder("best")
    assert not run.exists("best")
    with pytest.raises(RunDirectoryError, match="is there already"):
        run.create()


def test_an_uploaded_folder_replaces_the_one_before_as_a_whole(run: RunDirectory, tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.txt").write_text(name)
        run.upload(folder, "state/data/key")
    assert run.list("state/data") == ["key"]
    assert run.list("state/data/key") == ["second.txt"]
    run.download("state/data/key", tmp_path / "new" / "place")
    assert (tmp_path / "new" / "place" / "second.txt").read_text() == "second"


def test_a_folder_that_is_not_there_has_no_files_and_can_be_deleted(run: RunDirectory) -> None:
    assert run.list("nowhere") == []
    run.delete_folder("nowhere")


CANDIDATES = [
    CandidateRecord(
        "c000", {"stage_one.trains": {"top_layers": 1}, "stage_one.epochs": 3}, {"seed": 0, "a": [1, None]}
    ),
    CandidateRecord("c001", {"stage_one.trains": "head", "stage_one.epochs": 1}, {"seed": 0, "a": []}),
]
HISTORY = [
    report("c001", "stage_one", 1, 0.1 + 0.2),  # a number that a careless format would change
    report("c000", "stage_one", 1, 1e-17) | {"validation/recall_few": None},
    report("c001", "stage_two", 1, 0.5),
]
OUTCOME = Outcome("c001", "completed", "all its epochs are done", 2.5)


def fill(run: RunDirectory) -> None:
    write_candidates(run, CANDIDATES)
    writer = HistoryWriter(run)
    for row in HISTORY:
        writer.append(row)
    write_outcome(run, OUTCOME)


def the_records() -> Records:
    return Records(CANDIDATES, HISTORY, {"c001": OUTCOME})


def test_records_are_read_back_as_they_were_written(run: RunDirectory) -> None:
    fill(run)
    assert read_records(run) == the_records()


def test_a_sweep_is_finished_when_every_candidate_has_an_outcome() -> None:
    read = the_records()
    assert not read.finished
    read.outcomes["c000"] = dataclasses.replace(OUTCOME, candidate="c000", state="failed")
    assert read.finished


def test_history_stays_in_the_order_heard_over_many_parts_and_writers(run: RunDirectory) -> None:
    write_candidates(run, CANDIDATES)
    for _ in range(3):  # a sweep and its resumptions
        writer = HistoryWriter(run)
        for _ in range(5):
            writer.append({"candidate": "c000", "number": writer.next_part})
    assert [row["number"] for row in read_records(run).history] == list(range(15))
    assert run.list(HISTORY_FOLDER)[-1] == "00000014.json"


def test_history_of_a_candidate_is_its_own_rows_in_order() -> None:
    assert the_records().history_of("c001") == [HISTORY[0], HISTORY[2]]


def test_a_candidate_with_a_parent_has_its_stage_one_and_numbers_order_them_all(run: RunDirectory) -> None:
    write_candidates(run, CANDIDATES[:1])
    for name, parent in (("c1000", None), ("c000.10", "c000"), ("c000.2", "c000"), ("c101", None)):
        write_drawn(run, CandidateRecord(name, {"x": name}, {}, parent))
    writer = HistoryWriter(run)
    rows = [report("c000", "stage_one", 1, 0.1), report("c000.2", "stage_two", 1, 0.2)]
    rows.append(report("c000.10", "stage_two", 1, 0.3))
    for row in rows:
        writer.append(row)
    read = read_records(run)
    assert [candidate.name for candidate in read.candidates] == ["c000", "c101", "c1000", "c000.2", "c000.10"]
    assert [candidate.name for candidate in read.entered] == ["c000", "c101", "c1000"]
    assert read.candidate("c000.2").parent == "c000"
    assert read.history_of("c000") == rows[:1]
    assert read.history_of("c000.2") == rows[:2]
    assert read.history_of("c000.10") == [rows[0], rows[2]]


def test_what_is_no_run_directory_is_said_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for location in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(RunDirectoryError, match=f"{location} is not a run directory: it has no sweep.yaml"):
            open_run(str(location))


def test_a_run_is_one_as_soon_as_its_candidates_are_written(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text(SWEEP_FILE, "x")
    with pytest.raises(RunDirectoryError):
        open_run(run.location)
    write_candidates(run, CANDIDATES)
    assert open_run(run.location).path == run.path
    assert json.loads(run.read_text(CANDIDATES_FILE))[0]["name"] == "c000"


def test_the_resolved_sweep_is_read_back_equal(run: RunDirectory, tmp_path: Path) -> None:
    sweep = a_sweep(tmp_path)
    run.write_text(SWEEP_FILE, to_yaml(sweep))
    read = read_sweep(run)
    assert read.config == sweep.config
    assert read.candidates() == sweep.candidates()


def test_a_resolved_sweep_that_somebody_broke_is_named_with_its_mistake(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text(SWEEP_FILE, to_yaml(a_sweep(tmp_path)).replace("metric: ", "metrik: "))
    with pytest.raises(SweepConfigError, match='metrik: unknown field; did you mean "metric"') as raised:
        read_sweep(run)
    assert raised.value.source == run.uri(SWEEP_FILE)
    run.write_text(SWEEP_FILE, "name: [")
    with pytest.raises(SweepConfigError, match="line 1"):
        read_sweep(run)


@pytest.mark.parametrize(("epochs", "last"), [((3, 2), "stage_two"), ((3, 0), "stage_one"), ((0, 1), "stage_two")])
def test_a_candidate_is_complete_with_stage_two_where_there_is_one(epochs: tuple[int, int], last: str) -> None:
    assert last_stage({"stage_one": {"epochs": epochs[0]}, "stage_two": {"epochs": epochs[1]}}) == last


def test_a_candidate_is_judged_by_the_best_epoch_of_its_last_stage() -> None:
    rows = [
        report("c000", "stage_one", 1, 0.9),
        report("c000", "stage_one", 2, 0.8),
        report("c000", "stage_two", 1, 0.2),
        report("c000", "stage_two", 2, 0.3),
        report("c000", "stage_two", 3, 0.1),
    ]
    assert best_epoch(rows, METRIC) is rows[3]
    assert best_epoch(rows[:2], METRIC) is rows[0]
    assert best_epoch([], METRIC) is None


def test_the_earlier_of_equally_good_epochs_is_the_best() -> None:
    rows = [report("c000", "stage_one", epoch, score) for epoch, score in ((1, -0.5), (2, 0.4), (3, 0.4))]
    assert best_epoch(rows, METRIC) is rows[1]
