"""What the gateway answered, held against what ClickHouse has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.ingest.balance import MOST_PER_MINUTE, MOST_PER_REQUEST, Balance
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.process.records import Record
from pipeline.settings import Settings
from pipeline.sink.tables import Extent, Sink
from tests.integration.worker_world import load_reference, rules_of
from tests.unit.gateway_world import NOW, World, make_world
from tests.unit.gateway_world import event as event_of

T = TypeVar("T")


class Direct:
    """The store, asked at once."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, work: Callable[[Client], T]) -> T:
        return work(self._client)


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(tmp_path: Path, clock: Clock) -> World:
    made = make_world(tmp_path)
    made.gateway.balance = Balance(clock)
    return made


async def worked(world: World, client: Client, directory: Path, *, lose: str = "") -> None:
    """What a worker does with the gateway's log; the event `lose` is lost on the way."""
    load_reference(client, directory)
    rules = rules_of(client)
    for partition, payloads in enumerate(world.log.records):
        records = [
            Record(offset, 0, "application/vnd.apache.arrow.stream", payload, "1")
            for offset, payload in enumerate(payloads)
        ]
        if not records:
            continue
        result = process_block(Block(partition, records), PartitionState.empty(Settings()), rules)
        if lose:
            kept = {
                name: getattr(result, name).filter(pl.col("event_id") != lose)
                for name in ("events", "rejections", "duplicates", "quarantined")
            }
            received = sum(frame.height for frame in kept.values())
            result = replace(result, **kept, received=received)
        Sink(client, "t").write(result, inc=5, blocks=[Extent(partition, 0, len(records) - 1)], rules="r")


def shown(source: str = "12345") -> float:
    return float(metrics.balance_missing_events.labels(source)._value.get())


async def test_what_is_stored_balances_and_what_is_lost_shows_after_the_allowance(
    world: World, clickhouse: Client, tmp_path: Path, clock: Clock
) -> None:
    sent = [event_of(number) for number in range(5)]
    sent.append({**sent[0]})  # the same id twice: a duplicate is a row, too
    assert (await world.post(sent)).status_code == 202
    await worked(world, clickhouse, tmp_path / "reference", lose="e-3")
    store = Direct(clickhouse)
    clock.now = NOW + timedelta(minutes=3)
    assert await world.gateway.balance.look(store) == {}, "not yet: the worker may be behind"
    clock.now = NOW + timedelta(minutes=7)
    assert await world.gateway.balance.look(store) == {"12345": 1}
    assert shown() == 1


async def test_an_outage_is_no_loss_once_the_rows_are_there(
    world: World, clickhouse: Client, tmp_path: Path, clock: Clock
) -> None:
    assert (await world.post([event_of(1)])).status_code == 202
    clock.now = NOW + timedelta(minutes=20)
    assert await world.gateway.balance.look(Direct(clickhouse)) == {"12345": 1}
    await worked(world, clickhouse, tmp_path / "reference")
    assert await world.gateway.balance.look(Direct(clickhouse)) == {}
    assert shown() == 0


async def test_a_source_shows_zero_from_its_first_event(world: World) -> None:
    """A figure that appears with its first increase hides that increase from an alert."""
    assert (await world.post([event_of(1)])).status_code == 202
    sources = [
        sample.labels["source"]
        for metric in metrics.balance_missing_events.collect()
        for sample in metric.samples
    ]
    assert "12345" in sources


async def test_refused_events_are_not_looked_for(world: World, clickhouse: Client, clock: Clock) -> None:
    assert (await world.post([{**event_of(1), "grid_code": "x"}])).status_code == 422
    clock.now = NOW + timedelta(minutes=20)
    assert await world.gateway.balance.look(Direct(clickhouse)) == {}


def test_memory_is_bounded_whatever_the_load() -> None:
    class Bare:
        source = "s"

        def __init__(self, number: int) -> None:
            self.event_id = str(number)

    balance = Balance(lambda: NOW)
    many = [Bare(number) for number in range(5_000)]
    for _ in range(500):
        balance.answered(many, NOW)  # type: ignore[arg-type]
    [minute] = balance._minutes.values()
    assert len(minute.ids) == MOST_PER_MINUTE
    assert minute.seen == 500 * MOST_PER_REQUEST
