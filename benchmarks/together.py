"""Gateway, broker, worker and ClickHouse together on one machine: what they carry for as long as asked.

    python -m benchmarks together [--quick] [--minutes M] [--rate EVENTS_PER_SECOND] [--embedded]

One Kafka node of `infra/kafka` whose topics keep 10 minutes; with `--embedded` the embedded broker, for a
burst that its memory holds. Without `--rate` the rate is nine tenths of what was stored per second when
batches were sent as fast as they were answered. The load keeps its pace whatever the answers do (open loop),
and how far it fell behind is told.
Every two seconds: events stored, events that wait, memory of each process. What is carried is what was stored
per second when the load ended, not what was accepted. It is sustained when that is the rate that was asked,
what waits has not grown from the second third to the last, memory is flat within 5 % (but for a burst: the
embedded broker holds in memory all that it was sent), and everything is accounted for soon after the load.
Kafka needs Java and Maven's jars: says so where they cannot be had, and fails.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks import cache, load_check
from benchmarks.gateway import body_events, pace_text, prepare_load, run_load
from benchmarks.harness import PLACE, TOPIC, RunFailedError, Series, broker, out
from benchmarks.latency import A_QUEUE, NotDrainedError, Sent, carried, memory_peak_mb, stored
from benchmarks.memory import MEMORY_TOLERANCE, Memory
from benchmarks.service import service
from infra.kafka.cluster import Cluster
from pipeline.errors import UnavailableError
from pipeline.runtime.supervisor import Supervisor

GOAL: Final = 150_000
_SHARE_OF_CAPACITY: Final = 0.9
_RETENTION_MS: Final = 600_000
_SAMPLE_SECONDS: Final = 2.0


class Waiting(threading.Thread):
    """Samples what is stored; `rate` tells what was sent until then."""

    def __init__(self, url: str, before: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.url, self.before, self.rate = url, before, rate
        self.samples: list[tuple[float, float]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        begin = time.monotonic()
        while not self.stop.wait(_SAMPLE_SECONDS):
            with contextlib.suppress(RunFailedError):
                done = stored(self.url, seconds=0.0) - self.before
                at = time.monotonic() - begin
                self.samples.append((at, max(0.0, self.rate * at - done)))

    def thirds(self) -> tuple[float, float]:
        """Events that wait, median of the second and of the last third."""
        waits = [wait for _, wait in self.samples]
        third = len(waits) // 3
        if not third:
            return 0.0, waits[-1] if waits else 0.0
        return statistics.median(waits[third : 2 * third]), statistics.median(waits[-third:])


@contextlib.contextmanager
def _kafka(place: Path) -> Iterator[str]:
    with Cluster(place / "kafka", nodes=1, retention_ms=_RETENTION_MS, heap_mb=512) as cluster:
        topic = NewTopic(TOPIC, cache.PARTITIONS, 1)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap})  # its futures fail once it is gone
        admin.create_topics([topic])[TOPIC].result(30)
        yield cluster.bootstrap


@contextlib.contextmanager
def _embedded() -> Iterator[str]:
    with broker() as to:
        yield to.bootstrap


def measure(
    *,
    embedded: bool,
    seconds: float,
    rate: float | None,
    persons: int,
    share: float = _SHARE_OF_CAPACITY,
) -> dict[str, Any]:
    """One run. share : of what was stored per second at full speed, where no rate is asked.

    Raises UnavailableError without Kafka, WrongCountsError when not every event became what it must.
    """
    place = PLACE / "together"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    cache.copy_store(persons, place / "data")
    try:
        with (
            _embedded() if embedded else _kafka(place) as bootstrap,
            service(place / "data", bootstrap, canary_interval_seconds=0) as (running, key),
        ):
            found = _run(place, running, key, persons, seconds, rate, share)
            return found | {"sustained": sustained(found, memory_counts=not embedded)}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(  # noqa: PLR0917
    place: Path, running: Supervisor, key: str, persons: int, seconds: float, rate: float | None, share: float
) -> dict[str, Any]:
    address = running.url.removeprefix("http://")

    def load(first_pass: int, length: float, pace: float) -> dict[str, Any]:
        return run_load(
            place, address, key, "ndjson500",
            persons=persons, rate=pace, seconds=length, first_pass=first_pass,
        )  # fmt: skip

    prepare_load(place, "ndjson500", persons)  # what the load is made of is no part of it
    warm = load(0, min(15.0, max(4.0, seconds / 10)), 0.0)
    total = Sent()
    total.load(warm)
    capacity = total.held_rate(running.url, warm)
    rate = rate or capacity * share
    out.print(f"as fast as answered: {capacity:,.0f} events/s stored meanwhile; now {rate:,.0f} events/s")
    before = total.stored
    waiting = Waiting(running.url, before, rate)
    with Memory(running, lambda: load_check.held(load_check.read_metrics(running.url))) as memory:
        waiting.start()
        sent = load(10_000, seconds, rate)
        done, lasted = stored(running.url) - before, time.perf_counter() - sent["began"]
        waiting.stop.set()
        waiting.join()
    total.load(sent)
    left: float | None = None
    try:
        left = total.drain(running.url) - sent["began"] - sent["seconds"]
    except NotDrainedError as error:
        out.print(f"not drained: {error}")
    earlier, later = waiting.thirds()
    grown = {role: memory.growth(role) for role in running.pids}
    return {
        "events": sent["accepted"],
        "seconds": sent["seconds"],
        "capacity_per_second": capacity,
        "asked_per_second": rate,
        "events_per_second": sent["accepted"] / sent["seconds"],
        "stored_per_second": done / lasted,
        "carried": carried(rate, done, lasted),
        "waiting_second_third": earlier,
        "waiting_last_third": later,
        "waiting": [[round(at, 1), round(wait)] for at, wait in waiting.samples],
        "memory_growth": grown,
        "memory_told": {role: memory.verdict(role)[0] for role in running.pids},
        "memory_mb": [[round(at), sum(found.values())] for at, found in memory.samples],
        "peak_mb": memory_peak_mb(memory),
        "drained_after_seconds": left,
        "statuses": sent["statuses"],
        "answers_ms": sent["latency_ms"],
        "client_cpu_share": sent["client_cpu_share"],
        "late_seconds": sent["late_seconds"],
    }


def sustained(run: Mapping[str, Any], *, memory_counts: bool) -> bool:
    """Whether a run, as `_run` tells it, could have gone on: its load was stored, and nothing grew."""
    grown = run["memory_growth"]
    known = [share for share in grown.values() if share is not None]
    flat = len(known) == len(grown) and max(known, default=0.0) <= MEMORY_TOLERANCE
    queue = run["waiting_last_third"] > run["waiting_second_third"] + A_QUEUE * run["asked_per_second"]
    drained = run["drained_after_seconds"] is not None
    return bool(run["carried"] and drained and not queue and (flat or not memory_counts))


def growth_text(growth: dict[str, float | None]) -> str:
    """Growth by process, in words."""
    return ", ".join(
        f"{role} " + ("unknown" if share is None else f"{share:+.1%}") for role, share in growth.items()
    )


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks together", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 s on the embedded broker")
    parser.add_argument("--minutes", type=float, default=10.0, help="length (default %(default)s)")
    parser.add_argument("--rate", type=float, help="events/s")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker; for minutes, not hours")
    parser.add_argument("--persons", type=int, default=20_000)
    return parser.parse_args(arguments)


def prepare(arguments: list[str]) -> None:
    """Make what the run uses and is not in the cache."""
    persons = _options(arguments).persons
    cache.store(persons)
    body_events(persons)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prepare(arguments)
    seconds = 20.0 if options.quick else options.minutes * 60
    embedded = options.embedded or options.quick
    series = Series(
        "burst" if embedded else "together",
        {"seconds": seconds, "broker": "embedded" if embedded else "kafka", "persons": options.persons},
        quick=options.quick,
    )
    try:
        result = measure(embedded=embedded, seconds=seconds, rate=options.rate, persons=options.persons)
    except UnavailableError as error:
        out.print(f"FAILED: together is left out, {error}")
        return 1
    name = f"{'embedded broker' if embedded else 'one Kafka node'}, {seconds:,.0f} s"
    series.add(name, 0, result)
    out.print(
        f"{name}: {result['stored_per_second']:,.0f} events/s stored, "
        f"{result['events_per_second']:,.0f} accepted "
        f"({'sustained' if result['sustained'] else 'NOT sustained'}; goal {GOAL:,}); waiting "
        f"{result['waiting_second_third']:,.0f} → {result['waiting_last_third']:,.0f} events; memory "
        + growth_text(result["memory_growth"])
    )
    if limits := pace_text(result):
        out.print(f"  {limits}")
    return 0
