"""What does not show in a short run: cost per million events, memory over time, workers, partitions, windows.

    python -m benchmarks growth [--quick] [--only cost|soak|partitions|workers|dedup …]

cost : chunks of a million events one after the other into one store, each from a topic of its own that is
       deleted once drained (the embedded broker frees nothing else): CPU seconds and memory per million.
       A twentieth more are of cases of any age, so that old parts are read as a city's would be.
       A process that ends leaves merges to the next one, which begins with them before its first round: they
       are counted, and told apart.
soak : the whole service (`benchmarks.together`) on one Kafka node for `--minutes`, the same processes all the
       time, at six tenths of what it stores at full speed: memory of each process. Fails without Kafka.
partitions, workers : one and two workers share one store, served by a process of its own (the embedded engine
       belongs to one). dedup : windows of 1, 10 and 50 million ids, in columns.
Part of `make bench-long`. Every chunk is checked against its ledger.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from benchmarks import cache, together
from benchmarks.harness import (
    PLACE,
    RUN_SECONDS,
    RunFailedError,
    Series,
    WrongCountsError,
    broker,
    fill,
    out,
    peak_mb_of,
    python,
    rounds,
    run_parts,
    run_program,
)
from benchmarks.peers.common import peak_mb
from benchmarks.processor import run_ours
from benchmarks.store_server import end, store_server
from benchmarks.workload import Ledger
from pipeline.settings import Settings, load_settings
from pipeline.store.client import connect

WHAT = ("cost", "soak", "partitions", "workers", "dedup")
_SOAK_SHARE = 0.6
#: Of a chunk, on top of it: events of cases of this chunk and of all before it, alike.
_FEEDBACK_SHARE = 0.05
#: Cases of each chunk that may still hear of something.
_CASES_KEPT = 5_000
_WINDOWS = (1_000_000, 10_000_000, 50_000_000)


def cost(series: Series, events: int, chunk_events: int, persons: int) -> None:
    """One worker process per chunk on one growing store.

    cpu_seconds_per_million : from the first round to the last commit, and the merges before it, which are the
    chunk's before; `_from_first_round` : without those; `_with_start` : all that the process used, what it
    reads of register and known ids as it starts included.
    """
    place = PLACE / "growth"
    shutil.rmtree(place, ignore_errors=True)
    cache.copy_store(persons, place)
    before = dict.fromkeys(("stored", "rejected", "duplicates"), 0)
    cases, number = list[pl.DataFrame](), 0
    try:
        while number * chunk_events < events:
            # ids of every chunk are its own: the window of known ids grows as it would
            alone = cache.events(chunk_events, persons, seed=1_000 + number, salt=f"g{number:03d}.")
            cases.append(cache.steps(alone, min(_CASES_KEPT, chunk_events // 10), seed=number))
            more = round(chunk_events * _FEEDBACK_SHARE)
            known = pl.concat(cases).sample(more, seed=number, with_replacement=True)
            source = cache.with_feedback(alone, known, f"g{number:03d}.")
            sent = source.ledger.sent
            with broker() as to:
                fill(to.bootstrap, cache.records(source, "arrow"))
                result = run_program(
                    python("-m", "benchmarks.worker_run", str(place), to.bootstrap, str(sent))
                )
            found = {name: result["counts"][name] - before[name] for name in before}
            wanted = {name: getattr(source.ledger, name) for name in before}
            if found != wanted:
                raise WrongCountsError(f"chunk {number}: {found}, ledger {wanted}")
            before = {name: result["counts"][name] for name in before}
            number += 1
            result |= costs(result, sent) | {
                "events": sent,
                "events_per_second": sent / result["seconds"],
                "events_before": (number - 1) * sent,
            }
            series.add("cost", number - 1, result)
            out.print(
                f"cost: {number * sent:,} events, "
                f"{result['cpu_seconds_per_million']:.2f} CPU s per million (without the merges of before "
                f"{result['cpu_seconds_per_million_from_first_round']:.2f}, with the start "
                f"{result['cpu_seconds_per_million_with_start']:.2f}), "
                f"ready {result['ready_mb']:,.0f} MB, peak {result['peak_mb']:,.0f} MB"
            )
            for old in (alone.directory, source.directory, cache.records(source, "arrow").directory):
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def costs(result: Mapping[str, Any], events: int) -> dict[str, float]:
    """The three figures of `cost`, of a result of `worker_run`."""
    alone, before = result["cpu_seconds"], result["before"]
    return {
        "cpu_seconds_per_million": (alone + before["merge_cpu_seconds"]) / events * 1e6,
        "cpu_seconds_per_million_from_first_round": alone / events * 1e6,
        "cpu_seconds_per_million_with_start": (alone + before["cpu_seconds"]) / events * 1e6,
    }


def soak(series: Series, minutes: float, persons: int, *, quick: bool) -> None:
    """Memory of every process over the second and the last third. Raises UnavailableError without Kafka."""
    result = together.measure(
        embedded=quick, seconds=minutes * 60, rate=None, persons=persons, share=_SOAK_SHARE
    )
    series.add("soak", 0, result)
    out.print(
        f"soak: {result['stored_per_second']:,.0f} events/s stored for {result['seconds'] / 60:.1f} minutes"
        f"{'' if result['drained_after_seconds'] is not None else ', NOT drained'}; memory "
        + together.growth_text(result["memory_growth"])
    )


def partitions(series: Series, events: int, persons: int, number: int, counts: tuple[int, ...]) -> None:
    source = cache.events(events, persons)
    for at, case in rounds(number, [f"{count} partitions" for count in counts]):
        count = int(case.split()[0])
        result = run_ours(source, cache.records(source, "arrow", partitions=count), persons, count)
        series.add(case, at, result)
        out.print(f"{case}: {result['events_per_second']:,.0f} events/s, peak {result['peak_mb']:,.0f} MB")


def workers(series: Series, events: int, persons: int) -> None:
    """One and two worker processes on one store, which a process of its own serves."""
    for count in (1, 2):
        source = cache.events(events, persons, seed=2_000 + count, salt=f"k{count}.")
        place = PLACE / f"workers-{count}"
        shutil.rmtree(place, ignore_errors=True)
        cache.copy_store(persons, place)
        try:
            with broker() as to, store_server(place) as address:
                fill(to.bootstrap, cache.records(source, "arrow"))
                rate, peak = _run_workers(count, place, to.bootstrap, address, source.ledger)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        series.add(f"{count} workers", 0, {"events": events, "events_per_second": rate, "peak_mb": sum(peak)})
        out.print(
            f"{count} workers: {rate:,.0f} events/s from the first stored event on, peak MB of each "
            + ", ".join(f"{mb:,.0f}" for mb in peak)
        )


def _run_workers(
    count: int, place: Path, bootstrap: str, address: str, ledger: Ledger
) -> tuple[float, list[float]]:
    """Events per second once all are stored, and the peak memory of each worker, MiB.

    Only the workers' environment has the address.
    """
    env = {
        **os.environ,
        "GRIDPIPE_CLICKHOUSE": address,
        "GRIDPIPE_TOPIC_REPLICATION": "1",  # one node
        "TZ": "UTC",
    }
    gridpipe = python("-m", "pipeline.cli.main")
    common = ["--kafka", bootstrap, "--data-dir", str(place)]
    subprocess.run([*gridpipe, "migrate", *common], check=True, env=env, stdout=subprocess.DEVNULL)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            children.append(subprocess.Popen([*gridpipe, "worker", *common], env=env))
        rate = _until_stored(load_settings(data_dir=place, clickhouse=address), ledger, children)
        return rate, [peak_mb_of(child.pid) for child in children]
    finally:
        end(children)


def _until_stored(settings: Settings, ledger: Ledger, children: list[subprocess.Popen[bytes]]) -> float:
    """Events per second, from the first that are seen to the last."""
    wanted = (ledger.stored, ledger.rejected, ledger.duplicates)
    client = connect(settings)
    first, begin, deadline = 0, 0.0, time.monotonic() + RUN_SECONDS
    while True:
        found = client.query(
            "SELECT (SELECT count() FROM events), (SELECT count() FROM rejections), "
            "(SELECT count() FROM duplicates)"
        ).result_rows[0]
        done = sum(found)
        if done and not begin:
            first, begin = done, time.perf_counter()
        if done >= sum(wanted):
            break
        if any(child.poll() is not None for child in children):
            raise RunFailedError("a worker ended before everything was stored")
        if time.monotonic() > deadline:
            raise WrongCountsError(f"stored, rejected, duplicates: {found}, ledger {wanted}")
        time.sleep(0.05)
    seconds = time.perf_counter() - begin
    client.close()
    if tuple(found) != wanted:
        raise WrongCountsError(f"stored, rejected, duplicates: {found}, ledger {wanted}")
    return (done - first) / max(seconds, 1e-9)


def dedup_window(ids: int) -> dict[str, Any]:
    """Fill a window of so many ids, then look up and remember blocks of 5,000, half of them known."""
    from pipeline.process.deduplicate import Entry, SeenIds

    rng = np.random.default_rng(1)
    seen = SeenIds(timedelta(days=7), max_entries=2 * ids)
    hi, lo = (rng.integers(0, 2**63, ids, dtype=np.uint64) for _ in range(2))
    now = int(datetime.now(UTC).timestamp() * 1_000)
    begin = time.perf_counter()
    for at in range(0, ids, 50_000):
        part = slice(at, min(at + 50_000, ids))
        size = part.stop - part.start
        position, version = np.arange(part.start, part.stop), np.ones(size, np.uint16)
        seen.remember(hi[part], lo[part], Entry(position, np.full(size, now), hi[part], version))
    filling = time.perf_counter() - begin
    found_ms = []
    for _ in range(40):
        known = rng.integers(0, ids, 2_500)
        keys_hi = np.r_[hi[known], rng.integers(0, 2**63, 2_500, dtype=np.uint64)]
        keys_lo = np.r_[lo[known], rng.integers(0, 2**63, 2_500, dtype=np.uint64)]
        begin = time.perf_counter()
        found = seen.find(keys_hi, keys_lo)
        found_ms.append((time.perf_counter() - begin) * 1_000)
        if (found[:2_500] < 0).any() or (found[2_500:] >= 0).any():
            raise WrongCountsError("the window forgot an id, or knows one that it never saw")
    return {
        "ids": ids,
        "fill_seconds": filling,
        "keys_per_second": ids / filling,
        "find_5000_ms": float(np.median(found_ms)),
        "window_mb": seen.nbytes / 1e6,
        "peak_mb": peak_mb(),
    }


def windows(series: Series, sizes: tuple[int, ...]) -> None:
    for ids in sizes:
        result = run_program(python("-m", "benchmarks", "growth", "--window", str(ids)))
        series.add(f"window of {ids} ids", 0, result)
        out.print(
            f"window of {ids:,} ids: {result['keys_per_second']:,.0f} keys/s remembered, 5,000 found in "
            f"{result['find_5000_ms']:.2f} ms, {result['window_mb']:,.0f} MB"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--only", action="append", choices=WHAT)
    parser.add_argument("--millions", type=int, help="of events for cost (default 50)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--persons", type=int)
    parser.add_argument("--window", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.window:
        sys.stdout.buffer.write(orjson.dumps(dedup_window(options.window)) + b"\n")
        return 0
    quick = options.quick
    persons = options.persons or (20_000 if quick else 500_000)
    chunk = 20_000 if quick else 1_000_000
    series = Series("growth", {"persons": persons, "chunk_events": chunk}, quick=quick)
    parts: dict[str, Callable[[], None]] = {
        # a quick look is two chunks
        "cost": lambda: cost(
            series, 2 * chunk if quick else (options.millions or 50) * 1_000_000, chunk, persons
        ),
        "soak": lambda: soak(series, 0.5 if quick else options.minutes, persons, quick=quick),
        "partitions": lambda: partitions(
            series, chunk, persons, 1 if quick else 5, (4, 32) if quick else (4, 8, 12, 16, 32)
        ),
        "workers": lambda: workers(series, chunk, persons),
        "dedup": lambda: windows(series, (100_000, 1_000_000) if quick else _WINDOWS),
    }
    failed = run_parts({name: parts[name] for name in options.only or WHAT})
    if failed:
        out.print(f"FAILED, and not all of its figures in the report: {', '.join(failed)}")
    return 1 if failed else 0
