"""The log of a run: what happened, in order, in records that are counted and chained by their digests.

A record is one line of JSON. It is first written to a file of its own, whole or not at all. Many of them are rolled up
into a segment, one file of many lines, and so is whatever is left when the process ends. Each record holds its number
and a digest of itself and of the record before, so a record that was removed, altered or taken from another run is
noticed wherever it stands. The last ones are protected by the seal, which counts the records when a process ends.

A process that is killed writes no seal. Its last record may then be removed without notice, which is the same as if it
had been killed a moment before.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tailsweep.orchestrator.runs.directory import EVENTS_FOLDER, SEAL_FILE, RunDirectory, RunDirectoryError
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.storage.json_text import parse_json

SEGMENT_RECORDS = 256  # rolled up into one file
DIGEST_DIGITS = 32
READ_ATTEMPTS = 5  # while another process rolls up what is read

RESTORE = "restore the run directory from a copy; without all its records its results would be wrong"
FILE_NAME = re.compile(r"(\d{8})(?:-(\d{8}))?\.jsonl?")


@dataclass(frozen=True)
class Event:
    """A record: what kind of event it is of, when it was written, and what is known of it."""

    kind: str
    time: float  # seconds since the epoch
    record: dict[str, Any]


@dataclass(frozen=True)
class LogEnd:
    """Where a log ends, as the one who continues it must know."""

    number: int = 0  # of the next record
    digest: str = ""  # of the last one
    loose: tuple[str, ...] = ()  # the last lines, which are not yet in a segment


class EventLog:
    """The writer of a log: one process at a time, which holds the run's lock.

    Args:
        run: the run directory.
        end: where the log ends, see :func:`read_events`.
    """

    def __init__(self, run: RunDirectory, end: LogEnd) -> None:
        self.run = run
        self.end = end

    def append(self, kind: str, record: Mapping[str, object]) -> None:
        """Write the next record.

        Raises:
            StorageError: Storage continues to refuse it; the log is as it was.
        """
        self.append_all(kind, [record])

    def append_all(self, kind: str, records: Sequence[Mapping[str, object]]) -> None:
        """Write the next records, of one kind: all or none. Several are one file, with the loose ones before them.

        Raises:
            StorageError: Storage continues to refuse them; the log is as it was.
        """
        end = self.end
        for record in records:
            fields = {"number": end.number, "previous": end.digest, "kind": kind, "time": time.time(), "record": record}
            digest = _digest(fields)
            end = LogEnd(end.number + 1, digest, (*end.loose, json.dumps(fields | {"digest": digest}) + "\n"))
        if len(records) == 1:
            self.run.write_text(f"{EVENTS_FOLDER}/{self.end.number:08d}.json", end.loose[-1])
            self.end = end
        if len(records) > 1 or len(self.end.loose) >= SEGMENT_RECORDS:
            self._roll_up(end)

    def seal(self) -> None:
        """Roll up what is left and write how many records there are: at the end of a process."""
        if self.end.number:
            self._roll_up(self.end)
            self.run.write_text(SEAL_FILE, json.dumps({"records": self.end.number, "digest": self.end.digest}) + "\n")

    def _roll_up(self, end: LogEnd) -> None:
        """Write the loose records of the log, which ends so, into a segment, and only then delete their files."""
        if len(end.loose) > 1:
            first = end.number - len(end.loose)
            segment = f"{first:08d}-{end.number - 1:08d}.jsonl"
            self.run.write_text(f"{EVENTS_FOLDER}/{segment}", "".join(end.loose))
            self.end = replace(end, loose=())
            written = [name for name in self.run.list(EVENTS_FOLDER) if "-" not in name]
            self.run.delete_files(f"{EVENTS_FOLDER}/{name}" for name in written if int(name[:8]) < end.number)


def read_events(run: RunDirectory) -> tuple[list[Event], LogEnd]:
    """Read a log. Another process may continue it meanwhile.

    Returns:
        The records in order, and where the log ends.

    Raises:
        RunDirectoryError: A record is missing, or not as it was written.
    """
    seal = _read_seal(run)  # before the records, which may become more
    for attempt in range(READ_ATTEMPTS):
        names = run.list(EVENTS_FOLDER)
        try:
            return _read(run, names, seal)
        except (RunDirectoryError, FileNotFoundError) as error:
            # Another process may have rolled up what was being read.
            if attempt == READ_ATTEMPTS - 1 or run.list(EVENTS_FOLDER) == names:
                if isinstance(error, RunDirectoryError):
                    raise
                raise RunDirectoryError(describe_error(error)) from None
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Seal:
    records: int
    digest: str


def _read_seal(run: RunDirectory) -> _Seal:
    """Return the seal; that of an empty log where no process has come to its end."""
    try:
        read = parse_json(run.read_text(SEAL_FILE))
        return _Seal(int(read["records"]), str(read["digest"]))
    except FileNotFoundError:
        return _Seal(0, "")
    except (ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(f"{run.uri(SEAL_FILE)} is damaged ({describe_error(error)}): {RESTORE}") from None


def _read(run: RunDirectory, names: Sequence[str], seal: _Seal) -> tuple[list[Event], LogEnd]:
    events: list[Event] = []
    end, digests = LogEnd(), [""]
    for name, content in run.read_files(EVENTS_FOLDER, list(_needed(run, names))):
        try:
            for number, line in enumerate(_lines(name, content), start=int(name[:8])):
                if number < end.number:
                    continue
                event, digest = _verified(run, name, line, end)
                events.append(event)
                digests.append(digest)
                end = LogEnd(number + 1, digest, () if "-" in name else (*end.loose, line))
        except ValueError as error:
            if isinstance(error, RunDirectoryError):
                raise
            is_last = name == max(names) and "-" not in name and end.number >= seal.records
            raise _damaged(run, name, error, is_last) from None
    if end.number < seal.records:
        raise _missing(run, end.number, seal.records)
    if digests[seal.records] != seal.digest:
        raise RunDirectoryError(f"{run.uri(SEAL_FILE)} is not of these records: {RESTORE}")
    return events, end


def _needed(run: RunDirectory, names: Iterable[str]) -> Iterator[str]:
    """Yield the files that hold the log, in order: a record in a segment may still have its own file.

    Raises:
        RunDirectoryError: There are records that no file holds.
    """
    ranges = {}
    for name in names:
        if (match := FILE_NAME.fullmatch(name)) is None:
            raise RunDirectoryError(f"{run.uri(f'{EVENTS_FOLDER}/{name}')} is not a record: remove it")
        first, last = match.groups()
        ranges[name] = int(first), int(last or first)
    following = 0
    for name in sorted(ranges, key=lambda name: (ranges[name][0], -ranges[name][1])):
        first, last = ranges[name]
        if first > following:
            raise _missing(run, following, first)
        if last >= following:
            yield name
            following = last + 1


def _lines(name: str, content: bytes) -> list[str]:
    """Return the lines of a file; raises ValueError if it has more or fewer than its name says."""
    match = FILE_NAME.fullmatch(name)
    assert match is not None
    first, last = match.groups()
    expected = int(last or first) - int(first) + 1
    lines = str(content, "utf-8").splitlines(keepends=True)
    if len(lines) != expected:
        raise ValueError(f"{len(lines)} records instead of {expected}")
    return lines


def _verified(run: RunDirectory, name: str, line: str, end: LogEnd) -> tuple[Event, str]:
    """Return a record, which must be the next one, and its digest; raises ValueError if it is not as it was written."""
    try:
        read = parse_json(line)
        written = read.pop("digest")
        digest, event = _digest(read), Event(read["kind"], read["time"], read["record"])
        place = read["number"], read["previous"]
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(describe_error(error)) from None
    if written != digest:
        raise ValueError("its digest is of other content")
    if place != (end.number, end.digest):
        raise RunDirectoryError(
            f"{run.uri(f'{EVENTS_FOLDER}/{name}')} does not continue the records before it: {RESTORE}"
        )
    return event, digest


def _damaged(run: RunDirectory, name: str, error: Exception, is_last: bool = False) -> RunDirectoryError:
    hint = RESTORE
    if is_last:  # a machine that lost its power may leave it empty
        hint = "it is the last record: restore it from a copy, or remove it, and what it said is found out again"
    return RunDirectoryError(f"{run.uri(f'{EVENTS_FOLDER}/{name}')} is damaged ({describe_error(error)}): {hint}")


def _missing(run: RunDirectory, first: int, after: int) -> RunDirectoryError:
    which = f"record {first} is" if after == first + 1 else f"records {first} to {after - 1} are"
    return RunDirectoryError(f"{which} missing from {run.uri(EVENTS_FOLDER)}: {RESTORE}")


def _digest(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:DIGEST_DIGITS]
