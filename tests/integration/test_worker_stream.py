"""The worker on a real broker and a real ClickHouse: records in, rows out, and what survives a crash."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline import metrics
from pipeline.clock import utc_now
from pipeline.contract.privacy import Privacy
from pipeline.errors import WorkerFailedError
from pipeline.process import account, earlier, looks, membership
from pipeline.process import worker as module
from pipeline.process.membership import Membership
from pipeline.process.records import Record
from pipeline.process.topic import describe_topic
from pipeline.process.worker import run_worker
from pipeline.read.explain import explain
from pipeline.runtime import broker
from pipeline.settings import Settings
from pipeline.sink.retry import Stopping
from pipeline.sink.tables import Sink
from tests.conftest import new_client
from tests.fault.system import Store
from tests.fault.verdict import keep_copies
from tests.integration.worker_world import (
    PRIVACY,
    arrow,
    catalogues,
    column,
    count,
    event,
    load_reference,
    record,
)
from tests.kafka import GroupOffsets, embedded_broker

ROOT = Path(__file__).parents[2]
PARTITIONS = 3
OUTCOME_TABLES = ("events", "rejections", "duplicates", "quarantine")
PATIENCE_SECONDS = 60


#: Run on Kafka in `make test` too; the others only in `make test-fault`.
ON_KAFKA_ALWAYS = {"test_records_become", "test_a_crash_between", "test_a_second_worker"}


@pytest.fixture(autouse=True)
def _long_ones_elsewhere(request: pytest.FixtureRequest) -> None:
    name = request.node.name
    if "[kafka" in name and os.environ.get("FAULT") != "1" and not name.startswith(tuple(ON_KAFKA_ALWAYS)):
        pytest.skip("once more on Kafka: make test-fault runs it")


@pytest.fixture(autouse=True)
def _short_sessions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that was killed keeps its partitions as long as its session, in which these tests only wait.
    `make test-fault` waits for the real one; Kafka takes none below 6 s."""
    if "[embedded" in request.node.name and os.environ.get("FAULT") != "1":
        for name in ("_SESSION_SECONDS", "_REBALANCE_SECONDS", "_HEARTBEAT_SECONDS", "_SILENCE_SECONDS"):
            monkeypatch.setattr(membership, name, getattr(membership, name) / 2)


@pytest.fixture(scope="module", params=["embedded", "kafka"])
def bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "kafka":
        # three nodes take half a minute to start: the few that always run do with one
        nodes = "kafka_three" if os.environ.get("FAULT") == "1" else "kafka_node"
        yield request.getfixturevalue(nodes).bootstrap
        return
    with embedded_broker() as address:
        yield address


@dataclass
class Town:
    """A topic, a database and the workers between them."""

    client: Client
    engine_path: Path
    bootstrap: str
    settings: Settings
    admin: AdminClient
    producer: Producer
    #: What the workers' group has committed, by partition; below 0 where nothing is.
    committed: GroupOffsets
    sent: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def new_client(self) -> Client:
        return new_client(self.engine_path, self.client.database)

    def send(self, *records: Record, partition: int | None = None) -> None:
        """Records to the topic; copies of an event meet in one partition, as the partition key makes them."""
        for made in records:
            headers: list[tuple[str, str | bytes]] = [("content-type", made.content_type or "")]
            if made.schema_version:
                headers.append(("schema-version", made.schema_version))
            first = re.search(rb'"event_id": "([^"]+)"', made.value or b"")
            home = zlib.crc32(first.group(1)) % PARTITIONS if first else 0
            where = home if partition is None else partition
            self.producer.produce(
                self.settings.topic,
                made.value,
                partition=where,
                headers=headers,
                timestamp=made.timestamp_ms or 1_777_600_000_000,
            )
            self.sent += 1
        assert self.producer.flush(10) == 0

    def replace_topic(self) -> None:
        """By another of its name. Kafka answers before its nodes have forgotten the one that is deleted."""
        topic = self.settings.topic
        self.admin.delete_topics([topic])[topic].result(10)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while topic in self.admin.list_topics(timeout=5).topics:
            assert time.monotonic() < deadline, f"{topic} is still there"
            time.sleep(0.2)
        broker.ensure_topic(self.admin, topic, PARTITIONS)

    def rows(self) -> int:
        return sum(count(self.client, *OUTCOME_TABLES))

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(PATIENCE_SECONDS * 5):
            if await asyncio.to_thread(condition):
                return
            await asyncio.sleep(0.2)
        pytest.fail(f"not within {PATIENCE_SECONDS} s; rows: {count(self.client, *OUTCOME_TABLES)}")

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
        """A worker that is ready; stopped and awaited at the end."""
        stop, ready = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(
            run_worker(
                self.settings,
                client_factory=self.new_client,
                bootstrap=self.bootstrap,
                privacy=PRIVACY,
                stop=stop,
                ready=ready.set,
                known_sources=lambda: {"handset"},
                **options,
            )
        )
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([task, waiting], timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            yield task
        finally:
            stop.set()
            await asyncio.wait([task], timeout=30)
            assert task.done(), "a stop must be over within 25 s"
        if task.exception() is None:
            task.result()

    async def worker_that_fails(self) -> None:
        """Start a worker and wait for its end as one that cannot go on."""
        async with self.worker() as task:
            await asyncio.wait([task], timeout=PATIENCE_SECONDS)
            assert isinstance(task.exception(), WorkerFailedError)

    def assert_every_position_once(self) -> None:
        each = " UNION ALL ".join(f"SELECT _inc, _part, _off, _idx FROM {table}" for table in OUTCOME_TABLES)
        assert column(
            self.client, f"SELECT count() FROM ({each}) GROUP BY _inc, _part, _off, _idx HAVING count() > 1"
        ) == []  # fmt: skip


@pytest.fixture
def town(clickhouse: Client, engine_path: Path, bootstrap: str, tmp_path: Path) -> Iterator[Town]:
    name = uuid.uuid4().hex[:8]
    settings = Settings(
        data_dir=tmp_path,
        topic=f"events-{name}",
        consumer_group=f"workers-{name}",
        reference_refresh_seconds=0.2,
    )
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    broker.ensure_topic(admin, settings.topic, PARTITIONS)
    load_reference(clickhouse, tmp_path / "reference")
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "log_level": 0})
    with closing(GroupOffsets(bootstrap, settings.consumer_group, settings.topic, PARTITIONS)) as committed:
        yield Town(clickhouse, engine_path, bootstrap, settings, admin, producer, committed)


def totals() -> dict[str, float]:
    names = {
        "gridpipe_events_received_total", "gridpipe_events_total", "gridpipe_verifier_gap_total",
        "gridpipe_verifier_overlap_total", "gridpipe_verifier_backward_total",
    }  # fmt: skip
    found: dict[str, float] = {}
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            if sample.name in names:
                key = "/".join([sample.name.removeprefix("gridpipe_"), *sample.labels.values()])
                found[key] = sample.value
    return found


async def test_records_become_rows_and_the_metrics_add_up(town: Town) -> None:
    before = totals()
    town.send(*[record(0, event(number)) for number in range(30)])
    town.send(arrow(0, *[event(number) for number in range(30, 60)]))
    town.send(record(0, event(60), event(60, event_type="ACCEPTED", event_id="a60", minutes=5)), partition=0)
    town.send(record(0, event(61)), record(0, event(61)), partition=1)
    town.send(record(0, event(62, matter_code="NO-SUCH"), event(63, source="stranger")), partition=2)
    town.send(record(0, event(64))._replace(value=b"{broken"), partition=2)
    town.send(record(0, event(65)), partition=2)
    expected = 30 + 30 + 2 + 2 + 2 + 1 + 1
    async with town.worker():
        await town.until(lambda: town.rows() == expected)
        await town.until(lambda: sum(town.committed()) == town.sent)
        town.send(record(0, event(66)))
        await town.until(lambda: town.rows() == expected + 1)
    assert count(town.client, *OUTCOME_TABLES) == [66, 1, 1, 1]
    assert column(town.client, "SELECT count() FROM cases FINAL WHERE state = 'ADMITTED'") == [64]
    assert sum(town.committed()) == town.sent
    town.assert_every_position_once()
    after = totals()
    grown = {
        name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)
    }
    assert grown == {
        "events_received_total/handset": expected - 1,
        "events_received_total/stranger": 1,  # of a host without its key
        "events_received_total/other": 1,  # the broken record has no source
        "events_total/admitted": 65,
        "events_total/recorded": 1,
        "events_total/rejected": 1,
        "events_total/duplicate": 1,
        "events_total/quarantined": 1,
    }


async def test_a_direct_event_that_breaks_the_contract_is_found_by_its_source_and_id(town: Town) -> None:
    """Its sender knows nothing else of it. One whose source is itself at fault has none to be found by."""
    broken: list[dict[str, Any]] = [
        event(1, grid_code="44"),
        event(2, source="no source", grid_code="44"),
        event(3, source="13800138000", grid_code="44"),
    ]
    async with town.worker():
        town.send(*(record(0, one) for one in broken), record(0, event(4), event(5, grid_code="44")))
        await town.until(lambda: town.rows() == 5)

    def what_is_known(source: str, event_id: str) -> dict[str, Any] | None:
        return explain(
            town.client, source, event_id, catalogues=catalogues(), now=utc_now(), retention=timedelta(36_500)
        )

    for event_id in ("e1", "e5"):
        found = what_is_known("handset", event_id)
        assert found, event_id
        assert (found["outcome"], found["reasons"]) == ("quarantined", ["MALFORMED"])
        assert found["detail"].startswith("bad_pattern: grid_code")
    assert town.client.query("SELECT event_id, source FROM quarantine ORDER BY event_id").result_rows == [
        ("e1", "handset"), ("e2", None), ("e3", None), ("e5", "handset"),
    ]  # fmt: skip


async def test_a_stop_that_the_store_does_not_let_end_gives_its_blocks_up_and_is_a_failure(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends with 1: whoever stopped it learns that not all was finished. Nothing is committed."""
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.3)
    send, asked = Sink._send, threading.Event()

    def hang(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        asked.set()
        self._stopping.wait(20)
        raise Stopping("not stored")

    monkeypatch.setattr(Sink, "_send", hang)
    town.send(record(0, event(1)), partition=0)
    async with town.worker() as task:
        assert await asyncio.to_thread(asked.wait, PATIENCE_SECONDS)
    assert isinstance(task.exception(), WorkerFailedError)
    assert "given up" in str(task.exception())
    assert town.committed()[0] <= 0
    monkeypatch.setattr(Sink, "_send", send)
    async with town.worker():
        await town.until(lambda: town.committed()[0] == 1)
    assert column(town.client, "SELECT event_id FROM events") == ["e1"]


async def test_a_crash_between_insert_and_commit_loses_and_doubles_nothing(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.send(
        *[record(0, event(number)) for number in range(40)],
        *[record(0, event(number)) for number in range(9)],
    )

    async def crash(*_: Any) -> None:
        raise RuntimeError("killed before the commit")

    with monkeypatch.context() as patch:
        patch.setattr(Membership, "commit", crash)
        await town.worker_that_fails()
    stored = count(town.client, *OUTCOME_TABLES)
    assert sum(stored) > 0, "something was stored before the crash"
    async with town.worker():
        await town.until(lambda: sum(town.committed()) == town.sent)
        town.send(record(0, event(3)), record(0, event(3)), record(0, event(3)))
        await town.until(lambda: sum(town.committed()) == town.sent)
    town.assert_every_position_once()
    assert column(town.client, "SELECT count() FROM events") == [40]
    assert column(town.client, "SELECT uniqExact(event_id) FROM events") == [40]
    assert column(town.client, "SELECT count() FROM cases FINAL") == [40]
    assert town.rows() == town.sent


async def test_what_failed_is_never_committed(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten messages, a store that fails on the first two blocks: Faust's own agents lose them all
    (`tests/traps/test_faust_traps.py`), ours none."""
    send, calls = Sink._send, []

    def fail_twice(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        calls.append(token)
        if len(calls) <= 2:
            raise RuntimeError("the store is down")
        send(self, table, rows, token, client)

    monkeypatch.setattr(Sink, "_send", fail_twice)
    town.send(*[record(0, event(number)) for number in range(10)], partition=0)
    for failed in (1, 2):
        await town.worker_that_fails()
        assert len(calls) == failed
        assert town.committed()[0] <= 0, "committed what is not stored"
    async with town.worker():
        await town.until(lambda: town.committed()[0] == 10)
    assert column(town.client, "SELECT uniqExact(event_id) FROM events") == [10]
    town.assert_every_position_once()


@pytest.mark.parametrize("at", [1, 2])
async def test_a_crash_in_the_middle_of_the_inserts_is_completed(
    town: Town, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    town.send(*[record(0, event(number), event(f"x{number}", matter_code="NO-SUCH")) for number in range(12)])
    send, calls = Sink._send, []

    def crash(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        calls.append(token)
        if len(calls) > at:
            raise RuntimeError("killed between two tables")
        send(self, table, rows, token, client)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "_send", crash)
        await town.worker_that_fails()
    async with town.worker():
        await town.until(lambda: sum(town.committed()) == town.sent)
    town.assert_every_position_once()
    assert count(town.client, *OUTCOME_TABLES) == [12, 12, 0, 0]
    assert column(town.client, "SELECT count() FROM cases FINAL") == [24]


@pytest.mark.parametrize(
    "dies", [pytest.param("between two inserts", marks=pytest.mark.slow), "before the commit"]
)
async def test_a_block_of_nothing_but_copies_and_broken_events_is_finished_in_its_bounds(
    town: Town, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """No row of it is in the tables that all others look at first. The next worker cuts a block of each
    record, so that one that was cut anew would have other bounds, and go out under another token."""
    keep_copies(town.client)
    monkeypatch.setattr(module, "_QUIET_LINGER_SECONDS", 1.0)
    old = [event(number) for number in range(4)]
    town.send(record(0, *old), partition=1)
    async with town.worker():
        await town.until(lambda: town.committed()[1] == 1)
    before = totals()

    def sends(name: str) -> Record:
        return record(0, *old, event(f"{name}1", grid_code="44"), event(f"{name}2", grid_code="44"))

    send, calls = Sink._send, []

    def crash(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        calls.append(table)
        if len(calls) > 1:
            raise RuntimeError("killed between two tables")
        send(self, table, rows, token, client)

    async def refuse(*_: Any) -> None:
        raise RuntimeError("killed before the commit")

    town.send(*[sends(f"x{number}") for number in range(3)], partition=1)
    town.settings = town.settings.model_copy(update={"block_linger_seconds": 1.0})
    with monkeypatch.context() as patch:
        if dies == "before the commit":
            patch.setattr(Membership, "commit", refuse)
        else:
            patch.setattr(Sink, "_send", crash)
        await town.worker_that_fails()

    def bounds() -> list[tuple[int, int]]:
        each = " UNION ALL ".join(f"SELECT _off, _blk_lo, _blk_hi FROM {table}" for table in OUTCOME_TABLES)
        return list(
            town.client.query(
                f"SELECT DISTINCT _blk_lo, _blk_hi FROM ({each}) WHERE _off > 0 ORDER BY ALL"
            ).result_rows
        )

    assert bounds() == [(1, 3)]
    assert count(town.client, *OUTCOME_TABLES) == [4, 0, 12, 0 if dies == "between two inserts" else 6]
    town.settings = town.settings.model_copy(update={"block_max_rows": 1})
    town.send(*[sends(f"y{number}") for number in range(3)], partition=1)
    async with town.worker():
        await town.until(lambda: town.committed()[1] == 7)
    assert bounds() == [(1, 3), (4, 4), (5, 5), (6, 6)]
    assert count(town.client, *OUTCOME_TABLES) == [4, 0, 24, 12]
    town.assert_every_position_once()
    after = totals()
    grown = {
        name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)
    }
    assert grown == {
        "events_received_total/handset": 36,
        "events_total/duplicate": 24,
        "events_total/quarantined": 12,
    }


async def test_a_block_that_was_begun_is_finished_by_its_own_rules(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused when the block was begun is not admitted because the rules have changed since."""
    schemas = tmp_path / "schemas"
    shutil.copytree(town.settings.schemas_dir, schemas)
    town.settings = town.settings.model_copy(update={"schemas_dir": schemas})
    matters = schemas / "catalogue" / "matters" / "2022-04-01.yaml"
    town.send(*[record(0, event(number), event(f"x{number}", matter_code="SA-99")) for number in range(12)])
    send = Sink._send

    def crash(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        if table != "events":
            raise RuntimeError("killed between two tables")
        send(self, table, rows, token, client)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "_send", crash)
        await town.worker_that_fails()
    begun = column(town.client, "SELECT event_id FROM events")
    assert begun
    assert count(town.client, "rejections") == [0]
    for file in (matters, schemas / "catalogue" / "temporary.yaml"):
        file.write_text(file.read_text().replace("SA-07", "SA-99"))
    town.send(record(0, event("later", matter_code="SA-99")))
    async with town.worker():
        await town.until(lambda: sum(town.committed()) == town.sent)
    town.assert_every_position_once()
    refused = column(town.client, "SELECT event_id FROM rejections WHERE primary_reason = 'UNKNOWN_MATTER'")
    blocks = town.client.query(
        "SELECT _part, _blk_lo, uniqExact(_rules) FROM (SELECT _part, _blk_lo, _rules FROM events UNION ALL "
        "SELECT _part, _blk_lo, _rules FROM rejections) GROUP BY ALL"
    ).result_rows
    assert {sets for _, _, sets in blocks} == {1}
    # each record holds a good one and one of that matter; where no block was begun it is the other way round
    assert sorted(name for name in refused if "x" in name) == sorted("ex" + name[1:] for name in begun)
    assert "elater" in column(town.client, "SELECT event_id FROM events WHERE matter_code = 'SA-99'")
    assert count(town.client, "rule_sets") == [2]


async def test_ids_and_reports_are_remembered_over_a_restart(town: Town) -> None:
    resent = event(2, description=event(1)["description"], minutes=1)
    async with town.worker():
        town.send(record(0, event(1)), record(0, resent), partition=1)
        await town.until(lambda: town.rows() == 2)
    async with town.worker():
        # a redelivery of the report, one of its resend, a resend again, and a changed resend
        town.send(
            record(0, event(1)),
            record(0, resent),
            record(0, event(3, description=event(1)["description"], minutes=2)),
            record(0, {**resent, "title": "changed"}),
            partition=1,
        )
        await town.until(lambda: town.rows() == 6)
    assert town.client.query("SELECT level, event_id FROM duplicates ORDER BY _off").result_rows == [
        ("L2", "e2"), ("L1", "e1"), ("L1", "e2"), ("L2", "e3"),
    ]  # fmt: skip
    assert column(town.client, "SELECT event_id FROM quarantine WHERE reason = 'ID_CONFLICT'") == ["e2"]


async def test_a_pseudonym_key_that_is_activated_over_a_restart_makes_no_conflict(town: Town) -> None:
    named = {"type": "citizen", "id_number": "999999199001011234"}
    citizen: dict[str, Any] = {"channel": "yueshengshi", "actor": named}
    report = event(1, **citizen)
    resent = event(2, description=report["description"], minutes=1, **citizen)
    async with town.worker():
        town.send(arrow(0, report), arrow(0, resent), partition=1)
        await town.until(lambda: town.rows() == 2)
    new = Privacy(b"n" * 32, 2, {1: b"k" * 32})
    async with town.worker():
        town.send(arrow(0, report, privacy=new), arrow(0, resent, privacy=new), partition=1)
        await town.until(lambda: town.rows() == 4)
        # under one key the content is compared: the version of a resend is read back, too
        town.send(arrow(0, {**resent, "title": "changed"}), partition=1)
        await town.until(lambda: town.rows() == 5)
    assert town.client.query("SELECT level, event_id FROM duplicates ORDER BY _off").result_rows == [
        ("L2", "e2"), ("L1", "e1"), ("L1", "e2"),
    ]  # fmt: skip
    assert column(town.client, "SELECT event_id FROM quarantine WHERE reason = 'ID_CONFLICT'") == ["e2"]


@pytest.mark.slow
async def test_tables_older_than_the_commit_are_told_of_and_filled_from_offsets_set_back(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/restore.md: a worker reads on from its commit, and what the backup lacks is before it."""
    monkeypatch.setattr(account, "_FIRST_VISITS_SECONDS", 0.0)
    tables = [*OUTCOME_TABLES, "case_events", "cases"]
    town.send(*[record(0, event(number)) for number in range(4)], partition=0)
    town.send(record(0, event(90)), partition=1)
    async with town.worker():
        await town.until(lambda: town.rows() == 5)
    for table in tables:  # the backup; a restored table knows no insert tokens
        town.client.command(f"CREATE TABLE older_{table} AS {table}")
        town.client.command(f"INSERT INTO older_{table} SELECT * FROM {table}")
    town.send(*[record(0, event(number)) for number in range(4, 10)], partition=0)
    async with town.worker():
        await town.until(lambda: town.committed()[0] == 10)
    for table in tables:
        town.client.command(f"EXCHANGE TABLES older_{table} AND {table}")
    before = totals()["verifier_gap_total"]
    async with town.worker():
        await town.until(lambda: totals()["verifier_gap_total"] == before + 6)
    assert town.rows() == 5
    back = ConsumerGroupTopicPartitions(
        town.settings.consumer_group, [TopicPartition(town.settings.topic, 0, 2)]
    )
    [answer] = town.admin.alter_consumer_group_offsets([back]).values()
    answer.result(10)
    async with town.worker():
        await town.until(lambda: town.committed()[0] == 10)
    assert totals()["verifier_gap_total"] == before + 6
    town.assert_every_position_once()
    assert sorted(column(town.client, "SELECT event_id FROM events")) == sorted(
        [f"e{number}" for number in range(10)] + ["e90"]
    )
    assert column(town.client, "SELECT count() FROM cases FINAL WHERE state = 'ADMITTED'") == [11]


async def test_a_commit_left_by_an_earlier_log_passes_over_nothing(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again from the start: in the consumer's own thread, since its records are no one else's."""
    seek, threads = AIOKafkaConsumer.seek, set()

    def watched(self: AIOKafkaConsumer, *arguments: Any) -> None:
        threads.add(threading.current_thread())
        seek(self, *arguments)

    monkeypatch.setattr(AIOKafkaConsumer, "seek", watched)
    town.send(*[record(0, event(number)) for number in range(6)], partition=1)
    stale = Consumer({"bootstrap.servers": town.bootstrap, "group.id": town.settings.consumer_group})
    offsets = [TopicPartition(town.settings.topic, 1, 4), TopicPartition(town.settings.topic, 2, 4)]
    stale.commit(offsets=offsets, asynchronous=False)
    stale.close()
    async with town.worker():
        await town.until(lambda: town.rows() == 6)
        town.send(record(0, event(7)), partition=2)
        await town.until(lambda: town.rows() == 7)
        await town.until(lambda: town.committed()[1:] == [6, 1])
    town.assert_every_position_once()
    assert threads
    assert threading.current_thread() not in threads


async def test_a_commit_left_by_an_earlier_log_is_not_believed_after_a_crash_either(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block lies before the offset that was left, which then looks like one of this log."""
    town.settings = town.settings.model_copy(update={"block_max_rows": 2})
    town.send(*[record(0, event(number)) for number in range(6)], partition=1)
    stale = Consumer({"bootstrap.servers": town.bootstrap, "group.id": town.settings.consumer_group})
    stale.commit(offsets=[TopicPartition(town.settings.topic, 1, 4)], asynchronous=False)
    stale.close()
    commit = Membership.commit

    async def crash(self: Membership, offsets: Mapping[int, int]) -> None:
        if any(offsets.values()):
            raise RuntimeError("killed before the commit")
        await commit(self, offsets)

    with monkeypatch.context() as patch:
        patch.setattr(Membership, "commit", crash)
        await town.worker_that_fails()
    assert 0 < town.rows() < 6
    async with town.worker():
        await town.until(lambda: town.committed()[1] == 6)
    assert column(town.client, "SELECT event_id FROM events ORDER BY _off") == [
        f"e{number}" for number in range(6)
    ]
    town.assert_every_position_once()


async def test_a_worker_that_joins_while_records_are_stored_takes_the_log_for_the_same_one(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        facts = describe_topic(*arguments, **options)
        town.send(record(0, event(2)), partition=1)
        until = time.monotonic() + PATIENCE_SECONDS
        while town.rows() < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        return facts

    async with town.worker():
        town.send(record(0, event(1)), partition=1)
        await town.until(lambda: town.rows() == 1)
        monkeypatch.setattr(module, "describe_topic", slow)
        async with town.worker():
            pass
    assert column(town.client, "SELECT count() FROM incarnations") == [1]


async def test_a_topic_replaced_under_a_worker_ends_it_and_the_next_one_reads_it_whole(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "_TOPIC_SECONDS", 0.5)
    async with town.worker() as task:
        town.send(*[record(0, event(f"a{number}")) for number in range(4)], partition=1)
        await town.until(lambda: town.committed()[1] == 4)
        await asyncio.to_thread(town.replace_topic)
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        assert isinstance(task.exception(), WorkerFailedError)
    town.send(*[record(0, event(f"b{number}")) for number in range(6)], partition=1)
    async with town.worker():
        await town.until(lambda: town.rows() == 10)
    assert column(town.client, "SELECT uniqExact(event_id) FROM events") == [10]


@pytest.mark.parametrize(
    "dies",
    [pytest.param(None, marks=pytest.mark.slow), "case_events", pytest.param("fold", marks=pytest.mark.slow)],
)
async def test_what_a_worker_stored_and_did_not_tell_the_cases_reaches_them_from_the_next_log(
    town: Town, monkeypatch: pytest.MonkeyPatch, dies: str | None
) -> None:
    """It died between two inserts, and its log went before anybody read it again. The copies that come to
    the new log are redeliveries, which tell the cases nothing: the next worker must, before its first
    block. dies : where one that began with that dies, too."""
    old = [event(number) for number in range(4)]
    send = Sink._send

    def crash(self: Sink, table: str, rows: Any, token: str, client: Client) -> None:
        if table != "events":
            raise RuntimeError("killed between two tables")
        send(self, table, rows, token, client)

    def crash_at_the_fold(*_: Any) -> None:
        raise RuntimeError("killed before the fold")

    town.send(record(0, *old), partition=1)
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "_send", crash)
        await town.worker_that_fails()
    assert count(town.client, "events", "case_events") == [4, 0]
    town.replace_topic()
    if dies is not None:
        with monkeypatch.context() as patch:
            if dies == "fold":
                patch.setattr(earlier, "refresh_cases", crash_at_the_fold)
            else:
                patch.setattr(Sink, "_send", crash)
            async with town.worker() as task:
                assert isinstance(task.exception(), RuntimeError)
    town.send(record(0, *old), record(0, event(4)), partition=1)
    async with town.worker():
        assert town.client.query(
            "SELECT case_id, report_count FROM case_current ORDER BY case_id"
        ).result_rows[:4] == [(f"c{number}", 1) for number in range(4)]  # fmt: skip
        await town.until(lambda: town.committed()[1] == 2)
    assert count(town.client, *OUTCOME_TABLES) == [5, 0, 4, 0]
    assert column(town.client, "SELECT count() FROM incarnations") == [2]
    assert town.client.query(
        "SELECT case_id, report_count, state FROM case_current ORDER BY case_id"
    ).result_rows == [(f"c{number}", 1, "ADMITTED") for number in range(5)]  # fmt: skip


async def test_new_reference_data_are_used_without_a_restart(town: Town, tmp_path: Path) -> None:
    town.client.command("TRUNCATE TABLE ref_grids")
    town.client.command("TRUNCATE TABLE ref_loads")
    async with town.worker():
        town.send(record(0, event(1)))
        await town.until(lambda: column(town.client, "SELECT reasons FROM rejections") != [])
        assert "GRID_UNKNOWN" in column(town.client, "SELECT reasons FROM rejections")[0]
        load_reference(town.client, tmp_path / "again")
        await asyncio.sleep(1)
        for number in range(2, 60):
            town.send(record(0, event(number)))
            await asyncio.sleep(0.2)
            if column(town.client, "SELECT count() FROM events") != [0]:
                break
        assert column(town.client, "SELECT DISTINCT outcome FROM events") == ["admitted"]


async def test_a_second_worker_takes_over_partitions_and_gives_them_back(town: Town) -> None:
    """The first one says that it is not ready while it recovers what came back to it."""
    told: list[Mapping[int, str]] = []
    async with town.worker(braked=told.append):
        assert told == []  # before it was ready once it is "starting"
        town.send(*[record(0, event(f"a{number}")) for number in range(30)])
        async with town.worker():
            town.send(*[record(0, event(f"b{number}")) for number in range(30)])
            await town.until(lambda: town.rows() == 60)
        town.send(*[record(0, event(f"c{number}")) for number in range(30)])
        await town.until(lambda: town.rows() == 90)
        await town.until(lambda: sum(town.committed()) == town.sent)
        assert any("still being recovered" in why for standing in told for why in standing.values()), told
        # what it kept itself may be stored before it has what the other one gives back
        await town.until(lambda: told[-1] == {})
    town.assert_every_position_once()
    assert column(town.client, "SELECT uniqExact(event_id) FROM events") == [90]


async def test_a_flood_of_broken_records_stops_its_partition_and_no_other(town: Town) -> None:
    """The topic is not drained into the quarantine: what stopped the partition is neither stored nor
    committed, and is read once somebody has looked and lifted the brake."""
    broken = record(0, event(0))._replace(value=b"{broken")
    told: list[Mapping[int, str]] = []
    town.send(*[record(0, event(f"a{number}")) for number in range(20)], partition=0)
    town.send(*[broken] * 300, partition=0)
    async with town.worker(braked=told.append):
        await town.until(lambda: town.committed()[0] == 320)
        assert told == []
        town.send(*[broken] * 1_500, partition=0)
        await town.until(lambda: bool(told))
        town.send(*[record(0, event(f"b{number}")) for number in range(20)], partition=0)
        town.send(*[record(0, event(f"c{number}")) for number in range(50)], partition=1)
        await town.until(lambda: town.committed()[1] == 50)
        assert list(told[-1]) == [0]
        assert "in a row" in told[-1][0]
        assert town.committed()[0] <= 20 + 1_000
        assert count(town.client, "events") == [20 + 50]
        assert count(town.client, "quarantine")[0] <= 1_000
        assert metrics.partition_braked.labels("0")._value.get() == 1
        assert metrics.partition_braked.labels("1")._value.get() == 0
    lifted = town.settings.model_copy(update={"unreadable_share": 1.0})
    town.settings = lifted
    async with town.worker(braked=told.append):
        await town.until(lambda: town.committed()[0] == 20 + 300 + 1_500 + 20)
    assert count(town.client, "events", "quarantine") == [20 + 20 + 50, 1_800]
    town.assert_every_position_once()


@pytest.mark.fault
def test_the_suite_takes_a_servers_url(tmp_path: Path) -> None:
    """Two tests of this file and some of the read calls once more, in a process of their own, on a server."""
    two = "records_become_rows_and_the_metrics or a_crash_between_insert_and_commit"
    read = "read_cli or kpi_counts or concurrent_calls"
    files = [f"tests/integration/test_{name}.py" for name in ("worker_stream", "read_routes", "read_cli")]
    asked = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'run'}", *files]
    asked += ["-k", f"{read} or embedded and ({two})"]
    ours = ("FAULT", "TEST_CLICKHOUSE", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    store = Store(tmp_path / "store")
    environment["GRIDPIPE_TEST_CLICKHOUSE"] = store.url()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *asked],
            capture_output=True, text=True, check=False, timeout=150, cwd=ROOT, env=environment,
        )  # fmt: skip
        with store.client() as client:
            [[inserted]] = client.query(
                "SELECT value FROM system.events WHERE event = 'InsertedRows'"
            ).result_rows
    finally:
        store.stop()
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
    assert inserted > 40 + 66, "the rows went elsewhere"
