"""A worker whose blocks are stored and not committed: what it counts, tells and holds meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from aiokafka.errors import KafkaTimeoutError

from pipeline import metrics
from pipeline.frames import CASE_EVENT, DUPLICATE, QUARANTINED, STORED
from pipeline.process import commits
from pipeline.process.buffer import PartitionBuffer
from pipeline.process.flow import Block, BlockResult
from pipeline.process.records import Record
from pipeline.process.rounds import Stored, Work
from pipeline.process.stall import Look, StallWatch
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from tests.integration.worker_world import PRIVACY

NO_ROWS = BlockResult(
    events=pl.DataFrame(schema=STORED),
    rejections=pl.DataFrame(schema=STORED),
    duplicates=pl.DataFrame(schema=DUPLICATE),
    quarantined=pl.DataFrame(schema=QUARANTINED),
    case_events=pl.DataFrame(schema=CASE_EVENT),
    received=0,
)
PARTITION = 4
BYTES = 1_000_000


class Group:
    """A coordinator that refuses until it is told otherwise."""

    def __init__(self) -> None:
        self.refuses = True
        self.offsets: dict[int, int] = {}

    def owns(self, _: int) -> bool:
        return True

    async def commit(self, offsets: Mapping[int, int]) -> None:
        if self.refuses:
            raise KafkaTimeoutError("injected")
        self.offsets |= offsets


def _no_store() -> None:
    pytest.fail("nothing is read here")


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
async def worker(tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.05)
    made = Worker(Settings(data_dir=tmp_path), _no_store, "127.0.0.1:1", PRIVACY)  # type: ignore[arg-type]
    monkeypatch.setattr(made._member, "owns", group.owns)
    monkeypatch.setattr(made._member, "commit", group.commit)
    monkeypatch.setattr(made._member, "end_offset", lambda _: 0)
    made._account.starts_at(PARTITION, 0)
    running = asyncio.create_task(made._commits.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def buffer_of(worker: Worker) -> PartitionBuffer:
    buffer = PartitionBuffer(PARTITION, max_rows=10, budget=worker._budget, next_offset=0, recovered=True)
    worker._buffers[PARTITION] = buffer
    return buffer


def stored(buffer: PartitionBuffer, lo: int, hi: int, size: int = 10) -> Stored:
    """A block that has just been stored; the only one who holds its records."""
    records = [
        Record(offset, 1_000 + offset, "application/json", b"x" * size) for offset in range(lo, hi + 1)
    ]
    buffer.next_offset = hi + 1
    return Stored([Work(buffer, Block(PARTITION, records), None)], NO_ROWS, NO_ROWS)


async def commit(worker: Worker, item: Stored) -> None:
    """As at the end of its round."""
    this = worker._begun(item.works)
    await worker._commit(this, [item])
    worker._ended(this)


async def settled(buffer: PartitionBuffer) -> None:
    """Every commit that is owed came out, and who waits for it was told."""
    await asyncio.gather(*[owed.stands for owed in buffer.owed])
    await asyncio.sleep(0)
    assert not buffer.owed


def verified() -> list[float]:
    return [
        metrics.REGISTRY.get_sample_value(f"gridpipe_verifier_{name}_total") or 0.0
        for name in ("gap", "overlap", "backward")
    ]


async def test_blocks_are_counted_in_their_order_whoever_is_woken_first(
    worker: Worker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One commit covers both, and the second one's round goes on before the first one's waiter is woken."""
    before, buffer = verified(), buffer_of(worker)
    asked: list[asyncio.Future[bool]] = []
    ask = worker._commits.ask

    def noted(*arguments: Any, **named: Any) -> asyncio.Future[bool]:
        asked.append(ask(*arguments, **named))
        return asked[-1]

    async def granted(_: object) -> None:
        for stands in asked:
            stands.set_result(True)

    monkeypatch.setattr(worker._commits, "ask", noted)
    await commit(worker, stored(buffer, 0, 9))
    assert buffer.committed is None
    monkeypatch.setattr(worker._commits, "wait", granted)
    await commit(worker, stored(buffer, 10, 19))
    assert buffer.committed == 20
    await settled(buffer)
    assert buffer.committed == 20
    assert verified() == before


async def test_what_is_owed_holds_no_records_and_is_told(worker: Worker, group: Group) -> None:
    buffer = buffer_of(worker)
    blocks = []
    async with asyncio.timeout(20):
        for number in range(5):
            item = stored(buffer, 10 * number, 10 * number + 9, size=BYTES // 10)
            blocks.append(weakref.ref(item.works[0].block))
            await commit(worker, item)
            del item
        gc.collect()
        assert not any(block() for block in blocks), "the records of blocks that are stored are held"
        assert len(buffer.owed) == 5
        assert buffer.oldest_timestamp_ms == 1_000
        assert not worker.drained()
        # readiness: nothing waits in the buffer, and nothing is committed
        watch, now = StallWatch(10), time.monotonic()
        for second in range(12):
            still = watch.still([(PARTITION, Look.at(buffer, 50))], now + second, excused=False)
        assert watch.stalled(still) == [PARTITION]
        group.refuses = False
        await settled(buffer)
    assert buffer.committed == 50
    assert buffer.oldest_timestamp_ms is None
    assert worker.drained()


async def test_a_log_is_drained_only_where_a_fetch_has_told_its_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has just recovered knows of nothing behind its commit; the roll would throw it away."""
    buffer = buffer_of(worker)
    buffer.next_offset = buffer.committed = 100
    seen = []
    for end in (None, 105, 100):
        monkeypatch.setattr(worker._member, "end_offset", lambda _, end=end: end)
        seen.append(worker.drained())
    worker._looks._ends = {PARTITION: 103}
    assert [*seen, worker.drained()] == [False, False, True, False]


def test_a_new_worker_does_not_know_of_earlier_direct_records(tmp_path: Path) -> None:
    """Nobody has sent any since it opened, which is no sign that nobody does."""
    made = Worker(Settings(data_dir=tmp_path), _no_store, "127.0.0.1:1", PRIVACY)  # type: ignore[arg-type]
    assert 0.0 <= made.direct_seconds() < 60.0


async def test_what_was_taken_away_meanwhile_moves_no_offset(worker: Worker, group: Group) -> None:
    buffer = buffer_of(worker)
    async with asyncio.timeout(20):
        await commit(worker, stored(buffer, 0, 9))
        await worker.revoked({PARTITION})
        await settled(buffer)
        group.refuses = False
        again = buffer_of(worker)
        await commit(worker, stored(again, 0, 4))
        await settled(again)
        assert again.committed == 5
    assert buffer.committed is None
    assert group.offsets == {PARTITION: 5}


async def test_an_end_commits_what_is_owed(
    worker: Worker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_FIRST_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(commits, "_LONGEST_WAIT_SECONDS", 60.0)
    buffer = buffer_of(worker)
    async with asyncio.timeout(20):
        await commit(worker, stored(buffer, 0, 9))
        group.refuses = False
        await worker._drain()
    assert group.offsets == {PARTITION: 10}
