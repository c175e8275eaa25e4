"""The residents as a worker holds them: 4.8 million in a few hundred megabytes, columns of small integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import polars as pl
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline.frames import beside
from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s
from pipeline.reference.keys import hex_words
from pipeline.reference.query import read_by_keys, read_frame
from pipeline.reference.schema import AGE_BANDS, PERSONS

#: Care flags in bit order.
FLAGS: Final = (
    "elderly_alone", "disability", "hardship", "child_care", "health_care", "pingantong_user",
)  # fmt: skip
FLAG_BIT: Final = {flag: 1 << number for number, flag in enumerate(FLAGS)}
GENDERS: Final = PERSONS.column("gender").values
RESIDENCE_KINDS: Final = PERSONS.column("residence_kind").values
#: Read by first hex digit, so that a slice of 4.8 million is some 300,000 rows.
_PREFIXES: Final = "0123456789abcdef"

#: Words by the codes of a person's row; code 0 stands for none.
_WORDS: Final = {
    name: pl.Series(name, [None, *words], dtype=pl.String)
    for name, words in (("age_band", AGE_BANDS), ("gender", GENDERS), ("residence_kind", RESIDENCE_KINDS))
}

_FLAG_SUM: Final = " + ".join(f"{bit} * ifNull({flag}_flag, false)" for flag, bit in FLAG_BIT.items())


def _code(column: str, values: tuple[str, ...]) -> str:
    """SQL: position of a value in `values`, from 1; 0 for NULL."""
    words = ", ".join(f"'{value}'" for value in values)
    return f"toUInt8(indexOf([{words}], ifNull({column}, ''))) AS {column}"


def _query(condition: str) -> str:
    words = ", ".join(
        f"reinterpretAsUInt64(reverse(unhex(substring(person_key, {start}, 16)))) AS w{number}"
        for number, start in enumerate((1, 17, 33, 49))
    )
    return f"""
        SELECT {words}, {_code("age_band", AGE_BANDS)}, {_code("gender", GENDERS)},
            {_code("residence_kind", RESIDENCE_KINDS)},
            toUInt64OrZero(ifNull(home_grid_code, '')) AS home_grid, toUInt16({_FLAG_SUM}) AS flags,
            ifNull(toUnixTimestamp64Milli(deleted_at), -1) AS deleted_ms
        FROM
        (
            SELECT * FROM ref_persons FINAL WHERE {condition}
            ORDER BY person_key, version DESC LIMIT 1 BY person_key
        )
        WHERE person_key NOT IN (SELECT person_key FROM ref_erasures)
    """


_SMALL: Final = {
    "age_band": np.uint8,
    "gender": np.uint8,
    "residence_kind": np.uint8,
    "home_grid": np.uint64,
    "flags": np.uint16,
}


class People:
    """Known persons and the attributes that may leave the store, by 64-digit key."""

    def __init__(self, slices: Iterable[pl.DataFrame], expected: int) -> None:
        """slices : frames of `_query`; expected : persons at most."""
        self._index = HashIndex(capacity_hint=expected)
        self._tail: tuple[UInt64s, UInt64s] = (np.empty(expected, np.uint64), np.empty(expected, np.uint64))
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(expected, dtype) for name, dtype in _SMALL.items()
        }
        #: Of the few who withdrew: positions, ascending, and from when on they are not found (ms).
        self._withdrawn: tuple[Int64s, Int64s] = (np.empty(0, np.int64), np.empty(0, np.int64))
        for persons in slices:
            self._add(persons)

    @classmethod
    def load(cls, client: Client) -> People:
        """Everybody. Raises UnavailableError."""
        count = read_frame(client, "SELECT uniqExact(cityHash64(person_key)) AS n FROM ref_persons").item()
        ranges = (
            f"person_key >= '{prefix}'" + (f" AND person_key < '{after}'" if after else "")
            for prefix, after in zip(_PREFIXES, [*_PREFIXES[1:], ""], strict=True)
        )
        return cls((read_frame(client, _query(limits)) for limits in ranges), count)

    @classmethod
    def for_keys(cls, client: Client, keys: list[str]) -> People:
        """Only these, few, keys. Raises UnavailableError."""
        query = _query("person_key IN %(keys)s")
        return cls(read_by_keys(client, query, keys) if keys else (), len(keys))

    def find(self, keys: pl.Series, at_ms: Int64s) -> Int64s:
        """(n,) positions of the persons with `keys` (String, nulls allowed), -1 where unknown or withdrawn.

        at_ms : (n,) when each is asked about; a person is found until the record was withdrawn.
        """
        usable, (hi, lo, third, fourth) = hex_words(keys)
        found = self._index.find(hi, lo)
        place = np.maximum(found, 0)
        if len(self._index):
            usable &= (self._tail[0][place] == third) & (self._tail[1][place] == fourth)
        found[~usable] = -1
        positions, until = self._withdrawn
        if len(positions):
            entry = np.minimum(np.searchsorted(positions, found), len(positions) - 1)
            found[(positions[entry] == found) & (until[entry] <= at_ms)] = -1
        return found

    def facts(self, positions: Int64s) -> pl.DataFrame:
        """age_band, gender, residence_kind, home_grid_code (String) and flags (UInt16 bits), null for -1."""
        unknown = positions < 0
        place = np.maximum(positions, 0)
        raw = {
            name: values[place] if len(values) else np.zeros(len(positions), values.dtype)
            for name, values in self._columns.items()
        }
        return beside(
            [
                *(words[np.where(unknown, 0, raw[name]).astype(np.uint32)] for name, words in _WORDS.items()),
                _grid_codes(raw["home_grid"], unknown).alias("home_grid_code"),
                pl.Series("flags", np.where(unknown, 0, raw["flags"]).astype(np.uint16)),
            ]
        )

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        columns = sum(values.nbytes for values in self._columns.values())
        others = sum(values.nbytes for values in (*self._tail, *self._withdrawn))
        return self._index.nbytes + columns + others

    def _add(self, persons: pl.DataFrame) -> None:
        start = len(self._index)
        stop = start + persons.height
        if stop > len(self._tail[0]):  # persons were added while we read
            self._grow(stop)
        hi, lo, third, fourth = (persons[f"w{number}"].to_numpy() for number in range(4))
        self._tail[0][start:stop], self._tail[1][start:stop] = third, fourth
        for name, values in self._columns.items():
            values[start:stop] = persons[name].to_numpy()
        self._index.insert(hi, lo)
        deleted = persons["deleted_ms"].to_numpy()
        gone = np.flatnonzero(deleted >= 0)
        if len(gone):
            positions, until = self._withdrawn
            self._withdrawn = (np.append(positions, start + gone), np.append(until, deleted[gone]))

    def _grow(self, size: int) -> None:
        self._tail = (_resized(self._tail[0], size), _resized(self._tail[1], size))
        self._columns = {name: _resized(values, size) for name, values in self._columns.items()}


def _resized(values: NDArray[Any], size: int) -> NDArray[Any]:
    fresh = np.empty(size, values.dtype)
    fresh[: len(values)] = values
    return fresh


def _grid_codes(numbers: NDArray[Any], unknown: NDArray[np.bool_]) -> pl.Series:
    codes = pl.Series(numbers).cast(pl.String).str.zfill(15)
    return codes.set(pl.Series(unknown | (numbers == 0)), None)
