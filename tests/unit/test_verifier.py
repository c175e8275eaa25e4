"""The runtime verifier's look at offsets: each counter moves for its own fault, and for no other."""

from __future__ import annotations

import pytest

from pipeline import metrics
from pipeline.process.account import Account
from pipeline.sink.tables import Extent

PARTITION = 11


def counted() -> tuple[float, float, float]:
    """Gap, overlap, backward; of the whole process, so that only differences tell."""
    names = ("gap", "overlap", "backward")
    gap, overlap, backward = (
        metrics.REGISTRY.get_sample_value(f"gridpipe_verifier_{name}_total") or 0.0 for name in names
    )
    return gap, overlap, backward


def grown(account: Account, *blocks: tuple[int, int], partition: int = PARTITION) -> list[float]:
    before = counted()
    account.committed([Extent(partition, lo, hi) for lo, hi in blocks], [])
    return [now - then for now, then in zip(counted(), before, strict=True)]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([(0, 9), (10, 14), (15, 15)], [0, 0, 0]),
        ([(0, 9), (5, 14)], [0, 1, 0]),
        ([(0, 9), (9, 9)], [0, 1, 0]),
        ([(0, 9), (5, 14), (0, 4)], [0, 2, 1]),
        ([(0, 4), (10, 12)], [5, 0, 0]),
        ([(0, 14), (0, 4), (10, 12)], [5, 1, 1]),
    ],
)
def test_each_counter_moves_for_its_own_fault(blocks: list[tuple[int, int]], expected: list[float]) -> None:
    assert grown(Account(frozenset), *blocks) == expected
    one_by_one = Account(frozenset)
    each = [grown(one_by_one, block) for block in blocks]
    assert [sum(counter) for counter in zip(*each, strict=True)] == expected


def test_the_first_block_goes_by_where_the_partition_starts() -> None:
    account = Account(frozenset)
    account.starts_at(PARTITION, 20)
    assert grown(account, (23, 25)) == [3, 0, 0]
    account.starts_at(PARTITION, 20)
    assert grown(account, (18, 25)) == [0, 1, 0]
    account.starts_at(PARTITION, 20)
    assert grown(account, (10, 12)) == [0, 1, 1]
    account.starts_at(PARTITION, None)
    assert grown(account, (500, 501)) == [0, 0, 0], "wherever the log begins"


def test_what_is_stored_without_its_records_is_not_passed_over() -> None:
    """Told of once recovery knows it; a block before it may be counted only later, when its commit stands."""
    account = Account(frozenset)
    account.starts_at(PARTITION, 0)
    account.stored_before(PARTITION, 10, 19, 8)
    assert grown(account, (0, 9)) == [0, 0, 0]
    assert grown(account, (22, 25)) == [4, 0, 0], "two of the begun block and two behind it"
    assert grown(account, (30, 31)) == [4, 0, 0]
    account.stored_before(PARTITION, 32, 39, 8)
    account.starts_at(PARTITION, 32)
    assert grown(account, (40, 41)) == [8, 0, 0], "told of an assignment that is over"


def test_partitions_are_looked_at_one_by_one_and_forgotten() -> None:
    account = Account(frozenset)
    account.starts_at(PARTITION, 0)
    for gauge in (metrics.consumer_lag_records, metrics.consumer_lag_seconds):
        gauge.labels(str(PARTITION)).set(0)
    assert grown(account, (0, 9)) == [0, 0, 0]
    assert grown(account, (0, 9), partition=PARTITION + 1) == [0, 0, 0]
    account.forget(PARTITION)
    assert grown(account, (5, 9)) == [0, 0, 0], "somebody else had it in between"
    assert grown(account, (5, 9), partition=PARTITION + 1) == [0, 1, 0]


def test_ids_that_were_dropped_early_are_counted_once() -> None:
    account, before = Account(frozenset), metrics.dedup_forgotten._value.get()
    for forgotten in (0, 5, 5, 2, 4):  # of two partitions one, which had dropped three, goes away
        account.dedup(10, 3, forgotten)
    assert metrics.dedup_forgotten._value.get() == before + 7
    assert metrics.dedup_entries.labels("L1")._value.get() == 10
