"""HTTP accepted → visible in a ClickHouse query, while the service carries 10, 50 and 80 % of its capacity.

    python -m benchmarks latency [--quick] [--seconds S] [--rate EVENTS_PER_SECOND]

A broker of its own (answers come after its ack, not after the store), gateway, worker, ClickHouse and the
load client on one machine; no id is sent twice. A probe posts one event, and from its 202 on asks ClickHouse
for a row of `events` with that id, until it is there. It asks the table and not `GET /v1/events/…`, which
reads sixty columns of four tables: three probes of that kind were a load of a core and more, and measured
themselves. The load keeps its pace whatever the answers do (open loop). Capacity is what was stored per
second when batches were sent as fast as they were answered.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from benchmarks import cache, load_check
from benchmarks.gateway import prepare_load, run_load
from benchmarks.harness import PLACE, RunFailedError, Series, WrongCountsError, broker, out
from benchmarks.service import service
from benchmarks.workload import SOURCE
from pipeline.process.hashes import id_hash
from pipeline.runtime.supervisor import Supervisor
from pipeline.store.client import connect

SHARES = (0.1, 0.5, 0.8)
#: Probes at once: where an event takes seconds, one would come to a handful of measurements.
_PROBES = 3
_PROBE_SECONDS = 0.25
_POLL_SECONDS = 0.02
_GIVE_UP_SECONDS = 60.0
#: How long what waits at the end of a load may take, as a share of the load, and at least. What takes longer
#: was not carried.
_DRAIN_SHARE = 0.2
_DRAIN_SECONDS = 60.0


class NotDrainedError(RunFailedError):
    """What was accepted is not done with in time."""


class Probe(threading.Thread):
    """Posts one event after the other and waits until a query shows it."""

    def __init__(self, running: Supervisor, key: str, template: bytes, tag: str) -> None:
        super().__init__(daemon=True)
        self.url, self.key, self.template, self.tag = running.url, key, template, tag
        self.client = connect(running.settings)
        self.seconds: list[float] = []
        self.sent = 0
        self.stop = threading.Event()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        before, after = self.template.split(b'"event_id":"', 1)
        rest = after.split(b'"', 1)[1]
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stop.wait(_PROBE_SECONDS):
                name = f"probe-{self.tag}-{self.sent:05d}"
                body = before + b'"event_id":"' + name.encode() + b'"' + rest
                answer = client.post("/v1/events", content=body, headers=headers)
                accepted = time.perf_counter()
                if answer.status_code != 202:
                    continue
                self.sent += 1
                while not self._visible(name):
                    if time.perf_counter() - accepted > _GIVE_UP_SECONDS:
                        break
                    time.sleep(_POLL_SECONDS)
                else:
                    self.seconds.append(time.perf_counter() - accepted)
        self.client.close()

    def _visible(self, event_id: str) -> bool:
        _, low = id_hash(pl.DataFrame({"source": [SOURCE], "event_id": [event_id]}))
        # by the table's own index of ids, which is what reads of one event use
        return bool(
            self.client.command(
                "SELECT count() FROM events WHERE id_lo = {id:UInt64} AND event_id = {event_id:String}",
                parameters={"id": low.item(), "event_id": event_id},
            )
        )


def stored(url: str) -> int:
    """Events that the worker has committed, by whatever outcome."""
    return int(sum(load_check.outcomes(load_check.read_metrics(url)).values()))


def check_outcomes(found: Mapping[str, float], wanted: Mapping[str, int], not_accepted: int) -> None:
    """What became of the events is what their ledger says, or events that were rejected would pass as stored.

    not_accepted : events of requests that were not accepted; which ones these were is not known.
    Raises WrongCountsError.
    """
    wrong = {
        name: (int(found[name]), wanted.get(name, 0))
        for name in load_check.OUTCOMES
        if abs(found[name] - wanted.get(name, 0)) > not_accepted
    }
    if wrong:
        raise WrongCountsError(f"outcomes: (found, ledger) {wrong}")


def drain(url: str, wanted: int, load_seconds: float) -> float:
    """Wait until so many events are done with, whatever became of them; when that was.

    Raises NotDrainedError, RunFailedError when there are more than that.
    """
    limit = max(_DRAIN_SECONDS, _DRAIN_SHARE * load_seconds)
    deadline = time.monotonic() + limit
    while (found := stored(url)) < wanted:
        if time.monotonic() > deadline:
            raise NotDrainedError(f"{found} of {wanted} events were stored {limit:.0f} s after the load")
        time.sleep(0.05)
    if found > wanted:
        raise RunFailedError(f"{found} events stored, {wanted} sent")
    return time.perf_counter()


@dataclass
class Sent:
    """What was posted so far, and what must become of it."""

    accepted: int = 0
    not_accepted: int = 0
    expected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def load(self, result: Mapping[str, Any]) -> None:
        """Add a run of the load client."""
        self.accepted += result["accepted"]
        self.not_accepted += result["not_accepted"]
        self.expected.update(result["expected"])
        self.seconds = result["seconds"]

    def probes(self, number: int) -> None:
        self.accepted += number
        self.expected["recorded"] += number

    def drain(self, url: str) -> float:
        """Wait until all is done with; when that was. Raises NotDrainedError, WrongCountsError."""
        done = drain(url, self.accepted, self.seconds)
        check_outcomes(load_check.outcomes(load_check.read_metrics(url)), self.expected, self.not_accepted)
        return done


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 s each")
    parser.add_argument("--seconds", type=float)
    parser.add_argument(
        "--rate", type=float, action="append", help="events/s instead of shares of the capacity"
    )
    parser.add_argument("--persons", type=int, default=20_000)
    options = parser.parse_args(arguments)
    seconds = options.seconds or (8.0 if options.quick else 30.0)
    series = Series("latency", {"seconds": seconds, "persons": options.persons}, quick=options.quick)
    place = PLACE / "latency"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    cache.copy_store(options.persons, place / "data")
    lines = next(cache.events(50_000, options.persons).chunks())["json"]
    # not a report: a thousand equal ones would be resends of each other
    template = next(text for text in lines if '"ACCEPTED"' in text).encode()
    with (
        broker() as to,
        service(place / "data", to.bootstrap, canary_interval_seconds=0) as (running, key),
    ):
        total, capacity = Sent(), 0.0
        if not options.rate:
            capacity = _capacity(place, running.url, key, options.persons, seconds / 2, total)
            series.facts["capacity"] = capacity
            out.print(f"capacity: {capacity:,.0f} events/s from HTTP to the store")
        rates = options.rate or [capacity * share for share in SHARES]
        for number, rate in enumerate(rates):
            result = _measure(place, running, key, options.persons, rate, seconds, template, total, number)
            name = f"{rate:,.0f} events/s" + ("" if options.rate else f" ({SHARES[number]:.0%})")
            series.add(name, 0, result)
            out.print(
                f"{name}: accepted → visible p50 {result['p50_ms']:.0f} ms, "
                f"p99 {result['p99_ms']:.0f} ms ({result['probes']} probes); "
                f"carried {result['events_per_second']:,.0f} events/s"
            )
    shutil.rmtree(place, ignore_errors=True)
    return 0


def _capacity(  # noqa: PLR0917
    place: Path, url: str, key: str, persons: int, seconds: float, total: Sent
) -> float:
    address = url.removeprefix("http://")
    sent = run_load(place, address, key, "ndjson500", persons=persons, seconds=seconds, first_pass=0)
    total.load(sent)
    return float(sent["accepted"] / (total.drain(url) - sent["began"]))


def _measure(  # noqa: PLR0917
    place: Path,
    running: Supervisor,
    key: str,
    persons: int,
    rate: float,
    seconds: float,
    template: bytes,
    total: Sent,
    number: int,
) -> dict[str, Any]:
    url = running.url
    prepare_load(place, "ndjson500", persons)  # making bodies beside the probes would disturb them
    probes = [Probe(running, key, template, f"{number}-{at}") for at in range(_PROBES)]
    for probe in probes:
        probe.start()
        time.sleep(_PROBE_SECONDS / _PROBES)
    address = url.removeprefix("http://")
    sent = run_load(
        place,
        address,
        key,
        "ndjson500",
        persons=persons,
        rate=rate,
        seconds=seconds,
        first_pass=10_000 * (number + 1),
    )
    for probe in probes:
        probe.stop.set()
    for probe in probes:
        probe.join()
    asked = sum(probe.sent for probe in probes)
    total.load(sent)
    total.probes(asked)
    total.drain(url)
    seen = [instant for probe in probes for instant in probe.seconds]
    if len(seen) < asked or not seen:
        raise RunFailedError(
            f"{asked - len(seen)} of {asked} probes were not visible in {_GIVE_UP_SECONDS} s"
        )
    p50, p99 = np.percentile(np.array(seen) * 1_000, (50, 99))
    return {
        "events": sent["accepted"],
        "seconds": sent["seconds"],
        "events_per_second": sent["accepted"] / sent["seconds"],
        "asked_per_second": rate,
        "probes": len(seen),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "answers_ms": sent["latency_ms"],
        "client_cpu_share": sent["client_cpu_share"],
    }
