"""What a load test must end with, read from the service: lag drained, every event accounted for."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

OUTCOMES: Final = ("admitted", "rejected", "recorded", "duplicate", "quarantined")
#: Above it the client was the bottleneck: the figures are its own.
CLIENT_LIMIT: Final = 0.9


@dataclass
class Second:
    events: int = 0
    requests: int = 0
    users: int = 0
    latencies_ms: list[float] = field(default_factory=list)


@dataclass
class Totals:
    """What the answers said, over all users."""

    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    direct: int = 0  # sent to the broker itself and acknowledged
    bad_sent: int = 0
    repeated: int = 0  # accepted events of bodies that had been sent before
    expected: Counter[str] = field(default_factory=Counter)  # outcomes of all that was sent
    lost: int = 0  # events of requests that were not accepted
    pushed_back: int = 0  # requests answered 429 or 503
    failed: int = 0  # requests answered otherwise, or not at all
    requests: int = 0
    begin: float = 0.0
    seconds: defaultdict[int, Second] = field(default_factory=lambda: defaultdict(Second))
    client_cpu: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)

    def note(self, events: int, milliseconds: float, users: int) -> None:
        second = self.seconds[int(time.monotonic() - self.begin)]
        second.events += events
        second.requests += 1
        second.users = users
        second.latencies_ms.append(milliseconds)

    def latency(self, percentile: float) -> float:
        values = [value for second in self.seconds.values() for value in second.latencies_ms]
        return float(np.percentile(values, percentile)) if values else 0.0


def read_metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def outcomes(text: str) -> dict[str, float]:
    found = dict.fromkeys(OUTCOMES, 0.0)
    for outcome, value in re.findall(r'^gridpipe_events_total\{outcome="(\w+)"\} (\S+)$', text, re.M):
        found[outcome] = float(value)
    return found


def lag(text: str) -> float:
    return sum(
        float(value) for value in re.findall(r"^gridpipe_consumer_lag_records\{[^}]*\} (\S+)$", text, re.M)
    )


def held(text: str) -> float:
    """Ids and report contents that are held for deduplication."""
    return sum(float(value) for value in re.findall(r"^gridpipe_dedup_entries\{[^}]*\} (\S+)$", text, re.M))


def settle(url: str, totals: Totals, seconds: float) -> tuple[dict[str, int], float]:
    """Wait until everything sent is counted and the lag is gone; (outcomes since the start, lag left)."""
    deadline = time.monotonic() + seconds
    while True:
        text = read_metrics(url)
        now = outcomes(text)
        counted = {name: int(now[name] - totals.before[name]) for name in OUTCOMES}
        left = lag(text)
        if (accounts(counted, totals) and not left) or time.monotonic() > deadline:
            return counted, left
        time.sleep(0.5)


def accounts(counted: dict[str, int], totals: Totals) -> bool:
    """Sent = stored + duplicates + rejected + quarantined; a request cut off can only add."""
    sent = totals.accepted + totals.direct
    return sent <= sum(counted.values()) <= sent + totals.unanswered


def problems(
    scenario: str,
    counted: dict[str, int],
    left: float,
    totals: Totals,
    *,
    p99_limit_ms: float,
    may_push_back: bool,
) -> list[str]:
    """Everything that makes the run fail, one line each."""
    found = []
    if not totals.accepted + totals.direct:
        found.append("nothing was accepted")
    if not accounts(counted, totals):
        found.append(
            f"answered 2xx {totals.accepted}, sent directly {totals.direct}, without an answer "
            f"{totals.unanswered}, but the service counts {sum(counted.values())}"
        )
    if left:
        found.append(f"{left:.0f} records of lag were left")
    lost = totals.failed + (0 if may_push_back else totals.pushed_back)
    if lost > 0.01 * max(totals.requests, 1):
        found.append(f"{lost} of {totals.requests} requests failed")
    if not may_push_back and totals.latency(99) > p99_limit_ms:
        found.append(f"p99 of {totals.latency(99):.0f} ms is over the limit of {p99_limit_ms:.0f} ms")
    if scenario == "bad-data" and totals.refused != totals.bad_sent:
        found.append(f"{totals.bad_sent} broken events were sent, {totals.refused} were refused")
    if scenario == "replay" and counted["duplicate"] < totals.repeated:
        found.append(f"{totals.repeated} events were sent again, {counted['duplicate']} are duplicates")
    once = ("admitted", "recorded", "rejected")
    if scenario == "replay" and (kept := sum(counted[name] for name in once)) > (
        distinct := sum(totals.expected[name] for name in once)
    ):
        found.append(f"{distinct} ids were sent, but {kept} events are admitted, recorded or rejected")
    if scenario == "storm" and counted["admitted"] < totals.expected["admitted"] - totals.lost:
        found.append(
            f"{counted['admitted']} reports were admitted, {totals.expected['admitted']} should be: every "
            "person's report of the place is one"
        )
    return found


def backlog(totals: Totals, wanted: float, begin: float, end: float) -> str | None:
    """What is wrong with a backlog of `wanted` events, to be accepted between two seconds of the run."""
    accepted = sum(second.events for at, second in totals.seconds.items() if begin <= at < end)
    if accepted >= wanted:
        return None
    return f"{accepted} events were accepted within {end - begin:.0f} s, the backlog is {wanted:.0f}"


def recovered(totals: Totals, seconds: float) -> bool:
    """Whether the last fifth of a run was answered again as its first fifth was, to a half at least."""
    first, last = (
        sum(second.events for at, second in totals.seconds.items() if low * seconds <= at < high * seconds)
        for low, high in ((0.0, 0.2), (0.8, 1.0))
    )
    return last > 0 and last >= 0.5 * first


def knee(totals: Totals, rate: float, steps: tuple[float, ...], seconds: float, limit_ms: float) -> float:
    """The highest rate of a ramp, events/s, that was reached to 95 % with its p99 below the limit."""
    best, length = 0.0, seconds / len(steps)
    for number, factor in enumerate(steps):
        # the first fifth of a step belongs to the step before
        span = range(math.ceil((number + 0.2) * length), math.ceil((number + 1) * length))
        inside = [totals.seconds[at] for at in span if at in totals.seconds]
        latencies = [value for second in inside for value in second.latencies_ms]
        if not latencies:
            continue
        # by all seconds of the step: one without an answer carried nothing
        reached = sum(second.events for second in inside) / len(span)
        if reached >= 0.95 * factor * rate and np.percentile(latencies, 99) <= limit_ms:
            best = max(best, reached)
    return best


def knee_text(found: float, rate: float, steps: tuple[float, ...], limit_ms: float) -> str:
    top = steps[-1] * rate
    if found >= 0.95 * top:
        return f"no knee up to {top:,.0f} events/s: raise --rate"
    return f"knee: {found:,.0f} events/s (95 % of what was asked, p99 below {limit_ms:.0f} ms)"


def write_seconds(path: Path, totals: Totals) -> None:
    """events/s by second, as CSV: what locust's own files do not have."""
    lines = ["second,users,requests,events,p50_ms,p99_ms"]
    for at, second in sorted(totals.seconds.items()):
        p50, p99 = np.percentile(second.latencies_ms, (50, 99))
        lines.append(f"{at},{second.users},{second.requests},{second.events},{p50:.1f},{p99:.1f}")
    path.write_text("\n".join(lines) + "\n")
