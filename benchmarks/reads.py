"""Every KPI call and the exporter's scrape at 100 thousand and 1 million cases of eight events.

    python -m benchmarks reads [--quick] [--cases N …] [--rounds N]

The rows are made by `kpi_speed.load_cases` and folded as a worker folds them. Calls go as the api's go: those
for now are answered from what it holds (`GRIDPIPE_HELD_CASES`) after a look at what the store has more;
a past `as_of` by the store. A call is measured `rounds` times after one that warms up, 20 times at least
where a goal is about so many cases; p95 and the CPU time of the process are kept. Calls are of three kinds:
`now`, `past` (ten days ago, both views) and `scrape`, which is no KPI call: what the gauges of /metrics cost
when they are refreshed (the call by district, cases whose limit passed in the last hour, rejections that may
concern life and limb, free disk).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
import orjson
import psutil

from benchmarks.harness import PLACE, RunFailedError, Series, out, python, run_program
from benchmarks.peers.common import peak_mb

#: So many rounds have a p95; of fewer it is the slowest one.
_FULL_ROUNDS = 20
_MOST_SECONDS = 7_200.0
#: ms of the p95: (calls for now, a past as_of)
GOALS = {1_000_000: (150, 1_500), 10_000_000: (1_000, None)}


def rounds_of(cases: int, rounds: int) -> int:
    """How often a call is measured."""
    return max(rounds, _FULL_ROUNDS) if cases in GOALS else rounds


def kinds(calls: dict[str, dict[str, Any]], kind: str) -> dict[str, float]:
    """p95 in ms by call, of one kind."""
    return {name: call["p95_ms"] for name, call in calls.items() if call["kind"] == kind}


def measure(cases: int, rounds: int, place: Path) -> dict[str, Any]:
    """In a process of its own: one engine per process. place : an empty directory, for the store."""
    from benchmarks.kpi_speed import NOW, CityNames, load_cases
    from pipeline.read.gauges import _breaches, _disks
    from pipeline.read.held.figures import HeldFigures
    from pipeline.read.kpi import BY, VIEWS, kpi
    from pipeline.read.rejected import LIFE_SAFETY, life_safety_by_reason
    from pipeline.settings import load_settings
    from pipeline.store.migrate import migrate

    calls: dict[str, Any] = {}
    client = clickhouse_connect.get_client(interface="chdb", path=str(place))
    migrate(client, "grid")
    begin = time.perf_counter()
    told, sys.stdout = sys.stdout, sys.stderr
    events = load_cases(client, cases)
    sys.stdout = told
    loading = time.perf_counter() - begin
    held = HeldFigures(load_settings().held_cases)
    begin, before = time.perf_counter(), psutil.Process().memory_info().rss
    held.keep_up(client)
    reading, reading_mb = time.perf_counter() - begin, (psutil.Process().memory_info().rss - before) / 2**20
    month: dict[str, Any] = {
        "from_": NOW - timedelta(days=30), "to": NOW, "names": CityNames(), "held": held
    }  # fmt: skip

    def scrape() -> None:
        kpi(client, by="district", view="cohort", as_of=NOW, parts=True, **month)
        _breaches(client, now=NOW)
        life_safety_by_reason(client, from_=NOW - LIFE_SAFETY)
        _disks(client)

    wanted: dict[str, tuple[str, Callable[[], object]]] = {
        f"{by} {view}{suffix}": (kind, partial(kpi, client, by=by, view=view, as_of=as_of, **month))
        for kind, suffix, as_of in (("now", "", NOW), ("past", ", past", NOW - timedelta(days=10)))
        for by in BY
        for view in VIEWS
    }
    wanted["scrape"] = ("scrape", scrape)
    counted = kpi(client, by="city", view="cohort", as_of=NOW, **month)["rows"][0]["cases"]
    for name, (kind, call) in wanted.items():
        call()
        wall, cpu = [], []
        for _ in range(rounds_of(cases, rounds)):
            begin, used = time.perf_counter(), time.process_time()
            call()
            wall.append((time.perf_counter() - begin) * 1_000)
            cpu.append((time.process_time() - used) * 1_000)
        calls[name] = {
            "kind": kind,
            "rounds": len(wall),
            "p50_ms": float(np.percentile(wall, 50)),
            "p95_ms": float(np.percentile(wall, 95)),
            "cpu_ms": float(np.median(cpu)),
        }
    answered = held.parts(client, "cohort", ("city",), (), from_=NOW, to=NOW, as_of=NOW) is not None
    client.close()
    if counted != cases:
        raise SystemExit(f"the city's call counts {counted} cases of {cases}")
    return {
        "cases": cases,
        "events": events,
        "load_seconds": loading,
        "held_seconds": reading,
        "held_mb": reading_mb,
        "held": answered,
        "calls": calls,
        "peak_mb": peak_mb(),
    }


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks reads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 cases, 3 rounds")
    parser.add_argument("--cases", type=int, action="append")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def prepare(_: list[str]) -> None:
    """The rows are made in each run's own store: there is nothing to make before."""


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    rounds = options.rounds or (3 if options.quick else 7)
    if options.step:
        cases, place = options.step
        result = measure(int(cases), rounds, Path(place))
        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
        sys.stdout.flush()
        os._exit(0)
    sizes = options.cases or ([20_000] if options.quick else [100_000, 1_000_000])
    series = Series("reads", {"rounds": rounds}, quick=options.quick)
    failed = []
    for cases in sizes:
        place = PLACE / "reads"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        arguments = ["-m", "benchmarks", "reads", "--step", str(cases), str(place), "--rounds", str(rounds)]
        try:
            result = run_program(python(*arguments), seconds=_MOST_SECONDS)
        except (subprocess.TimeoutExpired, RunFailedError) as error:
            failed.append(f"{cases:,} cases")
            late = isinstance(error, subprocess.TimeoutExpired)
            why = "not loaded and read within two hours" if late else str(error)
            series.leave_out(f"{cases} cases", why)
            out.print(f"FAILED: {cases:,} cases: {why}", markup=False)
            continue
        finally:  # of a process that was killed, too
            shutil.rmtree(place, ignore_errors=True)
        series.add(f"{cases} cases", 0, result)
        now, past, scrape = (max(kinds(result["calls"], kind).values()) for kind in ("now", "past", "scrape"))
        goal = GOALS.get(cases)
        out.print(
            f"{cases:,} cases: slowest call for now p95 {now:.0f} ms, slowest past as_of p95 {past:.0f} ms"
            + (f" (goals {goal[0]} and {goal[1]})" if goal else "")
            + f"; scrape p95 {scrape:.0f} ms"
        )
        for name, call in sorted(result["calls"].items(), key=lambda item: -item[1]["p95_ms"])[:5]:
            out.print(
                f"  {name:<24} p50 {call['p50_ms']:6.0f}  p95 {call['p95_ms']:6.0f}  "
                f"CPU {call['cpu_ms']:6.0f} ms"
            )
    series.save()
    return 1 if failed else 0
