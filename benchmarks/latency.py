"""HTTP accepted → visible in a ClickHouse query, while the service carries 10, 50 and 80 % of its capacity.

    python -m benchmarks latency [--quick] [--seconds S] [--rate EVENTS_PER_SECOND]

A broker of its own (answers come after its ack, not after the store), gateway, worker, ClickHouse and the
load client on one machine; no id is sent twice. Every 50 ms a probe posts an event; from its 202 on the store
is asked for a row of `events` with that id, until it is there. Of fewer than 200 probes the slowest stands in
place of the p99. The table is asked, not `GET /v1/events/…`, which reads sixty columns of four tables: three
probes of that kind were a load of a core and more, and measured themselves. The load keeps its pace whatever
the answers do (open loop), and how far it fell behind is told. Capacity is what was stored per second when
batches were sent as fast as they were answered; what is carried is what was stored per second when the load
ended.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from benchmarks import cache, load_check
from benchmarks.gateway import body_events, pace_text, prepare_load, run_load
from benchmarks.harness import PLACE, RunFailedError, Series, WrongCountsError, broker, out
from benchmarks.memory import Memory
from benchmarks.service import service
from benchmarks.workload import SOURCE
from pipeline.process.hashes import id_hash
from pipeline.runtime.supervisor import Supervisor
from pipeline.store.client import connect

SHARES = (0.1, 0.5, 0.8)
#: Events/s that the goal is about.
GOAL = 100_000
#: Of fewer probes nobody can tell the slowest hundredth.
LEAST_PROBES = 200
_PROBE_SECONDS = 0.05
#: Cases that the probes are spread over.
_TEMPLATES = 1_000
_POSTERS = 4
_ASKED_AT_ONCE = 200
_POLL_SECONDS = 0.02
_GIVE_UP_SECONDS = 60.0
#: How long what waits at the end of a load may take, as a share of the load, and at least. What takes longer
#: was not carried.
_DRAIN_SHARE = 0.2
_DRAIN_SECONDS = 60.0
#: How long a service that is busy may leave /metrics unanswered.
_SCRAPE_SECONDS = 60.0
#: Of a second's events: below it what waits is a block on its way, not a queue.
A_QUEUE = 1.0
#: Of the asked rate: below it the load was not carried.
_KEPT_UP = 0.97


class NotDrainedError(RunFailedError):
    """What was accepted is not done with in time."""


class Probes:
    """One event every 50 ms, whatever became of the ones before, and when a query shows each.

    What is not seen yet is asked for by one query for all: a query per probe would be a load of its own.
    templates : events that are sent under other ids, one after the other: of one alone all probes would wait
    for the same partition, and its case would grow with each.
    """

    def __init__(self, running: Supervisor, key: str, templates: Sequence[bytes], tag: str) -> None:
        self.url, self.key, self.tag = running.url, key, tag
        self.parts = [_around_id(template) for template in templates]
        self.client = connect(running.settings)
        self.seconds: list[float] = []
        self.sent = 0
        self.late: list[str] = []
        #: Probes without a 202: some of them may arrive all the same.
        self.refused: list[str] = []
        self._waiting: dict[str, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._begin = time.perf_counter()
        self._posters = [
            threading.Thread(target=self._post, args=(number,), daemon=True) for number in range(_POSTERS)
        ]
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        for thread in (*self._posters, self._watcher):
            thread.start()

    def finish(self) -> None:
        """Post no more; returns once each is seen, or given up."""
        self._stop.set()
        for thread in (*self._posters, self._watcher):
            thread.join()
        self.client.close()

    def _post(self, number: int) -> None:
        """Every n-th probe, so that a slow answer does not hold up the next one."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stop.wait(self._begin + number * _PROBE_SECONDS - time.perf_counter()):
                name = f"probe-{self.tag}-{number:06d}"
                _, low = id_hash(pl.DataFrame({"source": [SOURCE], "event_id": [name]}))
                body = name.encode().join(self.parts[number % len(self.parts)])
                try:
                    taken = client.post("/v1/events", content=body, headers=headers).status_code == 202
                except httpx.HTTPError:
                    taken = False
                if taken:
                    self._waiting[name] = (low.item(), time.perf_counter())
                else:
                    self.refused.append(name)
                number += _POSTERS

    def _watch(self) -> None:
        while True:
            if self._waiting:
                self._look()
            elif not any(thread.is_alive() for thread in self._posters):
                return
            time.sleep(_POLL_SECONDS)

    def _look(self) -> None:
        asked = dict(list(self._waiting.items())[:_ASKED_AT_ONCE])
        # by the table's own index of ids, which is what reads of one event use
        rows = self.client.query(
            "SELECT DISTINCT event_id FROM events WHERE id_lo IN {ids:Array(UInt64)} "
            "AND event_id IN {names:Array(String)}",
            parameters={"ids": [low for low, _ in asked.values()], "names": list(asked)},
        ).result_rows
        now = time.perf_counter()
        seen = {name for (name,) in rows}
        for name, (_, accepted) in asked.items():
            if name in seen:
                self.seconds.append(now - accepted)
            elif now - accepted > _GIVE_UP_SECONDS:
                self.late.append(name)
            else:
                continue
            del self._waiting[name]
            self.sent += 1


def _around_id(template: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the id of an event."""
    field = b'"event_id":"'
    before, after = template.split(field, 1)
    return before + field, after[after.index(b'"') :]


def tail_text(run: Mapping[str, Any]) -> str:
    """The p99, where there are probes enough to tell; else the slowest of how many."""
    few = run["probes"] < LEAST_PROBES
    return (f"max of {run['probes']}" if few else "p99") + f" {run['p99_ms']:,.0f} ms"


def scrape(url: str, seconds: float = _SCRAPE_SECONDS) -> str:
    """/metrics, asked for again where a busy service does not answer in time. Raises RunFailedError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return load_check.read_metrics(url)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise RunFailedError(f"no answer from /metrics for {seconds:.0f} s: {error}") from error
            time.sleep(0.5)


def stored(url: str, seconds: float = _SCRAPE_SECONDS) -> int:
    """Events that the worker has committed, by whatever outcome. Raises RunFailedError."""
    return int(sum(load_check.outcomes(scrape(url, seconds)).values()))


def carried(rate: float, done: int, lasted: float) -> bool:
    """Whether an asked rate was stored. done : events as the load ended, `lasted` seconds after its begin."""
    return done + A_QUEUE * rate >= _KEPT_UP * rate * lasted


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


def drain(url: str, wanted: int, load_seconds: float, not_accepted: int = 0) -> tuple[float, int]:
    """Wait until so many events are done with, whatever became of them; when that was, and how many they are.

    not_accepted : events without a 202, of which any number may have arrived: where there are some, the lag
    tells as well whether all is done with. Raises NotDrainedError, RunFailedError when there are more.
    """
    limit = max(_DRAIN_SECONDS, _DRAIN_SHARE * load_seconds)
    deadline = time.monotonic() + limit
    while True:
        try:
            text = scrape(url)
        except RunFailedError as error:
            raise NotDrainedError(str(error)) from error
        found = int(sum(load_check.outcomes(text).values()))
        if found >= wanted and not (not_accepted and load_check.lag(text)):
            break
        if time.monotonic() > deadline:
            raise NotDrainedError(f"{found} of {wanted} events were stored {limit:.0f} s after the load")
        time.sleep(0.05)
    if found > wanted + not_accepted:
        more = f", and {not_accepted} that were not accepted" if not_accepted else ""
        raise RunFailedError(f"{found} events stored, {wanted} sent{more}")
    return time.perf_counter(), found


@dataclass
class Sent:
    """What was posted so far, and what must become of it.

    not_accepted : events without a 202; stored : events found when all was done with.
    """

    accepted: int = 0
    not_accepted: int = 0
    expected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    stored: int = 0

    def load(self, result: Mapping[str, Any]) -> None:
        """Add a run of the load client."""
        self.accepted += result["accepted"]
        self.not_accepted += result["not_accepted"]
        self.expected.update(result["expected"])
        self.seconds = result["seconds"]

    def probes(self, number: int, refused: int) -> None:
        """Add so many probes with a 202, and without."""
        self.accepted += number
        self.not_accepted += refused
        self.expected["recorded"] += number + refused

    def held_rate(self, url: str, sent: Mapping[str, Any]) -> float:
        """Events/s that were stored while a load came that has just ended and is added; waits until all is
        done with.

        Not until then: what waits is stored twice as fast once nothing comes any more, and the service does
        not hold that. Raises as `drain`.
        """
        done, lasted = stored(url) - self.stored, time.perf_counter() - sent["began"]
        self.drain(url)
        return done / lasted

    def drain(self, url: str) -> float:
        """Wait until all is done with; when that was. Raises NotDrainedError, WrongCountsError."""
        done, self.stored = drain(url, self.accepted, self.seconds, self.not_accepted)
        check_outcomes(load_check.outcomes(scrape(url)), self.expected, self.not_accepted)
        return done


def memory_peak_mb(memory: Memory) -> float:
    """The most that all processes of the service held at once, MiB, of samples every two seconds."""
    return max((sum(found.values()) for _, found in memory.samples), default=0.0)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="8 s each")
    parser.add_argument("--seconds", type=float)
    parser.add_argument(
        "--rate", type=float, action="append", help="events/s instead of shares of the capacity"
    )
    parser.add_argument("--persons", type=int, default=20_000)
    return parser.parse_args(arguments)


def prepare(arguments: list[str]) -> None:
    """Make what the runs use and is not in the cache."""
    persons = _options(arguments).persons
    cache.store(persons)
    body_events(persons)
    cache.events(50_000, persons)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prepare(arguments)
    seconds = options.seconds or (8.0 if options.quick else 30.0)
    series = Series("latency", {"seconds": seconds, "persons": options.persons}, quick=options.quick)
    place = PLACE / "latency"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        _run(series, place, options.persons, seconds, options.rate)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


def _run(series: Series, place: Path, persons: int, seconds: float, asked: list[float] | None) -> None:
    cache.copy_store(persons, place / "data")
    lines = next(cache.events(50_000, persons).chunks())["json"]
    # no reports: where there are more probes than templates, a report under another id would be a resend
    templates = [text.encode() for text in lines if '"ACCEPTED"' in text][:_TEMPLATES]
    with (
        broker() as to,
        service(place / "data", to.bootstrap, canary_interval_seconds=0) as (running, key),
    ):
        total = Sent()
        # named for shares, not for rates: the next run's capacity differs, and its cases are the same
        cases = {f"{rate:,.0f} events/s": rate for rate in asked or ()}
        told: dict[str, float] = {}
        if not asked:
            capacity = _capacity(place, running.url, key, persons, seconds / 2, total)
            told["capacity_per_second"] = capacity
            out.print(f"capacity: {capacity:,.0f} events/s stored while batches came as fast as answered")
            cases = {f"{share:.0%} of the capacity": share * capacity for share in SHARES}
        for number, (case, rate) in enumerate(cases.items()):
            result = _measure(place, running, key, persons, rate, seconds, templates, total, number)
            series.add(case, 0, result | told)
            out.print(
                f"{case}, asked {rate:,.0f}/s: accepted → visible p50 {result['p50_ms']:.0f} ms, "
                f"{tail_text(result)} ({result['probes']} probes); "
                f"stored {result['stored_per_second']:,.0f} events/s"
            )
            if limits := pace_text(result):
                out.print(f"  {limits}")


def _capacity(  # noqa: PLR0917
    place: Path, url: str, key: str, persons: int, seconds: float, total: Sent
) -> float:
    address = url.removeprefix("http://")
    sent = run_load(place, address, key, "ndjson500", persons=persons, seconds=seconds, first_pass=0)
    total.load(sent)
    return total.held_rate(url, sent)


def _measure(  # noqa: PLR0917
    place: Path,
    running: Supervisor,
    key: str,
    persons: int,
    rate: float,
    seconds: float,
    templates: Sequence[bytes],
    total: Sent,
    number: int,
) -> dict[str, Any]:
    url, before = running.url, total.stored
    prepare_load(place, "ndjson500", persons)  # making bodies beside the probes would disturb them
    probes = Probes(running, key, templates, str(number))
    with Memory(running) as memory:
        probes.start()
        sent = run_load(
            place,
            url.removeprefix("http://"),
            key,
            "ndjson500",
            persons=persons,
            rate=rate,
            seconds=seconds,
            first_pass=10_000 * (number + 1),
        )
        done, lasted = stored(url) - before, time.perf_counter() - sent["began"]
        probes.finish()
    total.load(sent)
    total.probes(probes.sent, len(probes.refused))
    total.drain(url)
    seen = probes.seconds
    if probes.late or not seen:
        raise RunFailedError(
            f"{len(probes.late)} of {probes.sent} probes were not visible in {_GIVE_UP_SECONDS} s"
        )
    p50, p99 = np.percentile(np.array(seen) * 1_000, (50, 99 if len(seen) >= LEAST_PROBES else 100))
    return {
        "events": sent["accepted"],
        "seconds": sent["seconds"],
        "events_per_second": sent["accepted"] / sent["seconds"],
        "stored_per_second": done / lasted,
        "carried": carried(rate, done, lasted),
        "asked_per_second": rate,
        "probes": len(seen),
        "probes_refused": len(probes.refused),
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "answers_ms": sent["latency_ms"],
        "client_cpu_share": sent["client_cpu_share"],
        "late_seconds": sent["late_seconds"],
        "peak_mb": memory_peak_mb(memory),
    }
