"""Faust commits past what an agent failed on. Our worker acks nothing through Faust; its crash tests show it.

The raw behaviour, on both brokers: messages lost = committed and never handed to the store.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import faust
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition

from pipeline.process.membership import Membership
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.kafka import embedded_broker

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=["embedded", "kafka"])
def bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "kafka":
        yield request.getfixturevalue("kafka_node").bootstrap
        return
    with embedded_broker() as address:
        yield address


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["take", "noack_take", "plain", "with", "noack"])
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
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0)])
    [answer] = admin.list_consumer_group_offsets([asked]).values()
    committed = answer.result(10).topic_partitions[0].offset
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
