"""Reading again from an earlier offset, while Faust still hands on what it had fetched before."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from pipeline.process.batches import Damage
from pipeline.process.membership import Membership, _Together
from pipeline.process.records import Record
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


@pytest.mark.parametrize("suspended_at", [None, 1])
async def test_a_fetch_is_handed_on_without_tasks_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suspended_at: int | None
) -> None:
    """Faust starts two tasks per message; while a rebalance suspends the flow one still goes its way. Records
    that were fetched together are few messages to it."""
    taken = Taken()
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", taken)  # type: ignore[arg-type]
    consumer: Any = member._app.consumer
    partition = TP(Settings().topic, 0)
    messages = 0

    async def fetched(*_: Any, **__: Any) -> Any:
        return {partition: [fetched_record(offset) for offset in range(250)]}

    async def take(message: Any) -> None:
        nonlocal messages
        member._take(message)
        if messages == suspended_at:
            member._app.flow_control.suspend()
        messages += 1

    member._app.flow_control.resume()
    consumer.can_resume_flow.set()
    consumer.flow_active = True
    monkeypatch.setattr(consumer, "_getmany", fetched)
    monkeypatch.setattr(consumer, "_get_active_partitions", lambda: {partition})
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
    handed = 250 if suspended_at is None else 200
    assert [record.offset for record in taken.records] == list(range(handed))
    assert taken.records[7].timestamp_ms == 1_007
    assert taken.records[7].schema_version == "1"
    for message in left:
        member._take(message)
    assert [record.offset for record in taken.records] == list(range(250)), "what is held back Faust hands on"
    assert 1 <= turns <= 6, "the agent and everything else get their turns, but not one per record"


async def test_damage_among_the_records_of_a_fetch_is_told(tmp_path: Path) -> None:
    taken = Taken()
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", taken)  # type: ignore[arg-type]
    records = [fetched_record(4), fetched_record(5, Damage(b"a wrong checksum"))]
    member._take(SimpleNamespace(value=_Together.of(records).value))
    assert [record.offset for record in taken.records] == [4]
    assert taken.damage == [(0, 5, "a wrong checksum")]


class Taken:
    """In place of the worker."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.damage: list[tuple[int, int, str]] = []

    def take(self, _partition: int, record: Record) -> None:
        self.records.append(record)

    def damaged(self, partition: int, offset: int, reason: str) -> None:
        self.damage.append((partition, offset, reason))


def fetched_record(offset: int, value: bytes = b"{}") -> ConsumerRecord:
    at = Settings().topic, 0, offset, 1_000 + offset
    return ConsumerRecord(*at, 0, None, value, None, -1, len(value), (("schema-version", b"1"),))
