"""What the KPI calls for now are counted from, kept beside whoever asks and up with the store (ADR 0025).

The store alone counts by reading every state and every report, each time: seconds of processor time for a
million cases. What is held here is read once; from then on only the parts that inserts add are read, before
each call, so that its figures hold all that was visible when it was asked. Cases that stood otherwise at the
instant, for they have later events, are asked for; where they are many, as of a past instant, the store
counts the cases.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.read.held.cases import CASES, CASES_AS_OF, WORDS, HeldCases, rows_of
from pipeline.read.held.columns import BESIDE, Window, Words
from pipeline.read.held.parts import Followed, Part, active_parts, received, tables
from pipeline.read.held.reports import REPORTS, HeldReports
from pipeline.read.times import parameter
from pipeline.store.kpi_views import CITY

log = structlog.get_logger(__name__)

#: A call reads what is new by itself; so often it is read without one, so that no call finds much.
LOOK_SECONDS: Final = 5.0
_TABLES: Final = ("cases", *REPORTS)
#: Rows older than their retention leave a table with a merge, which no number tells: read anew once a day.
_ANEW_SECONDS: Final = 86_400.0
#: What was too much, or could not be read, is tried again after so long: cases hardly become fewer.
_TOO_MANY_SECONDS: Final = 600.0
#: A call waits so long for its turn, then asks the store.
_PATIENCE_SECONDS: Final = 2.0
#: Rows of one answer; the api's user may have a million (infra/security/clickhouse).
_SLICE_ROWS: Final = 800_000
#: So many times within one look what merges took away is read where they put it.
_MOST_TURNS: Final = 20
#: Cases with events after the instant that is asked for, for clocks of handsets run ahead. Where there are
#: more of them the store counts all.
_MOST_LATER: Final = 2_000
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


class HeldParts(NamedTuple):
    """cases, reports : rows by key, as the queries of `kpi_views` give them; cases is None where too many
    had another state. orphans : ids of the cases that had no report by then; None: the store knows them."""

    cases: pl.DataFrame | None
    reports: pl.DataFrame
    orphans: list[str] | None


class _TooManyError(Exception):
    """More is stored than may be held."""


class _Copy:
    """The held rows of one reading of the store. most_cases : raises _TooManyError above it."""

    def __init__(self, most_cases: int) -> None:
        self._shared = {name: Words() for name in dict.fromkeys(WORDS.values())}
        #: Vocabularies by column of a case.
        self.words = {column: self._shared[name] for column, name in WORDS.items()}
        self.cases, self.reports = HeldCases(self._shared), HeldReports(self._shared)
        self.began = time.monotonic()
        #: Whether a reading was broken off, so that only a part of it may be here.
        self.torn = False
        self._most_cases = most_cases
        self._tables: tuple[str, ...] | None = None
        self._followed = {table: Followed() for table in _TABLES}
        self._before: tuple[datetime, HeldCases] | None = None

    def follow(self, client: Client) -> bool:
        """Read what is new; False where what was read is no longer what is stored, or cannot be followed."""
        found = tables(client, _TABLES)
        if found is None or self._tables not in {None, found}:
            return False
        self._tables = found
        parts = active_parts(client, _TABLES)
        if not all(self._followed[table].is_still_there(parts[table]) for table in _TABLES):
            return False
        todo = {table: self._followed[table].unread(parts[table]) for table in _TABLES}
        if not any(todo.values()):
            return True
        self._before, self.torn = None, True
        read = {table: list(unread) for table, unread in todo.items()}
        for _ in range(_MOST_TURNS):
            for table, unread in todo.items():
                self._read(client, table, unread)
            parts = active_parts(client, _TABLES)
            todo = {table: self._followed[table].in_place_of(todo[table], parts[table]) for table in _TABLES}
            if not any(todo.values()):
                break
            for table, unread in todo.items():
                read[table] += unread
        else:
            return False
        stays = [self._followed[table].note(read[table], parts[table]) for table in _TABLES]
        self.torn = not all(stays)
        return all(stays)

    def as_of(self, client: Client, as_of: datetime) -> HeldCases:
        """The states that cases with later events had then; asked for anew once more was read."""
        if self._before is None or self._before[0] != as_of:
            before = HeldCases(self._shared)
            asked = {"as_of": parameter(as_of)}
            told = client.query_arrow(CASES_AS_OF, parameters=asked, settings=_READ)
            before.take(pl.DataFrame(pl.from_arrow(told)), {"": 0})
            self._before = as_of, before
        return self._before[1]

    def _read(self, client: Client, table: str, parts: list[Part]) -> None:
        if not parts:
            return
        asked: dict[str, Any] = {}
        rows = sum(part.rows for part in parts)
        if table == "cases":
            query, asked["parts"] = CASES, [part.name for part in parts]
        else:  # more rows than are new may meet the condition: they change nothing
            condition = received(parts)
            query = f"{REPORTS[table]} AND ({condition})"
            if rows > _SLICE_ROWS:
                reports = f"SELECT count() FROM {table} WHERE event_type = 'REPORTED' AND ({condition})"
                rows = client.query(reports).result_rows[0][0]
        # a reader may be granted so many rows of an answer and no more
        asked["slices"] = rows // _SLICE_ROWS + 1
        order = {part.name: part.last for part in parts}
        for at in range(asked["slices"]):
            asked["slice"] = at
            with client.query_arrow_stream(query, parameters=asked, settings=_READ) as stream:
                for batch in stream:
                    told = pl.DataFrame(pl.from_arrow(batch))
                    if table == "cases":
                        self.cases.take(told, order)
                    else:
                        self.reports.take(told)
                    if len(self.cases) > self._most_cases or len(self.reports) > 3 * self._most_cases:
                        raise _TooManyError


class HeldFigures:
    """Shared by every reader of a process; its calls may come from several threads.

    most_cases : above it, or with three times as many reports and copies of reports, nothing is held and the
    store is asked; 0: never hold anything.
    """

    def __init__(self, most_cases: int) -> None:
        self._most_cases = most_cases
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._copy: _Copy | None = None
        self._looked_at = -math.inf
        self._load_at = -math.inf

    def keep_up(self, client: Client) -> None:
        """Read everything where nothing is held, else what is new. Calls go on meanwhile, and ask the store
        as long as nothing is held."""
        if not self._most_cases or not self._loading.acquire(blocking=False):
            return
        try:
            with self._lock:
                if self._copy is not None and time.monotonic() - self._copy.began >= _ANEW_SECONDS:
                    self._copy = None
                self._follow(client, time.monotonic())
            if self._copy is None and time.monotonic() >= self._load_at:
                self._load(client)
        finally:
            self._loading.release()
            copy = self._copy
            metrics.held_cases.set(0 if copy is None else len(copy.cases))
            metrics.held_bytes.set(0 if copy is None else copy.cases.nbytes + copy.reports.nbytes)

    def _follow(self, client: Client, arrived: float) -> _Copy | None:
        """What is held, up with the store; None where that is nothing. Whoever arrived before the last look
        began sees what it saw."""
        copy, began = self._copy, time.monotonic()
        if copy is None or arrived < self._looked_at:
            return copy
        try:
            stays = copy.follow(client)
        except _TooManyError:
            stays, self._load_at = False, began + _TOO_MANY_SECONDS
        except BaseException:
            if copy.torn:
                self._copy = None
            raise
        if stays:
            self._looked_at = began
        else:
            log.info("held_figures_dropped", cases=len(copy.cases), most=self._most_cases)
            self._copy = None
        return self._copy

    def _load(self, client: Client) -> None:
        began = time.monotonic()
        copy: _Copy | None = None
        too_many = True
        try:
            if self._is_little_enough(client):
                copy = _Copy(self._most_cases)
                too_many = False
                if not copy.follow(client):
                    copy = None
        except _TooManyError:
            copy, too_many = None, True
        except BaseException:
            copy, too_many = None, False
            raise
        finally:
            now = time.monotonic()
            # reading all takes a tenth of the time at most, whatever ends it
            rest = 10 * (now - began) if copy is None or now - began > 1 else 0.0
            self._load_at = now + (_TOO_MANY_SECONDS if too_many else rest)
        if copy is not None:
            with self._lock:
                self._copy, self._looked_at = copy, began
            log.info(
                "held_figures_read",
                cases=len(copy.cases), reports=len(copy.reports), seconds=round(now - began, 2),
            )  # fmt: skip

    def _is_little_enough(self, client: Client) -> bool:
        rows = sum(part.rows for part in active_parts(client, ("cases",))["cases"])
        if rows > self._most_cases:  # of one case there may be several
            rows = client.query("SELECT count() FROM cases FINAL").result_rows[0][0]
        return rows <= self._most_cases

    def parts(
        self,
        client: Client,
        view: str,
        by: Sequence[str],
        citizen_channels: Collection[str],
        *,
        from_: datetime,
        to: datetime,
        as_of: datetime,
    ) -> list[HeldParts] | None:
        """The parts of a view by each of `by`, as of what is stored now, all of one look; None where the
        store must be asked."""
        arrived = time.monotonic()
        if self._copy is None or not self._lock.acquire(timeout=_PATIENCE_SECONDS):
            return None
        try:
            copy = self._follow(client, arrived)
            if copy is None:
                return None
            window = Window(_ms(from_), _ms(to), _ms(as_of))
            later = copy.cases.later(window.as_of)
            few = len(later) <= _MOST_LATER
            before = copy.as_of(client, as_of) if few and len(later) else None
            orphans = copy.cases.orphans(window.as_of)
            found = []
            with copy.cases.without(later, before):
                for name in by:
                    of_case, of_report, _ = _KEYS[name]
                    keys, key_of_word = copy.words[of_case].keyed(partial(_key, name))
                    reports = BESIDE.submit(copy.reports.counts, of_report, keys, key_of_word, window)
                    counted = [
                        held.cohort(of_case, key_of_word, citizen_channels, window)
                        if view == "cohort"
                        else held.flow(of_case, key_of_word, window)
                        for held in (copy.cases, before)
                        if held is not None and few
                    ]
                    cases = rows_of(view, counted, keys) if few else None
                    found.append(HeldParts(cases, reports.result(), orphans))
            return found
        finally:
            self._lock.release()


def _key(by: str, word: str) -> str:
    return CITY if by == "city" else word[: _KEYS[by][2]]


def _ms(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)
