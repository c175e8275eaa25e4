"""Faust commits past what an agent failed on. Our worker acks nothing through Faust; its crash tests show it.

The raw behaviour, on both brokers: messages lost = committed and never handed to the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import faust
import pytest
from aiokafka.structs import ConsumerRecord
from confluent_kafka import Producer
from faust.types.enums import ProcessingGuarantee
from faust.types.tuples import TP, Message

from pipeline.process.buffer import Budget, PartitionBuffer, Taken
from pipeline.process.membership import Membership, _Together
from pipeline.process.records import Record
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.kafka import GroupOffsets

ROOT = Path(__file__).parent.parent.parent
EVENTS = TP(Settings().topic, 0)


# findings 1 and 2 run in CI, where the embedded broker is at hand, the other modes with the fault tests
@pytest.mark.parametrize(
    "mode",
    [
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("take", "noack")),
        *(pytest.param(mode, marks=pytest.mark.fault) for mode in ("noack_take", "plain", "with")),
    ],
)
def test_f1_f2_f4_f5_faust_commits_what_failed(bootstrap: str, tmp_path: Path, mode: str) -> None:
    name = uuid.uuid4().hex[:8]
    topic, group = f"probe-{name}", f"probe-{name}"
    admin = broker.wait_until_up(bootstrap, seconds=20)
    broker.ensure_topic(admin, topic, 1)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for number in range(10):
        producer.produce(topic, f"m{number}".encode(), partition=0)
    assert producer.flush(10) == 0
    arguments = [sys.executable, "-m", "tests.traps.faust_probe", mode, bootstrap, group, topic]
    done = subprocess.run(
        [*arguments, str(tmp_path)], capture_output=True, text=True, check=False, timeout=90, cwd=ROOT
    )
    stored = set(re.findall(r"STORED (m\d)", done.stdout))
    with contextlib.closing(GroupOffsets(bootstrap, group, topic, 1)) as offsets:
        [committed] = offsets()
    lost = {f"m{number}" for number in range(max(committed, 0))} - stored
    print(f"{mode}: committed={committed} stored={len(stored)} lost={sorted(lost)}")
    assert lost, f"{mode} no longer loses: {done.stdout} {done.stderr[-2000:]}"


def leave_unacked(app: faust.App, message: Mock) -> asyncio.Task[None]:
    """What a stop does first, while one message was acked by nobody."""
    consumer = app.consumer
    consumer._thread.thread_loop.close()  # of a thread that never starts
    consumer._unacked_messages.add(message)  # a set that keeps nothing alive
    consumer.commit = consumer.commit_and_end_transactions = AsyncMock()
    return asyncio.create_task(app._consumer_wait_empty(consumer, app.log))


async def test_f7_faust_waits_for_acks_and_no_stop_reaches_it(tmp_path: Path) -> None:
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    message = Mock(acked=False)
    leaving = leave_unacked(app, message)
    await asyncio.sleep(0.1)
    app._stopped.set()
    leaving.cancel()
    await asyncio.wait([leaving], timeout=1.5)
    assert not leaving.done()
    message.acked = True
    await asyncio.wait([leaving], timeout=10)
    assert leaving.done()
    assert not leaving.cancelled(), "the cancellation was swallowed"


async def test_f7_our_member_waits_for_no_ack(tmp_path: Path) -> None:
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    message = Mock(acked=False)
    leaving = leave_unacked(member._app, message)
    await asyncio.wait([leaving], timeout=10)
    assert leaving.done()
    assert message in member._app.consumer._unacked_messages


def holding(app: faust.App) -> Any:
    """The consumer of an app that was given partition EVENTS; what it commits to goes nowhere."""
    consumer: Any = app.consumer
    consumer._thread.thread_loop.close()  # of a thread that never starts
    consumer.assignment = lambda: {EVENTS}
    consumer._commit = AsyncMock(return_value=True)
    app.producer.flush = AsyncMock()  # type: ignore[method-assign]
    return consumer


async def acked(app: faust.App) -> Any:
    """The same, whose stream has acked offsets 0 to 2 since the last commit."""
    consumer = holding(app)
    await app.topics._update_indices()
    for offset in range(3):
        message = Message(*EVENTS, offset, 0.0, 0, None, None, b"x", None, tp=EVENTS)
        consumer.track_message(message)
        assert consumer.ack(message) == app.topics.acks_enabled_for(EVENTS.topic)
    return consumer


@pytest.mark.parametrize("revoked", [False, True])
async def test_f6_a_revoke_drops_what_was_acked_and_not_committed(tmp_path: Path, revoked: bool) -> None:
    """Before it commits on its way out, so that whoever takes over reads it once more."""
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    app.topics.add(app.topic(EVENTS.topic, value_serializer="raw"))
    consumer = await acked(app)
    if revoked:
        await consumer.on_partitions_revoked({EVENTS})
    await consumer.commit()
    assert not app.crashed
    assert [call.args for call in consumer._commit.await_args_list] == ([] if revoked else [({EVENTS: 3},)])


async def test_f6_our_member_leaves_faust_no_ack_to_drop(tmp_path: Path) -> None:
    app = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)._app  # type: ignore[arg-type]
    (agent,) = app.agents.values()
    app.topics.add(agent.channel)  # type: ignore[arg-type]
    consumer = await acked(app)
    assert EVENTS.topic in app.topics._topic_name_index
    await consumer.commit()
    consumer._commit.assert_not_awaited()


async def test_f8_faust_takes_a_commit_that_failed_for_made(tmp_path: Path) -> None:
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    consumer: Any = app.consumer
    consumer._thread.thread_loop.close()  # of a thread that never starts
    at = TP("events", 0)
    consumer.assignment = lambda: {at}
    consumer._commit = AsyncMock(return_value=False)  # what the driver says when the group refused
    app.producer.flush = AsyncMock()  # type: ignore[method-assign]
    assert consumer._should_commit(at, 10)
    assert not await consumer._commit_offsets({at: 10})
    assert not consumer._should_commit(at, 10), "no longer: it would be tried again"


async def test_f16_what_faust_sends_soon_waits_in_memory_until_somebody_flushes(tmp_path: Path) -> None:
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    sent = app.topic("derived", value_serializer="raw").send_soon(value=b"x")
    await asyncio.sleep(0.1)
    assert app.producer.buffer.size == 1
    assert not sent.done(), "nobody was told that it is nowhere yet"
    sent.cancel()


FOUR = tuple(b"%d" % number for number in range(4))


async def fed(
    app: faust.App,
    agent: Callable[..., Any],
    seen: Sequence[object],
    until: int,
    values: Sequence[bytes] = FOUR,
) -> None:
    """Run an agent as Faust does, on a queue in memory, until it has seen so many of these messages."""
    channel = app.channel()
    running = app.agent(channel)(agent)
    app.flow_control.resume()
    await running.start()
    for value in values:
        await channel.send(value=value)
    async with asyncio.timeout(20):
        while len(seen) < until:  # noqa: ASYNC110  what agents append to tells nobody
            await asyncio.sleep(0.1)
    # of an agent that was restarted it ends by its cancellation only
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await running.stop()
    app.consumer._thread.thread_loop.close()  # type: ignore[attr-defined]  # of a thread that never starts


async def test_f3_faust_restarts_an_agent_behind_what_it_failed_on(tmp_path: Path) -> None:
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    called: list[bytes] = []

    async def sink(stream: Any) -> None:
        async for event in stream.noack().events():
            called.append(event.value)
            if event.value == b"1":
                raise RuntimeError("the store is down")

    await fed(app, sink, called, 4)
    assert called == [b"0", b"1", b"2", b"3"], "the one that failed comes no second time"
    assert not app.crashed


async def test_f3_our_member_fails_and_its_buffer_takes_nothing_behind_the_hole(tmp_path: Path) -> None:
    """The worker ends with its member (`Worker._watch_member`); until it has, Faust hands on what follows."""
    buffer = PartitionBuffer(0, max_rows=10, budget=Budget(10_000), recovered=True, next_offset=0)
    taken: list[tuple[int, Taken]] = []

    def take(_: int, record: Record) -> None:
        if record.offset == 1:
            raise RuntimeError("the store is down")
        taken.append((record.offset, buffer.take(record, 0.0)))

    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", Mock(take=take))
    member._failure = asyncio.get_running_loop().create_future()
    messages = [
        _Together.of([ConsumerRecord("events", 0, offset, 0, 0, None, value, None, -1, 1, ())]).value
        for offset, value in enumerate(FOUR)
    ]
    await fed(member._app, member._collect, taken, 3, messages)
    assert str(await asyncio.wait_for(member.failed(), 1)) == "the store is down"
    assert taken == [(0, Taken.KEPT), (2, Taken.GAP), (3, Taken.SKIPPED)]


def test_f1_no_agent_of_ours_uses_what_acks_by_itself() -> None:
    """`take`, `take_events`, bare iteration and `async with event` ack what failed."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "pipeline").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(
            r"\.(noack_)?take(_events|_with_timestamp)?\(\d|stream\.events\(\)|async with event\b", line
        )
        or re.search(r"async for \w+ in stream:", line)
        or "send_soon" in line
    ]
    assert found == []
    membership = (ROOT / "pipeline/process/membership.py").read_text()
    assert "stream.noack().events()" in membership
    assert ".ack(" not in membership


async def test_f12_a_rebalance_goes_through_without_opentracing(tmp_path: Path) -> None:
    """Every one failed once (issue 786): none of the requirements of Faust is it, and none of ours."""
    assert find_spec("opentracing") is None
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", AsyncMock())
    bare = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    for app in (bare, member._app):
        consumer = holding(app)
        consumer._thread.joined, consumer._thread._consumer = None, Mock()
        app.tables.on_rebalance = AsyncMock()  # would ask the broker
        app.on_rebalance_start()
        await consumer.on_partitions_revoked({EVENTS})
        await consumer.on_partitions_assigned({EVENTS}, 1)
        app.on_rebalance_end()
        assert not app.crashed, app.crash_reason
        app.tables.on_rebalance.assert_awaited_once()


async def test_f10_faust_writes_of_a_stall_into_its_log_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records wait, and nothing was committed for hours. Where Faust has no acks it does not even say so."""
    app = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare", web_enabled=False)
    consumer = holding(app)
    now, hours = time.monotonic(), 10_000.0
    fetched = Mock(highwater=1_000, position=5, timestamp=now * 1000)
    consumer._thread._consumer = client = Mock()
    client._fetcher._subscriptions.subscription.assignment.state_value = Mock(return_value=fetched)
    consumer._thread.time_started = now - hours
    app.monitor.stream_inbound_time[EVENTS] = now - hours
    told = []
    for topic in (app.topic(EVENTS.topic, acks=False), app.topic(EVENTS.topic)):
        app.topics.add(topic)
        await app.topics._update_indices()
        await consumer.verify_all_partitions_active()
        told.append(len([one for one in caplog.records if one.levelname == "ERROR"]))
    assert told == [0, 1]
    assert not app.crashed
    assert not app.should_stop


def test_f14_finding_9_faust_keeps_a_leader_topic_and_a_minutes_rebalance_unless_told(tmp_path: Path) -> None:
    bare = faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare").conf
    assert not bare.topic_disable_leader
    assert bare.topic_allow_declare
    assert bare.broker_rebalance_timeout == 60
    ours = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)._app.conf  # type: ignore[arg-type]
    assert ours.topic_disable_leader
    assert not ours.topic_allow_declare
    assert ours.broker_rebalance_timeout == 6


def test_f9_f10_f11_no_table_and_no_transaction_of_fausts(tmp_path: Path) -> None:
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    assert member._app.conf.processing_guarantee == ProcessingGuarantee.AT_LEAST_ONCE
    assert not member._app.tables
    for path in (ROOT / "pipeline").rglob("*.py"):
        assert not re.search(
            r"\.(Global|Set|SetGlobal)?Table\(|transactional[._]id|exactly_once", path.read_text()
        ), path
