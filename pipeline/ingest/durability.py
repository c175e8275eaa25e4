"""When an event counts as safe: after the delivery report of a replicated log, or once it is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pipeline.ingest.producer import Written
from pipeline.kafka_access import librdkafka_options
from pipeline.pool import BoundedPool
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: Pause between looks at the committed offsets while a request waits; one look takes under a millisecond.
POLL_SECONDS: Final = 0.01
_CALL_SECONDS: Final = 2.0
#: For a look, at least, where all the time went before the broker had the events.
_LEAST_SECONDS: Final = 0.5

#: partitions -> committed offset of each (the next one to read), absent where nothing is committed.
ReadCommitted = Callable[[Sequence[int]], dict[int, int]]


class Durability(Protocol):
    """`name` is what the answer says: replicated | stored."""

    name: str

    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        """For each block, in order, whether its events are safe; returns when all are or time is up.

        since : when they were handed to the log, as `time.monotonic` tells it, from where the time counts;
            None: now.
        """

    async def close(self) -> None: ...


class Replicated:
    """Kafka with acks=all and min.insync.replicas: the delivery report is the promise. What the topic keeps
    is looked at when a gateway starts (`runtime/topic_settings.py`)."""

    name = "replicated"

    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        return [True] * len(written)

    async def close(self) -> None:
        """Nothing to stop."""


@dataclass(slots=True)
class _Waiter:
    targets: dict[int, int]  # partition -> highest offset written
    done: asyncio.Future[None]


class Stored:
    """The embedded broker keeps its log in memory only: safe is what the worker has stored and committed.

    One poller serves all requests and runs only while one waits.
    """

    name = "stored"

    def __init__(
        self, committed: ReadCommitted, timeout_seconds: float, close: Callable[[], None] | None = None
    ) -> None:
        self._committed = committed
        self._timeout = timeout_seconds
        self._close = close
        # its own: bodies that wait for a thread would hold up the answers to those that are stored
        self._thread = BoundedPool("committed-offsets", threads=1, queue=1)
        self._waiters: list[_Waiter] = []
        self._poller: asyncio.Task[None] | None = None

    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        if not written:
            return []
        targets: dict[int, int] = {}
        for block in written:
            if block.offset >= 0:
                targets[block.partition] = max(block.offset, targets.get(block.partition, -1))
        waiter = _Waiter(dict(targets), asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="committed-offsets")
        spent = 0.0 if since is None else time.monotonic() - since
        try:
            async with asyncio.timeout(max(self._timeout - spent, min(self._timeout, _LEAST_SECONDS))):
                await waiter.done
        except TimeoutError:
            log.warning("events sent but not stored in time", partitions=sorted(waiter.targets))
        finally:
            self._waiters = [other for other in self._waiters if other is not waiter]
        # a report without an offset proves nothing: any commit would seem to have passed it
        return [block.offset >= 0 and block.partition not in waiter.targets for block in written]

    async def _poll(self) -> None:
        warned_at = 0.0
        while self._waiters:
            partitions = sorted({partition for waiter in self._waiters for partition in waiter.targets})
            try:
                committed = await self._thread.run(self._committed, partitions)
            except KafkaException as error:
                committed = {}
                if time.monotonic() - warned_at > 1:
                    warned_at = time.monotonic()
                    log.warning("committed offsets cannot be read", error=error.args[0].name())
            for waiter in self._waiters:
                for partition in [p for p, offset in waiter.targets.items() if committed.get(p, -1) > offset]:
                    del waiter.targets[partition]
                if not waiter.targets and not waiter.done.done():
                    waiter.done.set_result(None)
            await asyncio.sleep(POLL_SECONDS)

    async def close(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        if self._close is not None:
            await self._thread.run(self._close)
        self._thread.close()


def _ignore(_: KafkaError) -> None:
    """Errors of the connection show in the call that they spoil."""


def stored_in(settings: Settings, bootstrap: str) -> Stored:
    """`Stored` over the committed offsets of the workers' consumer group."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": settings.consumer_group,
            "enable.auto.commit": False,
            # A refused connection is repeated many times a second; `Stored` says it once.
            "log_level": 0,
            "error_cb": _ignore,
            **librdkafka_options(settings),
        }
    )

    def committed(partitions: Sequence[int]) -> dict[int, int]:
        asked = [TopicPartition(settings.topic, partition) for partition in partitions]
        found = consumer.committed(asked, timeout=_CALL_SECONDS)
        return {item.partition: item.offset for item in found if item.error is None and item.offset >= 0}

    return Stored(committed, settings.durability_timeout_seconds, consumer.close)
