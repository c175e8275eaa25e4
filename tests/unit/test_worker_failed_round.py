"""What lies behind a block that was not stored must not be stored: its commit would pass over the block."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from polars.exceptions import PanicException

from pipeline.contract.privacy import Privacy
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.records import Record
from pipeline.process.rounds import AbandonedError
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from pipeline.sink.retry import Stopping


class _Store:
    """A client that is never asked."""

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error", [PanicException("injected"), ValueError("x"), Stopping("asked to end"), AbandonedError()]
)
async def test_no_block_is_cut_behind_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("pipeline.process.worker.store_round", fail)
    worker = Worker(Settings(data_dir=tmp_path), _Store, "127.0.0.1:1", Privacy(b"k" * 32))  # type: ignore[arg-type]
    worker._rules = type("Rules", (), {"now": None})()  # type: ignore[assignment]
    buffer, beside = (
        PartitionBuffer(number, max_rows=100, budget=Budget(1_000_000), recovered=True) for number in (0, 1)
    )
    worker._buffers = {0: buffer, 1: beside}
    long_ago = time.monotonic() - 60
    buffer.take(Record(0, 0, None, b"{}"), long_ago)
    works = worker._cut_round()
    assert [work.block.lo for work in works] == [0]
    for late in (buffer, beside):  # while it is on the way
        late.take(Record(1, 0, None, b"{}"), long_ago)
    await worker._round(worker._begun(works))
    # the worker ends within a few turns of its loop; the dispatcher may have one of them
    assert [(work.block.partition, work.block.lo) for work in worker._cut_round()] == [(1, 1)]
    buffer.take(Record(2, 0, None, b"{}"), long_ago)
    beside.in_flight = False
    assert worker._cut_round() == []
    worker._in_thread.close()
