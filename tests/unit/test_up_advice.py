"""What `gridpipe up` says of missing reference data must not keep it from ending."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cli import serve
from pipeline.errors import UnavailableError
from pipeline.settings import Settings


def with_store(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def holds(_: object) -> bool:
        return bool(answer())

    monkeypatch.setattr("pipeline.store.client.connect", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr("pipeline.reference.query.holds_grids_and_staff", holds)


@pytest.mark.parametrize("loaded", [True, False])
def test_it_goes_by_what_the_store_says(monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    with_store(monkeypatch, lambda: loaded)
    assert serve._lacks_reference(Settings(), threading.Event()) is not loaded


def test_a_store_that_cannot_be_asked_is_no_reason_for_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> bool:
        raise UnavailableError("away")

    with_store(monkeypatch, away)
    assert serve._lacks_reference(Settings(), threading.Event()) is False


def test_a_store_that_hangs_keeps_nobody_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, stop = threading.Event(), threading.Event()
    with_store(monkeypatch, lambda: goes_on.wait(10))
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    try:
        assert serve._lacks_reference(Settings(), stop) is False
        assert time.monotonic() - began < 1.0
    finally:
        goes_on.set()
