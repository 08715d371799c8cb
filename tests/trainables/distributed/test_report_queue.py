"""What passes between slots' workers and trials' threads, without Ray: the actor's own class in one event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tailsweep.trainables.distributed import report_queue
from tailsweep.trainables.distributed.report_queue import End, Notice, Reported, ReportQueue, Task

SLOT, FIRST, SECOND = "slot", Task("first", {}), Task("second", {})
LOST = End("lost", "its worker died")


def in_loop(test: Callable[[ReportQueue], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop of its own, with a queue."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(ReportQueue()), 10))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_loop
async def test_workers_wait_for_a_trial_and_get_it_once_each(queue: ReportQueue) -> None:
    waiting = [asyncio.create_task(queue.next_task(SLOT, None)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    await queue.assign(SLOT, FIRST)
    assert await asyncio.gather(*waiting) == [FIRST, FIRST]
    again = asyncio.create_task(queue.next_task(SLOT, FIRST.attempt))
    await queue.end(SLOT, FIRST.attempt, End())
    await asyncio.sleep(0.01)
    assert not again.done()
    await queue.assign(SLOT, SECOND)
    assert await again == SECOND


@in_loop
async def test_workers_that_take_the_place_of_others_get_the_trial_that_has_not_ended(queue: ReportQueue) -> None:
    await queue.assign(SLOT, FIRST)
    assert await queue.next_task(SLOT, None) == FIRST
    assert await queue.next_task(SLOT, None) == FIRST
    await queue.end(SLOT, FIRST.attempt, End())
    assert not await queue.has_task(SLOT)


@in_loop
async def test_items_come_in_order_and_the_end_last(queue: ReportQueue) -> None:
    await queue.assign(SLOT, FIRST)
    await queue.put(FIRST.attempt, Notice("one"))
    reporting = asyncio.create_task(queue.report(FIRST.attempt, {"epoch": 1}))
    assert await queue.next(FIRST.attempt) == Notice("one")
    assert await queue.next(FIRST.attempt) == Reported({"epoch": 1})
    await queue.end(SLOT, FIRST.attempt, LOST)
    assert await queue.next(FIRST.attempt) == LOST
    assert await reporting


@in_loop
async def test_a_worker_waits_for_the_decision(queue: ReportQueue) -> None:
    reporting = asyncio.create_task(queue.report(FIRST.attempt, {"epoch": 1}))
    await queue.next(FIRST.attempt)
    await asyncio.sleep(0.05)
    assert not reporting.done()
    reading = asyncio.create_task(queue.next(FIRST.attempt))  # who asks for the next has let it continue
    assert await reporting
    reading.cancel()


@in_loop
async def test_a_stopped_trial_ends_at_this_report_and_leaves_nothing(queue: ReportQueue) -> None:
    await queue.assign(SLOT, FIRST)
    reporting = asyncio.create_task(queue.report(FIRST.attempt, {"epoch": 1}))
    await queue.next(FIRST.attempt)
    await queue.stop(FIRST.attempt)
    assert not await reporting
    await queue.assign(SLOT, SECOND)  # Tune does not wait for the worker
    await queue.end(SLOT, FIRST.attempt, End())
    assert await queue.has_task(SLOT)
    assert await queue.next_task(SLOT, FIRST.attempt) == SECOND
    assert FIRST.attempt not in queue._attempts


def test_with_a_busy_driver_a_worker_trains_on_and_ends_at_its_next_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report_queue, "DECISION_S", 0.05)

    async def test(queue: ReportQueue) -> None:
        assert await queue.report(FIRST.attempt, {"epoch": 1})
        await queue.next(FIRST.attempt)
        await queue.stop(FIRST.attempt)
        assert not await queue.report(FIRST.attempt, {"epoch": 2})

    asyncio.run(asyncio.wait_for(test(ReportQueue()), 10))


@in_loop
async def test_the_loss_of_the_workers_ends_the_trial_that_they_had(queue: ReportQueue) -> None:
    await queue.end_task(SLOT, LOST)  # they had none
    await queue.assign(SLOT, FIRST)
    await queue.end_task(SLOT, LOST)
    assert await queue.next(FIRST.attempt) == LOST
    assert not await queue.has_task(SLOT)
