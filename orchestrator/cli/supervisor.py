"""A process in front of the one that works, so that every ending is an orderly one.

A signal to the whole process group, as `timeout`, systemd, a closed terminal and many batch systems send it, would also
end the Ray that a sweep has started, and Ray's C++ code ends a process whose Ray is gone. So the command forks at its
start. The process in front keeps the place in the process group and passes signals on. The one that works, with all
that it starts, is in a session of its own. If it does not come to its end by itself, the one in front ends what is
left, writes the tables from the records, and says how to resume.
"""

import ctypes
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil
from tailsweep.orchestrator.runs import front
from tailsweep.trainables.errors import InputError, StorageError, describe_error

logger = logging.getLogger(__name__)

STOP_S = 11.0  # for the working process to stop by itself after a signal
LINGER_S = 3.0  # for what it has started to end after it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def supervise(work: Callable[[], int], report: Callable[[str], str]) -> int:
    """Run ``work`` in a process of its own and return its exit status, or 1 if it did not come to its end.

    Where processes cannot be forked safely, it is run in this one.

    Args:
        work: the command.
        report: returns the report on a run directory that the command has begun and not ended.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1:
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # which has ended already
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        front.connect(writing)
        status = work()
        front.tell(status=status)
        return status
    os.close(writing)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the child leaves behind becomes this process's
    return _Supervisor(child, reading, report).wait()


class _Supervisor:
    """The process in front.

    Args:
        child: the process that works.
        pipe: what it tells.
        report: see :func:`supervise`.
    """

    def __init__(self, child: int, pipe: int, report: Callable[[str], str]) -> None:
        self.child = child
        self.report = report
        self.pipe = pipe
        self.messages: dict[str, str | int] = {}
        self.received: list[int] = []  # signals
        self.ended: int | None = None  # the status of waitpid
        self._buffer = b""

    def wait(self) -> int:
        """Wait for the child, pass signals on, and return the exit status."""
        with self._passing_signals():
            cause = self._until_ended()
            if cause is None:
                self._end_what_is_left(LINGER_S)
                return int(self.messages["status"])
            self._end_what_is_left(0)
            self._close_run(cause)
            return 1

    def _until_ended(self) -> str | None:
        """Return None once the child has come to its end, or why it will not."""
        stop_by = float("inf")
        while not self._has_ended():
            self._read(0.1)
            if "lost" in self.messages:
                return f"{self.messages['lost']} has ended, and Ray cannot continue without it"
            if len(self.received) > 1:
                return "stopped at once by a second signal"
            if self.received:
                stop_by = min(stop_by, time.monotonic() + STOP_S)
            if time.monotonic() > stop_by:
                logger.info(f"it did not stop by itself within {STOP_S:g} s, so it is ended now")
                return "interrupted"
        self._read(0)
        if "status" in self.messages:
            return None
        assert self.ended is not None
        if os.WIFSIGNALED(self.ended):
            return f"the working process was ended by {signal.Signals(os.WTERMSIG(self.ended)).name}"
        return f"the working process ended by itself with exit status {os.waitstatus_to_exitcode(self.ended)}"

    def _has_ended(self) -> bool:
        if self.ended is None:
            pid, status = os.waitpid(self.child, os.WNOHANG)
            if pid:
                self.ended = status
        return self.ended is not None

    def _read(self, seconds: float) -> None:
        """Read what the child tells, and wait for it for so long."""
        readable, _, _ = select.select([self.pipe], [], [], seconds)
        if not readable:
            return
        content = os.read(self.pipe, 1 << 16)
        if not content:
            time.sleep(seconds)  # the child has closed it: it is about to end
        *lines, self._buffer = (self._buffer + content).split(b"\n")
        for line in lines:
            self.messages |= json.loads(line)

    @contextmanager
    def _passing_signals(self) -> Iterator[None]:
        """Pass signals on to the child; one that was ignored when this process began is ignored still."""

        def pass_on(number: int, _: FrameType | None) -> None:
            self.received.append(number)
            with suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_what_is_left(self, seconds: float) -> None:
        """Kill the descendants that do not end by themselves within so long."""
        deadline = time.monotonic() + seconds
        while (alive := _alive(psutil.Process().children(recursive=True))) and time.monotonic() < deadline:
            time.sleep(0.05)
        while alive:  # one that is killed may have started another
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
            alive = _alive(psutil.Process().children(recursive=True))

    def _close_run(self, cause: str) -> None:
        """Write the tables from the records, and say how to resume."""
        if "run" not in self.messages:
            logger.error(f"{cause}; no run directory had been begun: start it again by the same command")
            return
        try:
            print("\n" + self.report(str(self.messages["run"])), flush=True)
        except (InputError, StorageError) as error:
            logger.error(describe_error(error))
        logger.warning(f"{cause}; to continue: {self.messages['resume']}")


def _alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; reap those that have and are this process's own."""
    alive = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
            elif process.ppid() == os.getpid():
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
    return alive


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process, where the system has it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
