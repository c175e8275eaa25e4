"""Between lists per row and the flat rows of their elements; the counts alone say where each list ends."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray


def flatten(lists: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
    """All elements of `lists` (n,) in order, and how many each row has (n,); a null list has none."""
    # by pyarrow: each of polars' two answers is a query of its own. Texts stay as polars holds them
    array = lists.to_arrow(compat_level=pl.CompatLevel.newest())
    counts = array.value_lengths().fill_null(0).to_numpy() if array.null_count else np.diff(array.offsets)
    return pl.Series(lists.name, array.flatten()), counts


def regroup(elements: pl.Series, counts: NDArray[np.int64]) -> pl.Series:
    """The inverse: lists of `counts` (n,) successive elements."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # texts stay as polars holds them: offsets instead of views, and back, would be two copies
    values = elements.to_arrow(compat_level=pl.CompatLevel.newest())
    lists = pl.Series(elements.name, pa.LargeListArray.from_arrays(offsets, values))
    return lists.cast(pl.List(elements.dtype))


def by_number(numbers: NDArray[np.int64]) -> NDArray[np.intp]:
    """Rows in the order of their `numbers` (n,) from 0, those of one number as they come."""
    # of 16 bits numpy sorts by radix, ten times as fast
    keys = numbers.astype(np.uint16) if len(numbers) and numbers.max() < 1 << 16 else numbers
    return np.argsort(keys, kind="stable")


def rows_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row that each element belongs to."""
    return np.repeat(np.arange(len(counts)), counts)
