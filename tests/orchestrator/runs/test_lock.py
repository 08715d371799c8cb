"""Of two processes that would work on one run directory the second is refused; a dead one is in no one's way."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tailsweep.orchestrator.runs import lock
from tailsweep.orchestrator.runs.directory import RunDirectory, RunDirectoryError
from tailsweep.orchestrator.runs.lock import OWNER_FILE, run_lock


def hold(location: str, ready: Any) -> None:
    with run_lock(RunDirectory(location)):
        ready.set()
        time.sleep(60)


def test_the_second_process_is_refused_and_names_the_first_until_that_is_killed(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "demo"))
    run.create()
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(run.location, ready))
    other.start()
    try:
        assert ready.wait(10)
        with (
            pytest.raises(RunDirectoryError, match=rf"is being worked on by process {other.pid} on .*tailsweep resume"),
            run_lock(run),
        ):
            pass
    finally:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    with run_lock(run):
        assert json.loads(run.read_text(OWNER_FILE))["pid"] == os.getpid()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, object_store: RunDirectory) -> RunDirectory:
    """On storage without locks."""
    monkeypatch.setattr(lock, "SETTLING_S", 0.05)
    return object_store


def test_on_an_object_store_a_lease_is_taken_renewed_and_given_back(
    store: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEWED_EVERY_S", 0.02)
    with run_lock(store):
        first = store.read_text(OWNER_FILE)
        with (
            pytest.raises(RunDirectoryError, match=rf"process {os.getpid()} on .* or within 60 s after it died"),
            run_lock(store),
        ):
            pass
        deadline = time.monotonic() + 10
        while store.read_text(OWNER_FILE) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with run_lock(store):
        pass


def test_a_lease_that_is_no_longer_renewed_lapses(store: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"host": "elsewhere", "pid": 1, "nonce": "x", "renewed": time.time() - 59}
    store.write_text(OWNER_FILE, json.dumps(gone))
    with pytest.raises(RunDirectoryError, match="process 1 on elsewhere"), run_lock(store):
        pass
    store.write_text(OWNER_FILE, json.dumps(gone | {"renewed": time.time() - 61}))
    with run_lock(store):
        pass


def test_of_two_that_come_at_once_the_earlier_gives_way(store: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen no holder; the later one's file is the one that is left."""
    later = {"host": "elsewhere", "pid": 1, "nonce": "x", "renewed": time.time()}
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: store.write_text(OWNER_FILE, json.dumps(later)))
    with pytest.raises(RunDirectoryError, match="process 1 on elsewhere"), run_lock(store):
        pass
    assert json.loads(store.read_text(OWNER_FILE)) == later
