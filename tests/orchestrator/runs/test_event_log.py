"""The log of a run: counted, chained, rolled up; whatever is taken out of it is noticed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tailsweep.orchestrator.runs import event_log
from tailsweep.orchestrator.runs.directory import EVENTS_FOLDER, SEAL_FILE, RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.event_log import Event, EventLog, LogEnd, read_events
from tailsweep.trainables.errors import StorageError


@pytest.fixture(autouse=True)
def segments_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "SEGMENT_RECORDS", 4)


def write(run: RunDirectory, number: int, ended: bool = False) -> None:
    """Continue the log by so many records, as one process."""
    log = EventLog(run, read_events(run)[1])
    for _ in range(number):
        log.append("report", {"trial": "t000", "place": log.end.number})
    if ended:
        log.seal()


def places(run: RunDirectory) -> list[int]:
    return [event.record["place"] for event in read_events(run)[0]]


def files(run: RunDirectory) -> list[Path]:
    return sorted(Path(run.path, EVENTS_FOLDER).iterdir())


def test_records_are_read_in_their_order_with_kind_and_time(run: RunDirectory) -> None:
    log = EventLog(run, LogEnd())
    log.append("drawn", {"name": "t000"})
    report = {"trial": "t000", "validation/macro_f1": 0.1 + 0.2, "validation/recall_few": None}
    log.append("report", report)
    first, second = read_events(run)[0]
    assert (first.kind, first.record) == ("drawn", {"name": "t000"})
    assert second == Event(
        "report", second.time, {"trial": "t000", "validation/macro_f1": 0.1 + 0.2, "validation/recall_few": None}
    )
    assert first.time <= second.time


def test_many_records_are_rolled_up_and_what_is_left_at_the_end_too(run: RunDirectory) -> None:
    write(run, 6)
    assert [file.name for file in files(run)] == ["00000000-00000003.jsonl", "00000004.json", "00000005.json"]
    write(run, 1, ended=True)
    assert [file.name for file in files(run)] == ["00000000-00000003.jsonl", "00000004-00000006.jsonl"]
    write(run, 1, ended=True)  # a single record is a file by itself
    assert [file.name for file in files(run)][2:] == ["00000007.json"]
    write(run, 3, ended=True)
    assert [file.name for file in files(run)][2:] == ["00000007-00000010.jsonl"]
    assert places(run) == list(range(11))


def test_records_of_one_moment_are_one_file_with_the_loose_ones_before_them(run: RunDirectory) -> None:
    write(run, 2)
    log = EventLog(run, read_events(run)[1])
    log.append_all("report", [{"place": 2}, {"place": 3}, {"place": 4}])
    assert [file.name for file in files(run)] == ["00000000-00000004.jsonl"]
    log.append_all("report", [{"place": 5}])
    log.append_all("report", [])
    assert [file.name for file in files(run)][1:] == ["00000005.json"]
    log.append_all("report", [{"place": 6}, {"place": 7}])
    log.seal()
    assert [file.name for file in files(run)][1:] == ["00000005-00000007.jsonl"]
    assert places(run) == list(range(8))


def test_a_refusal_of_storage_leaves_the_log_as_it_was(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 1)
    log = EventLog(run, read_events(run)[1])
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_bytes", lambda *_: (_ for _ in ()).throw(StorageError("no")))
        with pytest.raises(StorageError):
            log.append_all("report", [{"place": 1}, {"place": 2}])
    log.append_all("report", [{"place": 1}, {"place": 2}])
    assert places(run) == [0, 1, 2]


def test_a_process_killed_while_it_rolls_up_leaves_a_log_that_is_whole(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "delete_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(run, 4)
    assert len(files(run)) == 5
    assert places(run) == [0, 1, 2, 3]
    write(run, 4)
    assert [file.name for file in files(run)] == ["00000000-00000003.jsonl", "00000004-00000007.jsonl"]
    assert places(run) == list(range(8))


@pytest.mark.parametrize("number", range(7))
def test_a_missing_record_is_named(run: RunDirectory, number: int) -> None:
    """Of a killed process the last one is not: the same as if it had been killed a moment before."""
    write(run, 7)
    segment, *loose = files(run)
    (segment if number < 4 else loose[number - 4]).unlink()
    if number == 6:
        assert places(run) == list(range(6))
        return
    missing = "records 0 to 3 are" if number < 4 else f"record {number} is"
    with pytest.raises(RunDirectoryError, match=f"{missing} missing from .*state/events: restore"):
        read_events(run)


@pytest.mark.parametrize("number", range(3))
def test_every_missing_record_of_a_process_that_came_to_its_end_is_named(run: RunDirectory, number: int) -> None:
    write(run, 6, ended=True)
    write(run, 1, ended=True)
    files(run)[number].unlink()
    missing = ("records 0 to 3 are", "records 4 to 5 are", "record 6 is")[number]
    with pytest.raises(RunDirectoryError, match=f"{missing} missing"):
        read_events(run)


def altered(text: str) -> str:
    return text.replace('"place": ', '"place": 1', 1)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("damage", [altered, lambda text: text[: len(text) // 2], lambda _: "", lambda _: "[1]\n"])
def test_damage_is_named(run: RunDirectory, number: int, damage: Callable[[str], str]) -> None:
    write(run, 7)
    file = files(run)[number]
    file.write_text(damage(file.read_text()))
    hint = "or remove it" if number == 3 else "restore the run directory from a copy"
    with pytest.raises(RunDirectoryError, match=rf"{file.name} is damaged \(.+\): .*{hint}"):
        read_events(run)


def test_the_last_record_of_a_killed_process_may_be_removed_and_the_log_continues(run: RunDirectory) -> None:
    write(run, 3)
    files(run)[-1].unlink()
    write(run, 2)
    assert [event.record["place"] for event in read_events(run)[0]] == [0, 1, 2, 3]


def test_records_of_another_run_and_records_written_anew_do_not_fit(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(str(tmp_path / "other"))
    other.create()
    for directory in (run, other):
        write(directory, 3)
    files(run)[1].write_bytes(files(other)[1].read_bytes())
    with pytest.raises(RunDirectoryError, match=r"00000001\.json does not continue the records before it"):
        read_events(run)


def test_a_record_altered_with_its_digest_is_noticed_by_the_next_and_by_the_seal(run: RunDirectory) -> None:
    def forge(file: Path) -> None:
        fields = json.loads(file.read_text())
        del fields["digest"]
        fields["record"]["place"] = 99
        file.write_text(json.dumps(fields | {"digest": event_log._digest(fields)}) + "\n")

    write(run, 3)
    forge(files(run)[1])
    with pytest.raises(RunDirectoryError, match=r"00000002\.json does not continue"):
        read_events(run)
    run.delete_folder(EVENTS_FOLDER)
    write(run, 1, ended=True)
    forge(files(run)[0])
    with pytest.raises(RunDirectoryError, match=rf"{SEAL_FILE} is not of these records"):
        read_events(run)


def test_a_missing_seal_costs_nothing_and_a_damaged_one_is_named(run: RunDirectory) -> None:
    write(run, 3, ended=True)
    seal = Path(run.path, SEAL_FILE)
    seal.write_text("{}")
    with pytest.raises(RunDirectoryError, match=rf"{SEAL_FILE} is damaged"):
        read_events(run)
    seal.unlink()
    assert places(run) == [0, 1, 2]


def test_another_process_may_roll_up_what_is_being_read(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, 3)
    reading = RunDirectory.read_files

    def roll_up_first(self: RunDirectory, *arguments: object) -> object:
        monkeypatch.setattr(RunDirectory, "read_files", reading)
        write(run, 1)
        return reading(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RunDirectory, "read_files", roll_up_first)
    assert places(run) == [0, 1, 2, 3]


def test_what_is_no_record_is_refused(run: RunDirectory) -> None:
    write(run, 1)
    run.write_text(f"{EVENTS_FOLDER}/notes.txt", "mine")
    with pytest.raises(RunDirectoryError, match=re.escape("notes.txt is not a record: remove it")):
        read_events(run)
