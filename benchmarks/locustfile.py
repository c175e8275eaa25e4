"""Load over HTTP and, where a broker is named, straight into the topic; batches are serialised beforehand.

Run through `make load SCENARIO=…` (benchmarks.load), which starts the service, makes events and key, and
passes them by environment. Against a service of your own:

    LOAD_EVENTS=events.ndjson LOAD_KEY=gp_… locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8080

The run ends with checks on the server's side (load_check.py); one that fails makes the exit code 1.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gevent
import orjson
import psutil
from confluent_kafka import Producer
from gevent.pool import Pool
from locust import FastHttpUser, LoadTestShape, User, constant_throughput, events, task
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment

from benchmarks import load_check
from benchmarks.load_bodies import Batches, Body
from benchmarks.load_shapes import (
    MAY_PUSH_BACK,
    SECONDS,
    SHAPES,
    USERS,
    Ramp,
    Reconnect,
    Spike,
    direct_weight,
)
from pipeline.ingest.blocks import partition_of

SCENARIO = os.environ.get("LOAD_SCENARIO", "steady")
BATCH_EVENTS = int(os.environ.get("LOAD_BATCH", "500"))
EVENTS_PER_SECOND = float(os.environ.get("LOAD_RATE", "1500"))
P99_LIMIT_MS = float(os.environ.get("LOAD_P99_MS", "5000"))
KAFKA = os.environ.get("LOAD_KAFKA")
KAFKA_SHARE = float(os.environ.get("LOAD_KAFKA_SHARE", "0.25"))
PARTITIONS = int(os.environ.get("LOAD_PARTITIONS", "12"))
TOPIC = os.environ.get("LOAD_TOPIC", "grid.events")
REPORT = Path(os.environ.get("LOAD_REPORT", "."))
DRAIN_SECONDS = float(os.environ.get("LOAD_DRAIN_SECONDS", "120"))
#: Seconds from one batch of a user to its next.
INTERVAL = USERS * BATCH_EVENTS / EVENTS_PER_SECOND
#: Reports of a storm that are on their way at once; each has a connection of its own.
STORM_CONNECTIONS = 160
#: Of the run, before the storm; and how long its last answers may take behind the run.
STORM_AT, STORM_GRACE_SECONDS = 0.3, 60.0
CONNECTION_SECONDS, ANSWER_SECONDS = 30.0, 60.0

totals = load_check.Totals()


class Scenario(SHAPES[SCENARIO], LoadTestShape):  # type: ignore[misc]
    """What locust finds and runs."""


def running_users(environment: Environment) -> int:
    return environment.runner.user_count if environment.runner else 0


def post(environment: Environment, client: FastHttpSession, body: Body, name: str) -> None:
    """One request and what its answer says. Waits as long as a service that pushes back asks, 5 s at most."""
    totals.sent(body)
    begin = time.perf_counter()
    with client.post(
        "/v1/events",
        data=body.data,
        headers={
            "Content-Type": "application/x-ndjson",
            "Authorization": f"Bearer {os.environ['LOAD_KEY']}",
        },
        name=name,
        catch_response=True,
    ) as answer:
        users = running_users(environment)
        if answer.status_code in (202, 422):
            said = orjson.loads(answer.content or b"{}")
            retryable = sum(error["retryable"] for error in said.get("errors", ()))
            refused = said.get("rejected", 0) - retryable
            took = (time.perf_counter() - begin) * 1_000
            totals.answered(body, said.get("accepted", 0), refused, took, users)
            answer.success()
        elif answer.status_code in (429, 503):
            totals.pushed(body, users, written=answer.status_code == 503)
            if SCENARIO in MAY_PUSH_BACK:
                answer.success()
            else:
                answer.failure(f"status {answer.status_code}")
            gevent.sleep(min(float(answer.headers.get("Retry-After") or 1), 5.0))
        else:
            totals.failed += 1
            answer.failure(f"status {answer.status_code}")


class Paced:
    """Sends a share of the base rate: a batch every INTERVAL, but never before the answer to the last one."""

    wait_time = constant_throughput(1 / INTERVAL)
    _last: float | None = None

    def next_batch(self, environment: Environment) -> Body:
        """What is to be sent now. Notes by how much that is later than the pace asks."""
        now = time.monotonic()
        if self._last is not None:
            totals.late_seconds += max(0.0, now - self._last - INTERVAL)
            totals.paced_seconds += INTERVAL
        self._last = now
        body: Body = environment.batches.take()  # type: ignore[attr-defined]
        totals.offered += body.events
        return body


class Feeder(Paced, FastHttpUser):
    """One platform connection: posts a batch, waits for the durable answer, posts the next."""

    weight = 100
    connection_timeout = CONNECTION_SECONDS
    network_timeout = ANSWER_SECONDS

    @task
    def post_batch(self) -> None:
        post(self.environment, self.client, self.next_batch(self.environment), "POST a batch")


class DirectProducer(Paced, User):
    """A platform team's own producer: NDJSON records into the topic, as the README asks of them."""

    weight = direct_weight(KAFKA_SHARE, Feeder.weight) if KAFKA else 0
    abstract = not KAFKA

    def on_start(self) -> None:
        self.producer = Producer({"bootstrap.servers": KAFKA, "acks": "all", "linger.ms": 2})

    @task
    def produce_batch(self) -> None:
        body = self.next_batch(self.environment)
        shares: dict[int, list[bytes]] = {}
        for line in body.data.splitlines():
            at = line.find(b'"grid_code":"') + 13
            shares.setdefault(partition_of(line[at : at + 15].decode(), PARTITIONS), []).append(line)
        begin, delivered = time.perf_counter(), 0

        def confirm(error: Any, _: Any) -> None:
            nonlocal delivered
            delivered += error is None

        totals.sent(body)
        headers = [("content-type", b"application/x-ndjson"), ("schema-version", b"1")]
        for partition, lines in shares.items():
            self.producer.produce(
                TOPIC, value=b"\n".join(lines), partition=partition, headers=headers, on_delivery=confirm
            )
        while self.producer.poll(0) or len(self.producer):
            gevent.sleep(0.002)
        took = (time.perf_counter() - begin) * 1_000
        complete = delivered == len(shares)
        if complete:
            totals.delivered(body, running_users(self.environment))
        else:
            totals.failed += 1
        self.environment.events.request.fire(
            request_type="KAFKA",
            name="produce a batch",
            response_time=took,
            response_length=len(body.data),
            exception=None if complete else RuntimeError("not delivered"),
            context={},
        )


def storm(environment: Environment) -> None:
    """All reports of the storm, as many at once as there are connections for.

    A report waits for a connection before its clock starts: the queue for these is the client's own.
    """
    client = FastHttpSession(
        base_url=environment.host,
        request_event=environment.events.request,
        user=None,
        concurrency=STORM_CONNECTIONS,
        connection_timeout=CONNECTION_SECONDS,
        network_timeout=ANSWER_SECONDS,
    )
    waiting: list[Body] = environment.batches.storm  # type: ignore[attr-defined]

    def one(_: int) -> None:
        post(environment, client, waiting.pop(), "POST one report")

    for _ in Pool(STORM_CONNECTIONS).imap_unordered(one, range(len(waiting))):
        pass


def _watch_client() -> None:
    me = psutil.Process()
    me.cpu_percent()
    while True:
        gevent.sleep(2)
        totals.client_cpu.append(me.cpu_percent() / 100)


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    environment.batches = Batches(Path(os.environ["LOAD_EVENTS"]), BATCH_EVENTS, SCENARIO)  # type: ignore[attr-defined]
    totals.before = load_check.outcomes(load_check.read_metrics(environment.host or ""))
    totals.begin = time.monotonic()
    gevent.spawn(_watch_client)
    if environment.batches.storm:  # type: ignore[attr-defined]
        environment.storm = gevent.spawn_later(STORM_AT * SECONDS, storm, environment)  # type: ignore[attr-defined]


def _client_problems(environment: Environment) -> list[str]:
    """What went wrong in the client itself: a run without what it was to send shows nothing."""
    found = []
    if (sending := getattr(environment, "storm", None)) is not None:
        sending.join(STORM_GRACE_SECONDS)
        if sending.exception is not None:
            found.append(f"the storm broke off: {sending.exception!r}")
    if waiting := environment.batches.storm:  # type: ignore[attr-defined]
        found.append(f"{len(waiting)} reports of the storm were never sent: make the run longer")
    # by itself an exit code of our own would hide them
    for error in environment.runner.exceptions.values() if environment.runner else ():
        found.append(f"{error['count']} times in the load client: {error['msg']}")
    return found


def _carried() -> float:
    """The knee of a ramp, events/s."""
    return load_check.knee(totals, EVENTS_PER_SECOND, Ramp.STEPS, SECONDS, P99_LIMIT_MS)


def _scenario_problems() -> list[str | None]:
    """What must hold in this scenario only."""
    if SCENARIO not in MAY_PUSH_BACK:
        return [load_check.too_slow(totals, Scenario().asked(EVENTS_PER_SECOND))]
    if SCENARIO == "ramp":
        return [None if _carried() else "the service carried no step of the ramp"]
    back = None
    if not load_check.recovered(totals, SECONDS):
        back = "the service did not come back to its pace before the burst"
    if SCENARIO == "spike":
        begin, end = Spike.BEGIN * SECONDS, Spike.END * SECONDS
        return [back, load_check.stood_still(totals, EVENTS_PER_SECOND, begin, end)]
    begin, end = Reconnect.BEGIN * SECONDS, Reconnect.END * SECONDS
    rate = Reconnect.BACKLOG * EVENTS_PER_SECOND
    return [back, load_check.backlog(totals, rate, begin, end, INTERVAL)]


@events.quitting.add_listener
def check(environment: Environment, **_: Any) -> None:
    """Server-side checks once everything sent has been committed; sets the exit code."""
    found = _client_problems(environment)
    counted, left = load_check.settle(environment.host or "", totals, DRAIN_SECONDS)
    calm = [(begin * SECONDS, end * SECONDS) for begin, end in Scenario.CALM]
    found += load_check.problems(counted, left, totals, p99_limit_ms=P99_LIMIT_MS, calm=calm)
    found += [problem for problem in _scenario_problems() if problem]
    asked = Scenario().asked(EVENTS_PER_SECOND)
    stored = counted["admitted"] + counted["recorded"]
    sent = totals.accepted + totals.direct  # and what was cut off, as far as it arrived
    span = max(totals.seconds, default=0) + 1
    verdict = "agrees" if load_check.accounts(counted, totals) else "DIFFERS"
    print(
        f"\nsent {sent} (answered 2xx {totals.accepted}, straight to the topic {totals.direct}) "
        f"= stored {stored} + duplicates {counted['duplicate']} + rejected {counted['rejected']} "
        f"+ quarantined {counted['quarantined']}: {verdict}"
        f"\nrefused by the contract {totals.refused} (broken ones sent {totals.bad_sent}), without an answer "
        f"{totals.unanswered}, pushed back {totals.pushed_back} requests, lag left {left:.0f}"
        f"\n{sent / span:,.0f} events/s on average, best second "
        f"{max((s.events for s in totals.seconds.values()), default=0):,}, "
        f"base rate {EVENTS_PER_SECOND:,.0f}; {totals.offered:,} events in batches, "
        f"{totals.offered / asked:.0%} of the {asked:,.0f} asked; "
        f"answers p50 {totals.latency(50):.0f} ms, p99 {totals.latency(99):.0f} ms"
    )
    if SCENARIO == "ramp":
        print(load_check.knee_text(_carried(), EVENTS_PER_SECOND, Ramp.STEPS, P99_LIMIT_MS))
    if SCENARIO == "spike":
        taken = totals.events_within(Spike.BEGIN * SECONDS, Spike.END * SECONDS)
        most = 10 * EVENTS_PER_SECOND * (Spike.END - Spike.BEGIN) * SECONDS
        print(f"in the burst {taken:,} events were accepted, {taken / most:.0%} of what it asked")
    if totals.late_share() > load_check.LATE_SHARE:
        print(
            f"WARNING: users were late by {totals.late_share():.0%} of their time: each waits for its answer "
            "before it sends again, so that less was sent than asked"
        )
    busiest = max(totals.client_cpu[1:] or [0.0])
    if busiest > load_check.CLIENT_LIMIT:
        print(f"WARNING: the load client used {busiest:.0%} of a core: the figures are the client's")
    load_check.write_seconds(REPORT / "events.csv", totals)
    for problem in found:
        print(f"FAILED: {problem}")
    environment.process_exit_code = 1 if found else 0
