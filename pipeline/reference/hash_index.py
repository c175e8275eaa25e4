"""A hash index of 128-bit keys, in numpy: what a worker holds per person and per event id.

A Python dict of 4.8 million keys costs six times the memory and ten times the time per look-up; a join builds
the big side anew for every batch. Open addressing with linear probing does all keys of a batch per round:
a round gathers one slot per unresolved key, and after a few rounds none is left.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]

#: Fibonacci hashing: spreads keys whose low bits are not random (keys made by a test, for example).
SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)
_EMPTY: Final = np.int32(-1)
_MIN_BITS: Final = 10
#: Above this share of used slots a miss takes more than three probes on average.
_MAX_LOAD: Final = 0.5
#: Keys placed per pass; keeps the temporary arrays of a bulk insert at a few megabytes.
_CHUNK: Final = 1 << 18


class HashIndex:
    """Numbers distinct (hi, lo) pairs of uint64 from 0 in the order of insertion. Grows; forgets no key.

    Costs 16 bytes per key and 4 bytes per slot (two to four slots per key). Reads may run in several threads
    at once; an insert needs the index for itself.

    >>> index = HashIndex()
    >>> index.insert(np.array([1, 2], np.uint64), np.array([7, 8], np.uint64))
    >>> index.find(np.array([2, 2], np.uint64), np.array([8, 9], np.uint64)).tolist()
    [1, -1]
    """

    def __init__(self, capacity_hint: int = 0) -> None:
        """capacity_hint : keys expected; avoids growing on the way there."""
        self._count = 0
        self._hi: UInt64s = np.empty(max(capacity_hint, 16), np.uint64)
        self._lo: UInt64s = np.empty(max(capacity_hint, 16), np.uint64)
        self._allocate(capacity_hint)

    @classmethod
    def build(cls, hi: UInt64s, lo: UInt64s) -> HashIndex:
        """An index of `hi`, `lo` (n,)."""
        index = cls(capacity_hint=len(hi))
        index.insert(hi, lo)
        return index

    def insert(self, hi: UInt64s, lo: UInt64s) -> None:
        """Add n keys, (n,) each. Each must be absent; of one given twice the first is found, and both count.

        Raises ValueError if lengths differ.
        """
        added = len(hi)
        if len(lo) != added:
            raise ValueError(f"hi and lo differ in length: {added}, {len(lo)}")
        if added == 0:
            return
        total = self._count + added
        if total > len(self._hi):
            self._resize_entries(max(total, len(self._hi) + len(self._hi) // 2))
        self._hi[self._count : total] = hi
        self._lo[self._count : total] = lo
        first = self._count
        self._count = total
        if total > len(self._slots) * _MAX_LOAD:
            self._allocate(max(total, len(self._slots)))
            first = 0
        for start in range(first, total, _CHUNK):
            self._place(start, min(start + _CHUNK, total))

    def find(self, hi: UInt64s, lo: UInt64s) -> Int64s:
        """Numbers of n keys, (n,) int64, -1 where a key is absent."""
        found = np.full(len(hi), -1, np.int64)
        if len(hi) == 0 or self._count == 0:
            return found
        slots = self._home(hi, lo)
        entries = self._slots[slots]
        pending = np.flatnonzero(entries != _EMPTY)  # an empty slot ends a search: the key is absent
        entries = entries[pending]
        while len(pending):
            same = (self._lo[entries] == lo[pending]) & (self._hi[entries] == hi[pending])
            found[pending[same]] = entries[same]
            pending = pending[~same]
            slots[pending] = (slots[pending] + 1) & self._mask
            entries = self._slots[slots[pending]]
            used = entries != _EMPTY
            pending, entries = pending[used], entries[used]
        return found

    def keys(self) -> tuple[UInt64s, UInt64s]:
        """All keys, (n,) hi and lo, in the order of insertion."""
        return self._hi[: self._count].copy(), self._lo[: self._count].copy()

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        return self._slots.nbytes + self._hi.nbytes + self._lo.nbytes

    def _allocate(self, keys: int) -> None:
        bits = max(_MIN_BITS, int(np.ceil(np.log2(max(keys, 1) / _MAX_LOAD))) if keys else 0)
        self._slots = np.full(1 << bits, _EMPTY, np.int32)
        self._mask = np.int64((1 << bits) - 1)
        self._shift = np.uint64(64 - bits)

    def _resize_entries(self, size: int) -> None:
        for name in ("_hi", "_lo"):
            old = getattr(self, name)
            new = np.empty(size, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def _home(self, hi: UInt64s, lo: UInt64s) -> Int64s:
        # unsigned arrays wrap around, which is what a hash wants
        return (((lo ^ (hi >> np.uint64(32))) * SPREAD) >> self._shift).astype(np.int64)

    def _place(self, start: int, stop: int) -> None:
        """Give entries start … stop-1 a slot each."""
        pending = np.arange(start, stop, dtype=np.int32)
        slots = self._home(self._hi[start:stop], self._lo[start:stop])
        while len(pending):
            free = self._slots[slots] == _EMPTY
            # numpy keeps the last of several writes to one slot; reversed, the first entry wins
            self._slots[slots[free][::-1]] = pending[free][::-1]
            lost = self._slots[slots] != pending
            pending, slots = pending[lost], (slots[lost] + 1) & self._mask
