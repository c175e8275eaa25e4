"""What a partition has received and not yet stored, and where the next block ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from pipeline.contract.parse import elements_of
from pipeline.ingest.blocks import rows_in
from pipeline.process.account import Tally
from pipeline.process.brake import Brake
from pipeline.process.flow import PartitionState
from pipeline.process.partition import Span
from pipeline.process.records import MAX_EVENTS_PER_RECORD, Record
from pipeline.sink.tables import Extent

#: Records that are read again should arrive within this; else they are asked for once more.
_REREAD_SECONDS: Final = 5.0


class Taken(Enum):
    """What became of a record that arrived."""

    KEPT = "kept"
    OLD = "old"  # already stored or buffered: a fetch that overlaps
    GAP = "gap"  # records before it are missing: read them again
    SKIPPED = "skipped"  # arrived while the missing ones are read again


def rows_at_most(record: Record) -> int:
    """The events in a record, or somewhat more, without reading them."""
    value = record.value or b""
    if record.is_arrow:
        rows = rows_in(value)
    elif value.lstrip()[:1] == b"[":
        rows = elements_of(value)
    else:
        return 1 + value.count(b"\n")
    return min(rows, MAX_EVENTS_PER_RECORD)  # what claims more is refused as a whole


@dataclass
class Budget:
    """Bytes that the partitions of a worker may buffer together: with the store away its memory stays flat,
    however many partitions it has."""

    max_bytes: int
    used: int = 0

    @property
    def spent(self) -> bool:
        return self.used >= self.max_bytes

    @property
    def ample(self) -> bool:
        return self.used <= self.max_bytes // 2


@dataclass(frozen=True)
class Owed:
    """A block that is stored and whose commit is still asked for; it holds none of its records.

    timestamp_ms : of its first record; tally : what it will add to the metrics.
    """

    extent: Extent
    timestamp_ms: int
    stands: asyncio.Future[bool]
    tally: Tally


@dataclass
class PartitionBuffer:
    """Records of one partition between its assignment and its revocation; lives on the event loop."""

    partition: int
    max_rows: int
    budget: Budget
    next_offset: int | None = None
    spans: deque[Span] = field(default_factory=deque)
    counted_to: int = 0  # of the blocks before it the stored rows were counted
    #: blocks that were begun and whose records the log no longer holds: their cases must be told first
    gone: list[Span] = field(default_factory=list)
    state: PartitionState | None = None
    brake: Brake = field(default_factory=lambda: Brake(1.0))
    braked: bool = False  # too much cannot be read: nothing more is taken up before the next assignment
    closed: bool = False  # nothing more is buffered before the next assignment; what is there is taken up
    recovered: bool = False
    in_flight: bool = False  # its last block is not written yet: no other is cut
    leaving: bool = False  # being taken away: finish what is on the way, begin nothing
    revoked: bool = False
    paused: bool = False
    committed: int | None = None
    owed: deque[Owed] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._records: deque[tuple[Record, int, float]] = deque()
        self._rows = 0
        # expected offset, offset that came instead (None: not seen yet), when they were asked for
        self._missing: tuple[int, int | None, float] | None = None
        # of the first record of each block that is cut and neither committed nor owed
        self._cut_timestamps_ms: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def lost(self) -> bool:
        """Whether the partition was taken away; asked again and again, from threads too."""
        return self.revoked

    @property
    def full(self) -> bool:
        """Enough is buffered, here or elsewhere: fetch no more. Never while a block must be completed."""
        return self.budget.spent and not self._waits_for_span

    @property
    def hungry(self) -> bool:
        """So little is buffered, or a block is so incomplete, that a paused fetch must go on."""
        return (self.budget.ample or self._waits_for_span) and not self.closed

    def drop(self) -> None:
        """Forget what is buffered: it is not taken up here, and is read again by whoever does."""
        while self._records:
            self._pop()

    def stand_still(self) -> None:
        """Take nothing up before the next assignment."""
        self.braked = self.closed = True
        if not self.in_flight and self._records:
            self._cut_timestamps_ms.append(self._records[0][0].timestamp_ms)
        self.drop()

    @property
    def _waits_for_span(self) -> bool:
        return bool(self.spans) and bool(self._records) and self._last < self.spans[0].hi

    @property
    def _last(self) -> int:
        return self._records[-1][0].offset

    def take(self, record: Record, now: float) -> Taken:
        """Buffer a record. Offsets must follow on each other: a hole is read again once, and believed (log
        compaction, transaction markers, retention) only when the same record comes after the hole a second
        time. One that comes before it makes the hole smaller, which must then show twice anew."""
        expected = self.next_offset
        if expected is not None and record.offset < expected:
            return Taken.OLD
        if expected is not None and record.offset > expected:
            after = self._missing[1] if self._missing is not None and self._missing[0] == expected else None
            if after is None or record.offset < after:
                self._missing = (expected, record.offset, now)
                return Taken.GAP
            if record.offset > after:
                return Taken.SKIPPED
        self._missing = None
        self.next_offset = record.offset + 1
        rows = rows_at_most(record)
        self._records.append((record, rows, now))
        self.budget.used += record.size
        self._rows += rows
        return Taken.KEPT

    def missing(self, now: float) -> int | None:
        """The offset to read again from, because what was missing has not come; None: nothing to do.

        What came instead before may be gone by now, so a hole must show twice anew.
        """
        if self._missing is None or now - self._missing[2] < _REREAD_SECONDS:
            return None
        self._missing = (self._missing[0], None, now)
        return self._missing[0]

    def start_at(self, offset: int, now: float, *, fetched: bool = True) -> bool:
        """Recovery says where processing starts; records buffered before it are dropped.

        fetched : whether the fetch began at `offset` or before it.
        Returns False if records are missing between `offset` and the first one buffered: read them again.
        """
        while self._records and self._records[0][0].offset < offset:
            self._pop()
        first = self._records[0][0].offset if self._records else None
        if first == offset:
            return True
        if first is None and fetched:
            self.next_offset = max(offset, self.next_offset or 0)
            return True
        self.drop()
        self.next_offset, self._missing = offset, (offset, first, now)
        return False

    @property
    def waiting_since(self) -> float:
        """When the oldest buffered record arrived (monotonic seconds)."""
        return self._records[0][2] if self._records else float("inf")

    @property
    def oldest_timestamp_ms(self) -> int | None:
        """Timestamp of the oldest record that is not committed."""
        if self.owed:
            return self.owed[0].timestamp_ms
        if self._cut_timestamps_ms:
            return self._cut_timestamps_ms[0]
        return self._records[0][0].timestamp_ms if self._records else None

    @property
    def begins_at(self) -> int | None:
        """The oldest offset that waits here, or the next to come; None while no record came."""
        return self._records[0][0].offset if self._records else self.next_offset

    def due(self, now: float, linger: float) -> bool:
        """Whether a block should be cut now."""
        if not self.ready:
            return False
        return bool(self.spans) or self._rows >= self.max_rows or now - self._records[0][2] >= linger

    @property
    def ready(self) -> bool:
        """Whether a block can be cut at all."""
        if self.in_flight or self.leaving or self.revoked or self.braked:
            return False
        if not self.recovered or not self._records:
            return False
        first = self._records[0][0].offset
        self._forget_spans_before(first)
        if self.gone:
            return False
        if self.spans and first >= self.spans[0].lo:
            return self._last >= self.spans[0].hi
        return True

    def cut(self, most_rows: int) -> tuple[list[Record], Span | None, int]:
        """The records of the next block, the recovered span that they rebuild, and their rows at most.

        most_rows : room for a new block, which has one record at least and crosses neither the next recovered
        block nor a hole: the verifier counts what lies between bounds. A recovered one has exactly its old
        bounds, or those of several that are complete.
        """
        first = self._records[0][0].offset
        span = self._recovered_span(most_rows) if self.spans and first >= self.spans[0].lo else None
        limit = span.hi if span else (self.spans[0].lo - 1 if self.spans else None)
        records: list[Record] = []
        rows = 0
        while self._records:
            record, estimate, _ = self._records[0]
            if limit is not None and record.offset > limit:
                break
            full = rows + estimate > most_rows
            if span is None and records and (full or record.offset > records[-1].offset + 1):
                break
            records.append(record)
            rows += estimate
            self._pop()
        while span is not None and self.spans and self.spans[0].hi <= span.hi:
            self.spans.popleft()
        self._cut_timestamps_ms.append(records[0].timestamp_ms)
        return records, span, rows

    def settle(self) -> None:
        """The oldest block that was cut is committed, or owed."""
        self._cut_timestamps_ms.popleft()

    def _recovered_span(self, most_rows: int) -> Span:
        """The next recovered block, or several at once that are complete, follow on each other and were
        judged by the same rules: nothing of them is inserted again, so they need not be looked at one by one.
        After an outage of commits there may be thousands.

        A block is complete if as many positions are stored of it as its records hold events at most.
        """
        found, rows = self.spans[0], 0
        records = iter(self._records)
        waiting = next(records, None)
        for number, span in enumerate(self.spans):
            if span.hi > self._last or (number and (span.lo, span.rules) != (found.hi + 1, found.rules)):
                break
            own = 0
            while waiting is not None and waiting[0].offset <= span.hi:
                own += waiting[1]
                waiting = next(records, None)
            rows += own
            if own != span.rows or rows > most_rows:
                break
            found = replace(span, lo=found.lo, rows=rows)
        return found

    @property
    def uncounted(self) -> int | None:
        """Where the next recovered block begins if nobody has counted yet what is stored of it."""
        return self.spans[0].lo if self.spans and self.spans[0].lo >= self.counted_to else None

    def counted(self, stored: Mapping[tuple[int, int], int], to: int) -> None:
        """Take over what is stored of blocks, by their bounds, as far as it was counted."""
        self.counted_to = to
        reached = []
        while self.spans and self.spans[0].lo < to:  # those behind, of a long log very many, stay as they are
            span = self.spans.popleft()
            reached.append(replace(span, rows=stored.get((span.lo, span.hi), span.rows)))
        self.spans.extendleft(reversed(reached))

    def _forget_spans_before(self, offset: int) -> None:
        while self.spans and self.spans[0].hi < offset:
            self.gone.append(self.spans.popleft())

    def _pop(self) -> None:
        record, rows, _ = self._records.popleft()
        self.budget.used -= record.size
        self._rows -= rows
