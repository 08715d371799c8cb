"""Reports on their way from Train's controllers to the trials' own threads: an actor without any Ray in it.

Apart from ``tune_trainables.py``, so that the actor's process need not import Ray Train and torch.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.actor import ActorHandle


@dataclass(frozen=True)
class Reported:
    """A report on its way, and the Train controller it came from."""

    report: Mapping[str, object]
    controller: "ActorHandle"


@dataclass(frozen=True)
class Notice:
    """What happened to a trial that continues, in words."""

    text: str


@dataclass(frozen=True)
class End:
    """The end of a Train run; ``reason`` says why it failed, None that it did not."""

    reason: str | None


class ReportQueue:
    """An actor: reports of many trials on their way from Train's controllers to the trials' threads, in order."""

    def __init__(self) -> None:
        self._boxes: dict[str, asyncio.Queue[Reported | Notice | End]] = defaultdict(asyncio.Queue)

    async def put(self, attempt: str, item: Reported | Notice | End) -> None:
        """Append an item of one attempt at a trial."""
        await self._boxes[attempt].put(item)

    async def next(self, attempt: str) -> Reported | Notice | End:
        """Wait for the next item of one attempt at a trial."""
        item = await self._boxes[attempt].get()
        if isinstance(item, End):
            del self._boxes[attempt]
        return item
