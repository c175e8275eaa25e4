"""Lists to rows and back, and rows by number."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipeline.reference.lists import by_number, flatten, regroup


@pytest.mark.parametrize("most", [1, 3, (1 << 16) - 1, 1 << 16, 1 << 20])
def test_rows_come_in_the_order_of_their_numbers_and_else_as_they_were(most: int) -> None:
    """Whether the numbers fit 16 bits or not."""
    numbers = np.random.default_rng(most).integers(0, most + 1, 1_000)
    numbers[500] = most
    assert by_number(numbers).tolist() == sorted(range(1_000), key=lambda row: numbers[row])


def test_of_no_rows_there_is_no_order() -> None:
    assert by_number(np.empty(0, np.int64)).tolist() == []


def test_what_was_flattened_is_grouped_again() -> None:
    lists = pl.Series("texts", [["a", "办结"], [], ["", "b" * 40, "c"]])
    assert regroup(*flatten(lists)).equals(lists)
