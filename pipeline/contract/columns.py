"""Objects turned into columns: what is done to a whole column costs a tenth of what is done object by object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

Columns = dict[str, Sequence[Any]]


def columns_of(kind: type[Struct], items: Sequence[Struct]) -> Columns:
    """Field -> its value in each item, same order; items : all of type `kind`."""
    columns: Sequence[Sequence[Any]] = list(zip(*map(astuple, items), strict=True))
    return dict(zip(kind.__struct_fields__, columns or [()] * len(kind.__struct_fields__), strict=True))


def given(values: Sequence[Any]) -> list[Any]:
    """The values that are not None."""
    return [value for value in values if value is not None]
