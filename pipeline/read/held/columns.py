"""Columns that grow, and words as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
#: Stands for an instant that did not come: later than every other. Milliseconds.
NEVER: Final = 2**62
#: What can be worked out beside something else: sorting and counting leave other threads their turn. Whoever
#: hands work over waits for it and is none of these threads.
BESIDE: Final = ThreadPoolExecutor(2, thread_name_prefix="held")


class Window(NamedTuple):
    """[from_, to), as of an instant; unix milliseconds."""

    from_: int
    to: int
    as_of: int

    def holds(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which instants lie in it."""
        return (at >= self.from_) & (at < self.to)


class Columns:
    """Arrays of one length, by name. Rows are only added; each keeps its number.

    >>> held = Columns({"at": np.int64})
    >>> held.add({"at": np.array([7, 8])}).tolist(), held["at"].tolist(), len(held)
    ([0, 1], [7, 8], 2)
    """

    def __init__(self, dtypes: Mapping[str, Any]) -> None:
        self._arrays: dict[str, NDArray[Any]] = {name: np.empty(0, dtype) for name, dtype in dtypes.items()}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name][: self._count]

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self._arrays.values())

    def add(self, rows: Mapping[str, NDArray[Any]]) -> Ints:
        """Append rows, each column (n,); returns their numbers."""
        first, total = self._count, self._count + len(next(iter(rows.values())))
        for name, values in self._arrays.items():
            room = values
            if total > len(values):
                room = np.empty(max(total, len(values) * 5 // 4, 1024), values.dtype)
                room[:first] = values[:first]
                self._arrays[name] = room
            room[first:total] = rows[name]
        self._count = total
        return np.arange(first, total)

    def put(self, numbers: Ints, rows: Mapping[str, NDArray[Any]]) -> None:
        """Replace rows by their numbers."""
        for name, values in self._arrays.items():
            values[numbers] = rows[name]


class Words:
    """Words as numbers, in the order of their first coming; 0 is the empty word.

    >>> words = Words()
    >>> words.numbers(pl.Series(["b", "", "a", "b"])).tolist(), list(words)
    ([1, 0, 2, 1], ['', 'b', 'a'])
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def numbers(self, words: pl.Series) -> NDArray[np.uint32]:
        """(n,) of a column without nulls."""
        encoded = words.cast(pl.String).to_arrow().dictionary_encode()
        known = [
            self._numbers.setdefault(word, len(self._numbers)) for word in encoded.dictionary.to_pylist()
        ]
        return np.array(known, np.uint32)[encoded.indices.to_numpy()] if known else np.empty(0, np.uint32)

    def keyed(self, key_of: Callable[[str], str]) -> tuple[Sequence[str], NDArray[np.uint32]]:
        """(keys, number of the key of each word): key 0 is the empty one.

        >>> words = Words()
        >>> _ = words.numbers(pl.Series(["440703", "440704", "4408"]))
        >>> keys, of = words.keyed(lambda word: word[:4])
        >>> keys, of.tolist()
        (['', '4407', '4408'], [0, 1, 1, 2])
        """
        keys: dict[str, int] = {"": 0}
        of = [keys.setdefault(key_of(word), len(keys)) for word in self._numbers]
        return list(keys), np.array(of, np.uint32)
