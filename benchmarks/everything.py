"""`make bench`: every benchmark but growth, then the report, within 20 minutes on two idle cores.

    python -m benchmarks all [--quick]

What is made once (cities, stores, events) lies in var/bench-cache and is not part of that time. What takes
longer fails: a benchmark that nobody waits for is not run. Reads of a million cases are in `make bench-long`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

from benchmarks import (
    cache,
    gateway,
    latency,
    peers_inputs,
    processor,
    profile,
    reads,
    report,
    side_by_side,
    stages,
    together,
)
from benchmarks.harness import out, report_place, run_parts

_MINUTES = 20
EVENTS = 300_000
EACH_EVENTS = 60_000
PERSONS = (500_000, 4_800_000)
#: What is run again: an earlier run's would be taken for this one's. `growth` takes hours and is kept.
_SERIES = ("peers", "processor", "stages", "gateway", "latency", "burst", "profile", "reads")


def _prepare() -> None:
    out.print("making what is not in var/bench-cache yet")
    peers_inputs.interpreter()
    for persons in PERSONS:
        cache.store(persons)
        cache.records(cache.events(EVENTS, persons), "arrow")
    cache.records(cache.events(EVENTS, PERSONS[0]), "ndjson")
    cache.records(cache.events(EACH_EVENTS, PERSONS[0]), "each")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks all", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every part as short as it can be")
    options = parser.parse_args(arguments)
    quick = ["--quick"] if options.quick else []
    failed = [] if options.quick else run_parts({"preparation": _prepare})
    for kind in _SERIES:
        (report_place(quick=options.quick) / "series" / f"{kind}.json").unlink(missing_ok=True)
    sizes = [] if options.quick else ["--events", str(EVENTS)]
    parts = {
        "peers": (
            side_by_side,
            [*sizes, *([] if options.quick else ["--each-events", str(EACH_EVENTS), "--fewer-rounds"])],
        ),
        # the three forms at 500,000 persons are among the peers already
        "processor": (processor, [*sizes, "--form", "arrow"]),
        "stages": (stages, []),
        "gateway": (gateway, [] if options.quick else ["--seconds", "1.5", "--fewer-rounds"]),
        "latency": (latency, [] if options.quick else ["--seconds", "15"]),
        "together": (together, [] if options.quick else ["--minutes", "1", "--embedded"]),
        "profile": (profile, []),
        "reads": (reads, [] if options.quick else ["--cases", "100000"]),
    }
    begin = time.perf_counter()
    failed += run_parts(
        {name: partial(module.main, [*quick, *more]) for name, (module, more) in parts.items()}
    )
    failed += run_parts({"report": partial(report.main, quick)})
    minutes = (time.perf_counter() - begin) / 60
    out.print(f"all: {minutes:.1f} minutes")
    if minutes > _MINUTES:
        out.print(f"FAILED: more than {_MINUTES} minutes")
    if failed:
        out.print(f"FAILED, and not all of its figures in the report: {', '.join(failed)}")
    return 1 if failed or minutes > _MINUTES else 0
