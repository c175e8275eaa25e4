"""One worker after the other, as a roll of the log asks for."""

from __future__ import annotations

import asyncio
import time

from pipeline.runtime.switch import WorkerSwitch


class _Worker:
    """Of a worker what the switch uses."""

    def __init__(self, direct_at: float | None) -> None:
        self.told, self.direct_at = direct_at, direct_at or 100.0

    async def run(self, leave: asyncio.Event) -> None:
        await leave.wait()
        self.direct_at += 5  # a direct record came

    def drained(self) -> bool:
        return True

    def direct_seconds(self) -> float:
        return time.monotonic() - self.direct_at


async def test_the_next_worker_knows_when_the_last_direct_record_came() -> None:
    """Who does not know waits for a minute, in which the log cannot be rolled again."""
    made: list[_Worker] = []

    def make(direct_at: float | None) -> _Worker:
        made.append(_Worker(direct_at))
        return made[-1]

    switch, stop = WorkerSwitch(make), asyncio.Event()  # type: ignore[arg-type]
    running = asyncio.create_task(switch.run(stop))
    await asyncio.sleep(0)
    for _ in range(2):
        async with asyncio.timeout(5):
            await switch.close()
            await switch.open()
        await asyncio.sleep(0.01)
    stop.set()
    await running
    assert [one.told for one in made] == [None, 105.0, 110.0]
