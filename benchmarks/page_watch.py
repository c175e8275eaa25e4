"""Browsers that watch the live page, as far as the service can tell, and how old what they show is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import orjson

_SAMPLE_SECONDS = 0.05
#: What a page that was just opened reads beside the stream, and its rests (pipeline/page/static/app.js).
_TABLES = ("town", "department")
_LEAST_REST_SECONDS = 0.5
_RETRY_SECONDS = 3.0


@dataclass
class Watching:
    """stream_bytes, tables, table_bytes, tables_failed : of all viewers; behind : seconds by which what the
    first viewer's stream showed lay behind the clock, looked at twenty times a second; tables_behind : the
    same of each table beside it; events : per second, as the page says."""

    stream_bytes: int = 0
    tables: int = 0
    table_bytes: int = 0
    tables_failed: int = 0
    behind: list[float] = field(default_factory=list)
    tables_behind: dict[str, list[float]] = field(default_factory=lambda: {by: [] for by in _TABLES})
    events: list[float] = field(default_factory=list)
    refreshes: int = 0
    current_at: datetime | None = None
    tables_at: dict[str, datetime] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what was measured before."""
        self.stream_bytes, self.tables, self.table_bytes, self.tables_failed = 0, 0, 0, 0
        self.behind, self.events, self.refreshes = [], [], 0
        self.tables_behind = {by: [] for by in _TABLES}

    def behind_seconds(self) -> dict[str, float | None]:
        return _percentiles(self.behind)

    def tables_behind_seconds(self) -> dict[str, dict[str, float | None]]:
        """By table. Where nothing is stored an old table is not behind, and this says that it is."""
        return {by: _percentiles(seconds) for by, seconds in self.tables_behind.items()}

    def take(self, topic: str, value: dict[str, Any]) -> None:
        """A message of the first viewer's stream."""
        if topic == "current":
            self.current_at = datetime.fromisoformat(value["at"])
        elif topic == "figures":
            rate = value["events_per_second"]
            if rate is not None:
                self.events.append(rate)
        elif topic == "city":
            self.refreshes += 1

    async def sample(self) -> None:
        """For ever. The first viewer and the service have one clock: they run on one machine."""
        while True:
            now = datetime.now(UTC)
            if self.current_at is not None:
                self.behind.append((now - self.current_at).total_seconds())
            for by, at in self.tables_at.items():
                self.tables_behind[by].append((now - at).total_seconds())
            await asyncio.sleep(_SAMPLE_SECONDS)


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    if not seconds:
        return {"p50": None, "p99": None, "most": None}
    p50, p99, most = np.percentile(seconds, (50, 99, 100))
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "most": round(float(most), 2)}


class Viewer:
    """A page that is open and visible: its stream, every message parsed, and the tables beside it.

    first : whether what it sees is measured too.
    """

    def __init__(self, client: httpx.AsyncClient, seen: Watching, *, first: bool) -> None:
        self._client = client
        self._seen = seen
        self._first = first
        self._districts_as_of = ""
        self._news = {by: asyncio.Event() for by in _TABLES}

    async def watch(self) -> None:
        """Until cancelled, or until the stream ends."""
        async with asyncio.TaskGroup() as tasks:
            tables = [tasks.create_task(self._keep(by)) for by in _TABLES]
            await self._read_stream()
            for task in tables:
                task.cancel()

    async def _read_stream(self) -> None:
        topic = ""
        async with self._client.stream("GET", "/v1/live") as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                self._seen.stream_bytes += len(line) + 1
                if line.startswith("event: "):
                    topic = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self._take(topic, orjson.loads(line.removeprefix("data: ")))

    def _take(self, topic: str, value: dict[str, Any]) -> None:
        if self._first:
            self._seen.take(topic, value)
        if topic == "district":
            self._districts_as_of = value["as_of"]
            for news in self._news.values():
                news.set()

    async def _keep(self, by: str) -> None:
        """A table that is not older than the districts', as soon as the server has one; as the page does."""
        as_of = ""
        while True:
            await self._news[by].wait()
            self._news[by].clear()
            while as_of != self._districts_as_of:
                wanted, rest = self._districts_as_of, _RETRY_SECONDS
                answer = await self._client.get(f"/v1/live/tables/{by}")
                if answer.is_success:
                    table = orjson.loads(answer.content)
                    if table["as_of"] >= wanted:  # an older one was held for others: it is asked for again
                        as_of = wanted
                    rest = max(_LEAST_REST_SECONDS, table["again_in_seconds"])
                    if self._first:
                        self._seen.tables_at[by] = datetime.fromisoformat(table["as_of"])
                    self._seen.tables += 1
                    self._seen.table_bytes += answer.num_bytes_downloaded
                else:
                    self._seen.tables_failed += 1
                await asyncio.sleep(rest)


@contextlib.asynccontextmanager
async def watching(url: str, viewers: int) -> AsyncIterator[Watching]:
    """So many pages until this is left."""
    seen = Watching()
    limits = httpx.Limits(max_connections=2 * viewers)  # each a stream, and its tables beside it
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        tasks = [
            asyncio.create_task(Viewer(client, seen, first=not number).watch()) for number in range(viewers)
        ]
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
