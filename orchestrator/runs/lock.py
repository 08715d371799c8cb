"""The lock of a run directory: one process at a time works on it.

On a disk it is a file lock, which ends with the process. An object store has no locks: there it is a lease, a small
file that the process renews, and that expires when it has not been renewed for a while.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from filelock import FileLock, Timeout
from tailsweep.orchestrator.runs.directory import RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.front import visible_pid
from tailsweep.trainables.errors import StorageError
from tailsweep.trainables.storage.json_text import parse_json

logger = logging.getLogger(__name__)

LOCK_FILE = "state/lock"
OWNER_FILE = "state/holder.json"
CLOCK_FILE = "state/clock"  # of an object store, which says what time it is
RELEASED = 0.0  # in place of the time of the last renewal
RENEWED_EVERY_S = 15.0
LEASE_S = 60.0  # an owner that has not renewed for so long is gone
SETTLING_S = 1.0  # until it is seen who of two that came at once was the later
OWNER_BYTES = 512  # of each record: a reader asks for the length first, and one of another length may come in between


@dataclass(frozen=True)
class LockOwner:
    """The process that works on a run directory."""

    host: str
    pid: int
    nonce: str
    renewed: float  # seconds since the epoch, by the owner's clock, or RELEASED


@contextmanager
def run_lock(run: RunDirectory) -> Iterator[None]:
    """Lock a run directory, which must exist, against other processes within the context.

    Raises:
        RunDirectoryError: Another process works on it.
    """
    me = LockOwner(socket.gethostname(), visible_pid(), uuid.uuid4().hex, time.time())
    with _locked(run, me) if run.local is not None else _leased(run, me):
        yield


@contextmanager
def _locked(run: RunDirectory, me: LockOwner) -> Iterator[None]:
    assert run.local is not None
    (run.local / LOCK_FILE).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.local / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _refused(run, _owner(run)) from None
    try:
        _write(run, me)
        yield
    finally:
        lock.release()


@contextmanager
def _leased(run: RunDirectory, me: LockOwner) -> Iterator[None]:
    other = _owner(run)
    if other is not None and other.renewed != RELEASED and _seconds_since_renewal(run, other) < LEASE_S:
        raise _refused(run, other)
    _write(run, me)
    time.sleep(SETTLING_S)
    if (first := _owner(run)) is not None and first.nonce != me.nonce:
        raise _refused(run, first)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(run, me, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(StorageError):  # which this process has met by itself; the lease lapses
            if _is_free_for(run, me):
                _write(run, LockOwner(me.host, me.pid, me.nonce, RELEASED))


def _renew(run: RunDirectory, me: LockOwner, ended: threading.Event) -> None:
    """Renew the lease until the end. If it is another's, stop this process as Ctrl-C does."""
    while not ended.wait(RENEWED_EVERY_S):
        with suppress(StorageError):  # an attempt later may do
            if not _is_free_for(run, me):
                logger.error(
                    f"did not renew its lease for {LEASE_S:g} s: {_refused(run, _owner(run))}",
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            _write(run, LockOwner(me.host, me.pid, me.nonce, time.time()))


def _seconds_since_renewal(run: RunDirectory, owner: LockOwner) -> float:
    """Return how old a lease is by the clock of the store: those of two hosts may differ by more than a lease.

    A file that is written now has the store's time. Where a store keeps no times, the hosts' clocks must do.
    """
    run.write_text(CLOCK_FILE, owner.nonce)
    now, renewed = run.modified(CLOCK_FILE), run.modified(OWNER_FILE)
    run.delete_files([CLOCK_FILE])
    if now is None or renewed is None:
        return time.time() - owner.renewed
    return now - renewed


def _is_free_for(run: RunDirectory, me: LockOwner) -> bool:
    owner = _owner(run)
    return owner is None or owner.nonce == me.nonce


def _owner(run: RunDirectory) -> LockOwner | None:
    """Return the process that has last written the file; None if there is none, or it cannot be parsed.

    What cannot be parsed is read once more: it may have been read while it was replaced.
    """
    for _ in range(2):
        try:
            return LockOwner(**parse_json(run.read_text(OWNER_FILE)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            continue
    return None


def _write(run: RunDirectory, owner: LockOwner) -> None:
    run.write_text(OWNER_FILE, json.dumps(asdict(owner)).ljust(OWNER_BYTES - 1) + "\n")


def _refused(run: RunDirectory, owner: LockOwner | None) -> RunDirectoryError:
    who = "another process" if owner is None else f"process {owner.pid} on {owner.host}"
    wait = "" if run.local is not None else f", or within {LEASE_S:g} s after it died"
    return RunDirectoryError(
        f"the run directory {run.location} is being worked on by {who}: wait for its end, or end it, and continue by "
        f"`{run.resume_command}`{wait}"
    )
