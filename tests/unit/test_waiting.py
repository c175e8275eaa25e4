"""What waits is told, also while nothing is fetched and while the store takes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline import metrics
from pipeline.errors import TransientError
from pipeline.process import looks as module
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.flow import Block
from pipeline.process.records import Record
from pipeline.process.rounds import Work
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from pipeline.sink import retry
from pipeline.sink.retry import persist, refused_for
from tests.integration.worker_world import PRIVACY


def made(tmp_path: Path, told: list[object] | None = None) -> Worker:
    def no_store() -> None:
        pytest.fail("nothing is read here")

    record = (lambda _: None) if told is None else told.append
    return Worker(Settings(data_dir=tmp_path), no_store, "127.0.0.1:1", PRIVACY, braked=record)  # type: ignore[arg-type]


def test_lag_counts_what_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused partition has no newer end than that of its last fetch: the lag stood still in an outage."""
    worker = made(tmp_path)
    buffer = PartitionBuffer(3, max_rows=10, budget=Budget(1_000), next_offset=40, paused=True)
    monkeypatch.setattr(worker._member, "end_offset", lambda _: 40)  # of the last fetch
    worker._looks._ends = {3: 5_000}
    assert worker._looks._log_end(buffer) == 5_000
    assert worker._looks._end(buffer) == 40, "nothing more is asked for: that is no stall"


def test_lag_in_seconds_is_the_age_of_the_oldest_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = made(tmp_path)
    held = PartitionBuffer(3, max_rows=10, budget=Budget(1_000), recovered=True, next_offset=40)
    monkeypatch.setattr(worker._member, "end_offset", lambda _: 41)
    told = metrics.consumer_lag_seconds.labels("3")._value
    held.take(Record(40, 1_777_600_000_000, "application/json", b"{}"), 0.0)
    worker._looks._look_at(held, 1_777_600_090.5)
    assert told.get() == 90.5
    worker._looks._look_at(held, 1_777_599_000.0)
    assert told.get() == 0, "its writer's clock is ahead"


def test_refusals_are_told_while_they_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    seen: list[float] = []

    def call() -> str:
        seen.append(refused_for())
        if len(seen) < 3:
            raise TransientError("away")
        return "there"

    assert persist(call, stopping=threading.Event(), what="test") == "there"
    assert seen[0] == 0.0
    assert 0.0 < seen[1] < seen[2]
    assert refused_for() == 0.0


async def test_a_store_that_takes_nothing_makes_its_partitions_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    worker = made(tmp_path, told)
    buffers = [PartitionBuffer(partition, max_rows=10, budget=Budget(1_000)) for partition in (4, 2)]
    worker._begun([Work(buffer, Block(buffer.partition, []), None) for buffer in buffers])
    monkeypatch.setattr(module, "refused_for", lambda: 11.0)
    worker._looks._look_for_stalls()
    worker._looks._look_for_stalls()
    assert told == [dict.fromkeys([2, 4], "the store does not take its block")]
    assert metrics.sink_blocked_seconds._value.get() == 11.0
    monkeypatch.setattr(module, "refused_for", lambda: 0.0)
    worker._looks._look_for_stalls()
    assert told[1:] == [{}]
    assert metrics.sink_blocked_seconds._value.get() == 0.0
