"""What the KPI calls for now are counted from, kept beside whoever asks and up with the store (ADR 0025).

The store alone counts by reading every state and every report, each time: seconds of processor time for a
million cases. What is held here is read once; from then on only the parts that inserts add are read, before
each call, so that its figures hold all that was visible when it was asked. A past instant, at which cases
stood otherwise, is left to the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.read.held.cases import CASES, HeldCases
from pipeline.read.held.columns import BESIDE, Window, Words
from pipeline.read.held.parts import Followed, Part, active_parts, received
from pipeline.read.held.reports import REPORTS, HeldReports
from pipeline.store.kpi_views import CITY

log = structlog.get_logger(__name__)

_TABLES: Final = ("cases", *REPORTS)
#: Rows older than their retention leave a table with a merge, which no number tells: read anew once a day.
_ANEW_SECONDS: Final = 86_400.0
#: Too many cases are counted again after so long.
_TOO_MANY_SECONDS: Final = 60.0
#: So many times within one look what merges took away is read where they put it.
_MOST_TURNS: Final = 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_READ: Final = {"max_threads": 1}

#: What a row can stand for → (column of a case, of a report, first letters of its word that are the key).
_KEYS: Final = {
    "city": ("grid_code", "grid_code", 0),
    "district": ("grid_code", "grid_code", 6),
    "town": ("grid_code", "grid_code", 9),
    "village": ("grid_code", "grid_code", 12),
    "grid": ("grid_code", "grid_code", None),
    "matter": ("matter_code", "matter_code", None),
    "category": ("category", "category", None),
    "department": ("department", "lead_department", None),
    "channel": ("channel", "channel", None),
}


class _Copy:
    """The held rows of one reading of the store."""

    def __init__(self) -> None:
        words = {name: Words() for name in ("grid", "matter", "category", "department", "channel")}
        self.cases, self.reports = HeldCases(words), HeldReports(words)
        self._followed = {table: Followed() for table in _TABLES}
        self.began = time.monotonic()

    def follow(self, client: Client) -> bool:
        """Read what is new; False where what was read is no longer what is stored."""
        parts = active_parts(client, _TABLES)
        if not all(self._followed[table].is_still_there(parts[table]) for table in _TABLES):
            return False
        todo = {table: self._followed[table].unread(parts[table]) for table in _TABLES}
        read = {table: list(unread) for table, unread in todo.items()}
        turns = 0
        while any(todo.values()):
            turns += 1
            if turns > _MOST_TURNS:
                return False
            for table, unread in todo.items():
                self._read(client, table, unread)
            parts = active_parts(client, _TABLES)
            todo = {table: self._followed[table].in_place_of(todo[table], parts[table]) for table in _TABLES}
            for table, unread in todo.items():
                read[table] += unread
        stays = [self._followed[table].note(read[table], parts[table]) for table in _TABLES if turns]
        return all(stays)

    def _read(self, client: Client, table: str, parts: list[Part]) -> None:
        if not parts:
            return
        asked: dict[str, list[str]] = {}
        if table == "cases":
            query, asked["parts"] = CASES, [part.name for part in parts]
        else:  # more rows than are new may meet the condition: they change nothing
            query = f"{REPORTS[table]} AND ({received(parts)})"
        with client.query_arrow_stream(query, parameters=asked, settings=_READ) as stream:
            for batch in stream:
                told = pl.DataFrame(pl.from_arrow(batch))
                if table == "cases":
                    self.cases.take(told, {part.name: part.last for part in parts})
                else:
                    self.reports.take(told)


class HeldFigures:
    """Shared by every reader of a process; its calls may come from several threads.

    most_cases : above it nothing is held and the store is asked; 0: never hold anything.
    """

    def __init__(self, most_cases: int) -> None:
        self._most_cases = most_cases
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._copy: _Copy | None = None
        self._too_many_at = -_TOO_MANY_SECONDS

    def keep_up(self, client: Client) -> None:
        """Read everything where nothing is held, else what is new. Calls go on meanwhile, and ask the store
        as long as nothing is held."""
        if not self._most_cases or not self._loading.acquire(blocking=False):
            return
        try:
            copy = self._copy
            if copy is not None and time.monotonic() - copy.began < _ANEW_SECONDS:
                with self._lock:
                    self._follow(client)
            if self._copy is None or time.monotonic() - self._copy.began >= _ANEW_SECONDS:
                self._load(client)
        finally:
            self._loading.release()
        self._tell()

    def _follow(self, client: Client) -> _Copy | None:
        copy = self._copy
        if copy is None:
            return None
        try:
            stays = copy.follow(client) and len(copy.cases) <= self._most_cases
        except BaseException:
            self._copy = None  # it may have taken a part of what it read, and not know
            raise
        if not stays:
            log.info("held_figures_dropped", cases=len(copy.cases), most=self._most_cases)
            self._copy = None
        return self._copy

    def _load(self, client: Client) -> None:
        if time.monotonic() - self._too_many_at < _TOO_MANY_SECONDS:
            return
        rows = sum(part.rows for part in active_parts(client, ("cases",))["cases"])
        if rows > 2 * self._most_cases:  # not merged yet, a case has several rows
            self._too_many_at = time.monotonic()
            return
        began, copy = time.monotonic(), _Copy()
        if not copy.follow(client):
            return
        if len(copy.cases) > self._most_cases:
            self._too_many_at = time.monotonic()
            return
        with self._lock:
            self._copy = copy
        log.info(
            "held_figures_read",
            cases=len(copy.cases),
            reports=len(copy.reports),
            seconds=round(time.monotonic() - began, 2),
        )

    def _tell(self) -> None:
        copy = self._copy
        metrics.held_cases.set(0 if copy is None else len(copy.cases))
        metrics.held_bytes.set(0 if copy is None else copy.cases.nbytes + copy.reports.nbytes)

    def parts(
        self,
        client: Client,
        view: str,
        by: str,
        citizen_channels: Collection[str],
        *,
        from_: datetime,
        to: datetime,
        as_of: datetime,
    ) -> tuple[list[pl.DataFrame], list[str]] | None:
        """(cases and reports of a view by key, ids of orphaned cases); None where the store must be asked."""
        if self._copy is None:
            return None
        window = Window(_ms(from_), _ms(to), _ms(as_of))
        of_case, of_report, letters = _KEYS[by]

        def key_of(word: str) -> str:
            return CITY if by == "city" else word[:letters]

        with self._lock:
            copy = self._follow(client)
            if copy is None or copy.cases.has_later_events(window.as_of):
                return None
            reports = BESIDE.submit(copy.reports.counts, of_report, key_of, window)
            if view == "cohort":
                cases = copy.cases.cohort(of_case, key_of, citizen_channels, window)
            else:
                cases = copy.cases.flow(of_case, key_of, window)
            orphans = copy.cases.orphans(window.as_of)
            return [cases, reports.result()], orphans


def _ms(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)
