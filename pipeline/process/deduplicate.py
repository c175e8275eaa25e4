"""L1: the same event delivered again (design 9.18), decided by positions so that a replay decides alike.

A row is a redelivery if and only if a *strictly smaller* position of its id was kept and both were received
within the window, by the rows' own `ingested_at`. A row that is processed again therefore never takes itself
for a duplicate, and the wall clock plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.clock import utc_now
from pipeline.frames import DECODED, DUPLICATE, NO_DUPLICATES, NO_QUARANTINED, QUARANTINED, expect
from pipeline.process.records import MAX_EVENTS_PER_RECORD
from pipeline.reference.erased import Erased, without_erased
from pipeline.reference.hash_index import SPREAD, HashIndex

Int64s = NDArray[np.int64]
UInt16s = NDArray[np.uint16]
UInt64s = NDArray[np.uint64]
Rows = NDArray[np.int64] | NDArray[np.intp] | NDArray[np.bool_] | slice

ID_CONFLICT: Final = "ID_CONFLICT"
_MILLISECOND: Final = timedelta(milliseconds=1)
#: Entries of the past are kept this much longer than the window: receipts of several gateways interleave.
_EVICTION_SLACK: Final = 3_600_000
#: What the quarantine table can hold as a receipt.
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)


def positions(frame: pl.DataFrame) -> Int64s:
    """(offset, index) of each row as one ordered number, (n,) int64."""
    offsets = frame["_off"].to_numpy().astype(np.int64)
    return np.asarray(offsets * MAX_EVENTS_PER_RECORD + frame["_idx"].to_numpy().astype(np.int64))


def milliseconds(times: pl.Series) -> Int64s:
    """Unix milliseconds of a `Datetime("ms")` column without nulls, (n,) int64."""
    return times.cast(pl.Int64).to_numpy().astype(np.int64)


def by_partition(frame: pl.DataFrame) -> list[tuple[int, slice]]:
    """(partition, rows) of a frame whose rows lie together by `_part`."""
    part = frame["_part"].to_numpy()
    if not len(part):
        return []
    starts = [0, *(np.flatnonzero(part[1:] != part[:-1]) + 1).tolist(), len(part)]
    return [(int(part[first]), slice(first, end)) for first, end in pairwise(starts)]


class Entry(NamedTuple):
    """What is known of kept rows, each (n,).

    position : of the row; ingested : its receipt, ms; content : its content hash; version : of the key that
    the pseudonyms in that content were made under.
    """

    position: Int64s
    ingested: Int64s
    content: UInt64s
    version: UInt16s

    def at(self, rows: Rows) -> Entry:
        return Entry(self.position[rows], self.ingested[rows], self.content[rows], self.version[rows])

    def put(self, rows: Rows, values: Entry) -> None:
        self.position[rows], self.ingested[rows] = values.position, values.ingested
        self.content[rows], self.version[rows] = values.content, values.version

    def grown(self, size: int) -> Entry:
        """With room for `size` rows; the new ones are not set, and no memory of theirs is touched."""
        grown = Entry(*(np.empty(size, held.dtype) for held in self))
        grown.put(slice(0, len(self.position)), self)
        return grown

    @classmethod
    def of(cls, rows: pl.DataFrame) -> Entry:
        """rows : at least POSITION, ingested_at, content_hash and key_version."""
        version = rows["key_version"]
        return cls(
            positions(rows),
            milliseconds(rows["ingested_at"]),
            rows["content_hash"].to_numpy(),
            (version.fill_null(0) if version.null_count() else version).to_numpy(),
        )


class SeenIds:
    """The ids that one partition has kept, each with its latest kept `Entry`.

    Rebuilt from ClickHouse on assignment, extended only after a commit. Reads do not change it.
    """

    def __init__(self, window: timedelta, max_entries: int = 50_000_000) -> None:
        """window : of redelivery; max_entries : above it the oldest are forgotten early (see `forgotten`)."""
        self._window_ms = window // _MILLISECOND
        self._max_entries = max_entries
        self._index = HashIndex()
        self._held = Entry(
            np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.uint16)
        )
        self._count = 0
        self._latest = 0
        self._next_eviction = 1 << 16
        #: Entries dropped although inside the window, because of `max_entries`.
        self.forgotten = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + sum(values.nbytes for values in self._held)

    def find(self, hi: UInt64s, lo: UInt64s) -> Int64s:
        """Entry numbers of ids, -1 where unknown."""
        return self._index.find(hi, lo)

    def entry(self, numbers: Int64s) -> Entry:
        """Entries by their numbers."""
        return self._held.at(numbers)

    def remember(self, hi: UInt64s, lo: UInt64s, kept: Entry) -> None:
        """Add kept rows (n,); of one id the largest position stays. Call after the commit only."""
        if len(hi) == 0:
            return
        alike = np.sort(lo)
        if (alike[1:] == alike[:-1]).any():  # hardly ever
            last = _last_of_each(hi, lo, kept.position)
            hi, lo, kept = hi[last], lo[last], kept.at(last)
        newest = int(kept.ingested.max())
        numbers = self._index.find(hi, lo)
        known = numbers >= 0
        if known.any():
            later = known.copy()
            later[known] = kept.position[known] > self._held.position[numbers[known]]
            self._held.put(numbers[later], kept.at(later))
            hi, lo, kept = hi[~known], lo[~known], kept.at(~known)
        self._append(hi, lo, kept)
        # a producer's clock in the far future must not push everything else out
        self._latest = min(max(self._latest, newest), int(utc_now().timestamp() * 1000))
        if self._count >= self._next_eviction:
            self._evict()

    def _append(self, hi: UInt64s, lo: UInt64s, kept: Entry) -> None:
        first, total = self._count, self._count + len(hi)
        if total > len(self._held.position):
            size = max(total, len(self._held.position) * 3 // 2, 1024)
            self._held = self._held.grown(size)
        self._held.put(slice(first, total), kept)
        self._index.insert(hi, lo)
        self._count = total

    def _evict(self) -> None:
        """Forget what no row can be compared with any more; rarely, so that its cost is spread."""
        ingested = self._held.ingested[: self._count]
        keep = ingested >= self._latest - self._window_ms - _EVICTION_SLACK
        if int(keep.sum()) > self._max_entries:
            cut = np.partition(ingested, self._count - self._max_entries // 2)
            before = int(keep.sum())
            keep &= ingested >= cut[self._count - self._max_entries // 2]
            self.forgotten += before - int(keep.sum())
        if keep.sum() <= 0.75 * self._count:
            hi, lo = self._index.keys()
            left = self._held.at(np.flatnonzero(keep))
            self._index, self._count = HashIndex(capacity_hint=len(left.position)), 0
            self._append(hi[keep], lo[keep], left)
        self._next_eviction = min(max(1 << 16, self._count * 3 // 2), max(self._max_entries, self._count + 1))


def _last_of_each(hi: UInt64s, lo: UInt64s, position: Int64s) -> NDArray[np.intp]:
    """Rows as they stand, of one id only the one with the largest position."""
    order = np.lexsort((position, hi, lo))
    last = np.ones(len(order), bool)
    last[:-1] = (lo[order[1:]] != lo[order[:-1]]) | (hi[order[1:]] != hi[order[:-1]])
    return np.sort(order[last])


@dataclass(frozen=True)
class Unique:
    """kept : DECODED; duplicates : DUPLICATE (level L1); conflicts : QUARANTINED. Heights add up."""

    kept: pl.DataFrame
    duplicates: pl.DataFrame
    conflicts: pl.DataFrame


def deduplicate(
    events: pl.DataFrame, seen: Mapping[int, SeenIds], window: timedelta, erased: Erased | None = None
) -> Unique:
    """Split rows by whether their partition kept their id before.

    events : DECODED, of one or more partitions, each in position order. seen : by partition; not changed.
    The same id with other content is a conflict: the first stays, the later one is quarantined, without
    what belongs to `erased`. Of a copy whose people are named under another version of the key the content
    cannot be compared: it is a copy.
    Raises ContractError if a column is missing or has another dtype.
    """
    expect(events, DECODED, "deduplicate")
    if events.is_empty():
        return Unique(events, NO_DUPLICATES, NO_QUARANTINED)
    window_ms = window // _MILLISECOND
    hi, lo = events["id_hi"].to_numpy(), events["id_lo"].to_numpy()
    position, ingested, content, version = Entry.of(events)
    copy = np.zeros(events.height, bool)
    conflict = np.zeros(events.height, bool)
    other_key = np.zeros(events.height, bool)
    for partition, rows in by_partition(events):
        entries = seen[partition].find(hi[rows], lo[rows])
        known = np.flatnonzero(entries >= 0)
        if len(known):
            first = seen[partition].entry(entries[known])
            at = known + rows.start
            hit = (first.position < position[at]) & (np.abs(ingested[at] - first.ingested) <= window_ms)
            copy[at] = hit
            conflict[at] = hit & (first.content != content[at])
            # 0: not known, of a copy that was stored before its version was
            other_key[at] = (first.version != version[at]) & (first.version != 0)

    part = events["_part"].to_numpy()
    kept_here: dict[tuple[int, int, int], int] = {}
    for row in _repeated(part, hi, lo).tolist():  # few: ids that occur twice in one block
        key = (int(part[row]), int(hi[row]), int(lo[row]))
        anchor = kept_here.get(key)
        if copy[row] and anchor is None:
            continue
        if anchor is not None and abs(int(ingested[row] - ingested[anchor])) <= window_ms:
            copy[row], conflict[row] = True, content[row] != content[anchor]
            other_key[row] = version[row] != version[anchor]
        else:
            copy[row] = conflict[row] = False
            kept_here[key] = row
    if (conflict & other_key).any():  # only in the days after a new key was put in force
        conflict &= ~(other_key & _names_people(events))
    if not copy.any():
        return Unique(events, NO_DUPLICATES, NO_QUARANTINED)
    return Unique(
        events[np.flatnonzero(~copy)],
        duplicate_rows(events[np.flatnonzero(copy & ~conflict)], "L1"),
        # most blocks have none, and a row's payload is made of every column
        _conflicts(events.filter(conflict), erased) if conflict.any() else NO_QUARANTINED,
    )


def _names_people(events: pl.DataFrame) -> NDArray[np.bool_]:
    """(n,) whether a row holds pseudonyms, which the key in force makes what they are."""
    named = pl.col("actor_key").str.contains("^[0-9a-f]{64}$").fill_null(False)
    return events.select(named | (pl.col("persons").list.len() > 0).fill_null(False)).to_series().to_numpy()


def _repeated(part: NDArray[np.uint16], hi: UInt64s, lo: UInt64s) -> NDArray[np.intp]:
    """Rows whose id may occur twice in one partition of this block, ascending: all that do, and once in a
    long while a pair whose mixed bits happen to agree."""
    mixed = lo ^ (hi * SPREAD) ^ (part.astype(np.uint64) << np.uint64(48))
    order = np.argsort(mixed)
    alike = np.flatnonzero(mixed[order[1:]] == mixed[order[:-1]])
    return np.unique(np.concatenate([order[alike], order[alike + 1]]))


def duplicate_rows(events: pl.DataFrame, level: str) -> pl.DataFrame:
    """DUPLICATE rows of copies whose original has the same id and case (L1), category still unknown."""
    return events.select(_of_copy(level))


@cache
def _of_copy(level: str) -> tuple[pl.Expr, ...]:
    """The columns of DUPLICATE from those of an event."""
    given = {
        "level": pl.lit(level),
        "category": pl.lit(None, pl.String),
        "lead_department": pl.lit(None, pl.String),
        "original_source": pl.col("source"),
        "original_event_id": pl.col("event_id"),
        "original_case_id": pl.col("case_id"),
    }
    return tuple(given.get(name, pl.col(name)).alias(name) for name in DUPLICATE)


def _conflicts(events: pl.DataFrame, erased: Erased | None) -> pl.DataFrame:
    detail = "this id was received before with other content; the first stays"
    return refused_rows(events, ID_CONFLICT, detail, erased)


def refused_rows(
    events: pl.DataFrame, reason: str, detail: str, erased: Erased | None = None
) -> pl.DataFrame:
    """QUARANTINED rows of readable events (DECODED or wider); the payload is the event as it was decoded.

    erased : of whom the payload must hold nothing, unless `events` were enriched: those are without them.
    """
    if erased is not None:
        no_fingerprint = pl.lit(None, pl.UInt64)
        events = without_erased(events.with_columns(l2_hi=no_fingerprint, l2_lo=no_fingerprint), erased)
    return (
        events.select(
            *("_part", "_off", "_idx", "source", "event_id", "event_type"),
            # the very value may be why the row is refused
            pl.col("ingested_at").clip(_EARLIEST, _LATEST).fill_null(_EARLIEST),
            pl.lit(reason).alias("reason"),
            pl.lit(detail).alias("detail"),
            pl.lit(None, pl.String).alias("content_type"),
            payload_of(),
        )
        .with_columns(pl.col("payload").str.len_bytes().alias("payload_bytes"))
        .select(list(QUARANTINED))
    )


def payload_of() -> pl.Expr:
    """The already redacted event as JSON text, for a clerk who compares it.

    Times are unix milliseconds: any value can be written like that, even one that made the row unstorable.
    """
    names = [name for name in DECODED if not name.startswith(("_", "id_", "content_"))]
    times = {name for name in names if isinstance(DECODED[name], pl.Datetime)}
    photos = pl.col("photos").list.eval(pl.element().struct.field("sha256"))
    return (
        pl.struct(
            pl.col(name).to_physical() if name in times else photos if name == "photos" else pl.col(name)
            for name in names
        )
        .struct.json_encode()
        .alias("payload")
    )
