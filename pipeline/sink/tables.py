"""Rows of blocks to ClickHouse: five tables, each insert under a token that a repetition repeats.

An insert costs the engine some 10 ms however few its rows: the blocks of a round go out together, and the
tables of outcomes beside each other. Each row says which block it belongs to, and recovery goes by those
rows: it needs to know nothing of the round. Of the outcomes any may be there after a crash; the cases are
told behind them.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.errors import ContractError
from pipeline.frames import DUPLICATE, POSITION, QUARANTINED, STORED, Schema, expect
from pipeline.process.deduplicate import refused_rows
from pipeline.process.flow import UNSTORABLE, BlockResult, case_events_of, most_unstorable
from pipeline.sink.arrow import to_arrow, words_of
from pipeline.sink.retry import Failure, classify, persist
from pipeline.store.cases import pack_case_events
from pipeline.store.client import insert_table
from pipeline.store.ddl import STORED_TYPES

log = structlog.get_logger(__name__)

#: Every insert says these itself: the engine's defaults have moved before.
INSERT_SETTINGS: Final = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # Replacing rows of equal position while inserting took half of an insert's time; merges and FINAL do it.
    "optimize_on_insert": 0,
    # Merges make the skip indexes: an insert is a sixth cheaper, and a part that is not merged is small.
    "materialize_skip_indexes_on_insert": 0,
    # A block is small for the engine: more threads cost more than they bring.
    "max_threads": 1,
}

#: Of every time column, all of which are of this unit.
_EARLIEST_MS: Final = int(datetime(1970, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LATEST_MS: Final = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)

#: Columns that go out as dictionaries. The small tables have few rows and few such columns.
_STORED_WORDS: Final = words_of(STORED_TYPES) | {"_rules"}
_WORDS: Final = {"events": _STORED_WORDS, "rejections": _STORED_WORDS}

_NULLABLE_STORED: Final = frozenset(name for name, kind in STORED_TYPES.items() if "Nullable(" in kind)
_NULLABLE_DUPLICATE: Final = frozenset({"matter_code", "category", "lead_department"})
_NULLABLE_QUARANTINED: Final = frozenset({"source", "event_id", "event_type", "content_type"})


#: Runs calls, the first with this client, and returns what they return (process.threads.Threads.at_once).
AtOnce = Callable[[Client, Sequence[Callable[[Client], Any]]], list[Any]]


def in_turn(client: Client, calls: Sequence[Callable[[Client], Any]]) -> list[Any]:
    """Where there are no threads: one after the other."""
    return [call(client) for call in calls]


class Extent(NamedTuple):
    """A block: the record offsets `lo` … `hi`, both included, of one partition."""

    partition: int
    lo: int
    hi: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.lo}-{self.hi}"


@dataclass(frozen=True)
class _Place:
    """Where the blocks stand: what their rows and their token say."""

    inc: int
    blocks: Sequence[Extent]
    rules: str
    token: str
    refusals: _Refusals


@dataclass(frozen=True)
class _Rows:
    """What is inserted into a table.

    named : all rows of the blocks in this table, which its token names: an insert of a worker that is gone
    may arrive late, and if that one judged the same blocks by other reference data, its rows must not stand
    for ours. may_refuse : whether rows that the store refuses are told instead of raised.
    """

    table: str
    rows: pl.DataFrame
    named: pl.DataFrame
    may_refuse: bool = True


@dataclass
class _Refusals:
    """Counts rows that the store refuses one by one. Too many point at our code or its tables, not at the
    data: quarantining them all would look like progress."""

    most: float
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, error: Exception) -> None:
        with self.lock:
            self.count += 1
        if self.count > self.most:
            raise RuntimeError(f"{self.count} rows of a block cannot be stored") from error


class Sink:
    """Writes blocks through one client. Not for use by two threads at once."""

    def __init__(
        self,
        client: Client,
        topic: str,
        stopping: threading.Event | None = None,
        before_insert: Callable[[], None] = lambda: None,
        at_once: AtOnce = in_turn,
    ) -> None:
        """before_insert : called right before each attempt, on whatever thread; what it raises ends the
        write. at_once : what may be inserted beside each other.
        """
        self._client = client
        self._at_once = at_once
        self._topic = topic
        self._before_insert = before_insert
        self._stopping = stopping or threading.Event()

    def write(
        self,
        result: BlockResult,
        *,
        inc: int,
        blocks: Sequence[Extent],
        rules: str,
        whole: BlockResult | None = None,
        suffix: str = "",
    ) -> BlockResult:
        """Insert every row of these blocks; returns when all are stored.

        Passing failures are repeated for ever with the same token. A row that ClickHouse refuses is found by
        halving the rows (a repetition halves alike, and sends the same parts) and quarantined.
        whole : all that the blocks hold, where `result` is what is left of it to store (recovery).
        suffix : of the token, for rows of a block that its own token would not let in (recovery).
        Returns the result as it was stored. Raises Stopping, what could not be classified, and RuntimeError
        when so many rows are refused that the fault must be ours.
        """
        token = self.token(inc=inc, blocks=blocks) + suffix
        refusals = _Refusals(most_unstorable(result.received))
        place = _Place(inc, blocks, rules, token, refusals)
        named = whole or result
        (events, refused_events), (rejections, refused_rejections), _ = self._insert_all(
            [
                _Rows("events", result.events, named.events),
                _Rows("rejections", result.rejections, named.rejections),
                _Rows("duplicates", result.duplicates, named.duplicates, may_refuse=False),
            ],
            place,
        )
        quarantined = result.quarantined
        refused = [rows for rows in (refused_events, refused_rejections) if not rows.is_empty()]
        if refused:
            quarantined = pl.concat(
                [
                    quarantined,
                    *(refused_rows(rows, UNSTORABLE, "ClickHouse refused the row") for rows in refused),
                ]
            ).sort("_part", "_off", "_idx")
            resent = result.duplicates.filter(pl.col("level") == "L2")
            result = replace(
                result,
                events=events,
                rejections=rejections,
                quarantined=quarantined,
                case_events=case_events_of(pl.concat([events, rejections]), resent),
            )
        named_so = quarantined if whole is None else whole.quarantined
        self._insert_all([_Rows("quarantine", quarantined, named_so, may_refuse=False)], place)
        self.write_case_events(result.case_events, inc, token)
        return result

    def token(self, *, inc: int, blocks: Sequence[Extent]) -> str:
        """The name under which these blocks are inserted."""
        return f"{self._topic}:{inc}:" + "+".join(str(block) for block in blocks)

    def write_case_events(self, case_events: pl.DataFrame, inc: int, token: str) -> None:
        """Hand the block's events to their cases. Repeating it changes nothing: a case is a set."""
        if not case_events.is_empty():
            self._send("case_events", pack_case_events(case_events, inc), token, self._client)

    def _insert_all(self, tables: Sequence[_Rows], place: _Place) -> list[tuple[pl.DataFrame, pl.DataFrame]]:
        """(stored, refused) rows of each table, inserted at once."""
        given = [rows for rows in tables if not rows.rows.is_empty()]
        calls = [partial(self._insert, rows, place) for rows in given]
        done = (
            dict(zip([rows.table for rows in given], self._at_once(self._client, calls), strict=True))
            if calls
            else {}
        )
        return [done.get(rows.table, (rows.rows, rows.rows)) for rows in tables]

    def _insert(self, given: _Rows, place: _Place, client: Client) -> tuple[pl.DataFrame, pl.DataFrame]:
        return self._insert_part(given, given.rows, place, f"{place.token}:{_digest(given.named)}", client)

    def _insert_part(
        self, given: _Rows, rows: pl.DataFrame, place: _Place, token: str, client: Client
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """rows : those of `given`, or a part of them."""
        table = given.table
        try:
            self._send(table, _with_block(_checked(table, rows), place), token, client)
        except Exception as error:
            if not given.may_refuse or classify(error) is not Failure.DATA:
                raise
            if rows.height == 1:
                log.error("a row cannot be stored", table=table, token=token, error=type(error).__name__)
                place.refusals.add(error)
                return rows.clear(), rows
        else:
            return rows, rows.clear()
        middle = rows.height // 2
        done = [
            self._insert_part(given, half, place, f"{token.partition('/')[0]}/{_name(half)}", client)
            for half in (rows[:middle], rows[middle:])
        ]
        return pl.concat([stored for stored, _ in done]), pl.concat([refused for _, refused in done])

    def _send(self, table: str, rows: pl.DataFrame, token: str, client: Client) -> None:
        data = to_arrow(rows, _WORDS.get(table, ()), _NULLABLE.get(table, ()))
        settings = {**INSERT_SETTINGS, "insert_deduplication_token": f"{token}:{table}"}

        def insert() -> None:
            self._before_insert()
            started = time.perf_counter()
            insert_table(client, table, data, settings=settings)
            metrics.insert_seconds.labels(table).observe(time.perf_counter() - started)

        persist(insert, stopping=self._stopping, what=f"{token} {table}")


def _checked(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that Arrow carries without a silent change: exact dtypes, times in range, nulls where allowed.

    Raises ContractError (the caller bisects).
    """
    schema, nullable = _SCHEMAS[table]
    rows = expect(rows, schema, table)
    # nulls are counted once by the frame itself: eighty conditions cost a small round some milliseconds
    absent = [
        name for name, dtype in schema.items() if isinstance(dtype, pl.List) and rows[name].null_count()
    ]
    if absent:
        rows = rows.with_columns(pl.col(name).fill_null([]) for name in absent)
    bad = [
        name
        for name, dtype in schema.items()
        if (name not in nullable and rows[name].null_count())
        or (isinstance(dtype, pl.Datetime) and not _in_range(rows[name]))
    ]
    if bad:
        raise ContractError(f"{table}: null or out of range in {', '.join(bad)}")
    return rows


def _in_range(times: pl.Series) -> bool:
    """Whether every time that is there can be stored. In milliseconds: not every one is a `datetime`."""
    instants = times.cast(pl.Int64)
    first, last = instants.min(), instants.max()
    return first is None or bool(first >= _EARLIEST_MS and last <= _LATEST_MS)  # type: ignore[operator]


def _digest(rows: pl.DataFrame) -> str:
    """Of the positions of rows, in their order: part of a token."""
    at = hashlib.blake2b(digest_size=8)
    for name in POSITION:
        at.update(rows[name].to_numpy().tobytes())
    return at.hexdigest()


def _name(rows: pl.DataFrame) -> str:
    """The positions of rows, from the first to the last: part of a token."""
    at = rows.select(list(POSITION))
    return "-".join(":".join(map(str, row)) for row in (at.row(0), at.row(-1)))


def _with_block(rows: pl.DataFrame, place: _Place) -> pl.DataFrame:
    """Add the topic incarnation, the bounds of the row's block and the rule set that judged it."""
    part = rows["_part"].to_numpy()
    bounds = np.zeros((2, int(part.max()) + 1), np.uint64)
    for block in place.blocks:
        if block.partition < bounds.shape[1]:
            bounds[:, block.partition] = block.lo, block.hi
    return rows.with_columns(
        pl.Series("_blk_lo", bounds[0, part]),
        pl.Series("_blk_hi", bounds[1, part]),
        _inc=pl.lit(place.inc, pl.UInt64),
        _rules=pl.lit(place.rules),
    )


#: By table, those of its columns that may be null; of `case_events` none may.
_NULLABLE: Final = {
    "events": _NULLABLE_STORED,
    "rejections": _NULLABLE_STORED,
    "duplicates": _NULLABLE_DUPLICATE,
    "quarantine": _NULLABLE_QUARANTINED,
}
_SCHEMAS: Final[dict[str, tuple[Schema, frozenset[str]]]] = {
    "events": (STORED, _NULLABLE["events"]),
    "rejections": (STORED, _NULLABLE["rejections"]),
    "duplicates": (DUPLICATE, _NULLABLE["duplicates"]),
    "quarantine": (QUARANTINED, _NULLABLE["quarantine"]),
}
