"""The sets of cases that were touched lately, so that a refresh reads from the store only what it must.

A case lies anywhere in `case_events`: reading the sets of a block's cases back cost as much as all else of a
refresh, and grew with the table. A process that owns every partition of the topic has seen each entry of a
set itself, or has read it; it keeps them. Where partitions belong to several processes an event of a case can
arrive elsewhere: there the memory stays empty and every set is read. Source: ADR 0017.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import polars as pl
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline.frames import CASE_SET, POSITION, with_own_texts
from pipeline.process.hashes import case_hash
from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s
from pipeline.store.cases import known_cases, read_sets

T = TypeVar("T")


class Reading(Protocol):
    """Runs a call that reads, until it succeeds."""

    def __call__(self, call: Callable[[], T], /) -> T: ...


def _once(call: Callable[[], T], /) -> T:
    return call()


#: Case ids named in one query: a quarter of what ClickHouse parses.
_IDS_PER_QUERY: Final = 1_000
#: The share of the entries that stays when there are too many.
_KEPT_SHARE: Final = 0.5
#: Rows of frames that are joined no more: those of two large rounds are not, which would copy them once more.
_MOST_JOINED: Final = 60_000
_POSITION: Final = ["_inc", *POSITION]
_NO_ENTRIES: Final = pl.DataFrame(schema=CASE_SET)
_KEYS: Final = [
    case_hash(),
    pl.col("case_id").hash(1).alias("hi"),
    pl.col("case_id").hash(2).alias("lo"),
]


class CaseMemory:
    """Entries of the sets of recent cases. Its calls may come from several threads.

    most_entries : kept; the cases touched longest ago go first.

    `forget` never waits: a call that is under way goes on with what it has, which is sound, for the entries
    that it hands over were stored before; whoever reads the store from now on sees them.
    """

    def __init__(self, most_entries: int = 500_000) -> None:
        self._most_entries = most_entries
        self._swap = threading.Lock()
        self._existing = ExistingCases()
        self._held: _Held | None = None

    @property
    def on(self) -> bool:
        """Whether sets can be asked for."""
        return self._held is not None

    def __len__(self) -> int:
        held = self._held
        return 0 if held is None else len(held)

    def begin(self, *, on: bool) -> None:
        """Partitions came or went. on : whether every one is this process's: its memory is the whole."""
        with self._swap:
            self._existing = ExistingCases()
            self._held = _Held(self._existing, self._most_entries) if on else None

    def forget(self, case_ids: pl.Series | None = None) -> None:
        """Read every set anew from now on: entries came to light that were not handed over here.

        case_ids : cases that may be new to the store with them.
        """
        with self._swap:
            if case_ids is not None:
                self._existing.add(_hashes(case_ids))
            if self._held is not None:
                self._held = _Held(self._existing, self._most_entries)

    def know(self, client: Client, read: Reading = _once) -> None:
        """Read the ids of all cases there are; the first `sets` does it where nobody did before."""
        held = self._held
        if held is not None:
            held.know(client, read)

    def sets(self, client: Client, stored: pl.DataFrame, read: Reading = _once) -> pl.DataFrame | None:
        """All entries of the sets that `stored` adds to; None where the store must be asked.

        CASE_SET and `number`, that of the entry's case, from 0 in the order of case ids.
        stored : CASE_SET, entries that `case_events` holds already; each is handed over once.
        """
        held = self._held
        return None if held is None else held.sets(client, stored, read)


class _Held:
    """What a memory holds between two times that it forgets."""

    def __init__(self, existing: ExistingCases, most_entries: int) -> None:
        self._existing = existing
        self._most_entries = most_entries
        self._lock = threading.Lock()
        self._now = 0
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._numbers = HashIndex()
        self._touched = np.empty(0, np.int64)  # by number: the last call that touched it
        self._was_read = np.empty(0, bool)  # by number: entries that others had just stored may be among them
        self._frames: list[pl.DataFrame] = []  # CASE_SET and `number`

    def __len__(self) -> int:
        return sum(frame.height for frame in self._frames)

    def know(self, client: Client, read: Reading) -> None:
        with self._lock:
            self._know(client, read)

    def _know(self, client: Client, read: Reading) -> None:
        if not self._existing.complete:
            for hashes in read(lambda: list(known_cases(client))):
                self._existing.add(hashes)
            self._existing.complete = True

    def sets(self, client: Client, stored: pl.DataFrame, read: Reading) -> pl.DataFrame:
        with self._lock:
            self._know(client, read)
            case, case_ids = _encoded(stored["case_id"])
            hashes, *words = _keys(case_ids)
            numbers = self._numbers.find(*words)
            fresh = numbers < 0
            elsewhere = np.zeros(len(numbers), bool)
            elsewhere[fresh] = self._existing.may_hold(hashes[fresh])
            found = _read(client, case_ids[np.flatnonzero(elsewhere)], read)
            # nothing is changed before the last read has succeeded
            self._existing.add(hashes[fresh])
            numbers[fresh] = np.arange(len(self._numbers), len(self._numbers) + int(fresh.sum()))
            self._numbers.insert(words[0][fresh], words[1][fresh])
            self._touched = _grown(self._touched, len(self._numbers))
            self._was_read = _grown(self._was_read, len(self._numbers))
            self._was_read[numbers[fresh]] = elsewhere[fresh]
            self._now += 1
            self._touched[numbers] = self._now
            told = _numbered(stored, numbers[case])
            if elsewhere.any():
                told = told.filter(pl.Series(~elsewhere[case]))
            self._append(self._unknown(told))
            if found.height:
                its, ids = _encoded(found["case_id"])
                self._append(_numbered(found, self._numbers.find(*_keys(ids)[1:])[its]))
            sets = self._chosen(self._touched == self._now)
            if len(self) > self._most_entries:
                self._evict()
            if not sets:
                return _NO_ENTRIES
            # in the order of ids, that of the table `cases`: its insert need not sort, a sixth of its time
            here = np.empty(int(numbers.max()) + 1, np.int64)
            here[numbers[case_ids.arg_sort().to_numpy()]] = np.arange(len(numbers))
            # before they are joined: a column in other pieces than the rest makes polars copy all
            return pl.concat([_numbered(entries, here[entries["number"].to_numpy()]) for entries in sets])

    def _chosen(self, cases: NDArray[np.bool_]) -> list[pl.DataFrame]:
        """Entries, CASE_SET and `number`, of the cases (by number) that are chosen."""
        chosen = [(frame, np.flatnonzero(cases[frame["number"].to_numpy()])) for frame in self._frames]
        # taken by place: a filter and a selection are two queries to polars, for each frame
        return [frame[rows] for frame, rows in chosen if len(rows)]

    def _append(self, rows: pl.DataFrame) -> None:
        """Neighbours are joined when they are of like size, and small: few frames stay, however many small
        blocks come, and a row is copied a few times only."""
        if rows.is_empty():
            return
        parts, height, at = [rows], rows.height, len(self._frames)
        while (
            at
            and self._frames[at - 1].height < 2 * height
            and self._frames[at - 1].height + height <= _MOST_JOINED
        ):
            at -= 1
            parts.insert(0, self._frames[at])
            height += parts[0].height
        self._frames[at:] = [with_own_texts(pl.concat(parts))]

    def _unknown(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`rows` without those that came along when their case was read: another round had stored them, and
        hands them over only now."""
        doubtful = np.zeros(len(self._touched), bool)
        numbers = rows["number"].to_numpy()
        doubtful[numbers] = self._was_read[numbers]
        if not doubtful.any():
            return rows
        known = [entries[_POSITION] for entries in self._chosen(doubtful)]
        return rows.join(pl.concat(known), on=_POSITION, how="anti") if known else rows

    def _evict(self) -> None:
        """Let the cases go that were touched longest ago, down to a share of what may be kept."""
        ages = [self._touched[frame["number"].to_numpy()] for frame in self._frames]
        age, kept = np.concatenate(ages), int(self._most_entries * _KEPT_SHARE)
        oldest = np.partition(age, len(age) - kept)[len(age) - kept]
        left = [(frame, np.flatnonzero(its > oldest)) for frame, its in zip(self._frames, ages, strict=True)]
        frames = [
            frame if len(rows) == frame.height else with_own_texts(frame[rows])
            for frame, rows in left
            if len(rows)
        ]
        touched, was_read = self._touched, self._was_read
        self._hold_nothing()
        if not frames:
            return
        number = np.concatenate([frame["number"].to_numpy() for frame in frames])
        entry = np.full(len(touched), -1)  # by number: one of the case's entries
        entry[number] = np.arange(len(number))
        old = np.flatnonzero(entry >= 0)
        case_ids = pl.concat([frame["case_id"] for frame in frames], rechunk=True)[entry[old]]
        self._numbers = HashIndex.build(*_keys(case_ids)[1:])
        self._touched, self._was_read = touched[old], was_read[old]
        renumbered = np.empty(len(touched), np.int64)
        renumbered[old] = np.arange(len(old))
        self._frames = [_numbered(frame, renumbered[frame["number"].to_numpy()]) for frame in frames]


class ExistingCases:
    """Which cases the store holds, as a Bloom filter of 32 MB. Of new cases one in a hundred is looked for in
    vain at 25 million cases, one in ten thousand at five million."""

    _BITS: Final = 28
    _PROBES: Final = 5

    def __init__(self) -> None:
        self._bytes = np.zeros(1 << (self._BITS - 3), np.uint8)
        self._lock = threading.Lock()
        #: Whether every case that was stored before is in it.
        self.complete = False

    def add(self, hashes: UInt64s) -> None:
        """hashes : (n,) of `case_hash`."""
        with self._lock:
            for place in self._places(hashes):
                np.bitwise_or.at(self._bytes, place >> 3, _BIT[place & 7])

    def may_hold(self, hashes: UInt64s) -> NDArray[np.bool_]:
        """(n,) False only where the case was never added."""
        found = np.ones(len(hashes), bool)
        for place in self._places(hashes):
            found &= (self._bytes[place >> 3] & _BIT[place & 7]) != 0
        return found

    def _places(self, hashes: UInt64s) -> list[Int64s]:
        mask = np.uint64((1 << self._BITS) - 1)
        step = (hashes >> np.uint64(32)) | np.uint64(1)
        return [((hashes + np.uint64(probe) * step) & mask).astype(np.int64) for probe in range(self._PROBES)]


_BIT: Final = (1 << np.arange(8)).astype(np.uint8)


def _read(client: Client, case_ids: pl.Series, read: Reading) -> pl.DataFrame:
    """The sets of these cases, as they are stored."""
    if case_ids.is_empty():
        return _NO_ENTRIES
    parts = [
        read(partial(read_sets, client, ids))
        for ids in case_ids.to_frame("case_id").iter_slices(_IDS_PER_QUERY)
    ]
    return pl.concat(parts)


def _hashes(case_ids: pl.Series) -> UInt64s:
    return np.asarray(case_ids.to_frame("case_id").select(case_hash()).to_series().to_numpy())


def _keys(case_ids: pl.Series) -> list[UInt64s]:
    """`_hashes`, and the two words of the ids in the index of numbers, by one query."""
    return [keys.to_numpy() for keys in case_ids.to_frame("case_id").select(_KEYS)]


def _encoded(case_ids: pl.Series) -> tuple[Int64s, pl.Series]:
    """(n,) the number of each row's case, and the distinct ids by number."""
    encoded = case_ids.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    return np.asarray(encoded.indices.to_numpy()).astype(np.int64), pl.Series("case_id", encoded.dictionary)


def _numbered(entries: pl.DataFrame, numbers: Int64s) -> pl.DataFrame:
    """CASE_SET and `number`, that of each entry's case."""
    return entries[list(CASE_SET)].hstack([pl.Series("number", numbers)])


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """`array` with room for `size` entries; the new ones are 0."""
    if size <= len(array):
        return array
    grown = np.zeros(max(size, len(array) * 3 // 2, 1024), array.dtype)
    grown[: len(array)] = array
    return grown
