"""What was frozen for ever, and ended all the same, is let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from pipeline.collector import collect_what_ended, spare_collections


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.parametrize("then", [collect_what_ended, spare_collections])
def test_what_ended_is_let_go(then: object) -> None:
    """The store's process makes one worker after the other, each with the reference data in memory."""
    worker = _Cycle()
    spare_collections()
    gone = weakref.ref(worker)
    del worker
    gc.collect()
    assert gone() is not None, "frozen: nobody looks there"
    assert callable(then)
    then()
    assert gone() is None
