"""The stream behind the page: one snapshot per interval, encoded once, for all who watch.

Nothing is asked of ClickHouse while nobody watches, but for one KPI row a minute: the next viewer's trend.
A viewer that reads slowly skips snapshots; it never makes a queue grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import structlog

from pipeline.errors import UnavailableError
from pipeline.page.board import Board, Table
from pipeline.page.figures import Figures, Sample, read_families
from pipeline.page.history import History
from pipeline.page.watch import Look, Watch
from pipeline.read.times import instant

TICK_SECONDS: Final = 1.0
_LONGEST_REST_SECONDS: Final = 1.0
#: Tables are read so often that what they hold is never older, where a reading takes under half of it.
_BEHIND_SECONDS: Final = 1.75
_POINT_SECONDS: Final = 60.0
#: The reading back of the last hour begins again so long after it failed.
_PAST_AGAIN_SECONDS: Final = 10.0
#: A comment on an idle stream, so that proxies keep it open.
_HEARTBEAT_SECONDS: Final = 15.0
#: More viewers than any control room has; beyond, 503.
MOST_VIEWERS: Final = 500

log = structlog.get_logger(__name__)

#: Gives the exposition of this process, and the worker's or None where it cannot be had.
Expositions = Callable[[], Awaitable[tuple[bytes, bytes | None]]]


@dataclass(frozen=True)
class _Frame:
    """A topic's newest message. number : grows with every message; data : JSON; sent : as it is sent."""

    number: int
    data: bytes
    sent: bytes


class Live:
    """One per process. `run` computes; `stream` hands out."""

    def __init__(
        self,
        board: Board,
        expositions: Expositions,
        *,
        log_answers: Callable[[], bool] | None = None,
        watch: Watch | None = None,
        has_worker: bool = True,
    ) -> None:
        """log_answers : of the gateway, where this process takes events in and so can tell how many. While
        its log is away it refuses before it counts, so that no rate and no queue would show it.
        watch : processes that run by themselves, if any are; has_worker : whether `expositions` ever bring
        one's."""
        self.board = board
        #: `Assets.digest` of the page that is served: one opened before an upgrade learns that it is another.
        self.page: str | None = None
        self._log_answers = log_answers
        self._watch = watch
        self._has_worker = has_worker
        self.viewers = 0
        self._expositions = expositions
        self._expects_worker = False  # once seen; where workers run elsewhere they never are
        self._figures = Figures()
        self._history = History()
        self._frames: dict[str, _Frame] = {}
        self._sequence = 0
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()
        self._closed = False
        self._shown: dict[str, Table] = {}
        self._point_due = 0.0
        self._gap_due = 0.0
        self._store_fails = False
        self._metrics_fail = False
        self._past_fails = False
        self._past: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Compute until cancelled. A failure is logged once per spell and shown on the page, never raised."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._for_ever(self._read_metrics), name="live-page-figures")
            tasks.create_task(self._for_ever(self._read_store), name="live-page-tables")

    async def _for_ever(self, step: Callable[[float], Awaitable[float]]) -> None:
        """A step, then as long a rest as it says while somebody watches, else one step a minute."""
        while True:
            started = time.monotonic()
            rest = await step(started)
            if self.viewers:
                await asyncio.sleep(rest)
            else:
                wanted = self._wanted
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.05, started + _POINT_SECONDS - time.monotonic())):
                        await wanted.wait()

    def close(self) -> None:
        """End every stream: the process stops."""
        self._closed = True
        self._news.set()

    async def end(self) -> None:
        """After `run` was cancelled."""
        if self._watch is not None:
            await self._watch.close()

    def known(self, topics: Sequence[str]) -> dict[str, bytes]:
        """The newest message of those topics that have one, as JSON."""
        return {topic: self._frames[topic].data for topic in topics if topic in self._frames}

    async def stream(self, allowed: Callable[[], bool] = lambda: True) -> AsyncIterator[bytes]:
        """Server-sent events: what is known at once, then whatever changes.

        allowed : asked before each message; where it says no, the stream ends.
        """
        if not self.viewers:
            # of the last watch: the page would take its instants, alarm and modes for the present ones
            for topic in ("figures", "current", "rejected", "modes"):
                self._frames.pop(topic, None)
                self._shown.pop(topic, None)  # told again even where the table is still the same
        self.viewers += 1
        wanted, self._wanted = self._wanted, asyncio.Event()
        wanted.set()
        seen = 0
        try:
            yield b"retry: 2000\n\n"
            while not self._closed and allowed():
                news = self._news
                fresh = sorted(
                    (frame for frame in self._frames.values() if frame.number > seen),
                    key=lambda frame: frame.number,
                )
                if fresh:
                    seen = fresh[-1].number
                    yield b"".join(frame.sent for frame in fresh)
                    continue
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):
                        await news.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.viewers -= 1

    async def _read_store(self, now: float) -> float:
        """Returns how long to rest before the next reading."""
        rest = TICK_SECONDS
        try:
            if self.viewers:
                rest = await self._read_tables()
            if now >= self._point_due:
                await self._keep_point()
                self._point_due = now + _POINT_SECONDS - TICK_SECONDS
            self._store_works(True)
        except UnavailableError:
            self._store_works(False)
            self._keep_gap(now)
        except Exception:
            if not self._store_fails:
                log.exception("live_page_not_refreshed")
            self._store_works(False)
            self._keep_gap(now)
        return rest

    async def _read_metrics(self, now: float) -> float:
        try:
            await self._publish_figures(now)
            self._metrics_fail = False
        except Exception:
            if not self._metrics_fail:
                log.exception("live_page_without_figures")
            self._metrics_fail = True
            self._frames.pop("figures", None)  # who comes now would take its instant for the present one
        return max(0.0, now + TICK_SECONDS - time.monotonic())

    async def _publish_figures(self, now: float) -> None:
        (here, worker), looks = await asyncio.gather(self._expositions(), self._look())
        told = {look.address: look.families for look in looks if look.families is not None}
        sees_worker = worker is not None or any("worker" in look.roles for look in looks if look.families)
        self._figures.add(Sample.of(now, {"": read_families(here, worker or b"")} | told, worker=sees_worker))
        self._expects_worker |= sees_worker
        takes_events = self._log_answers is not None
        figures = self._figures.describe() | {
            "at": self._now(),
            "viewers": self.viewers,
            "page": self.page,
            "expects_worker": self._expects_worker,
            "gateway": takes_events or any("gateway" in look.roles for look in looks if look.families),
            "takes_events": takes_events,
            "log_answers": None if self._log_answers is None else self._log_answers(),
            "missing": [
                {"address": look.address, "roles": sorted(look.roles), "why": look.why}
                for look in looks
                if look.families is None
            ],
            "unwatched": self._unwatched(looks),
        }
        self._publish("figures", figures)

    async def _look(self) -> Sequence[Look]:
        return () if self._watch is None else await self._watch.look()

    def _unwatched(self, looks: Sequence[Look]) -> list[str]:
        """The roles of which nobody was told where they are: one that never answered may be of any."""
        here = {"gateway": self._log_answers is not None, "worker": self._has_worker}
        return [
            role
            for role, is_here in here.items()
            if not is_here and not any(role in look.roles or not look.roles for look in looks)
        ]

    async def _read_tables(self) -> float:
        """`current` tells until when the shown tables hold what was stored. Returns how long to rest."""
        started, before = time.monotonic(), self._shown.get("kpi")
        asked_at, mark = self._now(), await self.board.mark()
        self._show_overview(await self.board.overview(mark=mark))
        self._show("rejected", await self.board.rejected(mark=mark))
        self._show("modes", await self.board.modes(mark=mark))
        self._publish("current", {"at": asked_at})
        if self._past is None:
            self._past = asyncio.create_task(self._read_past(), name="live-page-past")
        if self._shown.get("kpi") is before:
            return TICK_SECONDS  # nothing was stored: what comes next is looked for soon
        return rest_after(time.monotonic() - started)

    def _show(self, name: str, table: Table) -> None:
        if self._shown.get(name) is not table:
            self._shown[name] = table
            self._publish(name, table.answer)

    def _show_overview(self, table: Table) -> None:
        """Pages ask for its larger tables when they are told of these."""
        if self._shown.get("kpi") is not table:
            self._shown["kpi"] = table
            for name in ("city", "district"):
                self._publish(name, table.answer[name])

    async def _keep_point(self) -> None:
        table = await self.board.overview(every=TICK_SECONDS)
        self._show_overview(table)  # who comes next sees figures at once, a minute old at most
        row = table.answer["city"]["rows"][0]
        self._history.add(self.board.reader.clock(), row, self._known_figures())
        self._publish("trend", {"points": self._history.points()})

    def _keep_gap(self, now: float) -> None:
        """While the store is away the trend says so, and what the metrics tell goes on. The point after it is
        kept as soon as the store is back."""
        if now < max(self._point_due, self._gap_due):
            return
        self._gap_due = now + _POINT_SECONDS - TICK_SECONDS
        self._history.add(self.board.reader.clock(), None, self._known_figures())
        self._publish("trend", {"points": self._history.points()})

    def _known_figures(self) -> dict[str, Any] | None:
        """For the trend: none where the newest sample is from before the metrics failed."""
        return None if self._metrics_fail else self._figures.describe()

    async def _read_past(self) -> None:
        """The hour before this process began, a point after the other and with rests between them."""
        first = self._history.oldest_at()
        for at in self._history.past_instants(self.board.reader.clock()):
            started = time.monotonic()
            try:
                if first is not None:  # it was kept before a rate was known
                    self._history.complete(first, events_per_second=await self._stored_before(first))
                    first = None
                row, rate = await self.board.kpi_at(at), await self._stored_before(at)
            except Exception as error:
                if not isinstance(error, UnavailableError) and not self._past_fails:
                    log.exception("live_page_past_not_read")
                    self._past_fails = True
                await asyncio.sleep(_PAST_AGAIN_SECONDS)
                self._past = None
                return
            self._past_fails = False
            if row["cases"]:
                self._history.add(at, row, {"events_per_second": rate})
                self._publish("trend", {"points": self._history.points()})
            await asyncio.sleep(1.0 + 2 * (time.monotonic() - started))

    async def _stored_before(self, at: datetime) -> float | None:
        """Per second. Where nobody counts events, as at an api by itself, the tile shows none, nor does its
        trend."""
        counts = self._has_worker or self._watch is not None
        return await self.board.stored_per_second(at) if counts else None

    def _store_works(self, works: bool) -> None:
        if works == self._store_fails or "store" not in self._frames:
            self._store_fails = not works
            self._publish("store", {"available": works, "at": self._now()})
            if not works:
                log.warning("live_page_without_store")

    def _now(self) -> str | None:
        return instant(self.board.reader.clock())

    def _publish(self, topic: str, message: Any) -> None:
        data = orjson.dumps(message, option=orjson.OPT_UTC_Z)
        if topic in self._frames and self._frames[topic].data == data:
            return  # nothing to tell anybody
        self._sequence += 1
        self._frames[topic] = _Frame(
            self._sequence, data, b"event: %b\ndata: %b\n\n" % (topic.encode(), data)
        )
        news, self._news = self._news, asyncio.Event()
        news.set()


def rest_after(seconds: float) -> float:
    """How long to rest after a reading that took so long. What was stored just after it was asked is seen at
    the end of the next one, so a quick store is asked seldom. A slow one rests half as long as it took."""
    return max(_BEHIND_SECONDS - 2 * seconds, min(seconds / 2, _LONGEST_REST_SECONDS))
