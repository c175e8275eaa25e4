"""Blocks to the topic: a delivery report for each, and a circuit that opens when none can be delivered."""

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

#: Seconds between looks at a broker that did not answer, and between blocks that show whether it takes any.
PROBE_SECONDS: Final = 1.0
#: Blocks in a row that were not delivered, and nothing else was meanwhile, after which the circuit opens.
FAILURES: Final = 3
#: Seconds between looks at the number of partitions, which an operator may raise.
PARTITIONS_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.1
#: Passing errors of a connection are logged at most this often.
_WARN_SECONDS: Final = 10.0
#: What a broker answers to a producer whose id or epoch it does not take any more. librdkafka begins a new
#: epoch when messages time out on their way; the embedded broker refuses that epoch, for ever.
_SPENT: Final = frozenset(
    {KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError._FENCED, KafkaError._FATAL}
)
#: What a block ends with that no broker took or confirmed in time, though there is nothing wrong with it.
_UNDELIVERED: Final = frozenset(
    {
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.KAFKA_STORAGE_ERROR,
    }
)
#: What our own purge ends a block with.
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
#: A producer lives this long before another takes its place: a broker may refuse that one, too.
_RENEWAL_SECONDS: Final = 1.0
#: librdkafka counts the record with its headers.
_RECORD_OVERHEAD_BYTES: Final = 100_000
#: As `produce` takes them, made once: a request is written as many records.
_HEADERS: Final[list[tuple[str, str | bytes | None]]] = list(HEADERS.items())


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
        self.note(at, delivery)
        self.settle()

    def note(self, at: int, delivery: Delivery) -> None:
        """One block's report; `settle` follows, once what it means for others is noted, too."""
        self.deliveries[at] = delivery

    def settle(self) -> None:
        with self._lock:
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

    Delivery reports arrive on a thread of its own, which lives until `close`. The circuit opens when no
    broker answers, or when `FAILURES` blocks in a row were not delivered (brokers that stand still, too few
    replicas): what waits ends as unwritten, and new requests fail at once. A look each second closes it
    again; in the second case only the delivery of a block does. That block is the last that failed: its
    sender was told to send it again, which is safe whether or not it is written. A request as the probe would
    wait in vain as long as the others did, and none comes where a proxy leaves out a gateway that is not
    ready.
    A producer that the broker takes nothing from any more is replaced: what it had on its way may then be
    written twice, and deduplication by event id absorbs it.
    """

    def __init__(self, settings: Settings, bootstrap: str, *, idempotent: bool) -> None:
        self._topic = settings.topic
        self._timeout = settings.durability_timeout_seconds
        self._partitions: int | None = None
        #: Of the embedded broker's topic, which is not ready with another number (`broker.ensure_topic`).
        self._wanted = settings.partitions if settings.kafka is None else None
        self._open_since: float | None = None
        self._failures = 0  # blocks in a row
        self._wrote_at = float("-inf")
        #: The block whose delivery closes the circuit, and the generation of the producer that has it.
        self._probe: Block | None = None
        self._probing: int | None = None
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
        #: The embedded broker makes a topic that is asked for, and its number never changes.
        self._watching = threading.Thread(target=self._watch_partitions, name="partitions", daemon=True)
        if settings.kafka is not None:
            self._watching.start()

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
            if self._open_since is not None:  # only what nobody waits for
                self._producer.purge(in_queue=True, in_flight=True, blocking=False)
            await asyncio.to_thread(self._producer.flush, 5.0)
        self._stopping.set()
        for thread in (self._thread, self._watching):
            if thread.is_alive():
                await asyncio.to_thread(thread.join, 5.0)

    # --- the thread of delivery reports

    def _produce(self, flight: _Flight, at: int, block: Block) -> None:
        generation = self._generation  # not the producer, which would be held by what it holds itself
        began = time.monotonic()

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            # the circuit first: whoever is told that nothing was written must not find it closed still
            try:
                if error is None:
                    offset = message.offset()
                    flight.note(at, Written(block.partition, -1 if offset is None else offset))
                    self._delivered()
                else:
                    flight.note(at, Unwritten(block.partition, error.name()))
                    self._look_at(error, generation)
                    if error.code() in _UNDELIVERED and generation == self._generation:
                        self._count_failure(block, began, error)
            finally:
                flight.settle()

        try:
            self._hand_over(block, on_delivery)
        except BufferError:
            flight.report(at, Unwritten(block.partition, "queue full"))
        except KafkaException as error:
            flight.report(at, Unwritten(block.partition, error.args[0].name()))
            self._look_at(error.args[0], generation)

    def _hand_over(self, block: Block, on_delivery: Callable[[KafkaError | None, Message], None]) -> None:
        self._producer.produce(
            self._topic,
            value=block.payload,
            key=block.key,
            partition=block.partition,
            on_delivery=on_delivery,
            headers=_HEADERS,
        )

    def _delivered(self) -> None:
        """A block was confirmed, by whichever producer."""
        self._wrote, self._wrote_at, self._failures = True, time.monotonic(), 0
        if self._probe is not None:
            self._close_circuit(delivered=True)

    def _count_failure(self, block: Block, began: float, error: KafkaError) -> None:
        """began : when the block was handed over; while others are delivered, only its partition is ill."""
        if self._wrote_at >= began or self._open_since is not None:
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._open_circuit(error.name(), block)

    def _send_probe(self) -> None:
        """One block at a time, and none to a partition that is not there: to be delivered while the circuit
        is open. librdkafka repeats it about once a second, until it times out."""
        block, generation = self._probe, self._generation
        if block is None or self._probing == generation or self._partitions is None:
            return
        if block.partition >= self._partitions:  # of a topic that was replaced
            self._probe = None
            return

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self._delivered()
                return
            if self._probing == generation:
                self._probing = None
            self._look_at(error, generation)
            if not (error.fatal() or error.code() in _UNDELIVERED | _PURGED | _SPENT):
                self._probe = None  # it is about this block: the next look closes the circuit

        self._probing = generation
        try:
            self._hand_over(block, on_delivery)
        except BufferError:
            self._probing = None
        except KafkaException as error:
            self._probing = None
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
                    if self._look():
                        self._send_probe()
            except KafkaException as error:  # a fatal error is raised here, and told to no callback
                self._spent = error.args[0]
                self._stopping.wait(_POLL_SECONDS)
            except Exception:
                log.exception("delivery_reports_failed")
                self._stopping.wait(_POLL_SECONDS)

    def _look(self) -> bool:
        """Ask for the topic; an answer closes the circuit, unless a block must be delivered first. Whether
        there was an answer."""
        try:
            found = self._ask_partitions()
        except KafkaException:
            self._open_circuit("no answer")
            return False
        self._partitions = found if found and found == (self._wanted or found) else None
        self._close_circuit(delivered=False)
        return True

    def _ask_partitions(self) -> int:
        """Partitions that the broker tells of, 0: no such topic. Raises KafkaException."""
        topic = self._producer.list_topics(self._topic, timeout=_CALL_SECONDS).topics.get(self._topic)
        return len(topic.partitions) if topic is not None and topic.error is None else 0

    def _watch_partitions(self) -> None:
        """Follow a topic that gets more partitions: its events would go on to where their villages are at
        home no more. On a thread of its own, since an answer may take half a second."""
        while not self._stopping.wait(PARTITIONS_SECONDS):
            known = self._partitions
            if known is None or not self.available():
                continue  # whoever needs it, asks
            try:
                found = self._ask_partitions()
            except KafkaException:
                continue  # deliveries show whether it matters
            except Exception:
                log.exception("partitions_not_looked_at")
                continue
            # a node may tell an old number for a moment; a topic with fewer is another one (`_look_at`)
            if found > known and self._partitions == known:
                self._partitions = found
                log.warning("the topic has more partitions now", topic=self._topic, before=known, now=found)

    def _close_circuit(self, *, delivered: bool) -> None:
        """delivered : a block was, and not only a question answered."""
        with self._lock:  # several threads look
            if delivered:
                self._probe = self._probing = None
            elif self._probe is not None:
                return
            since, self._open_since = self._open_since, None
        if since is not None:
            log.info("kafka takes events again", after_seconds=round(time.monotonic() - since, 1))

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

    def _open_circuit(self, reason: str, probe: Block | None = None) -> None:
        """probe : see `_send_probe`; None: an answer of a broker is enough to close it."""
        with self._lock:
            first = self._open_since is None
            if first:
                self._open_since = time.monotonic()
                self._failures, self._probe = 0, probe
        if first:
            log.warning("kafka takes no events; requests get 503 until it does", reason=reason)
        self._land_all()
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)

    def _land_all(self) -> None:
        with self._lock:
            flights = list(self._flights)
        for flight in flights:
            flight.land()
