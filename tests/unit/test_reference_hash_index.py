"""HashIndex against a dict, whatever the keys and however they arrive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reference.hash_index import HashIndex, UInt64s

WORD = st.integers(0, 2**64 - 1)
#: Few distinct words on purpose: equal halves must not be taken for equal keys.
KEY = st.tuples(st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1]) | WORD, st.integers(0, 3) | WORD)


def words(values: list[int]) -> UInt64s:
    return np.array(values, dtype=np.uint64)


@settings(max_examples=150, deadline=None)
@given(batches=st.lists(st.lists(KEY, max_size=60), max_size=8), absent=st.lists(KEY, max_size=30))
def test_agrees_with_a_dict(batches: list[list[tuple[int, int]]], absent: list[tuple[int, int]]) -> None:
    index = HashIndex()
    oracle: dict[tuple[int, int], int] = {}
    for batch in batches:
        fresh = [key for key in dict.fromkeys(batch) if key not in oracle]
        values = list(range(len(oracle), len(oracle) + len(fresh)))
        index.insert(words([hi for hi, _ in fresh]), words([lo for _, lo in fresh]))
        oracle.update(zip(fresh, values, strict=True))
        asked = list(oracle) + absent
        found = index.find(words([hi for hi, _ in asked]), words([lo for _, lo in asked]))
        assert found.tolist() == [oracle.get(key, -1) for key in asked]
    assert len(index) == len(oracle)


def test_grows_through_many_sizes_and_keeps_every_key() -> None:
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 2**63, (2, 40_000)).astype(np.uint64)
    index = HashIndex()
    for start in range(0, 40_000, 777):
        part = keys[:, start : start + 777]
        index.insert(part[0], part[1])
    assert index.find(keys[0], keys[1]).tolist() == list(range(40_000))
    assert (index.find(keys[1], keys[0]) == -1).all()
    assert index.nbytes < 40_000 * 50


def test_keys_that_share_a_home_slot_are_all_found() -> None:
    # equal `lo` and equal upper half of `hi`: every key starts at the same slot
    hi = np.arange(3_000, dtype=np.uint64)
    lo = np.full(3_000, 42, np.uint64)
    index = HashIndex.build(hi, lo)
    assert index.find(hi, lo).tolist() == list(range(3_000))
    assert index.find(hi + np.uint64(3_000), lo).tolist() == [-1] * 3_000


def test_first_of_a_repeated_key_is_found() -> None:
    index = HashIndex()
    index.insert(words([5, 5, 5]), words([6, 6, 6]))
    index.insert(words([1]), words([2]))
    assert index.find(words([5, 1]), words([6, 2])).tolist() == [0, 3]


def test_empty_index_and_empty_question() -> None:
    index = HashIndex(capacity_hint=100)
    assert index.find(words([1]), words([2])).tolist() == [-1]
    assert index.find(words([]), words([])).tolist() == []
    index.insert(words([]), words([]))
    assert len(index) == 0


def test_refuses_what_it_cannot_represent() -> None:
    index = HashIndex()
    with pytest.raises(ValueError, match="differ in length"):
        index.insert(words([1, 2]), words([1]))
    assert len(index) == 0
