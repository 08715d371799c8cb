"""The run directory: whole files or none, on any storage, and refusals that say what to do."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.runs.directory import SWEEP_FILE, RunDirectory, RunDirectoryError, open_run
from tailsweep.orchestrator.runs.records import write_trials
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage import retry


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
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.01, 0.01))


def test_a_failing_write_leaves_the_old_file(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("state/events/00000000.json", "old")
    fill_disk(run, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run.write_text("state/events/00000000.json", "the new content")
    assert run.read_text("state/events/00000000.json") == "old"


def test_what_a_killed_process_half_wrote_is_not_listed(run: RunDirectory) -> None:
    run.write_text("state/events/00000000.json", "{}")
    Path(run.path, "state/events/00000001.json.0123.tmp").write_text('{"half":')
    assert run.list("state/events") == ["00000000.json"]


def test_what_a_full_disk_half_wrote_takes_no_room_on_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("state/events/00000000.json", "{}")
    fill_disk(run, monkeypatch)
    with pytest.raises(StorageError, match=r"refused .*00000001.json 3 times in 0.02 s: .*No space left"):
        run.write_text("state/events/00000001.json", "{}")
    assert [path.name for path in Path(run.path, "state/events").iterdir()] == ["00000000.json"]


def test_a_refusal_that_passes_is_waited_for(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's disk that is away, until it is back."""
    monkeypatch.setattr(retry, "RETRY_DELAYS_S", (0.05,) * 100)
    writing, until = RunDirectory._write, time.monotonic() + 0.3

    def write(self: RunDirectory, path: str, content: bytes) -> None:
        if time.monotonic() < until:
            raise OSError(errno.ESTALE, "Stale file handle")
        writing(self, path, content)

    monkeypatch.setattr(RunDirectory, "_write", write)
    run.write_text("state/events/00000000.json", "{}")
    assert run.read_text("state/events/00000000.json") == "{}"


def test_a_file_where_a_folder_must_be_is_refused_at_once(run: RunDirectory) -> None:
    Path(run.path, "state/events").write_text("")
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"storage refused .*00000000\.json: .*Not a directory"):
        run.write_text("state/events/00000000.json", "{}")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_what_never_passes_is_refused_at_once(run: RunDirectory, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(RunDirectory, "_write", refuse)
    began = time.monotonic()
    with pytest.raises(StorageError, match=os.strerror(number)):
        run.write_text("sweep.yaml", "x")
    assert time.monotonic() - began < 1


def test_files_of_a_run_have_the_permissions_of_a_new_file(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "model" / "below").mkdir(parents=True, mode=0o700)
    for name in ("model.safetensors", "below/vocab.txt"):
        (tmp_path / "model" / name).write_text("")
        (tmp_path / "model" / name).chmod(0o600)
    run.upload(tmp_path / "model", "best")
    (tmp_path / "new").write_text("")
    expected = (tmp_path / "new").stat().st_mode
    files = [path for path in Path(run.path, "best").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {expected}
    assert len(files) == 2


def test_the_root_of_the_disk_is_no_run_directory() -> None:
    assert RunDirectory("/").path == "/"
    with pytest.raises(RunDirectoryError, match="/ is not a run directory"):
        open_run("/")


def test_writing_again_replaces_the_file_and_leaves_nothing_aside(run: RunDirectory) -> None:
    for text in ("one", "zwei \N{SNOWMAN}"):
        run.write_text("environment.json", text)
    assert run.read_text("environment.json") == "zwei \N{SNOWMAN}"
    assert run.list("") == ["environment.json", "state"]


def test_a_new_run_directory_holds_nothing(run: RunDirectory) -> None:
    assert [path.name for path in Path(run.path).rglob("*")] == ["state", "format.json"]


def test_an_existing_run_directory_is_refused_and_resume_is_named(run: RunDirectory) -> None:
    run.write_text(SWEEP_FILE, "name: demo")
    with pytest.raises(RunDirectoryError, match=r"is there already") as raised:
        RunDirectory(run.location).create()
    assert f"`tailsweep resume {run.location}`" in str(raised.value)
    assert run.read_text(SWEEP_FILE) == "name: demo"


def test_a_sweep_that_had_not_begun_is_begun_again_where_that_is_asked_for(run: RunDirectory) -> None:
    run.write_text(SWEEP_FILE, "name: demo")  # its process was killed while it wrote the rows
    assert not run.has_begun
    RunDirectory(run.location).create(over_one_not_begun=True)
    write_trials(run, [])
    assert run.has_begun
    with pytest.raises(RunDirectoryError, match=r"is there already"):
        RunDirectory(run.location).create(over_one_not_begun=True)


def test_a_folder_of_something_else_is_never_begun_in(run: RunDirectory) -> None:
    run.write_text("thesis.tex", "years of work")
    with pytest.raises(RunDirectoryError, match=r"is there already"):
        RunDirectory(run.location).create(over_one_not_begun=True)


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


def test_what_is_no_run_directory_is_said_with_an_example(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for location in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(RunDirectoryError, match=f"{location} is not a run directory: it has no sweep.yaml"):
            open_run(str(location))


def test_an_object_store_holds_a_run_too(object_store: RunDirectory, tmp_path: Path) -> None:
    run = object_store
    run.create()
    assert run.local is None
    assert run.uri("best") == f"memory://{tmp_path}/demo/best"
    assert not (tmp_path / "demo").exists(), "else it was local storage after all"
    (tmp_path / "best" / "deep").mkdir(parents=True)
    (tmp_path / "best" / "deep" / "model.bin").write_bytes(b"weights")
    run.upload(tmp_path / "best", "best")
    run.download("best", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "model.bin").read_bytes() == b"weights"
    run.delete_folder("best")
    assert not run.exists("best")
    with pytest.raises(RunDirectoryError, match="is there already"):
        run.create()
