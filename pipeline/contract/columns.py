"""Objects turned into columns: work on a whole column costs a tenth of the same work object by object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

Columns = dict[str, Sequence[Any]]


def columns_of(kind: type[Struct], items: Sequence[Struct | None]) -> Columns:
    """Field -> its value in each item, same order; None in every field of an item that is None.

    items : all of type `kind`.
    """
    names = kind.__struct_fields__
    if not any(items):  # a struct is always true
        return dict.fromkeys(names, (None,) * len(items))
    absent = (None,) * len(names)
    values: list[Any] = []
    for item in items:
        values += absent if item is None else astuple(item)
    # `zip(*rows)` comes back to every row for every field: 0.62 µs an event among 3,500, this 0.46
    return {name: values[at :: len(names)] for at, name in enumerate(names)}


def is_empty(values: Sequence[Any]) -> bool:
    """Whether nothing is given, as in most columns of most requests."""
    # `any` ends with the first value; a text takes long to be told from None by comparison
    return not any(values) and values.count(None) == len(values)


def given(values: Sequence[Any]) -> list[Any]:
    """The values that are not None."""
    return [] if is_empty(values) else [value for value in values if value is not None]
