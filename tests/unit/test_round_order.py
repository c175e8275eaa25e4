"""A partition's next block is judged while its last one is folded; folded and committed they are in order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract.privacy import Privacy
from pipeline.process import worker as module
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.flow import Block
from pipeline.process.records import Record
from pipeline.process.rounds import AbandonedError, Finished, Stored, Work
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from tests.unit.test_owed_blocks import NO_ROWS

WAIT_SECONDS = 10


class _Store:
    """A client that is never asked."""

    def close(self) -> None: ...


class Stages:
    """In place of both parts of a round: they end when the test lets them, and tell what they were given."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.gates: dict[tuple[str, int], threading.Event] = {}
        self.errors: dict[tuple[str, int], BaseException] = {}

    def hold(self, stage: str, offset: int) -> threading.Event:
        return self.gates.setdefault((stage, offset), threading.Event())

    def _run(self, stage: str, offset: int) -> None:
        self.told.append((stage, offset))
        if (gate := self.gates.get((stage, offset))) is not None:
            assert gate.wait(WAIT_SECONDS)
        if (error := self.errors.get((stage, offset))) is not None:
            raise error

    def store(self, works: list[Work], *_: Any, **__: Any) -> Finished:
        self._run("store", works[0].block.lo)
        return Finished([Stored(works, NO_ROWS, NO_ROWS)], {})

    def fold(self, done: list[Stored], *_: Any, **__: Any) -> None:
        self._run("fold", done[0].works[0].block.lo)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    made = Stages()
    monkeypatch.setattr(module, "store_round", made.store)
    monkeypatch.setattr(module, "fold_round", made.fold)
    yield made
    for gate in made.gates.values():
        gate.set()


@pytest.fixture
def commits() -> list[dict[int, int]]:
    return []


@pytest.fixture
async def worker(
    tmp_path: Path, stages: Stages, commits: list[dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    made = Worker(Settings(data_dir=tmp_path), _Store, "127.0.0.1:1", Privacy(b"k" * 32))  # type: ignore[arg-type]
    made._rules = type("Rules", (), {"now": None})()  # type: ignore[assignment]
    made._buffers[0] = PartitionBuffer(0, max_rows=100, budget=made._budget, recovered=True, next_offset=0)

    async def commit(offsets: dict[int, int]) -> None:
        commits.append(dict(offsets))

    monkeypatch.setattr(made._member, "commit", commit)
    monkeypatch.setattr(made._member, "owns", lambda _: True)
    monkeypatch.setattr(made._member, "end_offset", lambda _: 0)
    made._account.starts_at(0, 0)
    running = [asyncio.create_task(made._commits.run()), asyncio.create_task(made._dispatch())]
    yield made
    for gate in stages.gates.values():
        gate.set()
    if made._rounds:
        await asyncio.wait(set(made._rounds), timeout=WAIT_SECONDS)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    made._in_thread.close()


def come(worker: Worker, offset: int) -> None:
    """A record that has waited long enough."""
    worker._buffers[0].take(Record(offset, 0, None, b"{}"), time.monotonic() - 60)
    worker._wake.set()


async def until(settled: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not settled():  # noqa: ASYNC110  # nothing tells it
            await asyncio.sleep(0.005)


async def test_the_next_block_is_judged_while_the_last_is_folded(
    worker: Worker, stages: Stages, commits: list[dict[int, int]]
) -> None:
    folded = stages.hold("fold", 0)
    come(worker, 0)
    await until(lambda: ("fold", 0) in stages.told)
    come(worker, 1)
    await until(lambda: ("store", 1) in stages.told)
    await asyncio.sleep(0.1)
    assert ("fold", 1) not in stages.told, "cases are told in the order of offsets"
    assert not commits
    folded.set()
    await until(lambda: worker._buffers[0].committed == 2)
    assert [at for stage, at in stages.told if stage == "fold"] == [0, 1]
    assert worker._buffers[0].oldest_timestamp_ms is None
    assert not worker._under_way


async def test_one_block_of_a_partition_is_judged_at_a_time(worker: Worker, stages: Stages) -> None:
    written, folded = stages.hold("store", 1), stages.hold("fold", 0)
    come(worker, 0)
    await until(lambda: ("fold", 0) in stages.told)
    come(worker, 1)
    await until(lambda: ("store", 1) in stages.told)
    come(worker, 2)
    folded.set()
    await until(lambda: worker._buffers[0].committed == 1)
    await asyncio.sleep(0.1)
    assert ("store", 2) not in stages.told, "what the second one holds is not known to the third"
    written.set()
    await until(lambda: worker._buffers[0].committed == 3)


async def test_no_commit_passes_over_a_block_that_is_not_folded(
    worker: Worker, stages: Stages, commits: list[dict[int, int]]
) -> None:
    folded = stages.hold("fold", 0)
    stages.errors["fold", 0] = ValueError("the cases cannot be read")
    come(worker, 0)
    await until(lambda: ("fold", 0) in stages.told)
    come(worker, 1)
    await until(lambda: ("store", 1) in stages.told)
    folded.set()
    await until(worker._failed.is_set)
    await until(lambda: not worker._under_way)
    assert not commits
    assert ("fold", 1) not in stages.told
    come(worker, 2)
    assert worker._cut_round() == []


async def test_a_round_whose_partitions_are_gone_holds_up_no_other(worker: Worker, stages: Stages) -> None:
    """The one behind it holds blocks of another partition, too, which is still ours."""
    lost = PartitionBuffer(1, max_rows=100, budget=Budget(1_000), recovered=True)
    stages.errors["store", 0] = AbandonedError()
    gone = worker._begun([Work(lost, _block(lost), None)])
    behind = worker._begun(
        [Work(lost, _block(lost, 1), None), Work(worker._buffers[0], _block(lost, 1), None)]
    )
    assert list(behind.before) == [gone]
    ended = asyncio.create_task(worker._round(gone))
    assert await behind.may_commit()
    await ended


def _block(buffer: PartitionBuffer, offset: int = 0) -> Any:
    return Block(buffer.partition, [Record(offset, 0, None, b"{}")])
