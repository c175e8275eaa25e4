"""Browsers that watch the live page, as far as the service can tell, and how old what they show is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import numpy as np
import orjson

_SAMPLE_SECONDS = 0.05


@dataclass
class Watching:
    """stream_bytes : of all viewers; behind : seconds by which the tables on the first viewer's screen lay
    behind the clock, looked at twenty times a second; events : per second, as the page says."""

    stream_bytes: int = 0
    behind: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    refreshes: int = 0
    current_at: datetime | None = None

    def begin(self) -> None:
        """Forget what was measured before."""
        self.stream_bytes, self.behind, self.events, self.refreshes = 0, [], [], 0

    def behind_seconds(self) -> dict[str, float | None]:
        if not self.behind:
            return {"p50": None, "p99": None, "most": None}
        p50, p99, most = np.percentile(self.behind, (50, 99, 100))
        return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "most": round(float(most), 2)}

    def take(self, topic: str, data: str) -> None:
        """A message of the first viewer's stream."""
        if topic == "current":
            self.current_at = datetime.fromisoformat(orjson.loads(data)["at"])
        elif topic == "figures":
            rate = orjson.loads(data)["events_per_second"]
            if rate is not None:
                self.events.append(rate)
        elif topic == "city":
            self.refreshes += 1

    async def sample(self) -> None:
        """For ever. The first viewer and the service have one clock: they run on one machine."""
        while True:
            if self.current_at is not None:
                self.behind.append((datetime.now(UTC) - self.current_at).total_seconds())
            await asyncio.sleep(_SAMPLE_SECONDS)


async def _watch(client: httpx.AsyncClient, seen: Watching, *, first: bool) -> None:
    topic = ""
    async with client.stream("GET", "/v1/live") as answer:
        async for line in answer.aiter_lines():
            seen.stream_bytes += len(line) + 1
            if first and line.startswith("event: "):
                topic = line.removeprefix("event: ")
            elif first and line.startswith("data: "):
                seen.take(topic, line.removeprefix("data: "))


@contextlib.asynccontextmanager
async def watching(url: str, viewers: int) -> AsyncIterator[Watching]:
    """So many streams until this is left."""
    seen = Watching()
    limits = httpx.Limits(max_connections=viewers)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        tasks = [asyncio.create_task(_watch(client, seen, first=not n)) for n in range(viewers)]
        tasks.append(asyncio.create_task(seen.sample()))
        try:
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [error for error in ended if error and not isinstance(error, asyncio.CancelledError)]
    if broken:
        raise broken[0]
