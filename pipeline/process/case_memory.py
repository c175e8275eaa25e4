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

from pipeline.frames import CASE_SET, POSITION
from pipeline.process.hashes import case_hash
from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s
from pipeline.reference.keys import text_words
from pipeline.store.cases import known_cases, read_sets

T = TypeVar("T")


class Reading(Protocol):
    """Runs a call that reads, until it succeeds."""

    def __call__(self, call: Callable[[], T], /) -> T: ...


def _once(call: Callable[[], T], /) -> T:
    return call()


#: Case ids named in one query: far below what ClickHouse parses.
_IDS_PER_QUERY: Final = 1_000
#: The share of the entries that stays when there are too many.
_KEPT_SHARE: Final = 0.5
_POSITION: Final = ("_inc", *POSITION)


class CaseMemory:
    """Entries of the sets of recent cases. Its calls may come from several threads.

    most_entries : kept (some 300 bytes each); the cases touched longest ago go first.
    """

    def __init__(self, most_entries: int = 500_000) -> None:
        self._most_entries = most_entries
        self._lock = threading.Lock()
        self._on = False
        self._empty()

    def _empty(self) -> None:
        self._existing: ExistingCases | None = None
        self._now = 0
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        self._numbers = HashIndex()
        self._touched = np.empty(0, np.int64)  # by number: the last call that touched it
        self._was_read = np.empty(0, bool)  # by number: entries that others had just stored may be among them
        self._entries = pl.DataFrame(schema={**CASE_SET, "number": pl.Int64()})

    def __len__(self) -> int:
        return self._entries.height

    @property
    def on(self) -> bool:
        return self._on

    def forget(self, *, on: bool | None = None) -> None:
        """Begin anew. on : whether every partition is this process's, so that its memory is the whole; None:
        as before."""
        with self._lock:
            self._on = self._on if on is None else on
            self._empty()

    def sets(self, client: Client, stored: pl.DataFrame, read: Reading = _once) -> pl.DataFrame | None:
        """All entries of the sets that `stored` adds to, CASE_SET; None where the store must be asked.

        stored : CASE_SET, entries that `case_events` holds already; each is handed over once.
        """
        with self._lock:
            if not self._on:
                return None
            if self._existing is None:
                existing = ExistingCases()
                for hashes in read(lambda: list(known_cases(client))):
                    existing.add(hashes)
                self._existing = existing
            return self._take_in(client, stored, self._existing, read)

    def _take_in(
        self, client: Client, stored: pl.DataFrame, existing: ExistingCases, read: Reading
    ) -> pl.DataFrame:
        case, case_ids = _encoded(stored["case_id"])
        hashes = case_ids.to_frame().select(case_hash()).to_series().to_numpy()
        words = text_words(case_ids)
        numbers = self._numbers.find(*words)
        fresh = numbers < 0
        elsewhere = np.zeros(len(numbers), bool)
        elsewhere[fresh] = existing.may_hold(hashes[fresh])
        numbers[fresh] = np.arange(len(self._numbers), len(self._numbers) + int(fresh.sum()))
        self._numbers.insert(words[0][fresh], words[1][fresh], numbers[fresh])
        self._touched, self._was_read = (
            _grown(array, len(self._numbers)) for array in (self._touched, self._was_read)
        )
        self._was_read[numbers[fresh]] = elsewhere[fresh]
        added = stored.with_columns(number=pl.Series(numbers[case]))
        if elsewhere.any():
            added = added.filter(pl.Series(~elsewhere[case]))
        added = self._unknown(added)
        if elsewhere.any():
            sought = pl.DataFrame([case_ids, pl.Series("number", numbers)]).filter(pl.Series(elsewhere))
            found = [read(partial(read_sets, client, ids)) for ids in sought.iter_slices(_IDS_PER_QUERY)]
            added = pl.concat([added, *(rows.join(sought, on="case_id", how="inner") for rows in found)])
        existing.add(hashes[fresh])
        self._now += 1
        self._touched[numbers] = self._now
        self._entries = pl.concat([self._entries, added.select(self._entries.columns)])
        wanted = self._touched[self._entries["number"].to_numpy()] == self._now
        sets = self._entries.filter(pl.Series(wanted)).drop("number")
        if self._entries.height > self._most_entries:
            self._evict()
        return sets

    def _unknown(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`rows` without those that came along when their case was read: another round had stored them, and
        hands them over only now."""
        doubtful = rows["number"].filter(pl.Series(self._was_read[rows["number"].to_numpy()])).unique()
        if doubtful.is_empty():
            return rows
        held = self._entries.filter(pl.col("number").is_in(doubtful.implode())).select(_POSITION)
        return rows.join(held, on=_POSITION, how="anti")

    def _evict(self) -> None:
        """Let the cases go that were touched longest ago, down to a share of what may be kept."""
        number = self._entries["number"].to_numpy()
        age = self._touched[number]
        kept = int(self._most_entries * _KEPT_SHARE)
        oldest = np.partition(age, len(age) - kept)[len(age) - kept]
        entries, touched, was_read = (
            self._entries.filter(pl.Series(age > oldest)),
            self._touched,
            self._was_read,
        )
        self._hold_nothing()
        if entries.is_empty():
            return
        cases = entries.select("case_id", "number").unique("number")
        old = cases["number"].to_numpy()
        self._numbers = HashIndex.build(*text_words(cases["case_id"]))
        self._touched, self._was_read = touched[old], was_read[old]
        renumbered = np.empty(len(touched), np.int64)
        renumbered[old] = np.arange(len(old))
        self._entries = entries.with_columns(
            number=pl.Series(renumbered[entries["number"].to_numpy()])
        ).rechunk()


class ExistingCases:
    """Which cases the store holds, as a Bloom filter of 32 MB. Of new cases one in a hundred is looked for in
    vain at 25 million cases, one in ten thousand at five million."""

    _BITS: Final = 28
    _PROBES: Final = 5

    def __init__(self) -> None:
        self._bytes = np.zeros(1 << (self._BITS - 3), np.uint8)

    def add(self, hashes: UInt64s) -> None:
        """hashes : (n,) of `case_hash`."""
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


def _encoded(case_ids: pl.Series) -> tuple[Int64s, pl.Series]:
    """(n,) the number of each row's case, and the distinct ids by number."""
    encoded = case_ids.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    return np.asarray(encoded.indices.to_numpy()).astype(np.int64), pl.Series("case_id", encoded.dictionary)


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """`array` with room for `size` entries; the new ones are 0."""
    if size <= len(array):
        return array
    grown = np.zeros(max(size, len(array) * 3 // 2, 1024), array.dtype)
    grown[: len(array)] = array
    return grown
