"""In what order the blocks of rounds that overlap may be folded, committed and counted (ADR 0023)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.process.buffer import PartitionBuffer
from pipeline.process.rounds import Work


@dataclass(eq=False)
class Round:
    """Blocks that are stored together.

    before : rounds under way that hold earlier blocks of its partitions. written : whether the next blocks of
    its partitions may be cut. in_order : True once the commits of its blocks have been asked for, False where
    that will not happen: nothing behind them may be committed.
    """

    works: Sequence[Work]
    before: Sequence[Round]
    written: bool = False
    in_order: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def holds(self, buffer: PartitionBuffer) -> bool:
        return any(work.buffer is buffer for work in self.works)

    async def may_commit(self) -> bool:
        """Wait until the commits of all blocks before have been asked for; False where one's never will."""
        return all([await one.in_order for one in self.before])

    async def first(self) -> None:
        """Wait until the rounds before are over."""
        for one in self.before:
            await one.over.wait()

    def end(self) -> None:
        if not self.in_order.done():
            self.in_order.set_result(False)
        self.before = self.works = ()  # who waits for it must not hold its records
        self.over.set()
