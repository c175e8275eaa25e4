"""What the embedded broker and the clients do when asked plainly, and what we do about it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import UnknownError
from confluent_kafka import KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.ingest.producer import KafkaProducer
from pipeline.process.topic import describe_topic
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.unit.gateway_world import event, make_world

TOPIC = Settings().topic


class Tansu:
    """An embedded broker that the test kills."""

    def __init__(self) -> None:
        self.port = broker.free_port()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            broker.command(self.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.admin: AdminClient = broker.wait_until_up(self.bootstrap, seconds=20)
        broker.ensure_topic(self.admin, TOPIC, 2)

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def tansu() -> Iterator[Tansu]:
    running = Tansu()
    yield running
    running.kill()


def produce(tansu: Tansu, *values: bytes, **options: object) -> list[int]:
    offsets: list[int] = []

    def told(error: KafkaError | None, message: object) -> None:
        assert error is None, error
        offsets.append(message.offset())  # type: ignore[attr-defined]

    producer = Producer({"bootstrap.servers": tansu.bootstrap, "log_level": 0, **options})
    for value in values:
        producer.produce(TOPIC, value, partition=0, on_delivery=told)
    assert producer.flush(10) == 0
    return offsets


def test_t1_a_killed_embedded_broker_begins_at_offset_0_under_a_new_id(tansu: Tansu) -> None:
    assert produce(tansu, b"a", b"b") == [0, 1]
    before = describe_topic(tansu.bootstrap, TOPIC)
    tansu.kill()
    tansu.start()
    assert produce(tansu, b"c") == [0]
    after = describe_topic(tansu.bootstrap, TOPIC)
    assert before.differs(after, {}) is not None, "the log is a new one, and we must see it"


async def test_t2_aiokafka_has_no_idempotent_producer_there_and_librdkafka_has(
    tansu: Tansu, tmp_path: Path
) -> None:
    bare = AIOKafkaProducer(bootstrap_servers=tansu.bootstrap, enable_idempotence=True)
    with pytest.raises(UnknownError):
        await asyncio.wait_for(bare.start(), 20)
    await bare.stop()

    world = make_world(tmp_path)
    world.connect(producer=KafkaProducer(world.gateway.settings, tansu.bootstrap, idempotent=True))
    assert (await world.post(event(1))).status_code == 202
    assert world.gateway.producer._idempotent, "it went on without"
    await world.gateway.close()


def test_t3_the_embedded_broker_takes_ten_megabytes_in_one_record(tansu: Tansu) -> None:
    assert produce(tansu, b"x" * 10_000_000, **{"message.max.bytes": 20_000_000}) == [0]
    assert Settings().max_block_bytes < 1_000_000, "the limit is ours to keep"


def test_t6_the_embedded_brokers_latest_offset_is_too_low(tansu: Tansu) -> None:
    produce(tansu, *[b"x"] * 50, **{"linger.ms": 200})
    [answer] = tansu.admin.list_offsets({TopicPartition(TOPIC, 0): OffsetSpec.latest()}).values()
    assert answer.result(5).offset < 50
    assert describe_topic(tansu.bootstrap, TOPIC).end_offsets == {}, "we compare no ends that it tells"


def test_t7_deleting_the_topic_frees_and_delete_records_does_not_work(tansu: Tansu) -> None:
    produce(tansu, b"a", b"b")
    [answer] = tansu.admin.delete_records([TopicPartition(TOPIC, 0, 1)], request_timeout=3).values()
    with pytest.raises(Exception):  # noqa: B017  it closes the connection: any error will do
        answer.result(5)


def test_t8_the_embedded_broker_listens_everywhere_unless_told() -> None:
    """Asked for its help only: nothing here listens on anything but loopback."""
    asked = [str(broker.binary()), "broker", "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    assert "[default: tcp://0.0.0.0:9092]" in told


def test_t8_our_broker_listens_on_loopback_only(tansu: Tansu) -> None:
    import psutil

    listening = {
        one.laddr.ip
        for one in psutil.Process(tansu.process.pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_f13_faust_and_aiokafka_are_pinned_together() -> None:
    from importlib.metadata import version

    assert (version("faust-streaming"), version("aiokafka")) == ("0.15.3", "0.14.0")


def test_f15_fausts_web_server_is_on_by_default_and_off_here(tmp_path: Path) -> None:
    import faust

    from pipeline.process.membership import Membership

    assert faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare").conf.web_enabled
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    assert not member._app.conf.web_enabled
    assert member._app.conf.broker_commit_interval >= 3600
    assert not member._app.conf.stream_wait_empty
    assert member._app.conf.topic_disable_leader
