"""While the store is away a worker buffers so much and no more, however many partitions it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.privacy import Privacy
from pipeline.process import worker as worker_module
from pipeline.process.buffer import PartitionBuffer
from pipeline.process.records import Record
from pipeline.process.worker import Worker
from pipeline.settings import Settings

MEGABYTE = 1_000_000


class Member:
    """Fetches of the partitions that are not paused."""

    def __init__(self) -> None:
        self.paused: set[int] = set()

    def pause(self, partition: int) -> None:
        self.paused.add(partition)

    def resume(self, partition: int) -> None:
        self.paused.discard(partition)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(worker_module, "_QUIET_LINGER_SECONDS", 0.0)  # a block is due at once
    settings = Settings(data_dir=tmp_path, worker_buffer_bytes=10 * MEGABYTE)
    made = Worker(settings, lambda: pytest.fail("no store"), "127.0.0.1:1", Privacy(b"k" * 32))
    made._member = Member()  # type: ignore[assignment]
    for partition in range(12):
        made._buffers[partition] = PartitionBuffer(
            partition, max_rows=100, budget=made._budget, recovered=True, next_offset=0
        )
    return made


def fetch(worker: Worker, partitions: Any, offset: int) -> int:
    """One record of a megabyte of each partition that is fetched from; how many came."""
    member: Any = worker._member
    came = [partition for partition in partitions if partition not in member.paused]
    for partition in came:
        worker.take(partition, Record(offset, 0, None, b"x" * MEGABYTE))
    return len(came)


async def test_fetching_stops_for_all_when_the_budget_is_spent(worker: Worker) -> None:
    received = sum(fetch(worker, range(12), offset) for offset in range(5))
    assert received == 12, "those of the first fetch were on their way already"
    assert len(worker._cut_round()) == 12
    assert fetch(worker, range(12), 1) == 12, "there is room again"


async def test_a_partition_that_stands_still_takes_no_room(worker: Worker) -> None:
    fetch(worker, range(12), 0)
    worker.damaged(3, 1, "a wrong checksum")
    assert worker._buffers[3].ready, "what stands before the damage is still stored"
    works = worker._cut_round()
    assert {work.buffer.partition for work in works} == set(range(12))
    assert fetch(worker, range(12), 1) == 11
    for buffer in worker._buffers.values():
        buffer.in_flight = False
        buffer.stand_still()
    assert worker._budget.used == 0
    assert worker._next_due() > 0
    assert not any(buffer.due(time.monotonic() + 60, 0) for buffer in worker._buffers.values())


async def test_partitions_that_are_taken_away_take_their_room_along(worker: Worker) -> None:
    fetch(worker, range(12), 0)
    await worker.revoked(set(range(6)))
    assert worker._budget.used < 7 * MEGABYTE
