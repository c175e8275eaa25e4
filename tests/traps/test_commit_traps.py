"""A commit that waits for its coordinator goes out in the name of whatever membership comes next."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import TopicPartition

from pipeline.process.membership import Membership
from pipeline.process.records import Record
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.kafka import GroupOffsets

PARTITIONS = 2


@dataclass
class Group:
    bootstrap: str
    name: str
    joiners: list[AIOKafkaConsumer] = field(default_factory=list)

    def consumer(self) -> AIOKafkaConsumer:
        made = AIOKafkaConsumer(
            self.name,
            bootstrap_servers=self.bootstrap,
            group_id=self.name,
            enable_auto_commit=False,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=500,
        )
        self.joiners.append(made)
        return made

    def committed(self) -> int:
        with contextlib.closing(GroupOffsets(self.bootstrap, self.name, self.name, PARTITIONS)) as offsets:
            return max(offsets())


@pytest.fixture
async def group(bootstrap: str) -> AsyncIterator[Group]:
    name = f"commits-{uuid.uuid4().hex[:8]}"
    broker.ensure_topic(broker.wait_until_up(bootstrap, seconds=30), name, PARTITIONS)
    made = Group(bootstrap, name)
    yield made
    for one in made.joiners:
        await one.stop()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  of other threads
            await asyncio.sleep(0.05)


class Lost:
    """A coordinator that a commit looks for until `found`; the rest of the member goes on."""

    def __init__(self, coordinator: Any, is_commit: Callable[[], bool]) -> None:
        self.waits, self.found = asyncio.Event(), asyncio.Event()
        look = coordinator.ensure_coordinator_known

        async def ensure() -> None:
            if is_commit() and not self.found.is_set():
                self.waits.set()
                await until(self.found.is_set)
            await look()

        coordinator.ensure_coordinator_known = ensure


async def test_a_commit_that_waits_goes_out_in_the_name_of_the_next_membership(group: Group) -> None:
    first = group.consumer()
    await first.start()
    await until(lambda: len(first.assignment()) == PARTITIONS)
    (part, _) = sorted(first.assignment())
    await first.commit({TopicPartition(group.name, 0): 20})
    task: asyncio.Task[None] | None = None
    lost = Lost(first._coordinator, lambda: asyncio.current_task() is task)
    task = asyncio.create_task(first.commit({part: 10}))
    await lost.waits.wait()
    generation = first._coordinator.generation
    await group.consumer().start()
    await until(lambda: first._coordinator.generation > generation and len(first.assignment()) == 1)
    lost.found.set()
    await task
    assert group.committed() == 10, "no longer: what was committed meanwhile stands"


async def test_a5_a_commit_of_what_a_rebalance_took_away_raises(group: Group) -> None:
    first = group.consumer()
    await first.start()
    await until(lambda: len(first.assignment()) == PARTITIONS)
    had = first.assignment()
    await group.consumer().start()
    await until(lambda: len(first.assignment()) == 1)
    (gone,) = had - first.assignment()
    with pytest.raises(IllegalStateError):
        await first.commit({gone: 10})


class Taken:
    """What the worker would be told."""

    def __init__(self) -> None:
        self.assignments: list[set[int]] = []

    def take(self, partition: int, record: Record) -> None: ...

    def damaged(self, partition: int, offset: int, reason: str) -> None: ...

    async def assigned(self, partitions: set[int]) -> None:
        self.assignments.append(partitions)

    async def revoked(self, partitions: set[int]) -> None: ...


async def test_a_commit_of_ours_is_of_the_membership_that_it_was_asked_under(
    group: Group, tmp_path: Path
) -> None:
    told, others = Taken(), Taken()
    member, other = (
        Membership(
            Settings(data_dir=tmp_path / name, topic=group.name, consumer_group=group.name),
            group.bootstrap,
            taken,
        )
        for name, taken in (("a", told), ("b", others))
    )
    await member.start()
    try:
        await until(lambda: told.assignments[-1:] == [set(range(PARTITIONS))])
        await member.commit({0: 20})
        coordinator = member._app.consumer._thread._ensure_consumer()._coordinator  # type: ignore[attr-defined]
        asked = [True]
        lost = Lost(coordinator, lambda: asked[0])
        commit = asyncio.create_task(member.commit({0: 10, 1: 10}))
        await until(lost.waits.is_set)
        asked[0] = False  # the rest of the member finds its coordinator
        before = len(told.assignments)
        await other.start()
        await until(lambda: len(told.assignments) > before and len(told.assignments[-1]) == 1)
        lost.found.set()
        with pytest.raises(CommitFailedError):
            await commit
        assert group.committed() == 20
        (mine,) = told.assignments[-1]
        await member.commit({mine: 30})  # that of the present membership stands
        assert group.committed() == 30
    finally:
        await member.stop(10)
        await other.stop(10)
