"""What the durability of an answer rests on: three copies, and a producer that repeats nothing."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import ConfigResource, ResourceType
from structlog.testing import capture_logs

from infra.kafka.cluster import Cluster
from pipeline.ingest.durability import Replicated
from pipeline.ingest.producer import KafkaProducer
from pipeline.runtime import broker, topic_settings
from pipeline.settings import Settings
from tests.unit.gateway_world import event, make_world

PARTITIONS = 12
EVENTS = 200

Answer = TypeVar("Answer")


async def test_kafka_keeps_three_copies_and_takes_an_idempotent_producer(
    kafka_three: Cluster, tmp_path: Path
) -> None:
    """On a broker that takes none the gateway goes on without, with no more than a warning."""
    topic = f"copies-{uuid.uuid4().hex[:8]}"
    admin = broker.wait_until_up(kafka_three.bootstrap, seconds=20)
    wanted = Settings(topic=topic)
    assert topic_settings.ensure_topic(admin, wanted) == PARTITIONS
    with capture_logs() as logs:
        topic_settings.check_topic(admin, wanted)
    assert logs == [], "what the defaults create is what the defaults promise"
    told = _once_known(lambda: admin.describe_topics(TopicCollection([topic]))[topic])
    assert [len(partition.replicas) for partition in told.partitions] == [3] * PARTITIONS
    asked = ConfigResource(ResourceType.TOPIC, topic)
    settings = _once_known(lambda: admin.describe_configs([asked])[asked])
    assert settings["min.insync.replicas"].value == "2"
    assert settings["unclean.leader.election.enable"].value == "false"
    assert settings["retention.ms"].value == "604800000"

    world = make_world(tmp_path, durability=Replicated(), topic=topic)
    producer = KafkaProducer(world.gateway.settings, kafka_three.bootstrap, idempotent=True)
    world.connect(producer=producer)
    first = producer._producer
    answer = await world.post([event(number) for number in range(EVENTS)])
    assert (answer.status_code, answer.json()["durability"]) == (202, "replicated")
    assert producer._idempotent, "it went on without"
    assert producer._producer is first
    await world.gateway.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_two_of_three_nodes_down_open_the_circuit_and_a_delivery_alone_closes_it(
    kafka_three: Cluster, tmp_path: Path
) -> None:
    """The node that is left answers every question all the while, and confirms nothing."""
    settings = Settings(topic=f"few-{uuid.uuid4().hex[:8]}")
    admin = broker.wait_until_up(kafka_three.bootstrap, seconds=20)
    topic_settings.ensure_topic(admin, settings)
    world = make_world(
        tmp_path, durability=Replicated(), topic=settings.topic, durability_timeout_seconds=3.0
    )
    producer = KafkaProducer(world.gateway.settings, kafka_three.bootstrap, idempotent=True)
    world.connect(producer=producer)
    assert (await world.post([event(number) for number in range(EVENTS)])).status_code == 202
    try:
        for number in (2, 3):
            await asyncio.to_thread(kafka_three.kill, number)
        sent = 0
        while sent < 3 or world.gateway.available():  # a leader that was elected meanwhile may close it once
            assert sent < 10, "the circuit does not open"
            assert (await world.post(event(EVENTS + sent))).status_code == 503
            sent += 1
        until = time.monotonic() + 6  # several looks, and a probe that times out
        while time.monotonic() < until:
            began = time.monotonic()
            response = await world.post(event(EVENTS + 10))
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert time.monotonic() - began < 1.0, "it waits for a delivery that does not come"
            await asyncio.sleep(0.1)
        assert await asyncio.to_thread(_asked, producer) == PARTITIONS, "questions are answered"
    finally:
        for number in (2, 3):
            kafka_three._launch(kafka_three.members[number - 1])
        await asyncio.to_thread(kafka_three.wait_ready)
    deadline = time.monotonic() + 60
    while not world.gateway.available():
        assert time.monotonic() < deadline, "the circuit does not close by itself"
        await asyncio.sleep(0.1)
    assert (await world.post(event(EVENTS + 20))).status_code == 202
    await world.gateway.close()


def _asked(producer: KafkaProducer) -> int:
    """Each question may meet a node that is down, and wait for it in vain."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return producer._ask_partitions()
        except KafkaException:
            assert time.monotonic() < deadline, "the node that is left answers nothing"


def _once_known(ask: Callable[[], Future[Answer]]) -> Answer:
    """Answer of whichever node is asked: it may not have heard of a topic that another one has just made."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask().result(20)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
