"""When the gateway's circuit opens and closes, report by report: no broker, reports as a test gives them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.errors import UnavailableError
from pipeline.ingest import producer as producer_module
from pipeline.ingest.blocks import Block
from pipeline.ingest.producer import Delivery, KafkaProducer, Unwritten, Written
from pipeline.settings import Settings

Report = Callable[[KafkaError | None, Any], None]
TIMED_OUT, FEW = KafkaError._MSG_TIMED_OUT, KafkaError.NOT_ENOUGH_REPLICAS
MESSAGE = SimpleNamespace(offset=lambda: 7)


class Scripted:
    """Stands for librdkafka's producer. handed : partition and report of what waits, oldest first."""

    def __init__(self, _: dict[str, Any]) -> None:
        self.handed: deque[tuple[int, Report]] = deque()
        self.purged: deque[Report] = deque()
        self.due: deque[tuple[Report, int | None]] = deque()
        self.answers = True

    def poll(self, seconds: float) -> int:
        time.sleep(min(seconds, 0.005))
        while self.purged:
            self.purged.popleft()(KafkaError(KafkaError._PURGE_QUEUE), MESSAGE)
        while self.due:
            report, code = self.due.popleft()
            report(None if code is None else KafkaError(code), MESSAGE)
        return 0

    def produce(self, _: str, *, partition: int, on_delivery: Report, **__: Any) -> None:
        self.handed.append((partition, on_delivery))

    def purge(self, **_: Any) -> None:
        while self.handed:
            self.purged.append(self.handed.popleft()[1])

    def list_topics(self, topic: str, timeout: float) -> Any:
        if not self.answers:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return SimpleNamespace(
            topics={topic: SimpleNamespace(partitions=dict.fromkeys(range(12)), error=None)}
        )

    def flush(self, _: float) -> int:
        return 0

    def report(self, code: int | None, partition: int | None = None) -> None:
        """The oldest that waits, of `partition` if given, ends so."""
        at = next(at for at, (place, _) in enumerate(self.handed) if partition in (None, place))
        report = self.handed[at][1]
        del self.handed[at]
        self.due.append((report, code))


@pytest.fixture
async def circuit(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[KafkaProducer, Scripted]]:
    monkeypatch.setattr(producer_module, "Producer", Scripted)
    monkeypatch.setattr(producer_module, "PROBE_SECONDS", 0.05)
    producer = KafkaProducer(Settings(), "nowhere:1", idempotent=False)
    assert await producer.partitions() == 12
    scripted = producer._producer
    assert isinstance(scripted, Scripted)
    yield producer, scripted
    await producer.close()


def block(partition: int) -> Block:
    return Block(partition, np.arange(1), b"", b"")


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def sent(producer: KafkaProducer, scripted: Scripted, partition: int, code: int | None) -> Delivery:
    sending = asyncio.create_task(producer.send([block(partition)]))
    await until(lambda: any(place == partition for place, _ in scripted.handed))
    scripted.report(code, partition)
    return (await sending)[0]


@pytest.mark.parametrize("code", [TIMED_OUT, FEW])
async def test_three_failures_in_a_row_open_it_and_a_delivery_closes_it(
    circuit: tuple[KafkaProducer, Scripted], code: int
) -> None:
    producer, scripted = circuit
    for _ in range(2):
        assert isinstance(await sent(producer, scripted, 1, code), Unwritten)
    assert isinstance(await sent(producer, scripted, 1, None), Written)
    for _ in range(2):
        await sent(producer, scripted, 1, code)
    assert producer.available(), "a delivery came between"
    await sent(producer, scripted, 4, code)
    assert not producer.available()
    with pytest.raises(UnavailableError):
        await producer.send([block(0)])
    await until(lambda: len(scripted.handed) > 0)
    await asyncio.sleep(0.3)
    assert [partition for partition, _ in scripted.handed] == [4], (
        "one probe at a time, the block that failed"
    )
    assert not producer.available(), "answers to questions are not enough"
    scripted.report(code)
    await until(lambda: len(scripted.handed) > 0)
    assert not producer.available()
    scripted.report(None)
    await until(producer.available)
    assert isinstance(await sent(producer, scripted, 1, None), Written)
    await asyncio.sleep(0.2)
    assert not scripted.handed, "a probe goes on"


async def test_whoever_is_told_of_the_last_failure_finds_the_circuit_open(
    circuit: tuple[KafkaProducer, Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, scripted = circuit
    count = producer._count_failure

    def slowly(*given: Any) -> None:
        time.sleep(0.05)
        count(*given)

    monkeypatch.setattr(producer, "_count_failure", slowly)
    for _ in range(3):
        assert producer.available()
        assert await sent(producer, scripted, 1, TIMED_OUT) == Unwritten(1, "_MSG_TIMED_OUT")
    assert not producer.available()


async def test_one_partition_that_takes_nothing_leaves_the_others_alone(
    circuit: tuple[KafkaProducer, Scripted],
) -> None:
    """librdkafka lets what waits too long end in one go: a hundred failures in a row, while others pass."""
    producer, scripted = circuit
    stuck = [asyncio.create_task(producer.send([block(3)])) for _ in range(100)]
    await until(lambda: len(scripted.handed) == 100)
    assert isinstance(await sent(producer, scripted, 1, None), Written)
    for _ in stuck:
        scripted.report(TIMED_OUT, 3)
    assert all(isinstance(found, Unwritten) for [found] in await asyncio.gather(*stuck))
    assert producer.available()


async def test_what_waits_when_it_opens_ends_at_once(circuit: tuple[KafkaProducer, Scripted]) -> None:
    producer, scripted = circuit
    waiting = [asyncio.create_task(producer.send([block(number)])) for number in range(6)]
    await until(lambda: len(scripted.handed) == 6)
    for number in range(3):
        scripted.report(TIMED_OUT, number)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*waiting)
    assert all(isinstance(delivery, Unwritten) for [delivery] in found)
    assert not producer.available()


async def test_a_probe_that_is_at_fault_itself_is_given_up(circuit: tuple[KafkaProducer, Scripted]) -> None:
    producer, scripted = circuit
    for _ in range(3):
        await sent(producer, scripted, 2, TIMED_OUT)
    await until(lambda: len(scripted.handed) > 0)
    scripted.report(KafkaError.MSG_SIZE_TOO_LARGE)
    await until(producer.available)


async def test_silence_after_failures_does_not_make_an_answer_enough(
    circuit: tuple[KafkaProducer, Scripted],
) -> None:
    producer, scripted = circuit
    for _ in range(3):
        await sent(producer, scripted, 2, TIMED_OUT)
    scripted.answers = False
    await until(lambda: not scripted.handed)  # each look without an answer purges
    await asyncio.sleep(0.2)
    assert not scripted.handed, "no probe while nobody answers"
    scripted.answers = True
    await until(lambda: len(scripted.handed) > 0)
    assert not producer.available()
    scripted.report(None)
    await until(producer.available)


async def test_silence_alone_ends_with_an_answer(circuit: tuple[KafkaProducer, Scripted]) -> None:
    producer, scripted = circuit
    producer._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    await until(producer.available)
    assert not scripted.handed


@pytest.mark.parametrize("idempotent", [True, False])
async def test_librdkafka_is_told_to_wait_for_all_copies_and_to_write_none_twice(
    monkeypatch: pytest.MonkeyPatch, idempotent: bool
) -> None:
    """What librdkafka itself is given, not what we believe it has: a leader's word alone is lost with it."""
    given: list[dict[str, Any]] = []

    class Seen(Producer):
        def __init__(self, config: dict[str, Any]) -> None:
            given.append(config)
            super().__init__(config)

    monkeypatch.setattr(producer_module, "Producer", Seen)
    producer = KafkaProducer(Settings(), "127.0.0.1:1", idempotent=idempotent)
    await producer.close()
    assert [(told["acks"], told["enable.idempotence"]) for told in given] == [("all", idempotent)]
