"""`make bench`: every benchmark but growth, then the report, within 20 minutes on two idle cores.

    python -m benchmarks all [--quick]

What is made once (cities, stores, events) lies in var/bench-cache and is not part of that time: every part is
asked first to make what it will use. What takes longer fails: a benchmark that nobody waits for is not run.
Reads of a million cases are in `make bench-long`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from types import ModuleType
from typing import Final

from benchmarks import (
    gateway,
    latency,
    profile,
    reads,
    report,
    side_by_side,
    stages,
    together,
)
from benchmarks.harness import out, run_parts

_MINUTES = 20
_EVENTS: Final = "300000"
#: One event per record. The worker's buffer holds some 55,000, which may be fetched before its clock starts.
_EACH_EVENTS: Final = "200000"
#: Module and its arguments, by name; in a quick look each is as short as it can be.
_PARTS: Final[dict[str, tuple[ModuleType, list[str]]]] = {
    "peers": (
        side_by_side,
        # the processor is among them: its three forms, and the large register
        ["--events", _EVENTS, "--each-events", _EACH_EVENTS, "--fewer-rounds", "--large-register", "4800000"],
    ),
    "stages": (stages, []),
    "gateway": (gateway, ["--seconds", "1.5", "--fewer-rounds"]),
    "latency": (latency, ["--seconds", "15"]),
    "together": (together, ["--minutes", "1", "--embedded"]),
    "profile": (profile, ["--events", _EVENTS]),
    "reads": (reads, ["--cases", "100000", "--rounds", "5"]),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks all", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every part as short as it can be")
    quick = ["--quick"] if parser.parse_args(arguments).quick else []
    parts = {name: (module, quick or more) for name, (module, more) in _PARTS.items()}
    out.print("making what is not in var/bench-cache yet")
    failed = run_parts(
        {f"preparation of {name}": partial(module.prepare, more) for name, (module, more) in parts.items()}
    )
    begin = time.perf_counter()
    failed += run_parts({name: partial(module.main, more) for name, (module, more) in parts.items()})
    failed += run_parts({"report": partial(report.main, quick)})
    minutes = (time.perf_counter() - begin) / 60
    out.print(f"all: {minutes:.1f} minutes")
    if minutes > _MINUTES:
        out.print(f"FAILED: more than {_MINUTES} minutes")
    if failed:
        out.print(f"FAILED, and not all of its figures in the report are new: {', '.join(failed)}")
    return 1 if failed or minutes > _MINUTES else 0
