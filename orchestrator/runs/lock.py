"""One process at a time works on a run directory.

On a disk it holds a file's lock, which ends with the process however that ends. An object store has no locks: there it
holds a lease, a small file that it renews, and that counts until it has not been renewed for a while.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from filelock import FileLock, Timeout

from tailsweep.orchestrator.runs.directory import RunDirectory, RunDirectoryError
from tailsweep.trainables.errors import StorageError

LOCK_FILE = "state/lock"
HOLDER_FILE = "state/holder.json"
RENEWED_EVERY_S = 15.0
LEASE_S = 60.0  # a holder that has not renewed for so long is gone
SETTLING_S = 1.0  # until it is seen who of two that came at once was the later


@dataclass(frozen=True)
class Holder:
    """Who works on a run directory."""

    host: str
    pid: int
    nonce: str
    renewed: float  # seconds since the epoch


@contextmanager
def held(run: RunDirectory) -> Iterator[None]:
    """Within it, no other process works on ``run``, which must be there.

    Raises:
        RunDirectoryError: another one does.
    """
    me = Holder(socket.gethostname(), os.getpid(), uuid.uuid4().hex, time.time())
    with _locked(run, me) if run.local is not None else _leased(run, me):
        yield


@contextmanager
def _locked(run: RunDirectory, me: Holder) -> Iterator[None]:
    assert run.local is not None
    (run.local / LOCK_FILE).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.local / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _refused(run, _holder(run)) from None
    try:
        _write(run, me)
        yield
    finally:
        lock.release()


@contextmanager
def _leased(run: RunDirectory, me: Holder) -> Iterator[None]:
    other = _holder(run)
    if other is not None and time.time() - other.renewed < LEASE_S:
        raise _refused(run, other)
    _write(run, me)
    time.sleep(SETTLING_S)
    if (first := _holder(run)) is not None and first.nonce != me.nonce:
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
            if _is_held_by(run, me):
                _write(run, Holder(me.host, me.pid, me.nonce, 0.0))


def _renew(run: RunDirectory, me: Holder, ended: threading.Event) -> None:
    """Until the end, or until the lease is another's: then this process is stopped as by Ctrl-C."""
    while not ended.wait(RENEWED_EVERY_S):
        with suppress(StorageError):  # an attempt later may do
            if not _is_held_by(run, me):
                print(
                    f"tailsweep: did not renew its lease for {LEASE_S:g} s: {_refused(run, _holder(run))}",
                    file=sys.stderr,
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            _write(run, Holder(me.host, me.pid, me.nonce, time.time()))


def _is_held_by(run: RunDirectory, me: Holder) -> bool:
    holder = _holder(run)
    return holder is None or holder.nonce == me.nonce


def _holder(run: RunDirectory) -> Holder | None:
    """Who has last written the file; None: nobody, or it cannot be understood."""
    try:
        return Holder(**json.loads(run.read_text(HOLDER_FILE)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(run: RunDirectory, holder: Holder) -> None:
    run.write_text(HOLDER_FILE, json.dumps(asdict(holder)) + "\n")


def _refused(run: RunDirectory, holder: Holder | None) -> RunDirectoryError:
    who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    wait = "" if run.local is not None else f", or within {LEASE_S:g} s after it died"
    return RunDirectoryError(
        f"the run directory {run.location} is being worked on by {who}: wait for its end, or end it, and go on by "
        f"`{run.resume_command}`{wait}"
    )
