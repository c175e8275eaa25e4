"""The brake against floods of unreadable records: when it stops a partition, and when it leaves it alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames import CASE_EVENT, DUPLICATE, QUARANTINED, STORED, Schema
from pipeline.process.brake import RUN_RECORDS, WINDOW_RECORDS, Brake, _crowded
from pipeline.process.flow import Block, BlockResult
from pipeline.process.records import Record


def rows(schema: Schema, offsets: list[int], **values: object) -> pl.DataFrame:
    """Rows at these offsets of partition 3; what the brake does not look at is null."""
    index: dict[int, int] = {}
    found = []
    for offset in offsets:
        index[offset] = index.get(offset, -1) + 1
        found.append({"_part": 3, "_off": offset, "_idx": index[offset], **values})
    return pl.DataFrame(found, schema=schema) if found else pl.DataFrame(schema=schema)


def block_of(
    first: int, bad: list[bool], *, reason: str = "MALFORMED", rows_per_record: int = 1
) -> tuple[Block, BlockResult]:
    """A block of records from offset `first` on; a bad one's events are all in quarantine."""
    offsets = range(first, first + len(bad))
    records = [Record(offset, 0, None, b"{}") for offset in offsets]
    good = [at for at, wrong in zip(offsets, bad, strict=True) if not wrong for _ in range(rows_per_record)]
    refused = [at for at, wrong in zip(offsets, bad, strict=True) if wrong for _ in range(rows_per_record)]
    result = BlockResult(
        events=rows(STORED, good),
        rejections=rows(STORED, []),
        duplicates=rows(DUPLICATE, []),
        quarantined=rows(QUARANTINED, refused, reason=reason),
        case_events=rows(CASE_EVENT, []),
        received=len(good) + len(refused),
    )
    return Block(3, records), result


def feed(brake: Brake, *blocks: list[bool], reason: str = "MALFORMED") -> str | None:
    """Blocks one after another until one stops the partition."""
    first = 0
    for bad in blocks:
        block, result = block_of(first, bad, reason=reason)
        why = brake.stops(block, result)
        if why:
            return why
        brake.remember(block, result)
        first += len(bad)
    return None


def test_a_thousand_in_a_row_pass_and_one_more_stops() -> None:
    assert feed(Brake(0.2), [True] * RUN_RECORDS) is None
    why = feed(Brake(0.2), [True] * (RUN_RECORDS + 1))
    assert why == "more than 1000 unreadable records in a row"


def test_a_run_goes_on_across_blocks_and_a_good_record_ends_it() -> None:
    half = [True] * (RUN_RECORDS // 2)
    assert feed(Brake(0.2), half, half) is None
    assert feed(Brake(0.2), half, half, [True])
    assert feed(Brake(0.2), half, half, [False], half) is None


def test_a_fifth_of_ten_thousand_passes_and_one_more_stops() -> None:
    fifth = [True, False, False, False, False] * (WINDOW_RECORDS // 5)
    assert feed(Brake(0.2), fifth) is None
    assert feed(Brake(0.2), fifth, fifth) is None, "the window slides"
    assert feed(Brake(0.2), fifth, [True]) is None, "the first of them has left the window"
    more = [True, True, *fifth[2:]]
    assert feed(Brake(0.2), more) == "more than 20% of 10000 records are unreadable"
    pieces = [more[at : at + 700] for at in range(0, len(more), 700)]
    assert feed(Brake(0.2), *pieces), "however the records are cut into blocks"


def test_old_records_are_forgotten() -> None:
    spoilt = [True, False] * 2_000
    assert feed(Brake(0.2), spoilt, [False] * WINDOW_RECORDS, spoilt) is None
    assert feed(Brake(0.2), spoilt, [False] * 1_000, spoilt)


def test_conflicting_ids_do_not_stop_a_partition() -> None:
    """Anybody with a key could send them, and stop the partition for all."""
    assert feed(Brake(0.2), [True] * 20_000, reason="ID_CONFLICT") is None
    assert feed(Brake(0.2), [True] * 20_000, reason="UNSUPPORTED_VERSION")
    assert feed(Brake(0.2), [True] * 20_000, reason="UNSTORABLE")


def test_a_record_counts_once_and_only_when_much_of_it_is_bad() -> None:
    block, result = block_of(0, [True], rows_per_record=5_000)
    assert Brake(0.2).stops(block, result) is None, "one record, whatever it holds"
    offsets = list(range(2_000))
    records = [Record(offset, 0, None, b"{}") for offset in offsets]
    result = BlockResult(
        events=rows(STORED, [at for at in offsets for _ in range(9)]),
        rejections=rows(STORED, []),
        duplicates=rows(DUPLICATE, []),
        quarantined=rows(QUARANTINED, offsets, reason="MALFORMED"),
        case_events=rows(CASE_EVENT, []),
        received=20_000,
    )
    assert Brake(0.2).stops(Block(3, records), result) is None, "a tenth of each record"
    assert Brake(0.05).stops(Block(3, records), result)


def test_a_share_of_one_never_stops() -> None:
    assert feed(Brake(1.0), [True] * 50_000, [True] * 50_000) is None


def test_only_its_own_partition_counts() -> None:
    block, result = block_of(0, [True] * 5_000)
    other = Block(4, block.records)
    assert Brake(0.2).stops(other, result) is None


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 10), st.integers(1, 20))
def test_crowded_is_what_counting_each_window_gives(flags: list[bool], most: int, within: int) -> None:
    numbers = np.flatnonzero(flags).astype(np.int64)
    counted = any(sum(flags[at : at + within]) > most for at in range(len(flags)))
    assert _crowded(numbers, most, within) == counted


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_clean_partition_goes_on(share: float) -> None:
    assert feed(Brake(share), [False] * 30_000) is None
