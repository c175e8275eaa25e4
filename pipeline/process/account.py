"""The worker's metrics, counted after the commit so that sums always agree, and the runtime verifier."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import polars as pl
import structlog

from pipeline import metrics
from pipeline.clock import utc_now
from pipeline.contract.canary import CANARY_SOURCE
from pipeline.process.flow import BlockResult
from pipeline.process.told import tell
from pipeline.sink.tables import Extent

log = structlog.get_logger(__name__)

#: Changes of metrics, each a method and its argument.
Tally = Sequence[tuple[Callable[[float], object], float]]

_OTHER: Final = "other"
#: Sources without a key on this host that have a label of their own: where the gateway runs elsewhere its
#: keys are not here, and who writes to the topic needs none. Whoever comes later is `other`.
_MOST_SOURCES: Final = 200
#: Receipt instants of a block that are observed; a block of direct records may have one per event.
_MOST_INSTANTS: Final = 200
#: What the freshness objective allows between accepted and queryable.
_FRESH: Final = timedelta(seconds=5)
#: Prometheus sees no growth in a counter that had grown when it first asked.
_FIRST_VISITS_SECONDS: Final = 60.0
_OUTCOMES: Final = ("admitted", "rejected", "recorded", "duplicate", "quarantined")


class Account:
    """Counts what is stored and committed; lives on the event loop."""

    def __init__(self, known_sources: Callable[[], Collection[str]]) -> None:
        self._known_sources = known_sources
        self._seen_sources: set[str] = set()
        self._last_hi: dict[int, int] = {}
        # first and last of offsets whose records are gone, and of how many of them rows are stored
        self._stored: dict[int, list[tuple[int, int, int]]] = {}
        self._forgotten = 0
        for outcome in _OUTCOMES:
            metrics.events.labels(outcome)

    def committed(self, blocks: Iterable[Extent], tally: Tally) -> None:
        """Count blocks whose commit stands. tally : of their rows."""
        for block in blocks:
            self._verify(*block)
            metrics.committed_offset.labels(str(block.partition)).set(block.hi + 1)
        for change, value in tally:
            change(value)

    def tally(self, result: BlockResult, *, instants: int = _MOST_INSTANTS, unread: int = 0) -> Tally:
        """What blocks that were just stored add to the metrics; small: it may wait long for their commit.

        instants : of their receipts that are observed, at most. unread : see rounds.Stored.
        """
        result = _without_canaries(result)
        tally: list[tuple[Callable[[float], object], float]] = []
        if result.received:
            tally.append((metrics.batch_rows.observe, result.received))
        for stage, seconds in result.stage_seconds.items():
            tally.append((metrics.stage_seconds.labels(stage).observe, seconds))
        tally += self._counts(result)
        tally += _delays(result, instants)
        if unread:
            tally.append((metrics.verifier_gap.inc, unread))
        tell(result)
        return tally

    def _counts(self, result: BlockResult) -> Iterator[tuple[Callable[[float], object], float]]:
        known = self._sources(result)
        taken = (result.events, result.rejections, result.duplicates)
        for frames, heard in ((taken, True), ((result.quarantined,), False)):
            sources = pl.concat([frame["source"].cast(pl.String) for frame in frames])
            for source, rows in sources.value_counts().iter_rows():
                label = source if source in known else _OTHER
                yield metrics.events_received.labels(label).inc, rows
                if heard:  # a source that sends nothing usable is as good as silent
                    yield _seen_now(label), rows
        for outcome, rows in result.events["outcome"].value_counts().iter_rows():
            yield metrics.events.labels(outcome).inc, rows
        yield metrics.events.labels("rejected").inc, result.rejections.height
        yield metrics.events.labels("duplicate").inc, result.duplicates.height
        yield metrics.events.labels("quarantined").inc, result.quarantined.height
        for level, rows in result.duplicates["level"].value_counts().iter_rows():
            yield metrics.duplicates.labels(level).inc, rows
        primary = result.rejections.select(pl.col("reasons").list.first().alias("reason"), "life_safety")
        for reason, rows in primary["reason"].value_counts().iter_rows():
            yield metrics.rejections.labels(reason or _OTHER).inc, rows
        alarms = primary.filter("life_safety")
        for reason, rows in alarms["reason"].value_counts().iter_rows():
            yield metrics.life_safety_rejections.labels(reason or _OTHER).inc, rows

    def _sources(self, result: BlockResult) -> Collection[str]:
        """Sources that have a label: those that keys name, and those of events that kept the contract, in the
        order of their coming."""
        known = frozenset(self._known_sources())
        stored = (frame["source"].cast(pl.String) for frame in (result.events, result.rejections))
        for source in pl.concat(stored).unique().sort():
            if len(self._seen_sources) < _MOST_SOURCES and source not in known:
                self._seen_sources.add(source)
        return known | self._seen_sources

    def _verify(self, partition: int, lo: int, hi: int) -> None:
        last = self._last_hi.get(partition)
        if last is not None:
            told = self._stored.get(partition, [])
            stored = sum(offsets for first, end, offsets in told if last < first and end < lo)
            if (gap := lo - last - 1 - stored) > 0:
                metrics.verifier_gap.inc(gap)
                log.error(
                    "offsets_passed_over", partition=partition, first=last + 1, last=lo - 1, offsets=gap
                )
            self._stored[partition] = [one for one in told if one[0] > hi]
            if lo <= last:
                metrics.verifier_overlap.inc()
            if hi < last:
                metrics.verifier_backward.inc()
        self._last_hi[partition] = hi

    def stored_before(self, partition: int, lo: int, hi: int, offsets: int) -> None:
        """The log no longer holds the offsets `lo` … `hi`, which a coming block will pass over; of so many of
        them an earlier process stored the rows."""
        self._stored.setdefault(partition, []).append((lo, hi, offsets))

    def starts_at(self, partition: int, offset: int | None) -> None:
        """A partition was assigned; its next block must begin at `offset` (None: wherever the log begins)."""
        self._stored.pop(partition, None)
        if offset is None:
            self._last_hi.pop(partition, None)
        else:
            self._last_hi[partition] = offset - 1
        metrics.committed_offset.labels(str(partition)).set(offset or 0)
        metrics.partition_braked.labels(str(partition)).set(0)

    def passed_over(self, partition: int, first: int, last: int) -> None:
        """At its assignment: these offsets are committed and nothing of them is stored."""
        log.error(
            "committed_but_not_stored",
            partition=partition,
            first=first,
            last=last,
            do="after a restore: stop the workers, set the group's offsets back (docs/restore.md)",
        )
        asyncio.get_running_loop().call_later(
            _FIRST_VISITS_SECONDS, metrics.verifier_gap.inc, last - first + 1
        )

    def braked(self, partition: int) -> None:
        """The partition stands still until somebody acts."""
        metrics.partition_braked.labels(str(partition)).set(1)

    def lag(self, partition: int, records: int, seconds: float) -> None:
        metrics.consumer_lag_records.labels(str(partition)).set(records)
        metrics.consumer_lag_seconds.labels(str(partition)).set(seconds)

    def buffered(self, size: int) -> None:
        metrics.worker_buffer_bytes.set(size)

    def blocked(self, seconds: float) -> None:
        metrics.sink_blocked_seconds.set(seconds)

    def forget(self, partition: int) -> None:
        """The partition belongs to somebody else now."""
        self._last_hi.pop(partition, None)
        self._stored.pop(partition, None)
        for gauge in (
            metrics.consumer_lag_records,
            metrics.consumer_lag_seconds,
            metrics.committed_offset,
            metrics.partition_braked,
        ):
            gauge.remove(str(partition))

    def dedup(self, ids: int, anchors: int, forgotten: int) -> None:
        """What is held for deduplication. forgotten : ids dropped early, of the partitions that are ours."""
        metrics.dedup_entries.labels("L1").set(ids)
        metrics.dedup_entries.labels("L2").set(anchors)
        metrics.dedup_forgotten.inc(max(forgotten - self._forgotten, 0))  # less: a partition was taken away
        self._forgotten = forgotten

    def reasons(self, codes: Iterable[str]) -> None:
        """The reason codes of the catalogue in force."""
        metrics.begin_reasons(codes)

    def reference(self, counts: Mapping[str, int]) -> None:
        for kind, rows in counts.items():
            metrics.reference_rows.labels(kind).set(rows)


def _seen_now(source: str) -> Callable[[float], object]:
    seen = metrics.source_last_event_timestamp_seconds.labels(source)
    return lambda _: seen.set(utc_now().timestamp())


def _delays(result: BlockResult, most: int) -> Iterator[tuple[Callable[[float], object], float]]:
    now = utc_now()
    accepted = pl.concat([result.events["ingested_at"], result.rejections["ingested_at"]])
    fresh = int((accepted >= now - _FRESH).sum())
    yield metrics.freshness_events.labels("5s").inc, fresh
    yield metrics.freshness_events.labels("longer").inc, len(accepted) - fresh
    instants = accepted.unique()
    if len(instants) > most:
        instants = instants.gather_every(len(instants) // most + 1)
    observe = metrics.ingest_delay_seconds.observe  # one for all: each look makes a new object
    for instant in instants:
        yield observe, max((now - instant).total_seconds(), 0.0)


def _without_canaries(result: BlockResult) -> BlockResult:
    """What is counted: canary events show that the pipeline works and are no events of the city."""
    tables = ("events", "rejections", "duplicates", "quarantined")
    # most blocks have none, and a filter copies every column
    ours = {
        name: frame.filter(~canaries.fill_null(False))
        for name in tables
        if (canaries := (frame := getattr(result, name))["source"] == CANARY_SOURCE).any()
    }
    received = sum(ours.get(name, getattr(result, name)).height for name in tables)
    return replace(result, **ours, received=received) if ours else result
