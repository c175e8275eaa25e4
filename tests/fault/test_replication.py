"""What the durability of an answer rests on: three copies, and a producer that repeats nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import ConfigResource, ResourceType

from infra.kafka.cluster import Cluster
from pipeline.ingest.durability import Replicated
from pipeline.ingest.producer import KafkaProducer
from pipeline.runtime import broker
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
    broker.ensure_topic(admin, topic, PARTITIONS)
    told = _once_known(lambda: admin.describe_topics(TopicCollection([topic]))[topic])
    assert [len(partition.replicas) for partition in told.partitions] == [3] * PARTITIONS
    asked = ConfigResource(ResourceType.TOPIC, topic)
    settings = _once_known(lambda: admin.describe_configs([asked])[asked])
    assert settings["min.insync.replicas"].value == "2"
    assert settings["unclean.leader.election.enable"].value == "false"

    world = make_world(tmp_path, durability=Replicated(), topic=topic)
    producer = KafkaProducer(world.gateway.settings, kafka_three.bootstrap, idempotent=True)
    world.connect(producer=producer)
    first = producer._producer
    answer = await world.post([event(number) for number in range(EVENTS)])
    assert (answer.status_code, answer.json()["durability"]) == (202, "replicated")
    assert producer._idempotent, "it went on without"
    assert producer._producer is first
    await world.gateway.close()


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
