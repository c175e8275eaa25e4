"""Requests written together: each gets its own answer, and no request's fault is another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import numpy as np
import orjson
import polars as pl
import pytest

from pipeline.contract.event import Event
from pipeline.contract.parse import parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import Block, decode_block, partition_of
from pipeline.ingest.durability import Replicated
from pipeline.ingest.gate import Gate
from pipeline.ingest.groups import SAFE, UNCONFIRMED, UNWRITTEN, GroupWriter, States
from pipeline.ingest.memory import MemoryLog
from pipeline.ingest.producer import Delivery, Written
from tests.unit.gateway_world import NOW, SECRET, WhereKeysAreMade, event


class CountingLog(MemoryLog):
    """Counts the groups sent."""

    calls = 0

    async def send(self, blocks: Sequence[Block]) -> list[Delivery]:
        self.calls += 1
        await asyncio.sleep(0)
        return await super().send(blocks)


class NeverConfirmed(Replicated):
    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        return [False] * len(written)


def events(*numbers: int) -> list[Event]:
    return parse_ndjson(b"\n".join(orjson.dumps(event(number)) for number in numbers)).events


def writer(
    log: MemoryLog, durability: Replicated | None = None, privacy: Privacy | None = None
) -> GroupWriter:
    return GroupWriter(
        privacy=privacy or Privacy(SECRET),
        producer=log,
        durability=durability or Replicated(),
        gate=Gate(1.0),
        max_block_bytes=900_000,
    )


async def write(groups: GroupWriter, request: int, given: Sequence[Event], size: int = 500) -> States:
    return await groups.write(
        given,
        size=size,
        ingested_at=NOW + timedelta(seconds=request),
        request_id=f"r{request}",
        backfill=request % 2 == 1,
    )


def stored(log: MemoryLog) -> pl.DataFrame:
    return pl.concat(decode_block(payload) for records in log.records for payload in records)


async def test_requests_of_one_moment_are_one_group_and_keep_what_is_theirs() -> None:
    log = CountingLog()
    groups = writer(log)
    answers = await asyncio.gather(
        *(write(groups, request, events(request, 100 + request)) for request in range(50))
    )
    assert log.calls < 5
    assert all(answer.tolist() == [SAFE, SAFE] for answer in answers)
    rows = stored(log).sort("event_id")
    assert rows.height == 100
    for row in rows.iter_rows(named=True):
        number = int(row["event_id"].removeprefix("e-")) % 100
        assert row["request_id"] == f"r{number}"
        assert row["ingested_at"] == NOW + timedelta(seconds=number)
        assert row["backfill"] == (number % 2 == 1)


async def test_a_partition_that_is_not_written_fails_the_events_that_lie_in_it_and_no_other() -> None:
    partitions = await MemoryLog().partitions()
    refused = partition_of(event(1)["grid_code"], partitions)
    log = CountingLog()
    log.refused = {refused}
    groups = writer(log)
    numbers = [[1, 2, 3], [4, 5], [21, 6], [7]]
    answers = await asyncio.gather(*(write(groups, at, events(*some)) for at, some in enumerate(numbers)))
    for some, answer in zip(numbers, answers, strict=True):
        homes = [partition_of(event(number)["grid_code"], partitions) for number in some]
        assert answer.tolist() == [UNWRITTEN if home == refused else SAFE for home in homes]
    assert answers[0][0] == UNWRITTEN
    assert (np.concatenate(answers) == SAFE).any()


async def test_what_is_not_confirmed_says_so() -> None:
    assert (await write(writer(CountingLog(), NeverConfirmed()), 1, events(1, 2))).tolist() == [
        UNCONFIRMED
    ] * 2


async def test_a_log_that_is_away_is_told_to_every_request_and_the_next_one_is_tried() -> None:
    log = CountingLog()
    log.down = True
    groups = writer(log)
    answers = await asyncio.gather(
        *(write(groups, at, events(at)) for at in range(1, 6)), return_exceptions=True
    )
    assert all(isinstance(answer, UnavailableError) for answer in answers)
    log.down = False
    assert (await write(groups, 1, events(1))).tolist() == [SAFE]


async def test_an_event_that_cannot_be_encoded_fails_its_own_request_only() -> None:
    groups = writer(CountingLog())
    spoilt = msgspec.structs.replace(events(1)[0], occurred_at="no time")
    answers = await asyncio.gather(
        write(groups, 1, events(1)),
        write(groups, 2, [*events(2), spoilt]),
        write(groups, 3, events(3, 4)),
        return_exceptions=True,
    )
    assert isinstance(answers[1], TypeError)
    assert [answers[at].tolist() for at in (0, 2)] == [[SAFE], [SAFE, SAFE]]  # type: ignore[union-attr]


async def test_a_caller_who_goes_away_takes_nobody_along() -> None:
    groups = writer(CountingLog())
    gone = asyncio.create_task(write(groups, 1, events(1)))
    stays = asyncio.create_task(write(groups, 2, events(2)))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).tolist() == [SAFE]
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_stop_leaves_nobody_waiting() -> None:
    log = CountingLog()
    groups = writer(log)
    groups._gate._opened.clear()  # the log is being replaced
    waiting = asyncio.create_task(write(groups, 1, events(1)))
    await asyncio.sleep(0.05)
    await groups.close()
    with pytest.raises(UnavailableError):
        await waiting


async def test_a_large_request_waits_for_the_next_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.groups._GROUP_EVENTS", 4)
    log = CountingLog()
    groups = writer(log)
    answers = await asyncio.gather(
        write(groups, 1, events(1, 2, 3)),
        write(groups, 2, events(*range(4, 13))),
        write(groups, 3, events(13)),
    )
    assert [len(answer) for answer in answers] == [3, 9, 1]
    assert log.calls == 3
    assert stored(log).height == 13


async def test_few_events_of_many_bytes_are_not_encoded_on_the_loop() -> None:
    small, large = WhereKeysAreMade(), WhereKeysAreMade()
    await write(writer(CountingLog(), privacy=small), 1, events(1, 2), size=1_000)
    await write(writer(CountingLog(), privacy=large), 1, events(1, 2), size=200_000)
    assert small.threads == {threading.get_ident()}
    assert large.threads
    assert threading.get_ident() not in large.threads
