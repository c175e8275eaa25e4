"""From keys to positions: grids and units by number, staff and organisations by text, persons by hash."""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s

Mask = NDArray[np.bool_]

_FOREVER_MS = (1 << 43) - 1  # the year 2248
_TIME_BITS = np.int64(43)
_WORDS = (pl.col("key").hash(1).alias("hi"), pl.col("key").hash(2).alias("lo"))


def is_given(values: pl.Series) -> Mask:
    """(n,) where there is a value."""
    nulls = values.null_count()
    if nulls in {0, len(values)}:  # as mostly; a query to polars takes 40 µs and more
        return np.full(len(values), not nulls)
    valid: Mask = values.is_not_null().to_numpy()
    return valid


def is_true(flags: pl.Series) -> Mask:
    """(n,) where a Boolean is true; false where it is null."""
    holds: Mask = (flags.fill_null(False) if flags.null_count() else flags).to_numpy()
    return holds


def where(condition: Mask, values: NDArray[Any]) -> pl.Series:
    """`values` where `condition`, else null; (n,)."""
    return pl.Series(values if condition.all() else pa.array(values, mask=~condition))


def integers(values: pl.Series, absent: int) -> Int64s:
    """(n,) whole numbers of a column: of times their units; `absent` for null and for what is no number."""
    cast = values.cast(pl.Int64, strict=False)
    numbers: Int64s = (cast.fill_null(absent) if cast.null_count() else cast).to_numpy()
    return numbers


def instant_ms(times: pl.Series) -> Int64s:
    """Milliseconds since 1970 of a Datetime("ms") series without nulls, cut to what VersionIndex holds."""
    clipped: Int64s = np.clip(times.cast(pl.Int64).to_numpy(), 0, _FOREVER_MS)
    return clipped


def end_ms(times: pl.Series) -> Int64s:
    """`instant_ms` of ends; null, the open end, lies beyond every instant."""
    clipped: Int64s = np.clip(integers(times, _FOREVER_MS), 0, _FOREVER_MS)
    return clipped


def text_words(keys: pl.Series) -> tuple[UInt64s, UInt64s]:
    """128 bits of each text, (n,) each; stable in one process, which is all that an index in memory needs.

    Two texts with equal words are taken for one: below 1 in 10^24 for millions of keys.
    """
    words = keys.to_frame("key").select(_WORDS)
    return words["hi"].to_numpy(), words["lo"].to_numpy()


def grid_numbers(codes: pl.Series) -> Int64s:
    """Grid codes (15 digits) as integers, -1 for null and for what is no number."""
    return integers(codes, -1)


class KeyIndex:
    """Positions of distinct texts."""

    def __init__(self, keys: pl.Series) -> None:
        """keys : (k,) String, distinct, no nulls."""
        self._index = HashIndex.build(*text_words(keys))

    def find(self, asked: pl.Series) -> Int64s:
        """(n,) positions of `asked` (String), -1 where unknown or null."""
        if asked.null_count() == len(asked):
            return np.full(len(asked), -1, np.int64)
        found = self._index.find(*text_words(asked))
        if asked.null_count():
            found[~is_given(asked)] = -1
        return found

    def __len__(self) -> int:
        return len(self._index)


class NumberIndex:
    """Positions of distinct, ascending numbers."""

    def __init__(self, keys: Int64s) -> None:
        self._keys = keys

    def find(self, asked: Int64s) -> Int64s:
        """(n,) positions of `asked`, -1 where unknown."""
        if not len(self._keys):
            return np.full(len(asked), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, asked), len(self._keys) - 1)
        return np.where(self._keys[at] == asked, at, -1)

    def __len__(self) -> int:
        return len(self._keys)


class VersionIndex:
    """Which version of a key was valid at an instant.

    A version ends at its own valid_to or where the next one begins, whichever is earlier.
    """

    def __init__(self, owner: Int64s, valid_from: pl.Series, valid_to: pl.Series) -> None:
        """All (k,), ordered by owner and valid_from. owner : position of each version's key, from 0."""
        self._owner = owner
        self._starts: Int64s = (owner << _TIME_BITS) | instant_ms(valid_from)
        self._ends = end_ms(valid_to)

    def find(self, owner: Int64s, at_ms: Int64s) -> Int64s:
        """(n,) position of the version of `owner` (-1: unknown key) valid at `at_ms`, else -1."""
        if not len(self._starts):
            return np.full(len(owner), -1, np.int64)
        wanted = (np.maximum(owner, 0) << _TIME_BITS) | at_ms
        at = np.searchsorted(self._starts, wanted, side="right") - 1
        place = np.maximum(at, 0)
        valid = (owner >= 0) & (at >= 0) & (self._owner[place] == owner) & (at_ms < self._ends[place])
        return np.where(valid, at, -1)


def owners(keys: pl.Series) -> tuple[Mask, Int64s]:
    """Of keys in order, with repetitions: where each begins (k,), and the number of its key (k,), from 0."""
    first = (keys != keys.shift(1)).fill_null(True).to_numpy()
    return first, np.cumsum(first).astype(np.int64) - 1


def hex_words(keys: pl.Series) -> tuple[Mask, UInt64s]:
    """Whether each key is 64 hex digits (n,), and its four big-endian words (4, n), 0 where it is not."""
    text = keys.to_arrow(compat_level=pl.CompatLevel.oldest())
    usable: Mask = pc.binary_length(text).fill_null(0).to_numpy(zero_copy_only=False) == 64
    try:
        words = _decoded(text if usable.all() else text.filter(usable))
    except binascii.Error:  # rare: a source's own key of just that length
        usable = is_true(keys.str.contains(r"^[0-9A-Fa-f]{64}$"))
        words = _decoded(text.filter(usable))
    if usable.all():
        return usable, words
    complete = np.zeros((4, len(keys)), np.uint64)
    complete[:, usable] = words
    return usable, complete


def _decoded(keys: pa.LargeStringArray) -> UInt64s:
    """Words of keys of 64 bytes each, straight from the column's memory: ten times polars' own decoder."""
    if not len(keys):
        return np.empty((4, 0), np.uint64)
    start = 64 * keys.offset
    raw = binascii.unhexlify(memoryview(keys.buffers()[2])[start : start + 64 * len(keys)])
    return np.ascontiguousarray(np.frombuffer(raw, ">u8").reshape(-1, 4).T, dtype=np.uint64)


def encode(words: pl.Series) -> tuple[Int64s, list[str]]:
    """Codes (n,) of a text column of few distinct values, -1 for null, and the values by code."""
    encoded = words.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    codes = encoded.indices.fill_null(-1) if encoded.null_count else encoded.indices
    return codes.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def with_nothing(facts: pl.DataFrame) -> pl.DataFrame:
    """`facts` and a last row of nulls (empty lists in list columns), which position -1 stands for."""
    nothing: dict[str, list[object]] = {
        name: [[] if isinstance(dtype, pl.List) else None] for name, dtype in facts.schema.items()
    }
    return pl.concat([facts, pl.DataFrame(nothing, schema=facts.schema)], rechunk=True)


def take(facts: pl.DataFrame, positions: Int64s) -> pl.DataFrame:
    """Rows of a frame made by `with_nothing` at `positions` (n,)."""
    return facts[np.where(positions < 0, facts.height - 1, positions).astype(np.uint32)]
