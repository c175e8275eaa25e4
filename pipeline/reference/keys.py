"""From text keys to positions: grids, units, staff, organisations by code, persons by 64 hex digits."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s

#: `Series.hash` is stable within one version of polars, which is all that an index in memory needs.
_SEEDS = (1, 2)
_FOREVER_MS = (1 << 43) - 1  # the year 2248
_TIME_BITS = np.int64(43)


def instant_ms(times: pl.Series) -> Int64s:
    """Milliseconds since 1970 of a Datetime("ms") series, cut to what `VersionIndex` can hold."""
    clipped: Int64s = np.clip(times.dt.epoch("ms").to_numpy(), 0, _FOREVER_MS)
    return clipped


class KeyIndex:
    """Positions of distinct text keys."""

    def __init__(self, keys: pl.Series) -> None:
        """keys : (k,) String, distinct, no nulls."""
        self._keys = keys
        self._index = HashIndex.build(*_words(keys))

    def find(self, asked: pl.Series) -> Int64s:
        """(n,) positions of `asked` (String, nulls allowed), -1 where unknown or null."""
        found = self._index.find(*_words(asked))
        if len(self._keys) and len(asked):
            same = self._keys.gather(np.maximum(found, 0)) == asked
            found[~same.fill_null(False).to_numpy()] = -1
        return found

    def __len__(self) -> int:
        return len(self._keys)


def _words(keys: pl.Series) -> tuple[UInt64s, UInt64s]:
    first, second = (keys.hash(seed).to_numpy() for seed in _SEEDS)
    return first, second


class VersionIndex:
    """Which version of a key was valid at an instant.

    A version ends at its own valid_to or where the next one begins, whichever is earlier.
    """

    def __init__(self, keys: pl.Series, valid_from: pl.Series, valid_to: pl.Series) -> None:
        """All (k,), ordered by key and valid_from."""
        starts = keys != keys.shift(1)
        first = starts.fill_null(True).to_numpy()
        self._keys = KeyIndex(keys.filter(pl.Series(first)))
        owner = np.cumsum(first) - 1
        self._starts: Int64s = (owner.astype(np.int64) << _TIME_BITS) | instant_ms(valid_from)
        self._owner = owner
        self._ends: Int64s = np.clip(
            valid_to.dt.epoch("ms").fill_null(_FOREVER_MS).to_numpy(), 0, _FOREVER_MS
        )

    def find(self, keys: pl.Series, at_ms: Int64s) -> tuple[NDArray[np.bool_], Int64s]:
        """(n,) whether any version exists, and the position of the version valid at `at_ms`, else -1."""
        owner = self._keys.find(keys)
        known = owner >= 0
        if not len(self._starts):
            return known, np.full(len(keys), -1, np.int64)
        wanted = (np.maximum(owner, 0) << _TIME_BITS) | at_ms
        at = np.searchsorted(self._starts, wanted, side="right") - 1
        place = np.maximum(at, 0)
        valid = known & (at >= 0) & (self._owner[place] == owner) & (at_ms < self._ends[place])
        return known, np.where(valid, at, -1)

    def __len__(self) -> int:
        return len(self._keys)


def hex_words(keys: pl.Series) -> tuple[NDArray[np.bool_], list[UInt64s]]:
    """Whether each key is 64 hex digits (n,), and its four big-endian uint64 words (0 where it is not)."""
    raw = keys.str.decode("hex", strict=False)
    usable = (raw.bin.size() == 32).fill_null(False)
    words = [
        raw.bin.slice(start, 8).bin.reinterpret(dtype=pl.UInt64, endianness="big").fill_null(0).to_numpy()
        for start in (0, 8, 16, 24)
    ]
    return usable.to_numpy(), words


def take(frame: pl.DataFrame, positions: Int64s) -> pl.DataFrame:
    """Rows of `frame` at `positions` (n,), a row of nulls for -1."""
    wanted = pl.Series(positions)
    return frame.select(pl.all().gather(wanted.set(wanted < 0, None).cast(pl.UInt32)))
