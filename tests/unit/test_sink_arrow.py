"""Words go out as dictionaries and come back as they were."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from pipeline.sink.arrow import to_arrow, words_of

FRAME = pl.DataFrame(
    {
        "word": ["a", None, "b", "a"],
        "words": [["x", "y"], [], ["y"], ["x"]],
        "text": ["one", "two", None, "four"],
        "number": [1, 2, 3, None],
    }
)


def test_words_are_the_columns_of_low_cardinality() -> None:
    types = {
        "a": "LowCardinality(String)",
        "b": "LowCardinality(Nullable(String))",
        "c": "Array(LowCardinality(String))",
        "d": "Nullable(String)",
        "e": "Array(Tuple(key LowCardinality(String)))",
    }
    assert words_of(types) == {"a", "b", "c"}


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3), slice(0, 0)])
def test_only_words_become_dictionaries_and_every_value_stays(rows: slice) -> None:
    frame = pl.concat([FRAME, FRAME], rechunk=False)[rows]
    table = to_arrow(frame, {"word", "words"}, {"word", "text", "number"})
    assert pa.types.is_dictionary(table.schema.field("word").type)
    assert pa.types.is_dictionary(table.schema.field("words").type.value_type)
    assert not pa.types.is_dictionary(table.schema.field("text").type)
    assert table.column_names == frame.columns
    assert [field.name for field in table.schema if not field.nullable] == ["words"]
    assert table.to_pylist() == frame.to_dicts()


def test_null_lists_stay_null() -> None:
    frame = FRAME.with_columns(words=pl.Series([["x"], None, [], None], dtype=pl.List(pl.String)))
    assert to_arrow(frame, {"words"}, set(frame.columns)).to_pylist() == frame.to_dicts()
