"""The gateway on the embedded broker: delivery, commits, the circuit; and the partitioner of librdkafka."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from httpx import Response
from structlog.testing import capture_logs

from pipeline.errors import ConfigurationError
from pipeline.ingest import producer as producer_module
from pipeline.ingest.blocks import ARROW, Block, decode_block, partition_of
from pipeline.ingest.durability import Replicated, stored_in
from pipeline.ingest.producer import KafkaProducer
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.frozen import freeze
from tests.unit.gateway_world import World, event, make_world


@dataclass
class Broker:
    """The embedded broker as a process of this test; or a Kafka, at `kafka`, that outlives it."""

    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    kafka: str | None = None
    topic: str = Settings().topic

    @property
    def bootstrap(self) -> str:
        return self.kafka or f"127.0.0.1:{self.port}"

    def start(self, topic: str) -> None:
        self.process = subprocess.Popen(
            broker.command(self.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        admin = broker.wait_until_up(self.bootstrap, seconds=15)
        broker.ensure_topic(admin, topic, 12, replication=1, exactly=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if getattr(request, "param", "embedded") == "kafka":
        node = request.getfixturevalue("kafka_node")
        found = Broker(kafka=node.bootstrap, topic=f"gateway-{uuid.uuid4().hex[:8]}")
        broker.ensure_topic(broker.wait_until_up(node.bootstrap, seconds=15), found.topic, 12)
        yield found
        return
    running = Broker(broker.free_port())
    try:
        running.start(Settings().topic)
        yield running
    finally:
        running.stop()


@pytest.fixture
async def world(live: Broker, tmp_path: Path) -> AsyncIterator[World]:
    made = make_world(tmp_path, durability=Replicated(), topic=live.topic)
    made.connect(
        producer=KafkaProducer(made.gateway.settings, live.bootstrap, idempotent=live.kafka is not None)
    )
    yield made
    await made.gateway.close()


BOTH = pytest.mark.parametrize("live", ["embedded", "kafka"], indirect=True)


def records(live: Broker, count: int) -> list[Message]:
    consumer = Consumer(
        {
            "bootstrap.servers": live.bootstrap,
            "group.id": "look",
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(live.topic, number, 0) for number in range(12)])
    found: list[Message] = []
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            found.append(message)
    consumer.close()
    return found


@BOTH
def test_partitioner_places_events_where_librdkafka_does(live: Broker) -> None:
    placed: dict[bytes, int] = {}

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        assert error is None
        key, partition = message.key(), message.partition()
        assert isinstance(key, bytes)
        assert partition is not None
        placed[key] = partition

    producer = Producer({"bootstrap.servers": live.bootstrap, "partitioner": "murmur2_random"})
    towns = [f"4407{district:02d}{town:03d}" for district in (3, 4, 5, 81) for town in (1, 101)]
    villages = [f"{town}{village:03d}" for town in towns for village in range(1, 9)]
    for village in villages:
        producer.produce(live.topic, b"{}", key=village, on_delivery=on_delivery)
    producer.flush(10)
    assert placed == {village.encode(): partition_of(village + "001", 12) for village in villages}


@BOTH
async def test_blocks_arrive_with_headers_and_the_village_as_key(world: World, live: Broker) -> None:
    batch = [event(number) for number in range(50)]
    response = await world.post(batch)
    assert (response.status_code, response.json()["accepted"]) == (202, 50)
    villages = {partition_of(given["grid_code"], 12) for given in batch}
    found = await asyncio.to_thread(records, live, len(villages))
    assert {message.partition() for message in found} == villages
    for message in found:
        headers = dict(message.headers() or [])
        assert (headers["content-type"], headers["schema-version"]) == (ARROW.encode(), b"1")
        payload, key = message.value(), message.key()
        assert isinstance(payload, bytes)
        assert isinstance(key, bytes)
        frame = decode_block(payload)
        assert frame["grid_code"][0].startswith(key.decode())
        assert {partition_of(code, 12) for code in frame["grid_code"]} == {message.partition()}


@BOTH
async def test_embedded_answer_waits_for_the_workers_commit(world: World, live: Broker) -> None:
    settings = world.gateway.settings
    world.connect(durability=stored_in(settings, live.bootstrap))
    request = asyncio.create_task(world.post(event(1)))
    await asyncio.sleep(0.5)
    assert not request.done()
    worker = Consumer(
        {"bootstrap.servers": live.bootstrap, "group.id": settings.consumer_group, "log_level": 0}
    )
    home = partition_of(event(1)["grid_code"], 12)
    position = TopicPartition(settings.topic, home, 1)
    await asyncio.to_thread(lambda: worker.commit(offsets=[position], asynchronous=False))
    response = await asyncio.wait_for(request, 5)
    worker.close()
    assert (response.status_code, response.json()["durability"]) == (202, "stored")


async def test_dead_broker_gives_503_at_once_and_recovers_without_restart(world: World, live: Broker) -> None:
    assert (await world.post(event(1))).status_code == 202
    live.stop()
    for _ in range(3):
        started = time.monotonic()
        response = await world.post(event(2))
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert time.monotonic() - started < 1
    await asyncio.to_thread(live.start, world.gateway.settings.topic)
    deadline = time.monotonic() + 10
    while (response := await world.post(event(3))).status_code != 202:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert response.json()["accepted"] == 1


async def _until_taken(world: World, given: dict[str, Any]) -> Response:
    """As a sender does it, which is told to send again. The first block of an idempotent producer takes 0.5
    to 1.0 s (librdkafka asks for the producer's number every half second): all the patience there is."""
    deadline = time.monotonic() + 20
    while (response := await world.post(given)).status_code != 202:
        assert response.status_code == 503
        assert time.monotonic() < deadline, "it does not go on by itself"
        await asyncio.sleep(0.1)
    return response


@pytest.mark.parametrize("idempotent", [False, True])
async def test_halted_broker_gives_503_after_the_timeout_and_202_once_it_goes_on(
    live: Broker, tmp_path: Path, idempotent: bool
) -> None:
    """What an idempotent producer has in flight times out, it begins a new epoch, and this broker refuses
    that for ever: another producer must take its place."""
    world = make_world(tmp_path, durability_timeout_seconds=1.0)
    producer = KafkaProducer(world.gateway.settings, live.bootstrap, idempotent=idempotent)
    world.connect(producer=producer)
    await _until_taken(world, event(1))
    producer._told_at = float("-inf")  # as if nothing had been told of a first block that came late
    assert live.process is not None
    freeze(live.process.pid)
    try:
        started = time.monotonic()
        with capture_logs() as logs:
            response = await world.post(event(2))
        assert response.status_code == 503
        assert response.json()["errors"][0]["retryable"]
        assert time.monotonic() - started < 4
        told = [line for line in logs if line["event"] == "blocks not written"]
        assert [sum(line["reasons"].values()) for line in told] == [1], "an operator sees why"
    finally:
        os.kill(live.process.pid, signal.SIGCONT)
    assert (await _until_taken(world, event(2))).json()["accepted"] == 1
    await world.gateway.close()


async def _until_available(world: World, seconds: float = 20) -> None:
    """Without a request: a proxy sends none to a gateway that is not ready."""
    deadline = time.monotonic() + seconds
    while not world.gateway.available():
        assert time.monotonic() < deadline, "the circuit does not close by itself"
        await asyncio.sleep(0.05)


async def _refused_at_once(world: World) -> None:
    for number in range(3):
        started = time.monotonic()
        response = await world.post(event(10 + number))
        assert time.monotonic() - started < 0.5, "it waits for a delivery that does not come"
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_circuit_opens_after_three_failures_on_a_halted_broker_and_closes_once_it_goes_on(
    live: Broker, tmp_path: Path
) -> None:
    world = make_world(tmp_path, durability_timeout_seconds=1.0)
    world.connect(producer=KafkaProducer(world.gateway.settings, live.bootstrap, idempotent=False))
    await _until_taken(world, event(1))
    assert live.process is not None
    freeze(live.process.pid)
    try:
        for number in range(3):
            assert (await world.post(event(2 + number))).status_code == 503
        assert not world.gateway.available()
        await _refused_at_once(world)
        await asyncio.sleep(2)
        assert not world.gateway.available()
    finally:
        os.kill(live.process.pid, signal.SIGCONT)
    await _until_available(world)
    assert (await world.post(event(5))).status_code == 202
    await world.gateway.close()


@pytest.mark.parametrize("live", ["kafka"], indirect=True)
async def test_a_gateway_follows_a_topic_that_gets_more_partitions(
    live: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_module, "PARTITIONS_SECONDS", 0.2)
    world = make_world(tmp_path, topic=live.topic, kafka=live.bootstrap)
    producer = KafkaProducer(world.gateway.settings, live.bootstrap, idempotent=True)
    world.connect(producer=producer)
    assert (await world.post(event(1))).status_code == 202
    assert await producer.partitions() == 12
    admin = broker.wait_until_up(live.bootstrap, seconds=15)
    [grown] = admin.create_partitions([NewPartitions(live.topic, 24)]).values()
    await asyncio.to_thread(grown.result, 10)
    deadline = time.monotonic() + 10
    while await producer.partitions() != 24:
        assert time.monotonic() < deadline, "it goes on with the old number"
        await asyncio.sleep(0.1)
    batch = [event(number) for number in range(200)]
    homes = {partition_of(given["grid_code"], 24) for given in batch}
    assert max(homes) >= 12
    response = await world.post(batch)
    assert (response.status_code, response.json()["accepted"]) == (202, 200)
    await world.gateway.close()


async def test_a_topic_that_clients_made_first_is_made_anew_and_nothing_enters_it(
    live: Broker, tmp_path: Path
) -> None:
    """After a roll the gateways look for their topic before it was created, and so make it: 4 partitions."""
    topic = "sought-first"
    world = make_world(tmp_path, topic=topic)
    world.connect(producer=KafkaProducer(world.gateway.settings, live.bootstrap, idempotent=False))
    admin = broker.wait_until_up(live.bootstrap, seconds=15)
    assert (await world.post(event(1))).status_code == 503
    assert len(admin.list_topics(timeout=5).topics[topic].partitions) == 4
    assert (await world.post(event(1))).status_code == 503
    assert broker.ensure_topic(admin, topic, 12) == 4, "of a Kafka, it is for its operator to say"
    assert broker.ensure_topic(admin, topic, 12, exactly=True) == 12
    assert (await world.post(event(1))).status_code == 202
    await world.gateway.close()


@BOTH
def test_two_may_create_the_topic_at_once(live: Broker) -> None:
    """Who comes second is told that it is there, which is what it wanted."""
    admins = [broker.wait_until_up(live.bootstrap, seconds=15) for _ in range(4)]
    for _ in range(5):
        topic = f"at-once-{uuid.uuid4().hex[:8]}"
        together = threading.Barrier(len(admins))

        def create(admin: AdminClient, topic: str = topic, together: threading.Barrier = together) -> int:
            together.wait()
            return broker.ensure_topic(admin, topic, 12, exactly=True)

        with ThreadPoolExecutor(len(admins)) as pool:
            assert list(pool.map(create, admins)) == [12] * len(admins)


async def test_a_topic_with_fewer_partitions_is_looked_at_again(world: World, live: Broker) -> None:
    """librdkafka refuses a partition that is not there at once, not in a delivery report."""
    assert (await world.post(event(1))).status_code == 202
    producer = world.gateway.producer
    assert isinstance(producer, KafkaProducer)
    producer._partitions = 4_000
    await producer.send([Block(3_999, np.arange(1), b"", b"")])
    assert await producer.partitions() == 12


class Spent:
    """A librdkafka producer after a fatal error: `poll` raises it, and no callback is told (2.16)."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.polled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def poll(self, seconds: float) -> int:
        if not self.polled:
            self.polled = True
            raise KafkaException(
                KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "as a test has it", True)
            )
        return self._producer.poll(seconds)

    def produce(self, *_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL, "as a test has it", True))


@pytest.mark.parametrize("refused", [False, True])
async def test_a_fatal_error_costs_a_producer_and_not_the_gateway(
    live: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """refused : the next producer cannot be made at first, as when its certificate cannot be read."""
    # a new idempotent producer that writes nothing in its first second would rightly give idempotence up
    world = make_world(tmp_path, durability_timeout_seconds=5.0)
    producer = KafkaProducer(world.gateway.settings, live.bootstrap, idempotent=True)
    world.connect(producer=producer)
    await _until_taken(world, event(1))
    connect = producer._connect
    refusals: list[float] = []

    def connect_later() -> Producer:
        if refused and not refusals:
            refusals.append(time.monotonic())
            raise ConfigurationError("no such file")
        return connect()

    monkeypatch.setattr(producer, "_connect", connect_later)
    producer._producer = Spent(producer._producer)  # type: ignore[assignment]
    await _until_taken(world, event(2))
    assert len(refusals) == refused
    assert producer._thread.is_alive()
    assert producer._idempotent, "a broker that took blocks takes them again"
    await world.gateway.close()
