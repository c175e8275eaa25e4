"""Load over HTTP and, where a broker is named, straight into the topic; batches are serialised beforehand.

Run through `make load SCENARIO=…` (benchmarks.load), which starts the service, makes events and key, and
passes them by environment. Against a service of your own:

    LOAD_EVENTS=events.ndjson LOAD_KEY=gp_… locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8080

The run ends with checks on the server's side (load_check.py); one that fails makes the exit code 1.
"""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import orjson
import psutil
from confluent_kafka import Producer
from locust import FastHttpUser, LoadTestShape, User, constant_throughput, events, task
from locust.env import Environment

from benchmarks import load_check
from benchmarks.load_bodies import Batches, Body
from benchmarks.load_shapes import MAY_PUSH_BACK, SECONDS, SHAPES, USERS, Ramp, Reconnect
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
#: Single reports of a storm that one user sends at once, before its next batch.
STORM_BURST = 125

totals = load_check.Totals()


class Scenario(SHAPES[SCENARIO], LoadTestShape):  # type: ignore[misc]
    """What locust finds and runs."""


class Feeder(FastHttpUser):
    """One platform connection: posts a batch, waits for the durable answer, posts the next."""

    weight = 100
    concurrency = 20
    wait_time = constant_throughput(EVENTS_PER_SECOND / BATCH_EVENTS / USERS)
    connection_timeout = 30.0
    network_timeout = 60.0

    @task
    def post_batch(self) -> None:
        batches: Batches = self.environment.batches
        if time.monotonic() - totals.begin > 0.3 * SECONDS:
            burst = [batches.storm.pop() for _ in range(min(STORM_BURST, len(batches.storm)))]
            gevent.joinall([gevent.spawn(self._post, body, "POST one report") for body in burst])
        self._post(batches.take(), "POST a batch")

    def _post(self, body: Body, name: str) -> None:
        totals.unanswered += body.events  # until an answer says otherwise: a request cut off may have arrived
        totals.requests += 1
        totals.expected.update(body.outcomes)
        begin = time.perf_counter()
        with self.client.post(
            "/v1/events",
            data=body.data,
            headers={
                "Content-Type": "application/x-ndjson",
                "Authorization": f"Bearer {os.environ['LOAD_KEY']}",
            },
            name=name,
            catch_response=True,
        ) as answer:
            totals.lost += body.events if answer.status_code != 202 else 0
            if answer.status_code in (202, 422):
                said = orjson.loads(answer.content or b"{}")
                retryable = sum(error["retryable"] for error in said.get("errors", ()))
                totals.unanswered -= body.events - retryable
                totals.accepted += said.get("accepted", 0)
                totals.refused += said.get("rejected", 0) - retryable
                totals.bad_sent += body.bad
                totals.repeated += said.get("accepted", 0) if body.repeats else 0
                users = self.environment.runner.user_count if self.environment.runner else 0
                totals.note(said.get("accepted", 0), (time.perf_counter() - begin) * 1_000, users)
                answer.success()
            elif answer.status_code in (429, 503):
                totals.pushed_back += 1
                if answer.status_code == 429:
                    totals.unanswered -= body.events  # refused before anything was written
                if SCENARIO in MAY_PUSH_BACK:
                    answer.success()
                else:
                    answer.failure(f"status {answer.status_code}")
                gevent.sleep(min(float(answer.headers.get("Retry-After") or 1), 5.0))
            else:
                totals.failed += 1
                answer.failure(f"status {answer.status_code}")


class DirectProducer(User):
    """A platform team's own producer: NDJSON records into the topic, as the README asks of them."""

    weight = round(100 * KAFKA_SHARE) if KAFKA else 0
    abstract = not KAFKA
    wait_time = constant_throughput(EVENTS_PER_SECOND / BATCH_EVENTS / USERS)

    def on_start(self) -> None:
        self.producer = Producer({"bootstrap.servers": KAFKA, "acks": "all", "linger.ms": 2})

    @task
    def produce_batch(self) -> None:
        body: Body = self.environment.batches.take()
        shares: dict[int, list[bytes]] = {}
        for line in body.data.splitlines():
            at = line.find(b'"grid_code":"') + 13
            shares.setdefault(partition_of(line[at : at + 15].decode(), PARTITIONS), []).append(line)
        waiting, begin, delivered = count(len(shares), -1), time.perf_counter(), 0

        def confirm(error: Any, _: Any) -> None:
            nonlocal delivered
            delivered += error is None
            next(waiting)

        totals.unanswered += body.events
        totals.expected.update(body.outcomes)
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
            totals.unanswered -= body.events
            totals.direct += body.events
        self.environment.events.request.fire(
            request_type="KAFKA",
            name="produce a batch",
            response_time=took,
            response_length=len(body.data),
            exception=None if complete else RuntimeError("not delivered"),
            context={},
        )


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


@events.quitting.add_listener
def check(environment: Environment, **_: Any) -> None:
    """Server-side checks once everything sent has been committed; sets the exit code."""
    counted, left = load_check.settle(environment.host or "", totals, DRAIN_SECONDS)
    found = load_check.problems(
        SCENARIO,
        counted,
        left,
        totals,
        p99_limit_ms=P99_LIMIT_MS,
        may_push_back=SCENARIO in MAY_PUSH_BACK,
    )
    if SCENARIO in {"spike", "reconnect"} and not load_check.recovered(totals, SECONDS):
        found.append("the service did not come back to its pace before the burst")
    if SCENARIO == "reconnect":
        begin, end = Reconnect.BEGIN * SECONDS, Reconnect.END * SECONDS
        wanted = Reconnect.BACKLOG * EVENTS_PER_SECOND * (end - begin)
        if problem := load_check.backlog(totals, wanted, begin, end):
            found.append(problem)
    storm: list[Body] = environment.batches.storm  # type: ignore[attr-defined]
    if storm:
        found.append(f"{len(storm)} reports of the storm were never sent: make the run longer")
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
        f"base rate {EVENTS_PER_SECOND:,.0f}; "
        f"answers p50 {totals.latency(50):.0f} ms, p99 {totals.latency(99):.0f} ms"
    )
    if SCENARIO == "ramp":
        found_knee = load_check.knee(totals, EVENTS_PER_SECOND, Ramp.STEPS, SECONDS, P99_LIMIT_MS)
        print(load_check.knee_text(found_knee, EVENTS_PER_SECOND, Ramp.STEPS, P99_LIMIT_MS))
    busiest = max(totals.client_cpu[1:] or [0.0])
    if busiest > load_check.CLIENT_LIMIT:
        print(f"WARNING: the load client used {busiest:.0%} of a core: the figures are the client's")
    load_check.write_seconds(REPORT / "events.csv", totals)
    for problem in found:
        print(f"FAILED: {problem}")
    environment.process_exit_code = 1 if found else 0
