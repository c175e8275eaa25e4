"""Whatever a worker's own tasks raise ends it, so that it is started again; nothing of it goes unheard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import structlog
from polars.exceptions import PanicException

from pipeline.contract.privacy import Privacy
from pipeline.errors import WorkerFailedError
from pipeline.process import looks
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.partition import Span
from pipeline.process.records import Record
from pipeline.process.worker import Worker
from pipeline.settings import Settings


class _Panics:
    """A store's client in which polars panics, as it may on any frame; that is no `Exception`."""

    def query(self, *_: Any, **__: Any) -> NoReturn:
        raise PanicException("injected")

    query_arrow = query

    def close(self) -> None: ...


def _panic() -> NoReturn:
    raise PanicException("injected")


def _unusable() -> NoReturn:
    raise ValueError("injected")


def made(tmp_path: Path, client_factory: Callable[[], Any] = _Panics, **settings: Any) -> Worker:
    return Worker(Settings(data_dir=tmp_path, **settings), client_factory, "127.0.0.1:1", Privacy(b"k" * 32))


def buffer_of(worker: Worker, partition: int = 0, **given: Any) -> PartitionBuffer:
    buffer = PartitionBuffer(partition, max_rows=100, budget=Budget(1_000_000), **given)
    worker._buffers[partition] = buffer
    return buffer


async def test_a_panic_in_a_recovery_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The partition would stay unrecovered for ever, and who is being recovered is in no stall watch."""

    async def committed(_: int) -> int:
        return 5

    worker = made(tmp_path)
    monkeypatch.setattr(worker._member, "committed", committed)
    buffer = buffer_of(worker)
    worker._start(partial(worker._recover_all, [buffer]))
    await asyncio.wait(worker._beside)
    assert isinstance(worker._failure, PanicException)
    assert worker._failed.is_set()


async def test_a_panic_in_a_watch_ends_the_worker(tmp_path: Path) -> None:
    worker = made(tmp_path)

    async def watch() -> None:
        _panic()

    await asyncio.wait([asyncio.create_task(worker._watched(watch))])
    assert isinstance(worker._failure, PanicException)


async def test_a_panic_over_blocks_without_records_ends_the_worker(tmp_path: Path) -> None:
    worker = made(tmp_path)
    buffer = buffer_of(worker, recovered=True, gone=[Span(0, 5, "r")])
    worker._complete(buffer)
    await asyncio.wait(worker._beside)
    assert isinstance(worker._failure, PanicException)


async def test_a_recovery_that_hangs_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes on from partition to partition does not, however long all of them take."""
    worker = made(tmp_path, stall_seconds=1.0, insert_timeout_seconds=1.0)
    monkeypatch.setattr(worker._member, "heard", lambda: True)
    monkeypatch.setattr(worker._member, "end_offset", lambda _: 0)
    buffers = [buffer_of(worker, number) for number in range(3)]
    now = time.monotonic() + 60  # what other tests had refused is long ago
    monkeypatch.setattr(looks, "time", SimpleNamespace(monotonic=lambda: now))
    limit = 2.0 * looks._RECOVERY_ROOM
    for buffer in [*buffers[:2], None]:
        worker._looks._look_for_stalls()
        now += limit - 0.1
        worker._looks._look_for_stalls()
        if buffer is not None:
            buffer.recovered = True
    now += 0.2
    with pytest.raises(WorkerFailedError, match=r"recovery.*\[2\]"):
        worker._looks._look_for_stalls()


async def test_a_round_that_fails_in_the_drain_is_told_and_makes_the_end_a_failure(tmp_path: Path) -> None:
    """Who rolls the log takes an end without a word for "all is stored", and throws the log away."""
    worker = made(tmp_path, _unusable)
    worker._rules = type("Rules", (), {"now": None})()  # type: ignore[assignment]
    buffer = buffer_of(worker, recovered=True)
    buffer.take(Record(0, 0, None, b"{}"), time.monotonic() - 60)
    worker._rounds.add(asyncio.create_task(worker._round(worker._begun(worker._cut_round()))))
    with structlog.testing.capture_logs() as lines:
        await worker._drain()
    assert [line["event"] for line in lines] == ["worker_failed"]
    assert "injected" in lines[0]["trace"]
    assert worker._gave_up


async def test_a_watch_that_is_ended_with_the_worker_is_no_failure(tmp_path: Path) -> None:
    worker = made(tmp_path, _unusable)
    task: asyncio.Task[object] = asyncio.create_task(worker._watched(asyncio.Event().wait))
    await asyncio.sleep(0)
    await worker._drain()
    with structlog.testing.capture_logs() as lines:
        await worker._close([task])
    assert lines == []
    assert not worker._gave_up
