"""Looks at the worker from outside its rounds: lag, stalls, and whether the log is still the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from pipeline.errors import ConfigurationError, UnavailableError, WorkerFailedError
from pipeline.process.account import Account
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.membership import Membership
from pipeline.process.stall import Look, StallWatch
from pipeline.process.standing import Standing
from pipeline.process.topic import TopicFacts, describe_topic
from pipeline.settings import Settings
from pipeline.sink.retry import refused_for, refused_since

log = structlog.get_logger(__name__)

_LAG_SECONDS: Final = 1.0
_TOPIC_SECONDS: Final = 10.0
#: A call that the store has refused for longer makes the partitions on their way "not ready", though it may
#: have taken others: a block that it never takes would hide behind them.
_REFUSED_SECONDS: Final = 10.0
#: Of a look at the topic; a stop waits for the one on the way.
_LOOK_SECONDS: Final = 3.0
#: A partition's recovery may last so many times as long as a stall: it asks several questions in a row, each
#: of which the store answers in the time of an insert.
_RECOVERY_ROOM: Final = 4


@dataclass(frozen=True)
class Helped:
    """What the worker does about what is seen.

    feed : fetch again where there is room; complete : tell the cases of blocks whose records are gone, or
    count what is stored of those to come; rewind : read a partition again from an offset; draining : whether
    the worker is ending.
    """

    feed: Callable[[], None]
    complete: Callable[[PartitionBuffer], None]
    rewind: Callable[[int, int], None]
    draining: Callable[[], bool]


class Looks:
    """Lives on the event loop.

    buffers : the worker's partitions; on_the_way : those whose block a round holds.
    """

    def __init__(
        self,
        settings: Settings,
        buffers: Mapping[int, PartitionBuffer],
        on_the_way: Callable[[], Collection[int]],
        budget: Budget,
        *,
        member: Membership,
        account: Account,
        standing: Standing,
        helped: Helped,
    ) -> None:
        self._settings = settings
        self._buffers = buffers
        self._on_the_way = on_the_way
        self._budget = budget
        self._member = member
        self._account = account
        self._standing = standing
        self._helped = helped
        # an insert that is not answered holds its partition up for as long as it may take
        limit = settings.stall_seconds and settings.stall_seconds + settings.insert_timeout_seconds
        self._stall = StallWatch(limit)
        self._recovery = StallWatch(limit * _RECOVERY_ROOM)
        self._looked_at = time.monotonic()
        self._ends: Mapping[int, int] = {}
        #: Partition → first offset that the log holds, as of the last look.
        self.begins: Mapping[int, int] = {}

    async def watch_partitions(self) -> None:
        """Each second until cancelled. Raises WorkerFailedError when a partition has stood still too long."""
        while True:
            await asyncio.sleep(_LAG_SECONDS)
            self._helped.feed()  # a block that must be completed may have become the reason only since
            now = time.time()
            for buffer in list(self._buffers.values()):
                self._look_at(buffer, now)
            self._look_for_stalls()
            self._account.buffered(self._budget.used)
            states = [buffer.state for buffer in self._buffers.values() if buffer.state is not None]
            self._account.dedup(
                sum(len(state.seen) for state in states),
                sum(len(state.anchors) for state in states),
                sum(state.seen.forgotten for state in states),
            )

    def _look_at(self, buffer: PartitionBuffer, now: float) -> None:
        records = waiting(buffer, self._log_end(buffer))
        if records is not None:
            oldest = buffer.oldest_timestamp_ms
            late = max(now - oldest / 1000, 0.0) if oldest is not None and records else 0.0
            self._account.lag(buffer.partition, records, late)
        if buffer.gone or buffer.uncounted is not None:
            self._helped.complete(buffer)
        missing = buffer.missing(time.monotonic())
        if missing is not None:
            self._helped.rewind(buffer.partition, missing)

    def _look_for_stalls(self) -> None:
        """Say that we are not ready once a partition stands still, and end when it goes on doing so."""
        now = time.monotonic()
        excused = self._helped.draining() or not self._member.heard() or refused_since(self._looked_at)
        self._looked_at = now
        still = self._stall.still(
            [
                (buffer.partition, Look.at(buffer, self._end(buffer)))
                for buffer in self._buffers.values()
                if buffer.recovered and not buffer.closed and not buffer.revoked
            ],
            now,
            excused=excused,
        )
        blocked = refused_for()
        self._account.blocked(blocked)
        refused = sorted(self._on_the_way()) if blocked > _REFUSED_SECONDS else []
        self._standing.look(self._stall.suspected(still), refused)
        if stalled := self._stall.stalled(still):
            raise WorkerFailedError(f"partitions {stalled} do not move though nothing holds them up")
        self._look_for_hanging_recovery(now, excused=excused)

    def _look_for_hanging_recovery(self, now: float, *, excused: bool) -> None:
        """They are recovered one after the other: with each that is done the others have moved."""
        done = sum(buffer.recovered for buffer in self._buffers.values())
        look = Look(committed=done, received=done, end=done, waiting=True)
        left = [(buffer.partition, look) for buffer in self._buffers.values() if not buffer.recovered]
        if stalled := self._recovery.stalled(self._recovery.still(left, now, excused=excused)):
            raise WorkerFailedError(f"the recovery of partitions {stalled} does not come to its end")

    def _end(self, buffer: PartitionBuffer) -> int:
        """What a partition that stands still is held to: where it is paused, nothing more is asked for."""
        return buffer.next_offset or 0 if buffer.paused else self._log_end(buffer)

    def caught_up(self, buffer: PartitionBuffer) -> bool:
        """Whether everything up to the log's end is committed; not while no fetch has told where that is."""
        told = self._member.end_offset(buffer.partition) is not None
        return told and (buffer.committed or 0) >= self._log_end(buffer)

    def _log_end(self, buffer: PartitionBuffer) -> int:
        """The log's end, from the last look at the topic too: a fetch that hangs or is paused tells none, and
        the embedded broker tells ends too low, so that what has arrived is a better bound."""
        looked = self._ends.get(buffer.partition, 0)
        return max(looked, self._member.end_offset(buffer.partition) or 0, buffer.next_offset or 0)

    async def watch_topic(self, begun: TopicFacts, bootstrap: str, access: Mapping[str, str]) -> None:
        """End the worker when its log was replaced or cut: offsets name other records now, and the consumer
        would pass over what it takes for old. The next start finds a new incarnation and reads it whole.

        begun : the log that it opened. bootstrap, access : where the log is, and how to reach it.
        """
        while True:
            await asyncio.sleep(_TOPIC_SECONDS)
            read = {buffer.partition: buffer.next_offset or 0 for buffer in self._buffers.values()}
            try:
                found = await asyncio.to_thread(
                    describe_topic, bootstrap, self._settings.topic, seconds=_LOOK_SECONDS, access=access
                )
            except (UnavailableError, ConfigurationError) as error:
                log.warning("topic_not_described", error=str(error))
                continue
            problem = begun.differs(found, read)
            if problem:
                raise WorkerFailedError(problem)
            self._ends, self.begins = found.ends_at_least, found.begins


def waiting(buffer: PartitionBuffer, end: int) -> int | None:
    """Records up to `end` that are not committed; None while nothing tells where the partition begins.

    Before recovery nobody has read what is committed; the consumer began there, so the first record tells it.
    """
    begins = (buffer.committed or 0) if buffer.recovered else buffer.begins_at
    return None if begins is None else max(end - begins, 0)
