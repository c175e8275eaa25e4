"""The tables behind the page: each is computed once and shared by all who watch.

A KPI query costs the engine 0.15–0.3 s of analysis whatever the data, so a table is read again only when
something was stored since, or when time alone may have changed it (limits pass, the window moves).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.contract.canary import CANARY_SOURCE
from pipeline.read.kpi import kpi, kpi_together
from pipeline.read.modes import modes_in_force
from pipeline.read.names import KpiNames
from pipeline.read.reader import Reader
from pipeline.read.rejected import LIFE_SAFETY, life_safety_rejections, rejection_reasons
from pipeline.read.rejections import rejections
from pipeline.read.routes import DEFAULT_WINDOW
from pipeline.read.times import parameter
from pipeline.store.kpi_views import TOGETHER

#: A table that time alone may change is read again after so long. Seconds.
STALE_SECONDS: Final = 15.0
#: Newest rejections shown.
_NEWEST: Final = 12

_OVERVIEW: Final = "kpi:overview"
_DISTRICTS: Final = "kpi:city_and_district"
_OUTCOMES: Final = ("events", "rejections", "duplicates", "quarantine")
_STORED: Final = (*_OUTCOMES, "cases", "ref_grids", "ref_modes")


@dataclass(frozen=True)
class Table:
    """One answer. mark : what was stored when it was asked; asked_at : monotonic; took : seconds."""

    answer: dict[str, Any]
    mark: str
    asked_at: float
    took: float

    def kept_for(self, every: float, most: float = 0.0) -> float:
        """Seconds from now during which it is not asked for again; reading takes half of the time at most,
        and a fifth while that keeps it for up to `most` seconds."""
        rests = max(every, min(5 * self.took, most), 2 * self.took)
        return rests - (time.monotonic() - self.asked_at)

    def holds(self, mark: str) -> bool:
        """Whether nothing was stored since, nor did time alone change it."""
        return self.mark == mark and time.monotonic() - self.asked_at < STALE_SECONDS


@dataclass
class Board:
    """Shared answers of one process."""

    reader: Reader
    _tables: dict[str, Table] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def mark(self) -> str:
        """Changes when something was stored or changed in place, and not when parts merge. A few
        milliseconds. Raises UnavailableError."""

        def ask(client: Client) -> str:
            # the second number is that of the last change in place (erasure, retention)
            found = client.query(
                "SELECT table, partition_id, max(max_block_number), "
                "maxIf(data_version, data_version > max_block_number) FROM system.parts "
                "WHERE database = currentDatabase() AND active AND table IN {tables:Array(String)} "
                "GROUP BY ALL ORDER BY ALL",
                parameters={"tables": list(_STORED)},
            )
            return str(found.result_rows)

        return await self.reader.run(ask)

    async def kpi(self, by: str, *, mark: str | None = None, every: float = 0.0, most: float = 0.0) -> Table:
        """The KPI call's default answer with the counts behind each rate, as of about now.

        every, most : of `Table.kept_for`, during which an answer is not asked for again even if something
        was stored since. After that it is no older than the overview, beside which it stands.
        """
        if by in TOGETHER:
            together = await self.overview(mark=mark, every=every)
            return replace(together, answer=together.answer[by])

        def ask(client: Client) -> dict[str, Any]:
            return self._kpi(client, by, self.reader.clock())

        overview = self._tables.get(_OVERVIEW)
        since = overview.answer["city"]["as_of"] if overview is not None else ""
        return await self._shared(f"kpi:{by}", ask, mark=mark, every=every, most=most, since=since)

    async def kpi_at(self, at: datetime) -> dict[str, Any]:
        """The city's row as of a past instant."""
        answer = await self.reader.run(lambda client: self._kpi(client, "city", at))
        row: dict[str, Any] = answer["rows"][0]
        return row

    async def stored_per_second(self, at: datetime) -> float:
        """Events stored in the minute before a past instant, whatever became of them, as the worker counts
        them: without canaries. Of what waited for over a day before it was stored nothing is counted."""

        def ask(client: Client) -> float:
            tables = " UNION ALL ".join(
                # the day by receipt leaves nearly every part out by its bounds alone
                f"SELECT count() AS events FROM {table} WHERE ingested_at >= until - toIntervalDay(1) "
                "AND stored_at > until - toIntervalMinute(1) AND stored_at <= until "
                # of what is in quarantine it may not be known
                "AND ifNull(source, '') != {canary:String}"
                for table in _OUTCOMES
            )
            found = client.query(
                f"WITH {{at:DateTime64(3, 'UTC')}} AS until SELECT sum(events) FROM ({tables})",
                parameters={"at": parameter(at), "canary": CANARY_SOURCE},
            )
            return float(found.result_rows[0][0]) / 60

        return await self.reader.run(ask)

    async def overview(self, *, mark: str | None = None, every: float = 0.0) -> Table:
        """What a page that was just opened shows: the answers of TOGETHER, `by` → answer, of one instant."""
        return await self._shared(_OVERVIEW, self._together(TOGETHER), mark=mark, every=every)

    async def districts(self, *, every: float) -> dict[str, Any]:
        """The districts' rows, for others than the page: of the page's answer while it is watched."""
        held = self._tables.get(_OVERVIEW)
        if held is None or held.kept_for(every) <= 0:
            mark = await self.mark()
            if held is None or not held.holds(mark):
                held = await self._shared(_DISTRICTS, self._together(TOGETHER[:2]), mark=mark, every=every)
        answer: dict[str, Any] = held.answer["district"]
        return answer

    def _together(self, by: tuple[str, ...]) -> Callable[[Client], dict[str, Any]]:
        def ask(client: Client) -> dict[str, Any]:
            now = self.reader.clock()
            window = {"from_": now - DEFAULT_WINDOW, "to": now, "as_of": now}
            return kpi_together(client, by, names=self._names(client), held=self.reader.held, **window)

        return ask

    async def rejected(self, *, mark: str | None = None, every: float = 0.0) -> Table:
        """Rejected reports of the default window by primary reason, the newest of them, and the alarms."""

        def ask(client: Client) -> dict[str, Any]:
            now = self.reader.clock()
            return {
                "reasons": rejection_reasons(client, from_=now - DEFAULT_WINDOW, to=now),
                "newest": rejections(client, from_=now - DEFAULT_WINDOW, limit=_NEWEST),
                "life_safety": life_safety_rejections(client, from_=now - LIFE_SAFETY),
            }

        return await self._shared("rejected", ask, mark=mark, every=every)

    async def modes(self, *, mark: str | None = None) -> Table:
        """Emergency modes in force; time alone begins and ends them."""

        def ask(client: Client) -> dict[str, Any]:
            return {"modes": modes_in_force(client, at=self.reader.clock())}

        return await self._shared("modes", ask, mark=mark, every=STALE_SECONDS)

    def _kpi(self, client: Client, by: str, at: datetime) -> dict[str, Any]:
        window = {"from_": at - DEFAULT_WINDOW, "to": at, "as_of": at}
        return kpi(
            client,
            by=by,
            view="cohort",
            names=self._names(client),
            parts=True,
            held=self.reader.held,
            **window,
        )

    def _names(self, client: Client) -> KpiNames:
        return KpiNames(self.reader.areas, self.reader.catalogues, client)

    async def _shared(
        self, name: str, ask: Any, *, mark: str | None, every: float, most: float = 0.0, since: str = ""
    ) -> Table:
        """The answer called `name`; one caller asks, the others wait for it.

        since : an older one is asked for again, whether or not something was stored.
        """
        held = self._tables.get(name)
        if held is not None and every and held.kept_for(every, most) > 0:
            return held  # also while the next one is being read
        async with self._locks.setdefault(name, asyncio.Lock()):
            now, held = time.monotonic(), self._tables.get(name)
            if held is not None and every and held.kept_for(every, most) > 0:
                return held
            mark = mark or await self.mark()
            if held is not None and held.holds(mark) and held.answer.get("as_of", "") >= since:
                return held
            answer = await self.reader.run(ask)
            self._tables[name] = Table(answer, mark, now, time.monotonic() - now)
            return self._tables[name]
