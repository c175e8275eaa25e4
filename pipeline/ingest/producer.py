"""Blocks to the topic: a delivery report for each, and a circuit that opens when no broker answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.ingest.blocks import HEADERS, Block
from pipeline.kafka_access import librdkafka_options
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: Seconds between looks at a broker that did not answer; the circuit closes with the first answer.
PROBE_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.1
#: Passing errors of a connection are logged at most this often.
_WARN_SECONDS: Final = 10.0
#: What a broker answers to a producer whose id or epoch it does not take any more. librdkafka begins a new
#: epoch when messages time out on their way; the embedded broker refuses that epoch, for ever.
_SPENT: Final = frozenset(
    {KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError._FENCED, KafkaError._FATAL}
)
#: A producer lives this long before another takes its place: a broker may refuse that one, too.
_RENEWAL_SECONDS: Final = 1.0
#: librdkafka counts the record with its headers.
_RECORD_OVERHEAD_BYTES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Written:
    """A block that the broker has confirmed."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A block that was not confirmed; sending its events again is safe."""

    partition: int
    reason: str


Delivery = Written | Unwritten


class BlockProducer(Protocol):
    """Where the gateway sends blocks."""

    async def partitions(self) -> int:
        """Number of partitions of the topic. Raises UnavailableError."""

    async def send(self, blocks: Sequence[Block]) -> list[Delivery]:
        """The broker's answer for each block, in order. Raises UnavailableError if none answers at all."""

    def available(self) -> bool:
        """Whether a request is worth taking now."""

    async def close(self) -> None:
        """Wait briefly for what is under way, then stop."""


class _Flight:
    """The blocks of one request on their way; done when each has its report or the circuit opens."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.deliveries: list[Delivery] = [
            Unwritten(block.partition, "no delivery report") for block in blocks
        ]
        self._open = len(blocks)
        self._lock = threading.Lock()

    def report(self, at: int, delivery: Delivery) -> None:
        with self._lock:
            self.deliveries[at] = delivery
            self._open -= 1
            last = self._open == 0
        if last:
            self.land()

    def land(self) -> None:
        self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class KafkaProducer:
    """librdkafka behind `BlockProducer`. acks=all; idempotent where the broker can.

    Delivery reports arrive on a thread of its own, which lives until `close`. When no broker answers, the
    circuit opens: what waits ends as unwritten, new requests fail at once, and a probe each second closes it
    again. A producer that the broker takes nothing from any more is replaced: what it had on its way may then
    be written twice, and deduplication by event id absorbs it.
    """

    def __init__(self, settings: Settings, bootstrap: str, *, idempotent: bool) -> None:
        self._topic = settings.topic
        self._timeout = settings.durability_timeout_seconds
        self._partitions: int | None = None
        #: Of the embedded broker's topic, which is not ready with another number (`broker.ensure_topic`).
        self._wanted = settings.partitions if settings.kafka is None else None
        self._open_since: float | None = None
        self._warned_at = self._told_at = float("-inf")
        self._flights: set[_Flight] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._config: dict[str, str | int | bool | Callable[[KafkaError], None]] = {
            "bootstrap.servers": bootstrap,
            "client.id": "gridpipe-gateway",
            "acks": "all",
            "linger.ms": 1,
            # Blocks are compressed Arrow already.
            "compression.type": "none",
            "partitioner": "murmur2_random",
            "message.max.bytes": settings.max_block_bytes + _RECORD_OVERHEAD_BYTES,
            "queue.buffering.max.kbytes": max(settings.in_flight_limit_bytes // 1024, 1024),
            "message.timeout.ms": int(self._timeout * 1000),
            "socket.timeout.ms": min(int(self._timeout * 1000), 10_000),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "socket.nagle.disable": True,
            # librdkafka repeats a refused connection many times a second; `_on_error` says it once.
            "log_level": 0,
            "error_cb": self._on_error,
            **librdkafka_options(settings),
        }
        self._idempotent = idempotent
        self._renewed_at = float("-inf")
        self._generation = 0
        self._wrote = False
        #: Why the producer must be replaced, which the thread of delivery reports does.
        self._spent: KafkaError | None = None
        self._producer = self._connect()
        self._thread = threading.Thread(target=self._run, name="delivery-reports", daemon=True)
        self._thread.start()

    def _connect(self) -> Producer:
        try:
            return Producer({**self._config, "enable.idempotence": self._idempotent})
        except KafkaException as error:
            raise ConfigurationError(f"kafka: {error.args[0].str()}") from error

    # --- BlockProducer

    def available(self) -> bool:
        return self._open_since is None

    async def partitions(self) -> int:
        if self._partitions is None:
            if not self.available():
                raise UnavailableError("kafka does not answer")
            await asyncio.to_thread(self._look)
        if self._partitions is None:
            raise UnavailableError(f"kafka does not know the topic {self._topic}; run: gridpipe migrate")
        return self._partitions

    async def send(self, blocks: Sequence[Block]) -> list[Delivery]:
        if not self.available():
            raise UnavailableError("kafka does not answer")
        flight = _Flight(blocks)
        with self._lock:
            self._flights.add(flight)
        try:
            for at, block in enumerate(blocks):
                self._produce(flight, at, block)
            async with asyncio.timeout(self._timeout + 1):
                await flight.done
        except TimeoutError:
            log.warning("no delivery report in time", topic=self._topic, blocks=len(blocks))
        finally:
            with self._lock:
                self._flights.discard(flight)
        self._tell_unwritten(flight.deliveries)
        return list(flight.deliveries)

    def _tell_unwritten(self, deliveries: Sequence[Delivery]) -> None:
        """Why blocks were refused: their senders are told only that they were."""
        reasons = [each.reason for each in deliveries if isinstance(each, Unwritten)]
        if reasons and time.monotonic() - self._told_at > _WARN_SECONDS:
            self._told_at = time.monotonic()
            log.warning("blocks not written", topic=self._topic, reasons=dict(Counter(reasons)))

    async def close(self) -> None:
        with contextlib.suppress(KafkaException):  # one that is spent has nothing to flush
            await asyncio.to_thread(self._producer.flush, 5.0)
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 5.0)

    # --- the thread of delivery reports

    def _produce(self, flight: _Flight, at: int, block: Block) -> None:
        generation = self._generation  # not the producer, which would be held by what it holds itself

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self._wrote = True
                offset = message.offset()
                flight.report(at, Written(block.partition, -1 if offset is None else offset))
            else:
                flight.report(at, Unwritten(block.partition, error.name()))
                self._look_at(error, generation)

        try:
            self._producer.produce(
                self._topic,
                value=block.payload,
                key=block.key,
                partition=block.partition,
                on_delivery=on_delivery,
                headers=dict(HEADERS),
            )
        except BufferError:
            flight.report(at, Unwritten(block.partition, "queue full"))
        except KafkaException as error:
            flight.report(at, Unwritten(block.partition, error.args[0].name()))
            self._look_at(error.args[0], generation)

    def _look_at(self, error: KafkaError, generation: int) -> None:
        """Note that the topic was replaced by one with other partitions, or that the producer of this
        generation is spent. It is not replaced here, within one of its own calls; what one that was replaced
        meanwhile says is nothing against the next."""
        if error.code() in (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC):
            self._partitions = None
        if generation == self._generation and (error.fatal() or error.code() in _SPENT):
            self._spent = error

    def _run(self) -> None:
        """Reports of deliveries, until the end: whatever is raised, nobody else would take them."""
        probed_at = 0.0
        while not self._stopping.is_set():
            try:
                self._producer.poll(_POLL_SECONDS)
                if self._spent is not None:
                    self._renew(self._spent)
                if self._open_since is not None and time.monotonic() - probed_at >= PROBE_SECONDS:
                    probed_at = time.monotonic()
                    self._look()
            except KafkaException as error:  # a fatal error is raised here, and told to no callback
                self._spent = error.args[0]
                self._stopping.wait(_POLL_SECONDS)
            except Exception:
                log.exception("delivery_reports_failed")
                self._stopping.wait(_POLL_SECONDS)

    def _look(self) -> None:
        """Ask for the topic; an answer closes the circuit."""
        try:
            topic = self._producer.list_topics(self._topic, timeout=_CALL_SECONDS).topics.get(self._topic)
        except KafkaException:
            self._open_circuit("no answer")
            return
        found = len(topic.partitions) if topic is not None and topic.error is None else 0
        self._partitions = found if found and found == (self._wanted or found) else None
        since, self._open_since = self._open_since, None  # several threads look
        if since is not None:
            log.info("kafka answers again", after_seconds=round(time.monotonic() - since, 1))

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._open_circuit(error.name())
        elif error.fatal():
            self._spent = error
        elif self._open_since is None and time.monotonic() - self._warned_at > _WARN_SECONDS:
            self._warned_at = time.monotonic()
            log.warning("kafka", error=error.name(), detail=error.str())

    def _renew(self, spent: KafkaError) -> None:
        """Another producer, and so another producer id. What the last one had on its way is unwritten."""
        now = time.monotonic()
        if now - self._renewed_at < _RENEWAL_SECONDS:
            return
        self._renewed_at = now
        log.warning(
            "kafka takes nothing from this producer any more; going on with a new one",
            error=spent.name(),
            idempotent=self._idempotent and self._wrote,
        )
        if not self._wrote:
            # Some brokers take no idempotent producer. A retry may then repeat a block; deduplication by
            # event id absorbs it.
            self._idempotent = False
        fresh = self._connect()  # where it raises, this one stays spent, and is tried again
        old, self._producer = self._producer, fresh
        self._generation += 1
        self._spent, self._wrote = None, False
        self._land_all()
        with contextlib.suppress(KafkaException):
            # its callbacks hold the blocks, and are let go of once they were called
            old.purge(in_queue=True, in_flight=True, blocking=False)
            old.poll(_POLL_SECONDS)

    def _open_circuit(self, reason: str) -> None:
        if self._open_since is None:
            log.warning("kafka does not answer; requests get 503 until it does", reason=reason)
            self._open_since = time.monotonic()
        self._land_all()
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)

    def _land_all(self) -> None:
        with self._lock:
            flights = list(self._flights)
        for flight in flights:
            flight.land()
