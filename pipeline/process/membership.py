"""The worker's place in the consumer group: the one module that knows Faust.

Faust gives assignment, rebalancing and the stream; it must never commit. Its own acknowledgements lose data:
it acknowledges what it skips after a rebalance, commits past a hole at the head, and commits on its way down.
The topic is therefore declared with `acks=False`, which leaves it nothing to commit, and the offsets of
stored blocks are committed explicitly.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import faust
import structlog
from aiokafka.errors import IllegalGenerationError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata, TopicPartition
from faust.tables import TableManager
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer
from faust.types import TP

from pipeline.kafka_access import faust_credentials
from pipeline.process import batches
from pipeline.process.records import Record
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: No timed commit happens within this; there is nothing that Faust could commit anyway.
_NEVER_SECONDS: Final = 3600.0
_REBALANCE_SECONDS: Final = 6.0
_SESSION_SECONDS: Final = 6.0
_HEARTBEAT_SECONDS: Final = 1.5
#: Without a word of the group for longer than this, others may be about to get our partitions.
_SILENCE_SECONDS: Final = _SESSION_SECONDS / 2
#: How long the broker may hold a fetch that finds nothing. Kafka ends it with the first record that comes;
#: the embedded broker only looks again after a part of it, which delays a single event by as much.
_FETCH_WAIT_MS: Final = 50
#: Records taken out of the Kafka client at once; a small batch may unpack to many.
_MOST_RECORDS: Final = 5_000
#: Records handed to the agent's queue before it gets its turn.
_HANDED_AT_ONCE: Final = 100


class Partitions(Protocol):
    """What the group tells the worker; all called on the event loop."""

    def take(self, partition: int, record: Record) -> None: ...
    def damaged(self, partition: int, offset: int, reason: str) -> None: ...
    async def assigned(self, partitions: set[int]) -> None: ...
    async def revoked(self, partitions: set[int]) -> None: ...


class _Together(bytes):
    """Value of the one message that Faust sees of records of a partition that were fetched together: a
    message, an event and its way through the stream cost several times what everything else of a record
    costs."""

    records: Sequence[ConsumerRecord]

    @classmethod
    def of(cls, records: Sequence[ConsumerRecord]) -> ConsumerRecord:
        """A record that stands for all of these, at the place of the last."""
        value, last = cls(), records[-1]
        value.records = records
        at = last.topic, last.partition, last.offset, last.timestamp
        return ConsumerRecord(*at, 0, None, value, None, -1, 0, ())


@dataclass(frozen=True)
class _Joined:
    """Under what name the group knows a member, from one rebalance to the next."""

    member_id: str
    generation: int

    @classmethod
    def of(cls, coordinator: Any) -> _Joined:
        return cls(coordinator.member_id, coordinator.generation)


class _ConsumerThread(AIOKafkaConsumerThread):
    #: As what the assignment came that the worker was told of last.
    joined: _Joined | None = None

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = _FETCH_WAIT_MS  # Faust has no setting for it
        return consumer

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.joined = _Joined.of(self._ensure_consumer()._coordinator)
        await super().on_partitions_assigned(assigned, generation_id)


class _NothingRead(dict[TP, int | None]):
    """In place of Faust's memory of what it handed on last: it would drop what is read again when a rewind
    meets a batch that is still being handed on. The partition's buffer knows what it has."""

    def __missing__(self, _: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None: ...

    def update(self, *_: Any, **__: Any) -> None: ...


class _Consumer(FaustConsumer):
    """Faust's consumer. Its own waits for each record that it hands on, and sleeps a second, come what may,
    where every partition is paused.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._fed = asyncio.Event()
        self._read_offset = _NothingRead()

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._fed.set()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109  Faust's name
        """Hands what was fetched on by itself; what it yields Faust would hand on, with two tasks and three
        turns of the event loop for each message."""
        async for tp, message in super().getmany(timeout):
            if not self.app.flow_control.is_active():
                yield tp, message  # Faust's way, which waits until a rebalance is over or takes it away
                continue
            await self.callback(message)
            await asyncio.sleep(0)  # the agent empties its queue

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109  Faust's name
        self._fed.clear()
        if self.flow_active and self._buffered_partitions and not self._get_active_partitions():
            await self.wait_first(self._fed.wait(), self.suspend_flow.wait(), timeout=timeout)
        fetched, active = await super()._wait_next_records(timeout)
        if fetched:
            fetched = {
                tp: [
                    _Together.of(records[first : first + _HANDED_AT_ONCE])
                    for first in range(0, len(records), _HANDED_AT_ONCE)
                ]
                for tp, records in fetched.items()
            }
        return fetched, active


class _NoTables(TableManager):
    """Faust's waits a second for tables to be declared before anything is subscribed to; we have none."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class Membership:
    """One member of the consumer group, reading one topic."""

    def __init__(self, settings: Settings, bootstrap: str, partitions: Partitions) -> None:
        batches.install()
        self._topic = settings.topic
        self._partitions = partitions
        self._failure: asyncio.Future[BaseException] | None = None
        self._heard_at = float("-inf")
        self._listened_to: Any = None
        #: As whom we hold our partitions, and as whom the commit was asked for that is on its way.
        self._joined: _Joined | None = None
        self._committing_as: _Joined | None = None
        urls = [f"kafka://{address.strip()}" for address in bootstrap.split(",")]
        # Faust makes this directory, but not its parents, even if it keeps nothing there; unset, it lies
        # where one stands
        keeps_nothing = settings.tmp_dir / "faust"
        keeps_nothing.mkdir(parents=True, exist_ok=True)
        self._app = faust.App(
            settings.consumer_group,
            broker=";".join(urls),
            broker_credentials=faust_credentials(settings),
            datadir=keeps_nothing,
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            stream_wait_empty=False,
            TableManager=_NoTables,
            broker_commit_interval=_NEVER_SECONDS,
            broker_rebalance_timeout=_REBALANCE_SECONDS,
            broker_session_timeout=_SESSION_SECONDS,
            broker_heartbeat_interval=_HEARTBEAT_SECONDS,
            broker_max_poll_records=_MOST_RECORDS,
            consumer_auto_offset_reset="earliest",
            value_serializer="raw",
            key_serializer="raw",
        )
        self._app.transport.Consumer = _Consumer  # type: ignore[misc]
        topic = self._app.topic(
            self._topic,
            value_type=bytes,
            key_type=bytes,
            value_serializer="raw",
            key_serializer="raw",
            acks=False,
        )
        self._app.agent(topic, name="gridpipe.worker")(self._collect)
        self._app.on_partitions_assigned.connect(self._on_assigned)  # type: ignore[arg-type]
        self._app.on_partitions_revoked.connect(self._on_revoked)  # type: ignore[arg-type]

    async def start(self) -> None:
        """Join the group. Raises what Faust raises if the broker cannot be used."""
        self._failure = asyncio.get_running_loop().create_future()
        logging.getLogger("faust").setLevel(logging.WARNING)
        await self._app.start()

    async def stop(self, seconds: float) -> None:
        """Leave the group within `seconds`; a broker that does not answer is not waited for."""
        leaving = asyncio.create_task(self._app.stop())
        await asyncio.wait([leaving], timeout=seconds)
        if leaving.done():
            leaving.result()
        else:
            leaving.cancel()  # nor is the end of its cancellation

    async def failed(self) -> BaseException:
        """Waits until the member cannot go on; returns why."""
        assert self._failure is not None
        while not self._failure.done():
            if self._app.crashed:
                return self._app.crash_reason or RuntimeError("the consumer crashed")
            await asyncio.wait([self._failure], timeout=0.5)
        return self._failure.result()

    # --- what the group delivers

    async def _collect(self, stream: Any) -> None:
        waiting = stream.channel.queue
        try:
            async for event in stream.noack().events():
                self._take(event.message)
                # the stream itself gives one event per turn of the event loop
                while not waiting.empty():
                    self._take(waiting.get_nowait().message)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # Faust would restart the agent and go on behind what was lost
            self._fail(error)
            raise

    def _take(self, message: Any) -> None:
        # taken out of the message, which the stream holds until the next one comes
        records, message.value.records = message.value.records, ()
        for record in records:
            if isinstance(record.value, batches.Damage):
                self._partitions.damaged(record.partition, record.offset, record.value.decode())
            else:
                self._partitions.take(
                    record.partition,
                    Record.of(record.offset, record.timestamp or 0, record.value, record.headers),
                )

    async def _on_assigned(self, _app: Any, assigned: set[TP], **_: Any) -> None:
        self._heard_at = time.monotonic()
        self._listen()
        self._joined = self._app.consumer._thread.joined  # type: ignore[attr-defined]
        await self._guarded(
            self._partitions.assigned, {tp.partition for tp in assigned if tp.topic == self._topic}
        )

    def _listen(self) -> None:
        """Note when the group answers a heartbeat, which aiokafka keeps to itself, and hold commits to the
        assignment that they were asked for under."""
        coordinator = self._app.consumer._thread._ensure_consumer()._coordinator  # type: ignore[attr-defined]
        if coordinator is self._listened_to:
            return
        self._listened_to, beat = coordinator, coordinator._do_heartbeat

        async def heard() -> bool:
            known = bool(await beat())
            if known:
                self._heard_at = time.monotonic()
            return known

        coordinator._do_heartbeat = heard
        send = coordinator._do_commit_offsets

        async def send_as_asked(assignment: Any, offsets: Any) -> None:
            now = _Joined.of(coordinator)
            if now != self._committing_as or now.generation < 0:
                raise IllegalGenerationError("the group has rebalanced since the commit was asked for")
            await send(assignment, offsets)

        coordinator._do_commit_offsets = send_as_asked

    async def _on_revoked(self, _app: Any, revoked: set[TP], **_: Any) -> None:
        await self._guarded(
            self._partitions.revoked, {tp.partition for tp in revoked if tp.topic == self._topic}
        )

    async def _guarded(self, call: Callable[[set[int]], Awaitable[None]], partitions: set[int]) -> None:
        try:
            await call(partitions)
        except Exception as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    # --- what the worker asks for

    def heard(self) -> bool:
        """Whether the group has lately said that we belong to it; asked from threads too.

        False after a process was frozen, or cut off from the broker: somebody else may own everything by now.
        """
        return time.monotonic() - self._heard_at < _SILENCE_SECONDS

    def owns(self, partition: int) -> bool:
        """Whether the group has this partition with us right now."""
        return TP(self._topic, partition) in self._app.consumer.assignment()

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset (next to be read), None if there is none."""
        offset = await self._call("committed", TopicPartition(self._topic, partition))
        return None if offset is None else int(offset)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commit the next offset of each partition. Called by commits.Commits alone, which keeps their order.

        aiokafka looks for a coordinator that went away, and then commits as whoever it is by then: what a
        process held before it was frozen goes out in the name of its next membership, and takes back what
        others committed meanwhile. Ours is refused then.

        Raises KafkaError if the group refuses, for one that it knows us no more (CommitFailedError).
        """
        self._committing_as = self._joined
        await self._call(
            "commit",
            {
                TopicPartition(self._topic, part): OffsetAndMetadata(offset, "")
                for part, offset in offsets.items()
            },
        )

    def end_offset(self, partition: int) -> int | None:
        """Next offset to be written, as of the last fetch."""
        offset = self._app.consumer.highwater(TP(self._topic, partition))
        return None if offset is None else int(offset)

    def pause(self, partition: int) -> None:
        """Fetch no more of this partition; what was fetched still arrives.

        `pause_partitions` would drop records that are already fetched; the next commit would lose them.
        """
        self._app.consumer.on_buffer_full(TP(self._topic, partition))

    def resume(self, partition: int) -> None:
        """Fetch again after `pause`."""
        if self.owns(partition):
            self._app.consumer.on_buffer_drop(TP(self._topic, partition))

    async def rewind(self, partition: int, offset: int) -> None:
        """Read this partition again from `offset`.

        Faust's own `seek` reaches into the Kafka consumer from this thread, while the consumer's thread takes
        records out of the same dictionary: under load that ends the worker with a KeyError.
        """
        await self._call("seek", TopicPartition(self._topic, partition), offset)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Call the Kafka consumer in the thread whose event loop it belongs to."""
        thread = self._app.consumer._thread  # type: ignore[attr-defined]
        return await thread.call_thread(getattr(thread._ensure_consumer(), method), *arguments)
