"""The regression gate: a short calibrated benchmark that fails when a ratio falls, not when the day is slow.

    python -m benchmarks.gate [--write-baseline | --write-counts] [--only processor]

Ratios compare two programs in turn on the same machine at the same moment, by processor time: the worker to
`polars.read_ndjson` on the same events (median of the rounds), the gateway to the bare server (best slices),
a KPI call to a full scan. One that lies more than 15 % below the baseline is measured again, twice at most,
and the best result counts: a neighbour on the machine disturbs one measurement, a slower program all of them.
Counts hold on any machine and gate hard, by one measurement: Python calls per event on the hot path and per
single request (10 %), rows per insert, parts written per million events (20 %). Exit 1 with one line
per failure; the baseline is benchmarks/baseline.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import cache
from benchmarks.gateway import calls, in_turn
from benchmarks.harness import commit, end_cleanly, machine, out, python, run_program
from benchmarks.peers_case import run_peer
from benchmarks.processor import run_ours

BASELINE: Final = Path(__file__).parent / "baseline.json"
TOLERANCE: Final = 0.15
#: Counts, which hold on any machine.
COUNT_TOLERANCES: Final = {
    "python calls per event": 0.10,
    "gateway: python calls per event": 0.10,
    "gateway: python calls per single request": 0.10,
    "rows per insert": 0.20,
    "parts per million events": 0.20,
}
EVENTS: Final = 100_000
PERSONS: Final = 20_000
KPI_CASES: Final = 10_000
_ROUNDS: Final = 3
_AGAIN: Final = 2
_GATEWAY_SLICES: Final = 10
_GATEWAY_SECONDS: Final = 0.3

#: For these more is worse.
LOWER_IS_BETTER: Final = frozenset(COUNT_TOLERANCES) - {"rows per insert"}


def processor() -> dict[str, float]:
    """CPU of `read_ndjson` per event over that of the worker, topic to commit."""
    source = cache.events(EVENTS, PERSONS)
    records = cache.records(source, "arrow")
    ratios = []
    for _ in range(_ROUNDS):
        floor = run_peer("parse_polars", source, "ndjson", PERSONS, cache.PARTITIONS)
        ours = run_ours(source, records, PERSONS, cache.PARTITIONS)
        ratios.append(floor["cpu_seconds"] / ours["cpu_seconds"])
    return {"processor to polars read_ndjson": statistics.median(ratios)}


def counts() -> dict[str, float]:
    """What no machine changes: Python calls within rounds and requests, inserts and parts; of a full topic
    whose blocks wait for their records."""
    source = cache.events(EVENTS, PERSONS)
    run = run_ours(source, cache.records(source, "arrow"), PERSONS, cache.PARTITIONS, "count-calls")
    engine = run["engine"]
    return {
        "python calls per event": run["calls"]["python"] / EVENTS,
        "rows per insert": engine["InsertedRows"] / max(engine["InsertQuery"], 1),
        "parts per million events": engine["MergeTreeDataWriterBlocks"] / EVENTS * 1e6,
        "gateway: python calls per event": calls("ndjson500", requests=100, persons=PERSONS),
        "gateway: python calls per single request": calls("single", requests=2_000, persons=PERSONS),
    }


def gateway() -> dict[str, float]:
    """Events per CPU second of the gateway over those of the bare server, NDJSON batches of 500: of either
    the slice that was disturbed least, for a neighbour's load costs up to half."""
    found = in_turn("ndjson500", slices=_GATEWAY_SLICES, seconds=_GATEWAY_SECONDS, persons=PERSONS)
    return {"gateway to bare server": max(found["gridpipe"]) / max(found["bare"])}


def kpi() -> dict[str, float]:
    """CPU of a full scan over that of a KPI call, which the store answers, or what the api holds."""
    found = run_program(python("-m", "benchmarks.kpi_scan", str(KPI_CASES)))
    return {"KPI call to full scan": found["ratio"], "held KPI call to full scan": found["held_ratio"]}


MEASURES: Final[dict[str, Callable[[], dict[str, float]]]] = {
    "processor": processor,
    "counts": counts,
    "gateway": gateway,
    "kpi": kpi,
}


def failures(found: dict[str, float], baseline: dict[str, float]) -> list[str]:
    """One line per figure that is worse than its baseline by more than the tolerance."""
    problems = []
    for name, value in found.items():
        kept = baseline.get(name)
        if kept is None:
            problems.append(f"{name}: no baseline; run python -m benchmarks.gate --write-baseline")
        elif worse(name, value, kept) > COUNT_TOLERANCES.get(name, TOLERANCE):
            problems.append(f"{name}: {value:.4g}, baseline {kept:.4g}: {worse(name, value, kept):.0%} worse")
    return problems


def worse(name: str, value: float, kept: float) -> float:
    """By what share of the baseline a figure is worse; negative when it is better."""
    return value / kept - 1 if name in LOWER_IS_BETTER else 1 - value / kept


def better(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The better of two measurements, figure by figure."""
    return {
        name: (min if name in LOWER_IS_BETTER else max)(value, second[name]) for name, value in first.items()
    }


def check(name: str, baseline: dict[str, float]) -> tuple[dict[str, float], list[str]]:
    """Measure; while a ratio fails, again. A count is measured once."""
    found = MEASURES[name]()
    problems = failures(found, baseline)
    for _ in range(_AGAIN):
        if not problems or found.keys() <= COUNT_TOLERANCES.keys():
            break
        out.print(f"{name}: again, for {'; '.join(problems)}")
        found = better(found, MEASURES[name]())
        problems = failures(found, baseline)
    return found, problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write-baseline", action="store_true", help="keep what is measured as the baseline")
    parser.add_argument("--write-counts", action="store_true", help="of what is measured, keep the counts")
    parser.add_argument("--only", action="append", choices=list(MEASURES))
    options = parser.parse_args()
    stored: dict[str, Any] = orjson.loads(BASELINE.read_bytes()) if BASELINE.exists() else {"figures": {}}
    end_cleanly()
    begin = time.perf_counter()
    cache.store(PERSONS)
    problems: list[str] = []
    figures: dict[str, float] = {}
    for name in options.only or MEASURES:
        if options.write_baseline or options.write_counts:
            found = MEASURES[name]()
        else:
            found, wrong = check(name, stored["figures"])
            problems += wrong
        figures |= found
        for figure, value in found.items():
            out.print(f"{figure}: {value:.4g} (baseline {stored['figures'].get(figure, float('nan')):.4g})")
    if options.write_counts:
        figures = {figure: value for figure, value in figures.items() if figure in COUNT_TOLERANCES}
        BASELINE.write_bytes(
            orjson.dumps(
                stored | {"figures": stored["figures"] | figures, "counts_commit": commit()},
                option=orjson.OPT_INDENT_2,
            )
            + b"\n"
        )
    elif options.write_baseline:
        BASELINE.write_bytes(
            orjson.dumps(
                {
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "commit": commit(),
                    "machine": machine(),
                    "figures": stored["figures"] | figures,
                },
                option=orjson.OPT_INDENT_2,
            )
            + b"\n"
        )
    out.print(f"gate: {time.perf_counter() - begin:.0f} s")
    for problem in problems:
        out.print(f"FAILED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
