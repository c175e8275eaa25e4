"""The speed that the project set itself, row by row: what was measured, and what stands in the way.

A row is read from the series of the last run; what was not run has no figure. `limited_by` says what the
profile shows where a goal is not reached; what was tried and did not help is in docs/plan.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Saved = Mapping[str, Any]
#: (figure as text, whether the goal is reached); None: not measured.
Verdict = tuple[str, bool] | None

_ROWS: Final = (
    "all of our work (88 columns, 13 rules, L1, L2, people, positions, cases) against the smaller common "
    "one: of some 20 µs an event a quarter is the cases' fold, a quarter the insert and its merges, "
    "the rest many small steps of polars, none of which stands out (see the profile)"
)
_PER_RECORD: Final = "Faust's cost per message: most of some 110 µs, before ours begins"
_OBJECTS: Final = "Python objects per event: half of the time, from decoding to pseudonyms"


@dataclass(frozen=True)
class Goal:
    what: str
    at_least: str
    measured: Callable[[Mapping[str, Saved]], Verdict]
    limited_by: str


def median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _ratio(what: str) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        for goal in saved.get("peers", {}).get("facts", {}).get("goals", ()):
            if goal["what"] == what:
                return f"{goal['ratio']:.2f} of {goal['against']}", goal["ratio"] >= goal["at_least"]
        return None

    return read


def _rate(kind: str, case: str, name: str, least: float) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        runs = saved.get(kind, {}).get("runs", {}).get(case)
        if not runs:
            return None
        found = median(runs, name)
        return f"{found:,.0f}", found >= least

    return read


def _register(saved: Mapping[str, Saved]) -> Verdict:
    runs = saved.get("processor", {}).get("runs", {})
    large = next((case for case in runs if case.startswith("gridpipe arrow, ")), None)
    if large is None or "gridpipe arrow" not in runs:
        return None
    slower = 1 - median(runs[large], "events_per_second") / median(
        runs["gridpipe arrow"], "events_per_second"
    )
    more = max(run["peak_mb"] for run in runs[large]) - max(run["peak_mb"] for run in runs["gridpipe arrow"])
    return f"{slower:+.0%} slower, {more:+,.0f} MB", slower <= 0.1 and more <= 1_024


def _latency(saved: Mapping[str, Saved]) -> Verdict:
    runs = saved.get("latency", {}).get("runs", {})
    if not runs:
        return None
    case, (run, *_) = max(runs.items(), key=lambda item: item[1][0]["events_per_second"])
    reached = run["events_per_second"] >= 97_000 and run["p50_ms"] <= 150 and run["p99_ms"] <= 500
    return f"p50 {run['p50_ms']:.0f} ms, p99 {run['p99_ms']:.0f} ms at {case}", reached


def _together(saved: Mapping[str, Saved]) -> Verdict:
    for case, (run, *_) in saved.get("together", {}).get("runs", {}).items():
        held = "sustained" if run["sustained"] else "not sustained"
        reached = run["sustained"] and run["events_per_second"] >= 150_000 and run["seconds"] >= 590
        return f"{run['events_per_second']:,.0f} events/s {held} ({case})", reached
    return None


def _reads(cases: int, *, past: bool, most_ms: float) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        runs = saved.get("reads", {}).get("runs", {}).get(f"{cases} cases")
        if not runs:
            return None
        calls = {name: call["p95_ms"] for name, call in runs[0]["calls"].items() if ("past" in name) == past}
        slowest = max(calls, key=lambda name: calls[name])
        return f"{calls[slowest]:,.0f} ms ({slowest})", calls[slowest] <= most_ms

    return read


def _flat(case: str, name: str, within: float) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        runs = saved.get("growth", {}).get("runs", {}).get(case)
        if not runs or len(runs) < 2:
            return None
        # the first run warms up
        change = runs[-1][name] / runs[min(1, len(runs) - 2)][name] - 1
        return f"{change:+.1%} over {len(runs)} million events", abs(change) <= within

    return read


GOALS: Final = (
    Goal("processor, Arrow blocks, to the best tuned Python row program", "2.5",
         _ratio("Arrow blocks to the best Python row program"), _ROWS),
    Goal("… to the plain Faust agent", "30", _ratio("Arrow blocks to the plain Faust agent"), _ROWS),
    Goal("… to ClickHouse reading a file with dictionary joins", "0.75",
         _ratio("Arrow blocks to ClickHouse reading a file"), _ROWS),
    Goal("… events/s", "650,000", _rate("peers", "gridpipe arrow", "events_per_second", 650_000), _ROWS),
    Goal("NDJSON blocks to the best tuned Python row program", "1.5",
         _ratio("NDJSON blocks to the best Python row program"), _ROWS),
    Goal("NDJSON blocks to ClickHouse's own JSONEachRow push", "1",
         _ratio("NDJSON blocks to ClickHouse's JSONEachRow push"), _ROWS),
    Goal("one event per record to the best tuned Python row program", "1.5",
         _ratio("one event per record to the best Python row program"), _PER_RECORD),
    Goal("4.8 million persons against 500,000", "10 % slower and 1 GB more at most", _register,
         "the register's arrays and their loading"),
    Goal("gateway, batches of 500, events per processor second", "500,000",
         _rate("gateway", "gridpipe ndjson500", "events_per_cpu_second", 500_000), _OBJECTS),
    Goal("gateway, single events, requests per processor second", "25,000",
         _rate("gateway", "gridpipe single", "events_per_cpu_second", 25_000),
         "100 µs of Python per request besides uvicorn's 30 and the socket's 40"),
    Goal("HTTP accepted → queryable at 100,000 events/s", "p50 150 ms, p99 500 ms at most", _latency,
         "the machine does not carry 100,000 events/s together; an insert costs 10 ms however small"),
    Goal("everything together, one Kafka node, ten minutes", "150,000 events/s sustained", _together, _ROWS),
    Goal("KPI calls for now, 1 million cases, p95", "150 ms at most",
         _reads(1_000_000, past=False, most_ms=150), "one thread groups every case of the month by grid"),
    Goal("KPI calls with a past as_of, 1 million cases, p95", "1,500 ms at most",
         _reads(1_000_000, past=True, most_ms=1_500), "histories are read and cut at the instant"),
    Goal("KPI calls for now, 10 million cases, p95", "1,000 ms at most",
         _reads(10_000_000, past=False, most_ms=1_000), "one thread groups every case by grid"),
    Goal("processor time per million events, second to last", "flat within 10 %",
         _flat("cost", "cpu_seconds_per_million", 0.10), "merges and reads that grow with the tables"),
    Goal("memory of the soak, second to last", "flat within 5 %", _flat("soak", "peak_mb", 0.05),
         "the window of known ids grows with the ids of seven days"),
)  # fmt: skip


def table(saved: Mapping[str, Saved]) -> list[list[str]]:
    """Rows for the report, the head first."""
    rows = [["goal", "at least", "measured", "", "what limits it"]]
    for goal in GOALS:
        verdict = goal.measured(saved)
        if verdict is None:
            rows.append([goal.what, goal.at_least, "not run", "", ""])
        else:
            figure, reached = verdict
            words = ["reached", ""] if reached else ["not reached", goal.limited_by]
            rows.append([goal.what, goal.at_least, figure, *words])
    return rows
