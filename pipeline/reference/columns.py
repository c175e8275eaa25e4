"""From a column as a file holds it (text, or Parquet's own type) to the type that its definition demands.

Every conversion gives the values and, beside them, which cells are given but cannot be read; nothing is
guessed and nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from pipeline.clock import LOCAL_ZONE
from pipeline.frames import TIMESTAMP
from pipeline.reference.lists import flatten, regroup, rows_of
from pipeline.reference.schema import Column, ColumnType

Mask = NDArray[np.bool_]

LOAN: Final = pl.Struct({"grid_code": pl.String(), "valid_from": TIMESTAMP, "valid_to": TIMESTAMP})
ROUTE: Final = pl.Struct({"category": pl.String(), "department": pl.String()})

#: polars type of a converted column.
DTYPES: Final[dict[ColumnType, pl.DataType]] = {
    "text": pl.String(),
    "polygon": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "flag": pl.Boolean(),
    "instant": TIMESTAMP,
    "day": pl.Date(),
    "list": pl.List(pl.String()),
    "loans": pl.List(LOAN),
    "routes": pl.List(ROUTE),
}

_TRUE: Final = ["true", "1"]
_FALSE: Final = ["false", "0"]
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Registers write "for ever" as 9999-12-31: from here on an end counts as open.
OPEN_END: Final = datetime(2200, 1, 1, tzinfo=UTC)
_LIST_SEPARATOR: Final = ";"


class Converted(NamedTuple):
    """values : (n,) of the column's type, null where absent or bad; bad : given but unreadable."""

    values: pl.Series
    bad: Mask


def convert(column: Column, cells: pl.Series) -> Converted:
    """Cells of one column (n,), of any dtype, to `DTYPES[column.type]`."""
    converters: dict[ColumnType, Callable[[pl.Series], Converted]] = {
        "text": _text,
        "polygon": _text,
        "integer": _integer,
        "number": _number,
        "flag": _flag,
        "instant": _instant,
        "day": _day,
        "list": _list,
        "loans": _loans,
        "routes": _routes,
    }
    if isinstance(cells.dtype, pl.Categorical | pl.Enum):
        cells = cells.cast(pl.String)
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
        cells = cells.set(cells == "", None)
    elif cells.dtype == pl.Null:
        return Converted(pl.Series(cells.name, [None] * len(cells), DTYPES[column.type]), _none(cells))
    values, bad = converters[column.type](cells)
    return Converted(values.alias(column.name).cast(DTYPES[column.type]), bad)


def _none(cells: pl.Series) -> Mask:
    return np.zeros(len(cells), bool)


def _lost(cells: pl.Series, values: pl.Series) -> Converted:
    return Converted(values, (cells.is_not_null() & values.is_null()).to_numpy())


def _unusable(cells: pl.Series, dtype: pl.DataType) -> Converted:
    """A column of a type that holds no such values: every cell given is bad."""
    return Converted(pl.Series([None] * len(cells), dtype=dtype), cells.is_not_null().to_numpy())


def _text(cells: pl.Series) -> Converted:
    if cells.dtype == pl.String or cells.dtype.is_integer():
        return Converted(cells.cast(pl.String), _none(cells))
    return _unusable(cells, pl.String())


def _integer(cells: pl.Series) -> Converted:
    if cells.dtype.is_integer():
        return _lost(cells, cells.cast(pl.Int64, strict=False))
    if cells.dtype == pl.String or cells.dtype.is_float():
        # spreadsheets write whole numbers as 12.0 where a column has gaps
        numbers = cells.cast(pl.Float64, strict=False)
        whole = (numbers.is_finite() & (numbers == numbers.round(0))).fill_null(False)
        return _lost(cells, numbers.set(~whole, None).cast(pl.Int64, strict=False))
    return _unusable(cells, pl.Int64())


def _number(cells: pl.Series) -> Converted:
    if cells.dtype == pl.String or cells.dtype.is_numeric():
        numbers = cells.cast(pl.Float64, strict=False)
        return _lost(cells, numbers.set(~numbers.is_finite().fill_null(False), None))
    return _unusable(cells, pl.Float64())


def _flag(cells: pl.Series) -> Converted:
    if cells.dtype == pl.Boolean:
        return Converted(cells, _none(cells))
    if cells.dtype == pl.String or cells.dtype.is_integer():
        words = cells.cast(pl.String).str.to_lowercase()
        flags = words.is_in(_TRUE)
        return _lost(cells, flags.set(~words.is_in(_TRUE + _FALSE).fill_null(False), None))
    return _unusable(cells, pl.Boolean())


def _instant(cells: pl.Series) -> Converted:
    if cells.dtype == pl.String:
        times = cells.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False)
        days = cells.str.to_date("%Y-%m-%d", strict=False, exact=True)
        times = times.zip_with(times.is_not_null(), _local_midnight(days))
    elif cells.dtype == pl.Date:
        times = _local_midnight(cells)
    elif isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone is not None:
        times = cells.dt.convert_time_zone("UTC").dt.cast_time_unit("ms")
    else:  # without a zone nobody knows which instant is meant
        return _unusable(cells, TIMESTAMP)
    return _lost(cells, times.set((times < EARLIEST).fill_null(False), None))


def _local_midnight(days: pl.Series) -> pl.Series:
    local = days.cast(pl.Datetime("ms")).dt.replace_time_zone(str(LOCAL_ZONE))
    return local.dt.convert_time_zone("UTC")


def _day(cells: pl.Series) -> Converted:
    if cells.dtype == pl.String:
        return _lost(cells, cells.str.to_date("%Y-%m-%d", strict=False, exact=True))
    if cells.dtype == pl.Date:
        return Converted(cells, _none(cells))
    return _unusable(cells, pl.Date())


def _list(cells: pl.Series) -> Converted:
    if cells.dtype == pl.String:
        as_json = cells.str.starts_with("[").fill_null(False)
        plain = cells.set(as_json, None).str.split(_LIST_SEPARATOR)
        lists, bad = _decode(cells.set(~as_json, None), pl.List(pl.String()))
        lists = lists.zip_with(as_json, plain)
    elif isinstance(cells.dtype, pl.List) and cells.dtype.inner in (pl.String, pl.Null):
        lists, bad = cells.cast(pl.List(pl.String())), _none(cells)
    else:
        return _unusable(cells, pl.List(pl.String()))
    trimmed = lists.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    return Converted(trimmed.fill_null([]), bad)


def _loans(cells: pl.Series) -> Converted:
    raw = pl.Struct({name: pl.String() for name in ("grid_code", "valid_from", "valid_to")})
    bad = _none(cells)
    if cells.dtype == pl.String:
        others = _other_members(cells)
        cells, bad = _decode(cells, pl.List(raw))
        bad |= others
    if not isinstance(cells.dtype, pl.List):
        return _unusable(cells, pl.List(LOAN))
    if cells.dtype.inner == pl.Null:
        return Converted(pl.Series([[]] * len(cells), dtype=pl.List(LOAN)), bad)
    inner = cells.dtype.inner
    if not isinstance(inner, pl.Struct) or {field.name for field in inner.fields} != set(LOAN.to_schema()):
        return _unusable(cells, pl.List(LOAN))
    flat, counts = flatten(cells)
    fields = flat.struct.unnest()
    grid, wrong_grid = _text(fields["grid_code"])
    start, wrong_start = _instant(_untyped(fields["valid_from"]))
    end, wrong_end = _instant(_untyped(fields["valid_to"]))
    wrong = wrong_grid | wrong_start | wrong_end | grid.is_null().to_numpy() | start.is_null().to_numpy()
    wrong |= (end < start).fill_null(False).to_numpy()
    end = end.set((end >= OPEN_END).fill_null(False), None)
    np.logical_or.at(bad, rows_of(counts), wrong)
    loans = pl.DataFrame({"grid_code": grid, "valid_from": start, "valid_to": end}).to_struct().cast(LOAN)
    return Converted(regroup(loans, counts), bad)


def _other_members(texts: pl.Series) -> Mask:
    """(n,) whether a loan has a member that none should have: decoding drops it, and a loan whose end is
    misspelt would have none."""
    names = {field.name for field in LOAN.fields}
    bad = []
    for text in texts.drop_nulls().unique():
        try:
            loans = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        if isinstance(loans, list) and any(isinstance(loan, dict) and loan.keys() - names for loan in loans):
            bad.append(text)
    return texts.is_in(bad).fill_null(False).to_numpy().copy()


def _untyped(cells: pl.Series) -> pl.Series:
    """A column of nothing but nulls has no type of its own."""
    return cells.cast(pl.String) if cells.dtype == pl.Null else cells


def _routes(cells: pl.Series) -> Converted:
    """An object: JSON text, a Parquet struct with a field per category, or a Parquet map."""
    if isinstance(cells.dtype, pl.Struct):
        texts = cells.struct.json_encode()
        cells = texts.set(cells.is_null() | (texts == "null"), None)
    elif isinstance(cells.dtype, pl.List):
        pairs = cells.dtype.inner
        if not isinstance(pairs, pl.Struct) or {field.name for field in pairs.fields} != {"key", "value"}:
            return _unusable(cells, pl.List(ROUTE))
        named = pl.element().struct.rename_fields(["category", "department"])
        return Converted(cells.list.eval(named).fill_null([]), _none(cells))
    elif cells.dtype != pl.String:
        return _unusable(cells, pl.List(ROUTE))
    # few distinct objects serve all grids
    distinct_texts = cells.unique(maintain_order=True).drop_nulls()
    objects = [_object(text) for text in distinct_texts.to_list()]
    distinct = pl.Series([[], *(route or [] for route in objects)], dtype=pl.List(ROUTE))
    which = cells.replace_strict(
        distinct_texts, pl.Series(range(1, len(distinct_texts) + 1), dtype=pl.UInt32), default=0
    )
    unreadable = np.array([False, *(route is None for route in objects)], bool)
    return Converted(distinct.gather(which), unreadable[which.to_numpy()])


def _object(text: str) -> list[dict[str, str]] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict):
        return None
    given = {category: department for category, department in value.items() if department is not None}
    if not all(isinstance(department, str) for department in given.values()):
        return None
    return [{"category": category, "department": given[category]} for category in sorted(given)]


def _decode(texts: pl.Series, dtype: pl.List) -> Converted:
    """JSON texts to lists; the rows that cannot be read are found only when some cannot."""
    try:
        return _lost(texts, texts.str.json_decode(dtype))
    except pl.exceptions.PolarsError:
        readable = np.array([text is None or _is_list(text, dtype) for text in texts], bool)
        values = texts.set(pl.Series(~readable), None).str.json_decode(dtype)
        return Converted(values, ~readable)


def _is_list(text: str, dtype: pl.List) -> bool:
    try:
        value: Any = orjson.loads(text)
        return isinstance(value, list) and pl.Series([text]).str.json_decode(dtype).null_count() == 0
    except (orjson.JSONDecodeError, pl.exceptions.PolarsError):
        return False
