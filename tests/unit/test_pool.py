"""Threads with a bounded queue before them, and reads whose callers go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message

from pipeline.errors import UnavailableError
from pipeline.pool import BoundedPool
from pipeline.read.reader import Reader
from pipeline.read.routes import answer
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import Settings

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def may() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def begin(*calls: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_more_than_may_wait_are_refused_and_there_is_room_again(may: threading.Event) -> None:
    pool = BoundedPool("test", threads=1, queue=2)
    tasks = await begin(*(pool.run(may.wait, 30) for _ in range(3)))
    with pytest.raises(UnavailableError):
        await pool.run(int)
    may.set()
    assert await asyncio.gather(*tasks) == [True] * 3
    assert await pool.run(int, "7") == 7
    pool.close()


async def test_who_goes_away_while_it_waits_leaves_its_place_and_is_not_worked_for(
    may: threading.Event,
) -> None:
    pool, done = BoundedPool("test", threads=1, queue=1), []
    (running,) = await begin(pool.run(may.wait, 30))
    (waiting,) = await begin(pool.run(done.append, "gone"))
    waiting.cancel()
    await asyncio.wait({waiting})
    (stays,) = await begin(pool.run(done.append, "stays"))
    may.set()
    await asyncio.gather(running, stays)
    assert done == ["stays"]
    pool.close()


async def test_callers_who_leave_fill_no_queue(may: threading.Event) -> None:
    pool = BoundedPool("test", threads=1, queue=2)
    (running,) = await begin(pool.run(may.wait, 30))
    for _ in range(100):
        (leaving,) = await begin(pool.run(int))
        leaving.cancel()
        await asyncio.wait({leaving})
    assert pool._executor._work_queue.qsize() <= 1  # the running one's wake-up
    stay = await begin(pool.run(int, "1"), pool.run(int, "2"))
    with pytest.raises(UnavailableError):
        await pool.run(int)
    may.set()
    assert await asyncio.gather(running, *stay) == [True, 1, 2]
    pool.close()


async def test_a_turn_that_comes_to_one_who_leaves_goes_to_the_next(may: threading.Event) -> None:
    pool = BoundedPool("test", threads=1, queue=2)
    running, leaving, stays = await begin(pool.run(may.wait, 30), pool.run(int), pool.run(int, "7"))
    may.set()
    await running
    leaving.cancel()  # its turn has come, and it has not gone on yet
    assert await asyncio.wait_for(stays, 5) == 7
    assert await asyncio.wait_for(pool.run(int, "8"), 5) == 8
    pool.close()


async def test_a_pool_that_closes_lets_nobody_wait(may: threading.Event) -> None:
    pool = BoundedPool("test", threads=1, queue=2)
    running, waiting = await begin(pool.run(may.wait, 30), pool.run(int))
    pool.close()
    await asyncio.wait({waiting}, timeout=5)
    assert waiting.cancelled()
    may.set()
    assert await running


async def test_a_read_whose_caller_left_is_not_asked_of_the_store(may: threading.Event) -> None:
    asked: list[bool] = []

    def connect() -> Client:
        asked.append(True)
        may.wait(30)
        raise UnavailableError("ClickHouse does not answer")

    settings = Settings()
    reader = Reader(connect, catalogues=load_catalogues(settings.catalogue_dir), settings=settings, workers=1)

    async def read(_: Request) -> Any:
        return await reader.run(lambda client: client.query("SELECT 1").result_rows)

    app = Starlette(routes=[Route("/", answer("case", read))])
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    left = asyncio.Event()
    statuses: list[int] = []

    async def call(gone: asyncio.Event) -> None:
        begun = False

        async def receive() -> Message:
            nonlocal begun
            if not begun:
                begun = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(dict(scope), receive, send)

    (first,) = await begin(call(asyncio.Event()))
    while not asked:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    (second,) = await begin(call(left))
    await asyncio.sleep(0.05)
    left.set()
    async with asyncio.timeout(10):
        await second
    may.set()
    await first
    reader.close()
    assert asked == [True]
    assert statuses == [400, 503]
