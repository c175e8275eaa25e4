"""The columns that a rule may use, and the compilation of its SQL conditions to polars expressions.

polars complains about a wrong column or type only when an expression is evaluated. Here every condition is
evaluated once while loading, so that a mistake stops the start, not a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
import polars as pl
from polars.exceptions import PolarsError

from pipeline.frames import DECODED, FEATURES, TIMESTAMP, Schema
from pipeline.rules.files import did_you_mean

#: What `features.add_features` computes before any rule is judged. Null means "cannot be known": for the
#: matter's columns, that the matter is not on the list.
COMPUTED: Final[Schema] = {
    "age_seconds": pl.Float64(),  # ingested_at - occurred_at
    "matter_known": pl.Boolean(),
    "matter_temporary": pl.Boolean(),
    "matter_effective_from": TIMESTAMP,
    "matter_effective_to": TIMESTAMP,  # exclusive; null: in force
    "matter_emergency_only": pl.Boolean(),
    "matter_urgency": pl.String(),
    "matter_category": pl.String(),
    "matter_needs_person": pl.Boolean(),
    "requires_location": pl.Boolean(),
    "requires_photo": pl.Boolean(),
    "requires_person": pl.Boolean(),
    "requires_organisation": pl.Boolean(),
    "requires_description": pl.Boolean(),
    "channel_allowed": pl.Boolean(),  # by the matter
    "channel_carries_photo": pl.Boolean(),
    "channel_reporter": pl.String(),  # own_grid | channel_right | anyone
    "referral_reason": pl.String(),  # null: no referral code
    # a mode that prioritises the matter, or one of its only modes, is active there; null while grid_found is
    "mode_prioritises": pl.Boolean(),
    "only_mode_active": pl.Boolean(),
    "grid_in_scope": pl.Boolean(),  # its district takes part
    "reporter_known": pl.Boolean(),  # the actor is staff on record; false without an actor key
    "reporter_in_grid": pl.Boolean(),  # own or lent grid; null while the grid is unknown
    "reporter_in_district": pl.Boolean(),  # null while the grid is unknown
    "reporter_has_right": pl.Boolean(),  # the channel is among the reporter's rights
    "has_location": pl.Boolean(),
    "has_photo": pl.Boolean(),
    "has_person": pl.Boolean(),
    "has_organisation": pl.Boolean(),
    "has_description": pl.Boolean(),
    "photo_hash_valid": pl.Boolean(),  # all of them 64 hexadecimal digits; null without photos
    "photo_offset_seconds": pl.Float64(),  # farthest taken_at from occurred_at; 0 where none says when
    "person_resolved": pl.Boolean(),  # one of the persons is on record; null when nobody is given
}
#: Everything that a rule's condition may name.
COLUMNS: Final[Schema] = {**DECODED, **FEATURES, **COMPUTED}

MAX_CONDITION_CHARACTERS: Final = 2_000
#: Patterns run in linear time; their length bounds the constant. Ordinary words are far shorter.
MAX_LITERAL_CHARACTERS: Final = 200
#: Nodes of a polars expression whose value depends on other rows, or changes the number of rows.
_MANY_ROWS: Final = frozenset({
    "Agg", "Over", "Window", "Rolling", "Len", "Gather", "Slice", "Sort", "SortBy", "Filter", "Explode",
    "SubPlan", "AnonymousFunction",
})  # fmt: skip
_LITERAL: Final = re.compile(r"'((?:[^']|'')*)'")


class ConditionError(ValueError):
    """A condition cannot be used; the text says why."""


def compile_condition(sql: str, columns: Mapping[str, pl.DataType]) -> pl.Expr:
    """SQL text -> Boolean expression over `columns`, proven on an empty frame and on two rows.

    Raises ConditionError: not one SQL expression, unknown column, types that do not compare, not Boolean, or
    a value that depends on other rows.
    """
    if len(sql) > MAX_CONDITION_CHARACTERS:
        raise ConditionError(f"is longer than {MAX_CONDITION_CHARACTERS} characters; split it")
    if any(len(literal) > MAX_LITERAL_CHARACTERS for literal in _LITERAL.findall(sql)):
        raise ConditionError(f"a pattern or text is longer than {MAX_LITERAL_CHARACTERS} characters")
    try:
        expression = pl.sql_expr(sql)
        used = set(expression.meta.root_names())
    except PolarsError as error:
        raise ConditionError(f"is no SQL expression: {_first_line(error)}") from None
    unknown = sorted(used - set(columns))
    if unknown:
        hints = [f"{name}{did_you_mean(name, columns)}" for name in unknown]
        raise ConditionError(f"unknown column {', '.join(hints)}")
    if not _looks_at_one_row(orjson.loads(expression.meta.serialize(format="json"))):
        raise ConditionError("must look at one row only; aggregates and windows are not allowed")
    schema = {name: columns[name] for name in sorted(used)} or {"age_seconds": pl.Float64()}
    filled = pl.DataFrame(
        {name: pl.Series([None, _sample(dtype)], dtype=dtype) for name, dtype in schema.items()}
    )
    for frame in (pl.DataFrame(schema=schema), filled):
        try:
            result = frame.select(expression.alias("result"))
        except PolarsError as error:
            raise ConditionError(f"cannot be evaluated: {_first_line(error)}") from None
        if result.schema["result"] != pl.Boolean():
            raise ConditionError(f"gives {result.schema['result']}, must give true or false")
    return expression


def _looks_at_one_row(node: Any) -> bool:
    """No node of the expression's tree gathers values of other rows."""
    if isinstance(node, dict):
        return not _MANY_ROWS & node.keys() and all(map(_looks_at_one_row, node.values()))
    if isinstance(node, list):
        return all(map(_looks_at_one_row, node))
    return bool(node != "Len")


def columns_used(expression: pl.Expr) -> frozenset[str]:
    return frozenset(expression.meta.root_names())


def example_frame(rows: Sequence[Mapping[str, Any]], names: Iterable[str], columns: Schema) -> pl.DataFrame:
    """Rows of examples as a frame with `names`; what a row does not give is null.

    Raises ConditionError if a value does not fit its column.
    """
    series = []
    for name in names:
        try:
            series.append(pl.Series(name, [row.get(name) for row in rows], dtype=columns[name]))
        except (TypeError, ValueError, PolarsError) as error:
            text = f"given {name} does not fit its type {columns[name]}: {_first_line(error)}"
            raise ConditionError(text) from None
    return pl.DataFrame(series)


def _sample(dtype: pl.DataType) -> Any:
    """A value of each kind, so that patterns are compiled and divisions carried out."""
    if dtype == pl.Boolean():
        return True
    if dtype.is_numeric():
        return 1
    if dtype == pl.String():
        return "x"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
