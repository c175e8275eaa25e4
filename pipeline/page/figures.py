"""What the page shows of a running pipeline, from the metrics of its processes: rates, queues, delays.

Rates are differences of counters over a few seconds; they begin anew when a counter falls (a restart).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: Over how long rates are taken, and delays, which need more events to mean something. Seconds.
RATE_SECONDS: Final = 5.0
DELAY_SECONDS: Final = 60.0
#: Samples further apart tell what was at two instants, and nothing of the time between. They come each second
#: while somebody watches, else each minute.
_CLOSE_SECONDS: Final = 5.0
#: A partition that has not moved for so long although something waits is stuck. A block takes well under a
#: second.
STUCK_SECONDS: Final = 10.0

#: What waits longer is late.
LATE_SECONDS: Final = 5.0
#: Seconds that a stage works in a second, from which on it can be what holds the others up.
_BUSY_SHARE: Final = 0.3

STAGES: Final = ("decode", "deduplicate", "look_up", "admit", "drop_resends", "enrich")

OUTCOMES: Final = ("admitted", "rejected", "recorded", "duplicate", "quarantined")

#: An arrow of the page → the stages behind it; inserts belong to the store.
_BEHIND: Final = {
    "decode": ("decode",),
    "deduplicate": ("deduplicate",),
    "admit": ("look_up", "admit", "drop_resends"),
    "enrich": ("enrich",),
    "store": ("fold",),
}

_WANTED: Final = re.compile(
    rb"^gridpipe_(events_total|gateway_events_total|gateway_in_flight_bytes"
    rb"|gateway_oldest_request_seconds|consumer_lag_records"
    rb"|consumer_lag_seconds|committed_offset|partition_braked|stage_seconds_sum|stage_seconds_count|insert_seconds_sum|insert_seconds_count"
    rb"|insert_retries_total|ingest_delay_seconds_bucket|worker_buffer_bytes|sink_blocked_seconds)"
    rb'(?:\{\w+="([^"]*)"\})? (\S+)$',
    re.MULTILINE,
)

#: Of several processes the one that is worst off stands for all; everything else is added.
_WORST: Final = frozenset({"gateway_oldest_request_seconds", "sink_blocked_seconds"})
#: Labelled by partition, which one worker at a time has.
_OF_PARTITIONS: Final = frozenset(
    {"committed_offset", "consumer_lag_records", "consumer_lag_seconds", "partition_braked"}
)

#: Family (without prefix) → value of its one label ('' without) → value.
Families = dict[str, dict[str, float]]


def read_families(*expositions: bytes) -> Families:
    """The families above, out of the pages of one process in Prometheus' text format: no family may be in two
    of them. See `join` for several processes."""
    found: Families = {}
    for text in expositions:
        for name, label, value in _WANTED.findall(text):
            found.setdefault(name.decode(), {})[label.decode()] = float(value)
    return found


def join(pages: Iterable[Families]) -> Families:
    """What several processes count together.

    A partition that two workers tell of is that of the one who committed further: the other one has lost it,
    and has not noticed yet.
    """
    read = list(pages)
    holders: dict[str, tuple[float, int]] = {}
    for number, families in enumerate(read):
        for partition, offset in families.get("committed_offset", {}).items():
            holders[partition] = max(holders.get(partition, (offset, number)), (offset, number))
    found: Families = {}
    for number, families in enumerate(read):
        for family, values in families.items():
            joined = found.setdefault(family, {})
            for label, value in values.items():
                if family in _OF_PARTITIONS:
                    if holders.get(label, (0.0, number))[1] == number:
                        joined[label] = value
                elif family in _WORST:
                    joined[label] = max(value, joined.get(label, value))
                else:
                    joined[label] = joined.get(label, 0.0) + value
    return found


@dataclass(frozen=True)
class Sample:
    """at : monotonic seconds; worker : whether a worker's part is in `families`; pages : by process what
    `families` was joined from, where there are several."""

    at: float
    families: Families
    worker: bool
    pages: Mapping[str, Families] = field(default_factory=dict)

    @classmethod
    def of(cls, at: float, pages: Mapping[str, Families], *, worker: bool) -> Sample:
        """Of several processes, each under a name of its own."""
        return cls(at, join(pages.values()), worker, pages)

    def each(self) -> Mapping[str, Families]:
        """The processes one by one."""
        return self.pages or {"": self.families}

    def total(self, family: str) -> float:
        return _total(self.families, family)

    def value(self, family: str, label: str = "") -> float:
        return self.families.get(family, {}).get(label, 0.0)


class Figures:
    """The last minute of samples, and what they say."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._moved_at: dict[str, float] = {}  # when a partition last went on, or had nothing to do
        # by gateway, when it last answered, or was not looked at before
        self._answered_at: dict[str, float] = {}

    def add(self, sample: Sample) -> None:
        """Take the newest sample; older than a minute are forgotten."""
        last = self._samples[-1] if self._samples else None
        if last is not None and _restarted(last, sample):
            self._samples.clear()
            self._moved_at.clear()
            last = None
        elif last is not None and last.each().keys() != sample.each().keys():
            # a sum over others: its rates begin anew, but a partition that stood still goes on standing
            self._samples.clear()
        near = last is not None and sample.at - last.at <= _CLOSE_SECONDS
        # each for itself: eleven that go on would hide the one that does not
        offsets = sample.families.get("committed_offset", {})
        self._moved_at = {
            partition: self._moved_at[partition]
            if records
            and partition in self._moved_at
            and near
            and last is not None
            and offsets.get(partition) == last.families.get("committed_offset", {}).get(partition)
            else sample.at
            for partition, records in sample.families.get("consumer_lag_records", {}).items()
        }
        # each for itself here too: a gateway that answers would hide the one that does not
        self._answered_at = {
            name: self._answered_at[name]
            if near
            and last is not None
            and name in self._answered_at
            and name in last.each()
            and _total(families, "gateway_events_total") <= _total(last.each()[name], "gateway_events_total")
            else sample.at
            for name, families in sample.each().items()
        }
        self._samples.append(sample)
        while sample.at - self._samples[0].at > DELAY_SECONDS + 1:
            self._samples.popleft()

    def describe(self) -> dict[str, Any]:
        """Figures for the page: per second where the name says so, else counts, seconds or bytes.

        What the worker counts is None while its metrics cannot be read.
        """
        if not self._samples:
            return {
                "worker": False,
                "events_per_second": None,
                "stored": None,
                "delay_seconds": None,
                "flow": None,
            }
        now = self._samples[-1]
        before = self._since(RATE_SECONDS)
        per_second = {outcome: self._rate("events_total", outcome) for outcome in OUTCOMES}
        stuck = self._stuck(now)
        # a worker that begins has no partitions yet: no lag is told, which is not none
        lag = now.families.get("consumer_lag_records")
        return {
            "worker": now.worker,
            "events_per_second": _sum(per_second.values()) if now.worker else None,
            "stored": self._stored(before, now) if now.worker else None,
            "delay_seconds": self._delay() if now.worker else None,
            "totals": {name: int(value) for name, value in now.families.get("events_total", {}).items()},
            "flow": {
                "gateway": {
                    "accepted_per_second": self._rate("gateway_events_total", "accepted"),
                    "refused_per_second": self._rate("gateway_events_total", "refused"),
                    "not_written_per_second": self._rate("gateway_events_total", "not_written"),
                    "in_flight_bytes": int(now.value("gateway_in_flight_bytes")),
                    "stuck": self._gateway_stuck(now),
                },
                "topic": {
                    "known": bool(lag),
                    "lag_records": int(sum(lag.values())) if lag else None,
                    "lag_seconds": max(now.families.get("consumer_lag_seconds", {}).values(), default=0.0)
                    if lag
                    else None,
                    "stuck_partitions": stuck,
                },
                "outcomes_per_second": per_second,
                "slowest": self._slowest(now),
                "stages": {stage: _mean(before, now, "stage_seconds", stage) for stage in STAGES},
                "store": {
                    "inserts_per_second": self._rate("insert_seconds_count"),
                    "seconds_per_insert": _mean(before, now, "insert_seconds"),
                    "retries_per_second": self._rate("insert_retries_total"),
                    "waiting_bytes": int(now.value("worker_buffer_bytes")),
                    "blocked_seconds": now.value("sink_blocked_seconds"),
                    "stuck": now.value("sink_blocked_seconds") > STUCK_SECONDS,
                },
            },
        }

    @staticmethod
    def _stored(before: Sample, now: Sample) -> dict[str, float] | None:
        """What the rate of events is made of: events stored and committed, over seconds. None as the rate."""
        if now.at <= before.at:
            return None
        events = sum(
            now.value("events_total", name) - before.value("events_total", name) for name in OUTCOMES
        )
        return {"events": int(events), "seconds": now.at - before.at}

    def _gateway_stuck(self, now: Sample) -> bool:
        """Whether a request has waited for long since it came whole, and no other was answered meanwhile.

        Bytes that are held say nothing: they are booked before the body, which may be long in coming."""
        return any(
            min(_total(families, "gateway_oldest_request_seconds"), now.at - self._answered_at[name])
            > STUCK_SECONDS
            for name, families in now.each().items()
        )

    def _stuck(self, now: Sample) -> list[int]:
        """Partitions in which something waits and nothing moves, and those that were stopped."""
        still = {at for at, moved in self._moved_at.items() if now.at - moved > STUCK_SECONDS}
        braked = {at for at, value in now.families.get("partition_braked", {}).items() if value}
        return sorted(map(int, still | braked))

    def _slowest(self, now: Sample) -> str | None:
        """Which part holds the others up: the busiest one while what waits is late and grows."""
        before = self._since(STUCK_SECONDS)
        span = now.at - before.at
        late = max(now.families.get("consumer_lag_seconds", {}).values(), default=0.0) > LATE_SECONDS
        grows = now.total("consumer_lag_records") > before.total("consumer_lag_records")
        if not (late and grows and span >= STUCK_SECONDS - 0.05):
            return None

        def spent(sample: Sample, part: str) -> float:
            inserts = sample.total("insert_seconds_sum") if part == "store" else 0.0
            return inserts + sum(sample.value("stage_seconds_sum", stage) for stage in _BEHIND[part])

        share = {part: (spent(now, part) - spent(before, part)) / span for part in _BEHIND}
        busiest = max(share, key=share.__getitem__)
        return busiest if share[busiest] > _BUSY_SHARE else None

    def _since(self, seconds: float) -> Sample:
        """The newest sample that is at least `seconds` old, or the oldest there is."""
        now = self._samples[-1].at
        old = [sample for sample in self._samples if now - sample.at >= seconds - 0.05]
        return old[-1] if old else self._samples[0]

    def _rate(self, family: str, label: str | None = None) -> float | None:
        """None with a single sample, as after a restart: nothing is known yet."""
        before, now = self._since(RATE_SECONDS), self._samples[-1]
        if now.at <= before.at:
            return None
        if label is None:
            return (now.total(family) - before.total(family)) / (now.at - before.at)
        return (now.value(family, label) - before.value(family, label)) / (now.at - before.at)

    def _delay(self) -> dict[str, float | None] | None:
        """Quantiles of the last minute's delays, interpolated in their buckets; None without an event."""
        before, now = self._since(DELAY_SECONDS), self._samples[-1]
        family = "ingest_delay_seconds_bucket"
        buckets = [
            (float(bound), count - before.value(family, bound))
            for bound, count in now.families.get(family, {}).items()
        ]
        count = max((number for _, number in buckets), default=0.0)
        if not count:
            return None
        return {"p50": quantile(buckets, 0.5), "p99": quantile(buckets, 0.99), "count": count}


def quantile(buckets: Iterable[tuple[float, float]], q: float) -> float | None:
    """Prometheus' histogram_quantile: cumulative counts per upper bound → value at `q`.

    None when it lies above the last finite bound.
    """
    ordered = sorted(buckets)
    rank = q * ordered[-1][1]
    low, below = 0.0, 0.0
    for bound, number in ordered:
        if number >= rank and number > below:
            return None if bound == float("inf") else low + (bound - low) * (rank - below) / (number - below)
        low, below = bound, number
    return None


def _mean(before: Sample, now: Sample, family: str, label: str | None = None) -> float | None:
    """Mean seconds of an observation between two samples; None without one."""
    if label is None:
        count = now.total(f"{family}_count") - before.total(f"{family}_count")
        spent = now.total(f"{family}_sum") - before.total(f"{family}_sum")
    else:
        count = now.value(f"{family}_count", label) - before.value(f"{family}_count", label)
        spent = now.value(f"{family}_sum", label) - before.value(f"{family}_sum", label)
    return spent / count if count > 0 else None


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one is unknown."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _restarted(last: Sample, sample: Sample) -> bool:
    """Whether a process that both tell of counts anew: what another one counted meanwhile could hide it."""
    return last.worker != sample.worker or any(
        _total(families, counter) < _total(last.each()[name], counter)
        for name, families in sample.each().items()
        if name in last.each()
        for counter in ("events_total", "gateway_events_total")
    )


def _total(families: Families, family: str) -> float:
    return sum(families.get(family, {}).values())
