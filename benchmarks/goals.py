"""The speed that the project set itself, row by row: what was measured, and what stands in the way.

A row is read from the series of the last run; what was not run has no figure. `limited_by` says what the
profile shows where a goal is not reached; what was tried and did not help is in docs/plan.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.latency import tail_text
from benchmarks.memory import MEMORY_TOLERANCE
from benchmarks.reads import GOALS as READS
from benchmarks.side_by_side import EVENTS_PER_SECOND_GOAL
from benchmarks.side_by_side import GOALS as RATIOS
from benchmarks.together import GOAL as TOGETHER
from benchmarks.together import growth_text

Saved = Mapping[str, Any]
#: (figure as text, whether the goal is reached); None: not measured.
Verdict = tuple[str, bool] | None

_ROWS: Final = (
    "all of our work (88 columns, 13 rules, L1, L2, people, positions, cases) against the smaller common "
    "one: of some 20 µs an event a quarter is the cases' fold, a quarter the insert and its merges, "
    "the rest many small steps of polars, none of which stands out (see the profile)"
)
_PER_RECORD: Final = (
    "Faust's objects per message: 22 of some 60 µs (90 before a whole fetch was handed on); and JSON that is "
    "read event by event"
)
_SMALL: Final = (
    "small rounds: one of 4,000 events costs three times as much per event as one of 50,000, for an insert "
    "takes 9 to 14 ms however few its rows, and polars' steps some 60"
)
_UNKNOWN: Final = "not profiled yet"
#: Half an hour, less what the end of a load may lack.
_SOAK_SECONDS: Final = 1_790
_SCAN: Final = "a call walks the cases of its period; sums per district that the store keeps would end that"
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
    small = {run["round"]: run["events_per_second"] for run in runs["gridpipe arrow"]}
    ratios = [run["events_per_second"] / small[run["round"]] for run in runs[large] if run["round"] in small]
    if not ratios:
        return None
    slower = 1 - statistics.median(ratios)
    more = max(run["peak_mb"] for run in runs[large]) - max(run["peak_mb"] for run in runs["gridpipe arrow"])
    return f"{slower:+.0%} slower, {more:+,.0f} MB", slower <= 0.1 and more <= 1_024


def _latency(saved: Mapping[str, Saved]) -> Verdict:
    runs = saved.get("latency", {}).get("runs", {})
    if not runs:
        return None
    case, (run, *_) = max(runs.items(), key=lambda item: item[1][0]["events_per_second"])
    reached = run["events_per_second"] >= 97_000 and run["p50_ms"] <= 150 and run["p99_ms"] <= 500
    return f"p50 {run['p50_ms']:.0f} ms, {tail_text(run)} at {case}", reached


def _together(kind: str, least_seconds: float) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        for case, (run, *_) in saved.get(kind, {}).get("runs", {}).items():
            held = "sustained" if run["sustained"] else "not sustained"
            lasted = run["sustained"] and run["seconds"] >= least_seconds
            carried = run.get("stored_per_second", 0.0)  # runs of before tell what was accepted only
            return f"{carried:,.0f} events/s stored, {held} ({case})", lasted and carried >= TOGETHER
        return None

    return read


def _reads(cases: int, *, past: bool, most_ms: float) -> Callable[[Mapping[str, Saved]], Verdict]:
    def read(saved: Mapping[str, Saved]) -> Verdict:
        runs = saved.get("reads", {}).get("runs", {}).get(f"{cases} cases")
        if not runs:
            return None
        calls = {name: call["p95_ms"] for name, call in runs[0]["calls"].items() if ("past" in name) == past}
        slowest = max(calls, key=lambda name: calls[name])
        return f"{calls[slowest]:,.0f} ms ({slowest})", calls[slowest] <= most_ms

    return read


def _flat(case: str, name: str, *, within: float, runs: int) -> Callable[[Mapping[str, Saved]], Verdict]:
    """runs : chunks of a million events that the goal spans; fewer do not reach it."""

    def read(saved: Mapping[str, Saved]) -> Verdict:
        found = saved.get("growth", {}).get("runs", {}).get(case)
        if not found or len(found) < 2:
            return None
        values = [run[name] for run in found[min(1, len(found) - 2) :]]  # the first run warms up
        apart = max(values) / min(values) - 1
        change = values[-1] / values[0] - 1
        figure = f"{change:+.1%} over {len(found)} runs, {apart:.1%} apart at most"
        return figure, apart <= within and len(found) >= runs

    return read


def _soak(saved: Mapping[str, Saved]) -> Verdict:
    runs = saved.get("growth", {}).get("runs", {}).get("soak")
    if not runs:
        return None
    grown = [share for share in runs[0]["memory_growth"].values() if share is not None]
    flat = len(grown) == len(runs[0]["memory_growth"]) > 0 and max(map(abs, grown)) <= MEMORY_TOLERANCE
    drained = runs[0]["drained_after_seconds"] is not None
    told = growth_text(runs[0]["memory_growth"]) + ("" if drained else "; not drained")
    return told, flat and drained and runs[0]["seconds"] >= _SOAK_SECONDS


GOALS: Final = (
    *(
        Goal(what, f"{least:g}", _ratio(what), _PER_RECORD if mine == "gridpipe each" else _ROWS)
        for what, mine, _, least in RATIOS
    ),
    Goal("Arrow blocks, events/s", f"{EVENTS_PER_SECOND_GOAL:,}",
         _rate("peers", "gridpipe arrow", "events_per_second", EVENTS_PER_SECOND_GOAL), _ROWS),
    Goal("4.8 million persons against 500,000", "10 % slower and 1 GB more at most", _register, _UNKNOWN),
    Goal("gateway, batches of 500, events per processor second", "500,000",
         _rate("gateway", "gridpipe ndjson500", "events_per_cpu_second", 500_000), _OBJECTS),
    Goal("gateway, single events, requests per processor second", "25,000",
         _rate("gateway", "gridpipe single", "events_per_cpu_second", 25_000),
         "100 µs of Python per request besides uvicorn's 30 and the socket's 40"),
    Goal("HTTP accepted → queryable at 100,000 events/s", "p50 150 ms, p99 500 ms at most", _latency, _SMALL),
    Goal("everything together, one Kafka node, ten minutes", f"{TOGETHER:,} events/s sustained",
         _together("together", 590), _SMALL),
    Goal("everything together, embedded broker, a burst", f"{TOGETHER:,} events/s", _together("burst", 0),
         _SMALL),
    *(
        Goal(f"KPI calls {kind}, {cases // 1_000_000} million cases, p95", f"{most:,} ms at most",
             _reads(cases, past=past, most_ms=most), _SCAN)
        for cases, limits in READS.items()
        for (kind, past), most in zip((("for now", False), ("with a past as_of", True)), limits, strict=True)
        if most is not None
    ),
    Goal("processor time per million events, second to fiftieth", "flat within 10 %",
         _flat("cost", "cpu_seconds_per_million", within=0.10, runs=50), _UNKNOWN),
    Goal("memory of each process, soak of 30 minutes, last third over second", "flat within 5 %", _soak,
         _UNKNOWN),
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
