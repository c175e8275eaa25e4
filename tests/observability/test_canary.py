"""The canary where something is wrong, and that nobody else can be one. A whole run: test_watching.py."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from prometheus_client import Gauge

from pipeline import metrics
from pipeline.contract.canary import CANARY_SOURCE, canary_event, canary_grid
from pipeline.contract.parse import parse_document
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.ingest.blocks import decode_block, partition_of
from pipeline.ingest.gate import Gate
from pipeline.ingest.keys import Credential, KeyStore
from pipeline.ingest.memory import MemoryLog
from pipeline.process.flow import case_events_of
from pipeline.runtime.canary import Canary, villages_by_partition
from pipeline.settings import Settings
from tests.unit.gateway_world import SECRET, event, make_world

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


class Here:
    """Asks this process's own ClickHouse, as `Reader` asks one through its pool."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, work: Any) -> Any:
        return work(self._client)


class Away:
    async def run(self, work: Any) -> Any:
        raise UnavailableError("ClickHouse does not answer")


def make(log: MemoryLog, store: Any) -> Canary:
    return Canary(
        producer=log,
        gate=Gate(1.0),
        store=store,
        privacy=Privacy(SECRET),
        interval_seconds=0.5,
        partitions=len(log.records),
        max_block_bytes=900_000,
        clock=lambda: NOW,
    )


def value(gauge: Gauge, partition: int) -> float:
    return float(gauge.labels(str(partition))._value.get())


def test_a_canary_goes_each_minute_unless_somebody_says_otherwise() -> None:
    assert Settings().canary_interval_seconds == 60


def test_every_partition_has_a_village_of_its_own() -> None:
    for count in (1, 3, 12, 64):
        villages = villages_by_partition(count)
        assert [partition_of(canary_grid(village), count) for village in villages] == list(range(count))


def test_a_canary_keeps_the_contract() -> None:
    made = canary_event("canary-1", 7, NOW)
    parsed = parse_document(msgspec.json.encode(made))
    assert parsed.errors == []
    assert parsed.events == [made]


async def test_an_event_that_does_not_come_out_is_missing_and_the_wait_is_its_delay(
    clickhouse: Client,
) -> None:
    log = MemoryLog()
    before = value(metrics.canary_missing, 0)
    missing = await make(log, Here(clickhouse)).round()
    partitions = len(log.records)
    assert missing == set(range(partitions))
    sent = pl.concat([decode_block(payload) for records in log.records for payload in records])
    assert sent["source"].unique().to_list() == [CANARY_SOURCE]
    assert sent["attributes"].unique().to_list() == ['{"canary":true}']
    assert all(len(records) == 1 for records in log.records)
    assert value(metrics.canary_missing, 0) == before + 1
    assert value(metrics.canary_delay_seconds, 0) >= 0.5
    assert value(metrics.canary_last_seen_timestamp_seconds, 0) == NOW.timestamp()  # the start


async def test_a_partition_that_cannot_be_written_is_missing_at_once_and_a_log_that_is_down_says_so() -> None:
    log = MemoryLog()
    log.refused = {3}
    before = value(metrics.canary_missing, 3)
    assert 3 in await make(log, Away()).round()
    assert value(metrics.canary_missing, 3) == before + 1
    assert value(metrics.canary_delay_seconds, 3) >= 0.5  # not 0 s, the quickest of all
    log.down = True
    with pytest.raises(UnavailableError):
        await make(log, Away()).round()


async def test_a_store_that_does_not_answer_is_waited_for_and_then_missing() -> None:
    assert await make(MemoryLog(), Away()).round() == set(range(len(MemoryLog().records)))


async def test_while_the_store_starts_no_canary_is_sent(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starting(Here):
        refused = 0

        async def run(self, work: Any) -> Any:
            if self.refused < 2:
                self.refused += 1
                assert not any(log.records)
                raise UnavailableError("ClickHouse does not answer")
            return await super().run(work)

    monkeypatch.setattr("pipeline.runtime.canary._SLOW_LOOK_SECONDS", 0.05)
    log, store = MemoryLog(), Starting(clickhouse)
    with pytest.raises(TimeoutError):  # it runs for ever
        await asyncio.wait_for(make(log, store).run(), 2)
    assert store.refused == 2
    assert any(log.records)


async def test_a_store_that_stays_away_from_the_start_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a round there would be no series, and without one no alert."""
    monkeypatch.setattr("pipeline.runtime.canary._FIRST_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.runtime.canary._SLOW_LOOK_SECONDS", 0.05)
    log = MemoryLog()
    missing = metrics.canary_missing.labels("0")._value.get()
    with pytest.raises(TimeoutError):  # it runs for ever
        await asyncio.wait_for(make(log, Away()).run(), 3)
    assert any(log.records)
    assert metrics.canary_missing.labels("0")._value.get() > missing


SERIES = (
    metrics.canary_missing,
    metrics.canary_delay_seconds,
    metrics.canary_last_seen_timestamp_seconds,
)


def partitions_told() -> set[int]:
    """Partitions of which every series of the canary speaks."""
    return set.intersection(
        *({int(sample.labels["partition"]) for sample in one.collect()[0].samples} for one in SERIES)
    )


async def test_a_log_that_is_away_from_the_start_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot say how many partitions it has; without series the alert of the process before would end."""
    monkeypatch.setattr("pipeline.runtime.canary._FIRST_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.runtime.canary._SLOW_LOOK_SECONDS", 0.05)
    for series in SERIES:
        series.clear()
    log = MemoryLog()
    log.down = True
    with pytest.raises(TimeoutError):  # it runs for ever
        await asyncio.wait_for(make(log, Away()).run(), 2)
    assert partitions_told() == set(range(len(log.records)))
    for partition in range(len(log.records)):
        assert value(metrics.canary_missing, partition) >= 1
        assert value(metrics.canary_delay_seconds, partition) >= 0.5
        assert value(metrics.canary_last_seen_timestamp_seconds, partition) == NOW.timestamp()  # the start


async def test_the_series_begin_with_the_process_and_none_stays_for_a_partition_that_is_not_there() -> None:
    for series in SERIES:
        series.clear()
    log = MemoryLog()
    canary = make(log, Away())
    starting = asyncio.create_task(canary.run())
    await asyncio.sleep(0.05)
    last_seen = metrics.canary_last_seen_timestamp_seconds.collect()[0].samples
    assert len(last_seen) == len(log.records)
    starting.cancel()
    log.down = True
    with pytest.raises(UnavailableError):
        await canary.round()
    log.down, log.records = False, log.records[:3]
    await canary.round()
    assert partitions_told() == {0, 1, 2}
    assert len(metrics.canary_last_seen_timestamp_seconds.collect()[0].samples) == 3


def test_a_canary_belongs_to_no_case() -> None:
    frame = to_frame(
        [canary_event("canary-1", 7, NOW)],
        ingested_at=NOW,
        request_id=None,
        backfill=False,
        privacy=Privacy(SECRET),
    )
    resent = pl.DataFrame({"level": []})
    stored = frame.with_columns(
        time_adjusted=pl.lit(False),
        outcome=pl.lit("recorded"),
        _part=pl.lit(0, pl.UInt16),
        _off=pl.lit(0, pl.UInt64),
        _idx=pl.lit(0, pl.UInt32),
        evidence_pending=pl.lit(False),
        category=pl.lit(None, pl.String),
        lead_department=pl.lit(None, pl.String),
        response_limit_seconds=pl.lit(None, pl.UInt32),
        resolution_limit_seconds=pl.lit(None, pl.UInt32),
    )
    assert case_events_of(stored, resent).height == 0
    assert case_events_of(stored.with_columns(source=pl.lit("handset")), resent).height == 1


async def test_nobody_else_sends_as_the_canary_whatever_a_key_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path)
    forged = Credential("k", frozenset({CANARY_SOURCE, "12345"}), False)
    monkeypatch.setattr(world.gateway.keys, "verify", lambda _: forged)
    answer = await world.post([event(1, source=CANARY_SOURCE), event(2)])
    assert answer.status_code == 202
    assert [error["code"] for error in answer.json()["errors"]] == ["source_not_allowed"]
    assert world.stored()["source"].to_list() == ["12345"]


def test_no_key_is_made_for_the_canary(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the pipeline's own"):
        KeyStore(tmp_path / "keys.json").create(["a", CANARY_SOURCE])
