"""What a load test must end with, read from the service: lag drained, every event accounted for."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.load_bodies import Body

OUTCOMES: Final = ("admitted", "rejected", "recorded", "duplicate", "quarantined")
#: Above it the client was the bottleneck: the figures are its own.
CLIENT_LIMIT: Final = 0.9
#: Of what was asked: below it another load was measured than the one asked for.
SENT_SHARE: Final = 0.95
#: Of requests: above it the scenario fails.
FAILED_SHARE: Final = 0.01
#: Of the users' time: above it they did not keep their pace, for each waits for an answer before it goes on.
LATE_SHARE: Final = 0.05
#: How often locust asks how many users there shall be, seconds: by so much a step may begin late.
TICK_SECONDS: Final = 1.0


@dataclass
class Second:
    """What was answered within a second of the run. requests : answered, over HTTP and by the broker, without
    those pushed back; latencies_ms : of the HTTP ones."""

    events: int = 0
    requests: int = 0
    pushed_back: int = 0
    users: int = 0
    latencies_ms: list[float] = field(default_factory=list)


@dataclass
class Totals:
    """What the answers said, over all users."""

    accepted: int = 0
    refused: int = 0
    unanswered: int = 0  # events that may have arrived or not
    direct: int = 0  # sent to the broker itself and acknowledged
    bad_sent: int = 0
    expected: Counter[str] = field(default_factory=Counter)  # outcomes of bodies that arrived as a whole
    unsorted: int = 0  # accepted events of bodies that arrived in part: of which outcome is not known
    lost: int = 0  # events of bodies that did not arrive as a whole, as far as is known
    pushed_back: int = 0  # requests answered 429 or 503
    failed: int = 0  # requests answered otherwise, or not at all; records that the broker did not take
    requests: int = 0  # over HTTP, and batches straight to the topic
    offered: int = 0  # events of the batches that are sent at the users' pace
    late_seconds: float = 0.0  # by which batches came behind that pace
    paced_seconds: float = 0.0  # time that all batches had by that pace
    begin: float = 0.0
    seconds: defaultdict[int, Second] = field(default_factory=lambda: defaultdict(Second))
    client_cpu: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)

    def sent(self, body: Body) -> None:
        """A request, or a batch straight to the topic: not known to have arrived until it is answered."""
        self.requests += 1
        self.unanswered += body.events
        self.lost += body.events

    def answered(self, body: Body, accepted: int, refused: int, milliseconds: float, users: int) -> None:
        """A request whose events were judged one by one; what is neither of the two may have arrived."""
        self.unanswered -= accepted + refused
        self.accepted += accepted
        self.refused += refused
        self.bad_sent += body.bad
        if accepted + body.bad == body.events:
            self.lost -= body.events
            self.expected.update(body.outcomes)
        else:
            self.unsorted += accepted
        second = self._now(users)
        second.events += accepted
        second.requests += 1
        second.latencies_ms.append(milliseconds)

    def delivered(self, body: Body, users: int) -> None:
        """The broker has the whole batch; what the contract refuses of it is quarantined behind the topic."""
        self.unanswered -= body.events
        self.lost -= body.events
        self.direct += body.events
        self.expected.update(body.outcomes)
        self.expected["quarantined"] += body.bad
        second = self._now(users)
        second.events += body.events
        second.requests += 1

    def pushed(self, body: Body, users: int, *, written: bool) -> None:
        """A request was pushed back. written : perhaps behind the broker's door already (503, not 429)."""
        self.pushed_back += 1
        self.unanswered -= 0 if written else body.events
        self._now(users).pushed_back += 1

    def _now(self, users: int) -> Second:
        second = self.seconds[int(time.monotonic() - self.begin)]
        second.users = users
        return second

    def within(self, spans: Sequence[tuple[float, float]]) -> Iterator[Second]:
        """The seconds that lie in one of the spans (seconds of the run) as a whole."""
        for at, second in self.seconds.items():
            if any(begin <= at and at + 1 <= end for begin, end in spans):
                yield second

    def events_within(self, begin: float, end: float) -> int:
        return sum(second.events for at, second in self.seconds.items() if begin <= at < end)

    def latency(self, percentile: float, spans: Sequence[tuple[float, float]] = ((0.0, math.inf),)) -> float:
        """Of the answers over HTTP, milliseconds; 0 without any."""
        values = [value for second in self.within(spans) for value in second.latencies_ms]
        return float(np.percentile(values, percentile)) if values else 0.0

    def late_share(self) -> float:
        """Of the users' time, by how much batches came late."""
        return self.late_seconds / max(self.late_seconds + self.paced_seconds, 1e-9)


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


def held(text: str) -> tuple[float, float]:
    """(ids and report contents that are held for deduplication, bytes that KPI calls are answered from)."""
    ids = re.findall(r"^gridpipe_dedup_entries\{[^}]*\} (\S+)$", text, re.M)
    size = re.findall(r"^gridpipe_held_bytes (\S+)$", text, re.M)
    return sum(map(float, ids)), sum(map(float, size))


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


def wrong_outcomes(counted: dict[str, int], totals: Totals) -> list[str]:
    """Where outcomes are not what the bodies hold: events that were rejected must not pass as stored.

    Of bodies that may have arrived, or did in part, any outcome can come on top. And where the original was
    in a body that is lost, its redelivery is no duplicate, but what the original would have been.
    """
    free = min(totals.lost, totals.expected["duplicate"])
    more = totals.unanswered + totals.unsorted
    found = []
    for name in OUTCOMES:
        wanted = totals.expected[name]
        least, most = (wanted - free, wanted) if name == "duplicate" else (wanted, wanted + free)
        if not least <= counted[name] <= most + more:
            slack = f" to {most + more}" if most + more > least else ""
            found.append(f"{counted[name]} events are {name}, {least}{slack} must be")
    return found


def problems(
    counted: dict[str, int],
    left: float,
    totals: Totals,
    *,
    p99_limit_ms: float,
    calm: Sequence[tuple[float, float]],
) -> list[str]:
    """Everything that makes the run fail, one line each, whatever the scenario.

    calm : spans of the run, seconds, in which the service must answer in time and not push back.
    """
    found = []
    if not totals.accepted + totals.direct:
        found.append("nothing was accepted")
    if not accounts(counted, totals):
        found.append(
            f"answered 2xx {totals.accepted}, sent directly {totals.direct}, without an answer "
            f"{totals.unanswered}, but the service counts {sum(counted.values())}"
        )
    found += wrong_outcomes(counted, totals)
    if left:
        found.append(f"{left:.0f} records of lag were left")
    if totals.failed > FAILED_SHARE * max(totals.requests, 1):
        found.append(f"{totals.failed} of {totals.requests} requests failed")
    pushed = sum(second.pushed_back for second in totals.within(calm))
    answers = pushed + sum(second.requests for second in totals.within(calm))
    if pushed > FAILED_SHARE * answers:
        found.append(f"{pushed} of {answers} requests were pushed back where none may be")
    if (p99 := totals.latency(99, calm)) > p99_limit_ms:
        found.append(f"p99 of {p99:.0f} ms is over the limit of {p99_limit_ms:.0f} ms")
    if totals.refused != totals.bad_sent:
        found.append(f"{totals.bad_sent} broken events were sent, {totals.refused} were refused")
    return found


def too_slow(totals: Totals, asked: float) -> str | None:
    """What is wrong with a run that was to send so many events: the client, or a slow service, did not."""
    if totals.offered >= SENT_SHARE * asked:
        return None
    return f"{totals.offered} events were sent, {asked:.0f} were asked: that is {totals.offered / asked:.0%}"


def stood_still(totals: Totals, rate: float, begin: float, end: float) -> str | None:
    """What is wrong with a burst, between two seconds of the run, of which not even the base rate (events/s)
    was taken: pushing back what is too much is in order, stopping is not."""
    accepted, least = totals.events_within(begin, end), rate * (end - begin)
    if accepted >= least:
        return None
    return f"{accepted} events were accepted within {end - begin:.0f} s of burst, not even {least:.0f}"


def backlog(totals: Totals, rate: float, begin: float, end: float, interval: float) -> str | None:
    """What is wrong with a backlog, `rate` events/s between two seconds of the run, to be accepted by then.

    interval : seconds from one batch of a user to its next. So much is allowed for, since what a user sends
    last may be answered behind the end, and a tick, since by that its users may come later than the begin.
    """
    accepted = totals.events_within(begin, end)
    wanted = rate * (end - begin - interval - TICK_SECONDS)
    if wanted <= 0:
        return f"{end - begin:.0f} s tell nothing where users send every {interval:.0f} s: run longer"
    if accepted >= wanted:
        return None
    return (
        f"{accepted} events were accepted within {end - begin:.0f} s, the backlog is "
        f"{rate * (end - begin):.0f}, {wanted:.0f} without what may be answered later"
    )


def recovered(totals: Totals, seconds: float) -> bool:
    """Whether the last fifth of a run was answered again as its first fifth was, to a half at least."""
    first, last = (
        totals.events_within(low * seconds, high * seconds) for low, high in ((0.0, 0.2), (0.8, 1.0))
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
    if not found:
        return f"no step was carried, not even the first of {steps[0] * rate:,.0f} events/s"
    top = steps[-1] * rate
    if found >= 0.95 * top:
        return f"no knee up to {top:,.0f} events/s: raise --rate"
    return f"knee: {found:,.0f} events/s (95 % of what was asked, p99 below {limit_ms:.0f} ms)"


def write_seconds(path: Path, totals: Totals) -> None:
    """events/s by second, as CSV: what locust's own files do not have."""
    lines = ["second,users,requests,pushed_back,events,p50_ms,p99_ms"]
    for at, second in sorted(totals.seconds.items()):
        counts = f"{at},{second.users},{second.requests},{second.pushed_back},{second.events}"
        # not known in a second in which none was answered over HTTP
        tails = np.percentile(second.latencies_ms, (50, 99)) if second.latencies_ms else ()
        lines.append(f"{counts},{','.join(f'{tail:.1f}' for tail in tails) or ','}")
    path.write_text("\n".join(lines) + "\n")
