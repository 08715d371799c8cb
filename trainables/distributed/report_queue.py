"""What the processes of a sweep pass each other next to Tune: two actors without any Ray in them.

Of slots, trials go from the trials' own threads to the workers, and reports from the workers to the threads. Of stacks,
the driver's verdicts go to the trainable. Apart from these, so that the actors' processes need not import Ray Train and
torch.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

DECISION_S = 1.0  # that a worker waits for Tune's decision about a report, before it trains on without


@dataclass(frozen=True)
class Task:
    """One attempt at a trial, for a slot's workers."""

    attempt: str
    config: Mapping[str, object]  # a WorkerConfig, dumped


@dataclass(frozen=True)
class Notice:
    """What happened to a trial that continues, in words."""

    text: str


@dataclass(frozen=True)
class Reported:
    """A report on its way."""

    report: Mapping[str, object]


@dataclass(frozen=True)
class End:
    """The end of an attempt: the ``retry_policy.Fault`` that ended it, and the reason; None that nothing did."""

    fault: str | None = None
    reason: str = ""


Item = Notice | Reported | End


@dataclass
class _Attempt:
    """Items of one attempt on their way, in order."""

    items: asyncio.Queue[tuple[Item, asyncio.Event]] = field(default_factory=asyncio.Queue)
    read: asyncio.Event | None = None  # of the item that was read last: set when the next is asked for
    stopped: bool = False


@dataclass
class _Slot:
    """What a slot's workers train, or are to train next."""

    task: Task | None = None
    assigned: asyncio.Event = field(default_factory=asyncio.Event)


class ReportQueue:
    """An actor: trials on their way to the slots' workers, and their reports on the way back."""

    def __init__(self) -> None:
        self._attempts: defaultdict[str, _Attempt] = defaultdict(_Attempt)
        self._slots: defaultdict[str, _Slot] = defaultdict(_Slot)

    async def assign(self, slot: str, task: Task) -> None:
        """Give a slot's workers their next attempt at a trial. A stopped one may still run."""
        self._slots[slot].task = task
        self._slots[slot].assigned.set()

    async def next_task(self, slot: str, last: str | None) -> Task:
        """Wait for the attempt that a slot's workers are to run.

        It stays the slot's until it ends: workers that take the place of others are given it again.

        Args:
            last: the attempt that the asking worker ran last.
        """
        state = self._slots[slot]
        while state.task is None or state.task.attempt == last:
            state.assigned.clear()
            await state.assigned.wait()
        return state.task

    async def has_task(self, slot: str) -> bool:
        """Return whether a slot's workers have an attempt to run."""
        return self._slots[slot].task is not None

    async def end(self, slot: str, attempt: str, end: End) -> None:
        """End an attempt, from its worker."""
        state = self._slots[slot]
        if state.task is not None and state.task.attempt == attempt:
            state.task = None
        if self._attempts[attempt].stopped:  # no one reads of it any more
            del self._attempts[attempt]
        else:
            self._put(attempt, end)

    async def end_task(self, slot: str, end: End) -> None:
        """End the attempt that a slot has, if any: its workers are gone."""
        if (task := self._slots[slot].task) is not None:
            await self.end(slot, task.attempt, end)

    async def put(self, attempt: str, item: Notice) -> None:
        """Append a notice."""
        self._put(attempt, item)

    async def report(self, attempt: str, report: Mapping[str, object]) -> bool:
        """Append a report, and return whether the attempt continues.

        Waits until Tune has decided, for ``DECISION_S`` at most: with a busy driver a worker learns of it later.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._put(attempt, Reported(report)).wait(), DECISION_S)
        return not self._attempts[attempt].stopped

    async def next(self, attempt: str) -> Item:
        """Wait for the next item of an attempt. Who asks has decided about the last one: the attempt continues."""
        state = self._attempts[attempt]
        if state.read is not None:
            state.read.set()
        item, state.read = await state.items.get()
        if isinstance(item, End):
            del self._attempts[attempt]
        return item

    async def stop(self, attempt: str) -> None:
        """Stop an attempt: its workers end it at their next report. Nothing of it is read any more."""
        state = self._attempts[attempt]
        state.stopped = True
        if state.read is not None:
            state.read.set()

    def _put(self, attempt: str, item: Item) -> asyncio.Event:
        """Append an item; returns the event of its having been read, and decided about."""
        decided = asyncio.Event()
        self._attempts[attempt].items.put_nowait((item, decided))
        return decided


class StackVerdicts:
    """An actor: the members of each stack that are over, as the sweep's driver has it after each report."""

    def __init__(self) -> None:
        self._given: defaultdict[tuple[str, int], asyncio.Future[list[str]]] = defaultdict(asyncio.Future)

    async def give(self, attempt: str, number: int, over: list[str]) -> None:
        """Give the verdict on a report."""
        self._given[attempt, number].set_result(over)

    async def take(self, attempt: str, number: int) -> list[str]:
        """Wait for the verdict on a report."""
        over = await self._given[attempt, number]
        del self._given[attempt, number]
        return over
