"""Stable hashes of identity and content: xxh3 over canonical text, the same in every version and process.

Parts are joined with control characters that the contract forbids in values, so that two different rows
cannot give the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Final

import numpy as np
import polars as pl
import polars_hash as plh
from numpy.typing import NDArray

from pipeline.frames import EVENT, PERSON, PHOTO, null_counts

_PART: Final = "\x1f"
_ITEM: Final = "\x1e"
_MEMBER: Final = "\x1d"
_NULL: Final = "\x00"
_BYTES: Final = 16

#: What the pipeline adds on the way; everything else of an event comes from the client.
_NOT_CONTENT: Final = frozenset({"ingested_at", "request_id", "backfill", "key_version"})
CONTENT_COLUMNS: Final = tuple(name for name in EVENT if name not in _NOT_CONTENT)


def hash128(rows: pl.DataFrame, parts: Sequence[pl.Expr]) -> NDArray[np.uint64]:
    """(2, n), the high and the low word of xxh3-128 of the text parts, nulls distinct from every text.

    Evaluated at once: as two expressions polars would join and hash each text twice.
    """
    return words(rows.select(digest128(parts)).to_series())


def digest128(parts: Sequence[pl.Expr]) -> pl.Expr:
    """A Binary column: xxh3-128 of the text parts."""
    text = plh.concat_str(*[part.fill_null(_NULL) for part in parts], separator=_PART)
    return text.nchash.xxh3_128(return_binary=True, byte_order="big")


def words(digest: pl.Series) -> NDArray[np.uint64]:
    """(2, n), the high and the low word of each digest of 128 bits."""
    if digest.is_empty():
        return np.empty((2, 0), np.uint64)
    binary = digest.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    raw = memoryview(binary.buffers()[2])[_BYTES * binary.offset :][: _BYTES * len(binary)]
    return np.ascontiguousarray(np.frombuffer(raw, ">u8").reshape(-1, 2).T, dtype=np.uint64)


def hash64(parts: Sequence[pl.Expr], name: str) -> pl.Expr:
    """A UInt64 column: xxh3-64 of the text parts."""
    text = plh.concat_str(*[part.fill_null(_NULL) for part in parts], separator=_PART)
    return text.nchash.xxh3_64().cast(pl.UInt64).alias(name)


_IDENTITY: Final = digest128([pl.col("source").cast(pl.String), pl.col("event_id")]).alias("identity")


def id_hash(rows: pl.DataFrame) -> list[pl.Series]:
    """`id_hi`, `id_lo`: 128 bit of the identity, (`source`, `event_id`), of rows that have these two."""
    return _halves(rows.select(_IDENTITY).to_series())


def _halves(identity: pl.Series) -> list[pl.Series]:
    hi, lo = words(identity)
    return [pl.Series("id_hi", hi), pl.Series("id_lo", lo)]


def event_hashes(events: pl.DataFrame) -> list[pl.Series]:
    """`id_hash` and `content_hash` of events, in one query."""
    identity, content = events.select(_IDENTITY, content_hash(events)).get_columns()
    return [*_halves(identity), content]


def case_hash() -> pl.Expr:
    """`case_hash`: 64 bit of a case's id, as ClickHouse's xxh3(case_id)."""
    return hash64([pl.col("case_id")], "case_hash")


def content_hash(events: pl.DataFrame) -> pl.Expr:
    """`content_hash`: 64 bit of everything that the client sent. Two copies of one event agree in it.

    events : the rows to be hashed (EVENT or wider). What none of them has, most columns of a usual block, is
    the same text in every row and is not looked at again.
    """
    nulls = null_counts(events)
    return _content_hash(tuple(name for name in CONTENT_COLUMNS if nulls[name] < events.height))


@lru_cache(maxsize=64)
def _content_hash(held: tuple[str, ...]) -> pl.Expr:
    """`content_hash` where only these columns hold anything. Kept: to build it costs as much as to evaluate
    it on a small block."""
    parts: list[pl.Expr] = []
    for is_held, group in groupby(CONTENT_COLUMNS, held.__contains__):
        names = list(group)
        parts += map(_text, names) if is_held else [pl.lit(_PART.join([_NULL] * len(names)))]
    return hash64(parts, "content_hash")


def persons_text(column: str = "persons") -> pl.Expr:
    """The people concerned as one text, in the order given."""
    person = [pl.element().struct.field(field.name).fill_null(_NULL) for field in PERSON.fields]
    return pl.col(column).list.eval(pl.concat_str(person, separator=_MEMBER)).list.join(_ITEM)


def _text(name: str) -> pl.Expr:
    column = pl.col(name)
    dtype = EVENT[name]
    if dtype == pl.String():
        return column
    if dtype == pl.List(PERSON):
        return persons_text(name)
    if dtype == pl.List(PHOTO):
        taken = pl.element().struct.field("taken_at").to_physical().cast(pl.String).fill_null(_NULL)
        photo = [pl.element().struct.field("sha256").fill_null(_NULL), taken]
        return column.list.eval(pl.concat_str(photo, separator=_MEMBER)).list.join(_ITEM)
    if isinstance(dtype, pl.Datetime):
        return column.to_physical().cast(pl.String)
    return column.cast(pl.String)
