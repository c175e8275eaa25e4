"""Reading again from an earlier offset, while Faust still hands on what it had fetched before."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from pipeline.process.membership import Membership
from pipeline.settings import Settings


@pytest.mark.parametrize(("bare", "expected"), [(False, [5, 6, 7, 5, 6, 7]), (True, [5, 6, 7, 7])])
async def test_records_that_are_read_again_arrive_whatever_was_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool, expected: list[int]
) -> None:
    """Faust drops what lies before the last record that it handed on. A rewind in the middle of a batch was
    forgotten with its next record, and the records asked for never came, however often they were."""
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    consumer: Any = member._app.consumer
    partition = TP(Settings().topic, 0)
    batches = [[5, 6, 7], [5, 6, 7]]
    arrived: list[int] = []

    if bare:
        monkeypatch.setattr(consumer, "_read_offset", defaultdict(lambda: None))

    async def fetched(timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109
        for offset in batches.pop(0) if batches else []:
            yield partition, SimpleNamespace(offset=offset, topic=partition.topic, key=None, value=None)
        if not batches:
            fetcher._stopped.set()

    async def take(message: Any) -> None:
        arrived.append(message.offset)
        if arrived == [5]:  # the worker finds a hole, and asks for what is missing
            await member.rewind(0, 1)
            consumer._read_offset[partition] = None  # as Faust's own seek does

    async def in_the_thread(*_: Any) -> None: ...

    fetcher = SimpleNamespace(_stopped=asyncio.Event())
    monkeypatch.setattr(consumer, "getmany", fetched)
    monkeypatch.setattr(consumer, "callback", take)
    monkeypatch.setattr(member, "_call", in_the_thread)
    await asyncio.wait_for(consumer._drain_messages(fetcher), 10)
    assert arrived == expected


@pytest.mark.parametrize("suspended_at", [None, 130])
async def test_a_fetch_is_handed_on_without_tasks_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suspended_at: int | None
) -> None:
    """Faust starts two tasks per record; while a rebalance suspends the flow a record still goes its way."""
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    consumer: Any = member._app.consumer
    partition = TP(Settings().topic, 0)
    arrived: list[int] = []

    async def fetched(_timeout: float) -> Any:
        return {partition: list(range(250))}, {partition}

    async def take(offset: int) -> None:
        arrived.append(offset)
        if offset == suspended_at:
            member._app.flow_control.suspend()

    member._app.flow_control.resume()
    monkeypatch.setattr(consumer, "_wait_next_records", fetched)
    monkeypatch.setattr(consumer, "_to_message", lambda _, record: record)
    monkeypatch.setattr(consumer, "highwater", lambda _: 250)
    monkeypatch.setattr(consumer, "callback", take)
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other_work())
    left = [message async for _, message in consumer.getmany(1.0)]
    beside.cancel()
    handed = 250 if suspended_at is None else suspended_at + 1
    assert arrived == list(range(handed))
    assert left == list(range(handed, 250)), "what the flow holds back Faust hands on"
    assert 1 <= turns <= 5, "the agent and everything else get their turns, but not one per record"
