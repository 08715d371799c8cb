"""A sweep's Train workers and its trials' own processes: which there are, and kill -9 at chosen moments."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from support.event_files import reports

WORKER = "ray::RayTrainWorker"  # trains, as one of a trial's Train run
TRIAL = "ray::ImplicitFunc"  # a trial's own process: waits for its Train run, or trains a phase one's stage one


@contextmanager
def kills(run: Path, plan: Sequence[tuple[int, str]], parent: int | None = None) -> Iterator[list[int]]:
    """Within it, processes die: each of ``plan`` once the run directory has so many reports.

    Args:
        plan: (number of reports, title of a process), in order. No process is killed twice.
        parent: The pid whose descendants are killed; None: this process.

    Yields:
        The pids of those killed so far.
    """
    killed: list[int] = []
    over = threading.Event()

    def work() -> None:
        for count, title in plan:
            while not over.wait(0.02):
                if num_reports(run) >= count and (matches := processes(title, parent, killed)):
                    matches[-1].kill()
                    killed.append(matches[-1].pid)
                    break

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@contextmanager
def watched(title: str) -> Iterator[set[int]]:
    """Within it, the pids of all descendants whose title starts so are collected."""
    pids: set[int] = set()
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.1):
            pids.update(process.pid for process in processes(title))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pids
    finally:
        over.set()
        thread.join()


def processes(title: str, parent: int | None = None, excluded: Sequence[int] = ()) -> list[psutil.Process]:
    """Running descendants whose title starts so, the youngest last."""
    matches = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if process.pid not in excluded and " ".join(process.cmdline()).startswith(title):
                matches.append((process.create_time(), process))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return [process for _, process in sorted(matches, key=lambda pair: pair[0])]


def num_reports(run: Path) -> int:
    return len(reports(run))


def wait_until(reached: Callable[[], bool], seconds: float = 200) -> None:
    """Until ``reached()`` is true."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.05)
