"""An entry of a case's set as `case_events` holds it: one text, made by polars, read by polars or in SQL.

The text is a row of ClickHouse's TabSeparated format with the elements of `TUPLE_TYPES` in their order: times
as unix ms, flags as 0 or 1, `\\N` for null. Nothing in it needs escaping: its texts are ids and codes of the
contract, and words of catalogue and reference data, which `storable` cleans. Source: ADR 0024.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from pipeline.errors import ContractError
from pipeline.frames import CASE_LEVELS, CASE_SET
from pipeline.store.fold import TUPLE_TYPES

_SEPARATOR: Final = "\t"
_NOTHING: Final = "\\N"
_NAMES: Final = tuple(TUPLE_TYPES)
_TEXT: Final = pl.String()
_MAYBE: Final = frozenset(name for name, kind in TUPLE_TYPES.items() if kind.startswith("Nullable"))
#: What would be read as another field, another row or as null.
_UNSAFE: Final = r"[\x00-\x1f\\]"
#: The texts that no pattern of the contract bounds: the catalogue and the routes of a grid name them.
_WORDS: Final = ("category", "lead_department")
#: Whether any word holds one, of all rows; the distinct words are few. For the caller's own query, as each
#: costs a small round more than its events.
IS_UNSAFE: Final = pl.any_horizontal(
    pl.col(name).unique().str.contains(_UNSAFE).any() for name in _WORDS
).alias("unsafe")


def _field(name: str) -> pl.Expr:
    """The element as it stands in the text; polars writes a number as such."""
    dtype, column = CASE_SET[name], pl.col(name)
    if dtype == pl.Boolean():
        column = column.cast(pl.UInt8)
    elif dtype.is_temporal():
        column = column.to_physical()
    return column.cast(_TEXT).fill_null(_NOTHING) if name in _MAYBE else column


def _value(name: str) -> pl.Expr:
    """The element, of its text. Raises InvalidOperationError (polars) where there is none."""
    dtype, column = CASE_SET[name], pl.col(name)
    if name in _MAYBE:
        column = pl.when(column != _NOTHING).then(column)
    if dtype == _TEXT:
        return column
    if dtype == pl.Boolean():
        return column.cast(pl.UInt8).cast(dtype)
    return column.cast(pl.Int64).cast(dtype) if dtype.is_temporal() else column.cast(dtype)


_PACKED: Final = pl.format(_SEPARATOR.join(["{}"] * len(_NAMES)), *map(_field, _NAMES)).alias("entries")
_FIELDS: Final = pl.col("entries").str.split_exact(_SEPARATOR, len(_NAMES) - 1).struct.rename_fields(_NAMES)
_VALUES: Final = [pl.col("case_id"), *map(_value, _NAMES)]


def storable(sets: pl.DataFrame) -> pl.DataFrame:
    """CASE_SET, with a blank for each character of a word that would end its field. Of both, what is stored
    and what a worker remembers: a case must fold alike from either. sets : (n, CASE_SET and `unsafe`)."""
    unsafe = sets.height and sets["unsafe"][0]
    sets = sets[list(CASE_SET)]
    return sets.with_columns(pl.col(_WORDS).str.replace_all(_UNSAFE, " ")) if unsafe else sets


def pack_entries(sets: pl.DataFrame) -> pl.Series:
    """(n,) String, `entries`. sets : (n, CASE_SET), as `storable` gives them.

    Raises ContractError if an element that every event has is null.
    """
    entries = sets.select(_PACKED).to_series()
    if entries.null_count():
        raise ContractError("a case event lacks an element that every event has")
    return entries


def unpack_entries(rows: pl.DataFrame) -> pl.DataFrame:
    """CASE_SET, in the order given. rows : (n, {case_id, entries: String}).

    Raises ContractError if a text is no entry.
    """
    no_entry = "an entry of case_events is not one that this version writes"
    try:
        sets = rows.select("case_id", _FIELDS).unnest("entries").select(_VALUES)[list(CASE_SET)]
    except pl.exceptions.InvalidOperationError as error:
        raise ContractError(no_entry) from error
    if any(sets[name].null_count() for name in _NAMES if name not in _MAYBE) or (
        sets[_NAMES[-1]].null_count() > rows["entries"].str.ends_with(_NOTHING).sum()
    ):
        raise ContractError(no_entry)
    return sets


_LEVELS: Final = ", ".join(f"'{level}'" for level in CASE_LEVELS)


def _element_in_sql(kind: str, field: str) -> str:
    if kind == "String":
        return field
    if kind == "Bool":
        return f"{field} = '1'"
    if kind == "Nullable(String)":
        return f"nullIf({field}, '\\\\N')"
    if "DateTime64" in kind:
        number = "toInt64OrNull" if kind.startswith("Nullable") else "toInt64"
        return f"fromUnixTimestamp64Milli({number}({field}), 'UTC')"
    if kind.startswith("Nullable"):
        return f"to{kind.removeprefix('Nullable(').removesuffix(')')}OrNull({field})"
    return f"to{kind}({field})"


def _field_in_sql(name: str, kind: str) -> str:
    value = f"e.{name}"
    if name == "level":  # older releases wrote free words (revision 0012)
        value = f"if({value} IN ({_LEVELS}), {value}, NULL)"
    if name in _WORDS:
        value = f"replaceRegexpAll({value}, '[\\\\x00-\\\\x1f\\\\\\\\]', ' ')"
    if "DateTime64" in kind:
        value = f"toUnixTimestamp64Milli({value})"
    if kind == "Bool":
        value = f"toUInt8({value})"
    return f"ifNull(toString({value}), '\\\\N')" if name in _MAYBE else f"toString({value})"


_ELEMENTS: Final = ", ".join(
    _element_in_sql(kind, f"p[{at}]") for at, kind in enumerate(TUPLE_TYPES.values(), start=1)
)
_FIELDS_IN_SQL: Final = ", ".join(_field_in_sql(name, kind) for name, kind in TUPLE_TYPES.items())

TUPLE: Final = f"Tuple({', '.join(f'{name} {kind}' for name, kind in TUPLE_TYPES.items())})"
_QUOTED: Final = TUPLE.replace("'", "''")
#: SQL: `entries` as the array of tuples that the fold in SQL takes.
TUPLES_OF_ENTRIES: Final = (
    f"arrayMap(p -> CAST(({_ELEMENTS}), '{_QUOTED}'), arrayMap(entry -> splitByChar('\\t', entry), entries))"
)
#: SQL: the other way round, from the tuples of older releases, which nothing had cleaned.
ENTRIES_OF_TUPLES: Final = f"arrayMap(e -> arrayStringConcat([{_FIELDS_IN_SQL}], '\\t'), events)"
