"""Faust commits past what an agent failed on. Our worker acks nothing through Faust; its crash tests show it.

The raw behaviour, on both brokers: messages lost = committed and never handed to the store.
"""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition

from pipeline.runtime import broker
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
