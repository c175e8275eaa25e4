"""An answer waits for what was promised: delivery, or the worker's commit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException

from pipeline.ingest.blocks import Block
from pipeline.ingest.durability import Replicated, Stored
from pipeline.ingest.memory import MemoryLog
from pipeline.ingest.producer import Delivery, Written
from tests.unit.gateway_world import event, make_world


class Commits:
    """Committed offsets as a worker moves them; counts how often it is asked."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        self.asked = 0
        self.failing = False

    def __call__(self, partitions: Sequence[int]) -> dict[int, int]:
        self.asked += 1
        if self.failing:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return {partition: self.offsets[partition] for partition in partitions if partition in self.offsets}


async def test_replicated_trusts_the_delivery_report() -> None:
    assert await Replicated().confirm([Written(0, 1), Written(1, 5)]) == [True, True]


async def test_stored_waits_until_the_commit_has_passed_every_block() -> None:
    commits = Commits()
    durability = Stored(commits, 5)
    waiting = asyncio.create_task(durability.confirm([Written(0, 9), Written(0, 10), Written(3, 4)]))
    commits.offsets = {0: 10, 3: 5}
    await asyncio.sleep(0.08)
    assert not waiting.done()
    commits.offsets = {0: 11, 3: 5}
    assert await asyncio.wait_for(waiting, 2) == [True, True, True]
    await durability.close()


async def test_commits_are_looked_at_beside_whatever_fills_the_threads() -> None:
    commits, busy = Commits(), threading.Event()
    commits.offsets = {0: 1}
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    body = asyncio.ensure_future(asyncio.to_thread(busy.wait, 30))
    durability = Stored(commits, 2, commits.offsets.clear)
    try:
        assert await durability.confirm([Written(0, 0)]) == [True]
        await asyncio.wait_for(durability.close(), 2)
        assert commits.offsets == {}
    finally:
        busy.set()
        await body


async def test_stored_tells_which_blocks_were_not_confirmed_in_time() -> None:
    commits = Commits()
    commits.offsets = {0: 1, 1: 1}
    durability = Stored(commits, 0.1)
    assert await durability.confirm([Written(0, 0), Written(1, 1)]) == [True, False]
    await durability.close()


async def test_stored_never_trusts_a_report_without_an_offset() -> None:
    commits = Commits()
    commits.offsets = {0: 9, 1: 9}
    durability = Stored(commits, 1)
    assert await durability.confirm([Written(0, -1), Written(1, 3)]) == [False, True]
    assert await durability.confirm([Written(0, -1)]) == [False]
    await durability.close()


async def test_stored_asks_only_while_someone_waits_and_once_for_all() -> None:
    commits = Commits()
    durability = Stored(commits, 5)
    waiting = [asyncio.create_task(durability.confirm([Written(0, number)])) for number in range(50)]
    await asyncio.sleep(0.2)
    assert 1 <= commits.asked <= 25
    commits.offsets = {0: 50}
    assert await asyncio.gather(*waiting) == [[True]] * 50
    await asyncio.sleep(0.05)
    asked = commits.asked
    await asyncio.sleep(0.1)
    assert commits.asked == asked
    commits.offsets = {0: 60}
    assert await durability.confirm([Written(0, 59)]) == [True]
    await durability.close()


async def test_stored_outlives_a_broker_that_does_not_answer_for_a_while() -> None:
    commits = Commits()
    commits.failing = True
    durability = Stored(commits, 5)
    waiting = asyncio.create_task(durability.confirm([Written(0, 0)]))
    await asyncio.sleep(0.05)
    commits.failing, commits.offsets = False, {0: 1}
    assert await asyncio.wait_for(waiting, 2) == [True]
    await durability.close()


async def test_what_the_broker_took_of_the_time_is_not_waited_for_again(tmp_path: Path) -> None:
    """Over a slow link a request waited for its broker, and then as long for its commit."""

    class Slow(MemoryLog):
        async def send(self, blocks: Sequence[Block]) -> list[Delivery]:
            await asyncio.sleep(1.5)
            return await super().send(blocks)

    world = make_world(tmp_path, durability=Stored(Commits(), 2.0))
    world.connect(producer=Slow())
    began = time.monotonic()
    answer = await world.post([event(1)])
    assert 2.0 <= time.monotonic() - began < 3.0
    assert answer.status_code == 503


async def test_gateway_answers_stored_only_after_the_commit(tmp_path: Path) -> None:
    commits = Commits()
    world = make_world(tmp_path, durability=Stored(commits, 5))
    request = asyncio.create_task(world.post(event()))
    await asyncio.sleep(0.1)
    assert not request.done()
    assert world.stored().height == 1
    commits.offsets = dict.fromkeys(range(12), 1)
    response = await request
    assert (response.status_code, response.json()["durability"]) == (202, "stored")


async def test_events_not_confirmed_in_time_are_retryable_errors(tmp_path: Path) -> None:
    commits = Commits()
    world = make_world(tmp_path, durability=Stored(commits, 0.1))
    started = time.monotonic()
    response = await world.post([event(1), event(2)])
    assert time.monotonic() - started < 5
    assert response.status_code == 503
    body = response.json()
    assert [(error["code"], error["retryable"]) for error in body["errors"]] == [("not_confirmed", True)] * 2
    assert response.headers["retry-after"].isdigit()
