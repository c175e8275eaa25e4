"""Every KPI call and the exporter's scrape at 100 thousand and 1 million cases of eight events.

    python -m benchmarks reads [--quick] [--cases N …] [--rounds N]

The rows are made by `kpi_speed.load_cases` and folded as a worker folds them. A call is measured `rounds`
times after one that warms up, 20 times at least where it takes less than a second; p95 and the CPU time of
the process are kept. The scrape is what the gauges of /metrics cost when they are refreshed: the call by
district, cases whose limit passed in the last hour, rejections that may concern life and limb, free disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import clickhouse_connect
import numpy as np
import orjson

from benchmarks.harness import PLACE, Series, out, python, run_program

#: Calls below a second are measured so often: of a few rounds the p95 is the slowest one.
_FAST_SECONDS, _FAST_ROUNDS = 1.0, 20
#: ms of the p95: (calls for now, a past as_of)
GOALS = {1_000_000: (150, 1_500), 10_000_000: (1_000, None)}


def measure(cases: int, rounds: int) -> dict[str, Any]:
    """In a process of its own: one engine per process."""
    from benchmarks.kpi_speed import NOW, CityNames, load_cases
    from pipeline.read.gauges import _breaches, _disks
    from pipeline.read.kpi import BY, VIEWS, kpi
    from pipeline.read.rejected import LIFE_SAFETY, life_safety_by_reason
    from pipeline.store.migrate import migrate

    PLACE.mkdir(parents=True, exist_ok=True)
    calls: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=PLACE) as path:
        client = clickhouse_connect.get_client(interface="chdb", path=path)
        migrate(client, "grid")
        begin = time.perf_counter()
        told, sys.stdout = sys.stdout, sys.stderr
        events = load_cases(client, cases)
        sys.stdout = told
        loading = time.perf_counter() - begin
        month: dict[str, Any] = {"from_": NOW - timedelta(days=30), "to": NOW, "names": CityNames()}
        past = NOW - timedelta(days=10)

        def scrape() -> None:
            kpi(client, by="district", view="cohort", as_of=NOW, parts=True, **month)
            _breaches(client, now=NOW)
            life_safety_by_reason(client, from_=NOW - LIFE_SAFETY)
            _disks(client)

        wanted: dict[str, Callable[[], object]] = {
            f"{by} {view}": partial(kpi, client, by=by, view=view, as_of=NOW, **month)
            for by in BY
            for view in VIEWS
        }
        wanted |= {
            f"{by} {VIEWS[0]}, past": partial(kpi, client, by=by, view=VIEWS[0], as_of=past, **month)
            for by in BY
        }
        counted = kpi(client, by="city", view="cohort", as_of=NOW, **month)["rows"][0]["cases"]
        for name, call in (wanted | {"scrape": scrape}).items():
            begin = time.perf_counter()
            call()
            fast = time.perf_counter() - begin < _FAST_SECONDS
            wall, cpu = [], []
            for _ in range(max(rounds, _FAST_ROUNDS) if fast else rounds):
                begin, used = time.perf_counter(), time.process_time()
                call()
                wall.append((time.perf_counter() - begin) * 1_000)
                cpu.append((time.process_time() - used) * 1_000)
            calls[name] = {
                "p50_ms": float(np.percentile(wall, 50)),
                "p95_ms": float(np.percentile(wall, 95)),
                "cpu_ms": float(np.median(cpu)),
            }
        client.close()
    if counted != cases:
        raise SystemExit(f"the city's call counts {counted} cases of {cases}")
    return {"cases": cases, "events": events, "load_seconds": loading, "calls": calls}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks reads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 cases, 3 rounds")
    parser.add_argument("--cases", type=int, action="append")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    rounds = options.rounds or (3 if options.quick else 7)
    if options.step:
        result = measure(options.step, rounds)
        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
        sys.stdout.flush()
        os._exit(0)
    sizes = options.cases or ([20_000] if options.quick else [100_000, 1_000_000])
    series = Series("reads", {"cases": sizes, "rounds": rounds}, quick=options.quick)
    for cases in sizes:
        arguments = ["-m", "benchmarks", "reads", "--step", str(cases), "--rounds", str(rounds)]
        try:
            result = run_program(python(*arguments), seconds=7_200)
        except subprocess.TimeoutExpired:
            out.print(f"{cases:,} cases: not loaded within two hours")
            continue
        series.add(f"{cases} cases", 0, result)
        now = max(call["p95_ms"] for name, call in result["calls"].items() if "past" not in name)
        past = max(call["p95_ms"] for name, call in result["calls"].items() if "past" in name)
        goal = GOALS.get(cases)
        out.print(
            f"{cases:,} cases: slowest call for now p95 {now:.0f} ms, slowest past as_of p95 {past:.0f} ms"
            + (f" (goals {goal[0]} and {goal[1]})" if goal else "")
        )
        for name, call in sorted(result["calls"].items(), key=lambda item: -item[1]["p95_ms"])[:5]:
            out.print(
                f"  {name:<24} p50 {call['p50_ms']:6.0f}  p95 {call['p95_ms']:6.0f}  "
                f"CPU {call['cpu_ms']:6.0f} ms"
            )
    return 0
