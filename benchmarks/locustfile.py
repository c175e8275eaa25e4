"""Steady load over HTTP: batches of events that were serialised before the clock starts.

Run through `make load` (benchmarks.load), which starts the service, makes the events and the key, and passes
them by environment. Against a service of your own:

    LOAD_EVENTS=events.ndjson LOAD_KEY=gp_… locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8080

The run ends with a check on the server's own counters: events answered 2xx = stored (admitted + recorded) +
duplicates + rejected + quarantined. A run that fails the check, or whose client was the bottleneck, exits 1.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task
from locust.env import Environment

BATCH_EVENTS = int(os.environ.get("LOAD_BATCH", "500"))
EVENTS_PER_SECOND = float(os.environ.get("LOAD_RATE", "1500"))
SECONDS = int(os.environ.get("LOAD_SECONDS", "60"))
USERS = int(os.environ.get("LOAD_USERS", "16"))
DRAIN_SECONDS = 60
#: Ids in the file carry this mark; every pass over the file replaces it, so that no id is sent twice.
MARK = b"-mark000000-"

OUTCOMES = ("admitted", "rejected", "recorded", "duplicate", "quarantined")


class Batches:
    """The file cut into request bodies; `take` gives each body once and re-marks the ids after every pass."""

    def __init__(self, path: Path, size: int) -> None:
        lines = path.read_bytes().splitlines()
        self.bodies = [b"\n".join(lines[at : at + size]) for at in range(0, len(lines), size)]
        self.counts = [len(lines[at : at + size]) for at in range(0, len(lines), size)]
        self.taken = 0

    def take(self) -> tuple[bytes, int]:
        passes, number = divmod(self.taken, len(self.bodies))
        self.taken += 1
        return self.bodies[number].replace(MARK, b"-mark%06d-" % passes), self.counts[number]


@dataclass
class Totals:
    """What the answers said, over all users."""

    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    before: dict[str, float] = field(default_factory=dict)


totals = Totals()


def server_counters(host: str) -> dict[str, float]:
    """Outcome counters of the service's /metrics."""
    with urllib.request.urlopen(f"{host}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = dict.fromkeys(OUTCOMES, 0.0)
    for outcome, value in re.findall(r'^gridpipe_events_total\{outcome="(\w+)"\} (\S+)$', text, re.M):
        found[outcome] = float(value)
    return found


class Feeder(FastHttpUser):
    """One platform connection: posts a batch, waits for the durable answer, posts the next."""

    wait_time = constant_throughput(EVENTS_PER_SECOND / BATCH_EVENTS / USERS)
    connection_timeout = 30.0
    network_timeout = 30.0

    @task
    def post_batch(self) -> None:
        body, count = self.environment.batches.take()
        totals.unanswered += count  # until an answer says otherwise: a request cut off may have arrived
        with self.client.post(
            "/v1/events",
            data=body,
            headers={
                "Content-Type": "application/x-ndjson",
                "Authorization": f"Bearer {os.environ['LOAD_KEY']}",
            },
            name="POST /v1/events",
            catch_response=True,
        ) as answer:
            if answer.status_code in (202, 422):
                said = orjson.loads(answer.content or b"{}")
                totals.unanswered -= count
                totals.accepted += said.get("accepted", 0)
                totals.refused += said.get("rejected", 0)
                answer.success()
            else:
                answer.failure(f"status {answer.status_code}")


class Steady(LoadTestShape):
    """The same load from the first second to the last."""

    def tick(self) -> tuple[int, float] | None:
        return (USERS, float(USERS)) if self.get_run_time() < SECONDS else None


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    environment.batches = Batches(Path(os.environ["LOAD_EVENTS"]), BATCH_EVENTS)
    totals.before = server_counters(environment.host or "")
    psutil.cpu_percent()


@events.quitting.add_listener
def check(environment: Environment, **_: Any) -> None:
    """Server-side check once everything sent has been committed; sets the exit code."""
    host = environment.host or ""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        now = server_counters(host)
        counted = {name: int(now[name] - totals.before[name]) for name in OUTCOMES}
        arrived = sum(counted.values())
        # a request that failed may still have arrived: it can only add
        if totals.accepted <= arrived <= totals.accepted + totals.unanswered or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    stored = counted["admitted"] + counted["recorded"]
    entry = environment.stats.get("POST /v1/events", "POST")
    problems = []
    if not totals.accepted:
        problems.append("nothing was accepted")
    if not totals.accepted <= arrived <= totals.accepted + totals.unanswered:
        problems.append(f"answered 2xx {totals.accepted}, but the service counts {arrived}")
    if environment.process_exit_code or entry.fail_ratio > 0.01:
        problems.append(f"{entry.fail_ratio:.1%} of the requests failed")
    seconds = max(entry.last_request_timestamp - entry.start_time, 1e-9) if entry.num_requests else 1.0
    reached = totals.accepted / seconds
    print(
        f"\nsent {totals.accepted} (answered 2xx) = stored {stored} + duplicates {counted['duplicate']} "
        f"+ rejected {counted['rejected']} + quarantined {counted['quarantined']}: "
        f"{'agrees' if totals.accepted == arrived else 'DIFFERS'}"
        f"\nrefused by the contract {totals.refused}, without an answer {totals.unanswered}"
        f"\n{reached:,.0f} events/s of {EVENTS_PER_SECOND:,.0f} asked; "
        f"request p50 {entry.median_response_time} ms, p99 {entry.get_response_time_percentile(0.99)} ms"
    )
    if environment.runner is not None and getattr(environment.runner, "cpu_warning_emitted", False):
        print("the load client used its whole core: the figures are the client's, not the service's")
    for problem in problems:
        print(f"FAILED: {problem}")
    environment.process_exit_code = 1 if problems else 0
