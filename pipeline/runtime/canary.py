"""The canary: each minute one synthetic event per partition, and how long it took to come out of ClickHouse.

It takes the ordinary way: a frame as the gateway makes it, a block, the producer, the topic, the worker's
stages, an insert. What it shows is the way itself, also in an hour in which nobody reports anything.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.clock import Clock, utc_now
from pipeline.contract.canary import CANARY_SOURCE, canary_event, canary_grid
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import encode_blocks, partition_of
from pipeline.ingest.gate import Gate
from pipeline.ingest.producer import BlockProducer, Written

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: The first two looks at ClickHouse are this far apart, later ones a fifth more each, up to a second:
#: the delay is as exact as that.
_LOOK_SECONDS: Final = 0.1
_LOOK_GROWTH: Final = 1.2
_SLOW_LOOK_SECONDS: Final = 1.0
#: Before the first round: the processes of a machine start together.
_FIRST_SECONDS: Final = 5.0
#: Clocks of gateway and ClickHouse do not matter: `ingested_at` is ours; this is for rounding alone.
_SLACK: Final = timedelta(seconds=1)
_SERIES: Final = (
    metrics.canary_missing,
    metrics.canary_delay_seconds,
    metrics.canary_last_seen_timestamp_seconds,
)


class Store(Protocol):
    """Where canary events are looked for; `read.reader.Reader` is one."""

    def run(self, work: Callable[[Client], T]) -> Awaitable[T]:
        """Raises UnavailableError when ClickHouse does not answer."""


class Canary:
    """Sends and looks for canary events, in a task of the gateway's event loop.

    gate : the gateway's, for a log that is being replaced takes no canary either.
    interval_seconds : from one round to the next; what is not found by then counts as missing.
    partitions : as many are expected while the log has not told yet.
    """

    def __init__(
        self,
        *,
        producer: BlockProducer,
        gate: Gate,
        store: Store,
        privacy: Privacy,
        interval_seconds: float,
        partitions: int,
        max_block_bytes: int,
        clock: Clock = utc_now,
    ) -> None:
        self._producer = producer
        self._gate = gate
        self._store = store
        self._privacy = privacy
        self._interval = interval_seconds
        self._patience = max(2 * interval_seconds, _FIRST_SECONDS)
        self._expected = partitions
        self._max_block_bytes = max_block_bytes
        self._clock = clock
        self._villages: list[int] = []
        self._failing = False

    async def run(self) -> None:
        """A round each interval until cancelled. A failing one is logged once per spell, never raised."""
        # Before the log has told: without series, a process that starts would end the alert of the last one.
        self._homes(self._expected)
        await asyncio.sleep(min(self._interval, _FIRST_SECONDS))
        await self._until_readable()
        while True:
            began = time.monotonic()
            try:
                missing = await self.round()
                self._tell(bool(missing), partitions=sorted(missing))
            except UnavailableError as error:
                self._tell(True, reason=str(error))
            except Exception:
                log.exception("canary_failed")
            await asyncio.sleep(max(self._interval - (time.monotonic() - began), 0.0))

    async def _until_readable(self) -> None:
        """A service that only starts up has lost no canary; one whose store stays away has."""
        began = time.monotonic()
        while time.monotonic() - began < self._patience:
            try:
                await self._store.run(_look([], self._clock()))
            except UnavailableError:
                await asyncio.sleep(_SLOW_LOOK_SECONDS)
            else:
                return

    async def round(self) -> set[int]:
        """One event per partition; returns the partitions whose event was not found in time.

        Raises UnavailableError when the log does not answer.
        """
        began = time.monotonic()
        try:
            partitions = await self._producer.partitions()
        except UnavailableError:
            self._missed(range(len(self._homes(len(self._villages) or self._expected))), began)
            raise
        villages = self._homes(partitions)
        name, sent_at = secrets.token_hex(6), self._clock()
        events = {
            f"canary-{name}-{partition}": (partition, village) for partition, village in enumerate(villages)
        }
        frame = to_frame(
            [canary_event(event_id, village, sent_at) for event_id, (_, village) in events.items()],
            ingested_at=sent_at,
            request_id=f"canary-{name}",
            backfill=False,
            privacy=self._privacy,
        )
        blocks = encode_blocks(frame, partitions=len(villages), max_bytes=self._max_block_bytes)
        began = time.monotonic()
        try:
            async with self._gate:
                deliveries = await self._producer.send(blocks)
        except UnavailableError:
            self._missed(range(len(villages)), began)
            raise
        written = {item.partition for item in deliveries if isinstance(item, Written)}
        metrics.canary_sent.inc(len(written))
        waiting = {event_id: partition for event_id, (partition, _) in events.items() if partition in written}
        lost = set(range(len(villages))) - written
        self._missed(lost, began)
        return lost | await self._wait_for(waiting, sent_at, began)

    async def _wait_for(self, waiting: dict[str, int], sent_at: datetime, began: float) -> set[int]:
        """Look until all are found or the next round is due; returns the partitions still waiting."""
        pause = _LOOK_SECONDS
        while waiting and time.monotonic() - began < self._interval:
            await asyncio.sleep(pause)
            pause = min(pause * _LOOK_GROWTH, _SLOW_LOOK_SECONDS)
            try:
                found = await self._store.run(_look(list(waiting), sent_at))
            except UnavailableError:
                continue  # what cannot be read is not there
            now = self._clock().timestamp()
            for event_id in found:
                partition = str(waiting.pop(event_id))
                metrics.canary_delay_seconds.labels(partition).set(time.monotonic() - began)
                metrics.canary_last_seen_timestamp_seconds.labels(partition).set(now)
        left = set(waiting.values())
        self._missed(left, began)
        return left

    def _homes(self, partitions: int) -> Sequence[int]:
        """A village number per partition; begins the series of new ones and ends those of ones not there."""
        known = len(self._villages)
        if known != partitions:
            self._villages = villages_by_partition(partitions)
            now = self._clock().timestamp()
            for partition in range(known, partitions):
                metrics.canary_missing.labels(str(partition))
                metrics.canary_last_seen_timestamp_seconds.labels(str(partition)).set(now)
            for partition in range(partitions, known):  # more were expected than the topic has
                for series in _SERIES:
                    series.remove(str(partition))
        return self._villages

    def _missed(self, partitions: Sequence[int] | set[int] | range, began: float) -> None:
        # What is refused at once has not come out within the interval either: no delay of 0 s for it.
        waited = max(time.monotonic() - began, self._interval)
        for partition in partitions:
            metrics.canary_missing.labels(str(partition)).inc()
            metrics.canary_delay_seconds.labels(str(partition)).set(waited)

    def _tell(self, failing: bool, **details: object) -> None:
        if failing and not self._failing:
            log.error("canary_missing", **details)
        elif self._failing and not failing:
            log.info("canary_seen_again")
        self._failing = failing


def villages_by_partition(partitions: int) -> list[int]:
    """Village numbers of the canary's region, the n-th at home in partition n."""
    homes: dict[int, int] = {}
    village = 0
    while len(homes) < partitions:
        homes.setdefault(partition_of(canary_grid(village), partitions), village)
        village += 1
    return [homes[partition] for partition in range(partitions)]


def _look(event_ids: Sequence[str], sent_at: datetime) -> Callable[[Client], list[str]]:
    parameters: Mapping[str, Any] = {
        "source": CANARY_SOURCE,
        "ids": list(event_ids),
        "since": (sent_at - _SLACK).strftime("%Y-%m-%d %H:%M:%S.000"),
    }

    def look(client: Client) -> list[str]:
        found = client.query(
            "SELECT DISTINCT event_id FROM events WHERE ingested_at >= {since:DateTime64(3, 'UTC')} "
            "AND source = {source:String} AND event_id IN {ids:Array(String)}",
            parameters=dict(parameters),
        )
        return [str(row[0]) for row in found.result_rows]

    return look
