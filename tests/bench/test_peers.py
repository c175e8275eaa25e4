"""What the peers share: inserts that overlap with decoding, in short runs too."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import common
from benchmarks.peers.common import Sink, Task


@pytest.mark.parametrize(("events", "rows"), [(3, 1), (100_000, 20_000), (1_000_000, 100_000)])
def test_an_insert_is_a_fifth_of_the_run_at_most(events: int, rows: int) -> None:
    task = Task("b", "t", 12, "each", Path("r"), Path("p"), events)
    assert task.insert_rows == rows


def test_an_insert_runs_beside_its_caller_and_the_next_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def command(self, _: str) -> None: ...

    monkeypatch.setattr(common.clickhouse_connect, "get_client", lambda **_: Client())
    sink, go, done = Sink(Path("p")), threading.Event(), []

    def insert(rows: Any) -> None:
        assert go.wait(10)
        done.append(rows)

    monkeypatch.setattr(sink, "insert", insert)
    sink.insert_beside([1])  # comes back although the insert cannot end
    assert done == []
    go.set()
    sink.insert_beside([2])
    assert done[:1] == [[1]]
    sink.wait()
    assert done == [[1], [2]]


def test_an_insert_that_failed_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def command(self, _: str) -> None: ...

    def fails(_: Any) -> None:
        raise ValueError("full")

    monkeypatch.setattr(common.clickhouse_connect, "get_client", lambda **_: Client())
    sink = Sink(Path("p"))
    monkeypatch.setattr(sink, "insert", fails)
    sink.insert_beside([1])
    with pytest.raises(ValueError, match="full"):
        sink.wait()
