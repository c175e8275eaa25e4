"""A single event does not wait for company that a quiet worker has no use for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pipeline.contract.privacy import Privacy
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.records import Record
from pipeline.process.worker import Worker
from pipeline.settings import Settings


def no_store() -> object:
    raise AssertionError("not needed to cut a block")


async def test_blocks_wait_for_more_records_only_while_others_are_on_the_way(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, block_linger_seconds=10)
    worker = Worker(settings, no_store, "127.0.0.1:1", Privacy(b"k" * 32))  # type: ignore[arg-type]
    buffer = PartitionBuffer(0, max_rows=100, budget=Budget(1_000_000), recovered=True)
    worker._buffers[0] = buffer
    buffer.take(Record(0, 0, None, b"{}"), time.monotonic() - 0.02)
    busy = asyncio.create_task(asyncio.sleep(0))
    worker._rounds.add(busy)
    assert worker._cut_round() == []
    assert worker._next_due() > 0.1
    worker._rounds.clear()
    assert worker._next_due() < 0.01
    assert [work.block.lo for work in worker._cut_round()] == [0]
    await busy
