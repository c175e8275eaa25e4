"""The speed that the project set itself, row by row: what was measured, and what stands in the way.

A row is read from the last runs of its cases, and says how many they are and of which commit; what was not
run has no figure. `limited_by` says where the time goes where a goal is not reached, as far as the series at
hand tell; what was tried and did not help is in docs/plan.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from benchmarks import latency, reads
from benchmarks.latency import tail_text
from benchmarks.memory import MEMORY_TOLERANCE
from benchmarks.side_by_side import EVENTS_PER_SECOND_GOAL
from benchmarks.side_by_side import GOALS as RATIOS
from benchmarks.together import GOAL as TOGETHER
from benchmarks.together import growth_text

Saved = Mapping[str, Any]
Series = Mapping[str, Saved]


class Verdict(NamedTuple):
    """figure : in words. origins : of the cases it was read from, as `harness.Series.origin` tells them;
    runs : of the case that has fewest."""

    figure: str
    reached: bool
    origins: list[Mapping[str, Any]]
    runs: int = 1


#: None: not measured.
Measured = Callable[[Series], Verdict | None]

#: Half an hour, less what the end of a load may lack.
_SOAK_SECONDS: Final = 1_790
#: Stages and functions that are named where one is asked what takes the time.
_NAMED: Final = 5


@dataclass(frozen=True)
class Goal:
    what: str
    at_least: str
    measured: Measured
    limited_by: Callable[[Series], str]


def median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _always(text: str) -> Callable[[Series], str]:
    return lambda _: text


def _last(saved: Series, kind: str, case: str) -> Mapping[str, Any]:
    runs = saved.get(kind, {}).get("runs", {}).get(case)
    return runs[-1] if runs else {}


def _shares(parts: Mapping[str, float]) -> str:
    """The largest parts, as shares of all."""
    whole = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:_NAMED]
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in largest)


def _where_time_goes(saved: Series) -> str:
    told = "all of our work (13 rules, L1, L2, people, positions, cases) against the smaller common one"
    run = _last(saved, "peers", "gridpipe arrow")
    if run.get("stages"):
        told += f"; of the threads' time {_shares(run['stages'])}"
    if run.get("thread_cpu_seconds"):
        cpu = run["cpu_seconds"] / run["events"] * 1e6
        told += f"; of {cpu:.1f} µs of processor time an event {_shares(run['thread_cpu_seconds'])}"
    return told


def _per_record(saved: Series) -> str:
    told = "Faust's objects per message, and JSON that is read event by event"
    run = _last(saved, "peers", "gridpipe each")
    if loop := run.get("thread_cpu_seconds", {}).get("event loop"):
        cpu, loop = (seconds / run["events"] * 1e6 for seconds in (run["cpu_seconds"], loop))
        told += f": {loop:.0f} of {cpu:.0f} µs of processor time an event are the event loop's"
    return told


def _small_rounds(saved: Series) -> str:
    told = "small rounds: each pays all of polars' steps and all inserts, however few its rows"
    insert, few, many = (
        _last(saved, "stages", case)
        for case in ("insert @ 500", "process_block @ 5000", "process_block @ 50000")
    )
    if insert:
        told += f"; the inserts of 500 rows take {insert['seconds'] * 1_000:.0f} ms"
    if few and many:
        times = few["ns_per_row"] / many["ns_per_row"]
        told += f", and a row of 5,000 is judged in {times:.1f} times the time of one of 50,000"
    return told


def _gateway_functions(saved: Series) -> str:
    told = "Python objects per event, from decoding to pseudonyms"
    if functions := _last(saved, "profile", "gateway").get("functions"):
        largest = ", ".join(f"{one['function']} {one['share']:.0%}" for one in functions[:_NAMED])
        told += f"; by the profile {largest}"
    return told


def _single(saved: Series) -> str:
    told = (
        "Python per request; looked at on 28 November 2026 (commit f44cb2b): 100 µs of ours besides 30 of "
        "uvicorn and 40 of the socket"
    )
    ours, bare = (
        1e6 / run["events_per_cpu_second"] if run else 0.0
        for run in (_last(saved, "gateway", f"{which} single") for which in ("gridpipe", "bare"))
    )
    if ours and bare:
        told = f"{ours:.0f} µs of processor time a request, the bare server {bare:.0f}; {told}"
    return told


_SCAN: Final = (
    "what the api does not hold (a past `as_of`, more cases than GRIDPIPE_HELD_CASES) the store counts: it "
    "reads every state of the period and every report, and cuts the history of each case that changed since"
)
_UNKNOWN: Final = "not profiled yet"
_OLD_CASES: Final = (
    "events of cases that the worker no longer remembers: their sets are read back from `case_events`, "
    "scattered by case id, so that a round reads much of the table"
)


def _size_text(events: int) -> str:
    """What to know of a run of our worker over so many events."""
    if events >= 1_000_000:
        return ""
    return (
        f", of {events:,} events (of a million, with their merges, one costs us some 1.2 µs more: 18.5 "
        "against 17.3 on 29 November 2026, 7 % with Arrow blocks)"
    )


def _ratio(what: str, mine: str) -> Measured:
    def read(saved: Series) -> Verdict | None:
        goal = saved.get("peers", {}).get("facts", {}).get("goals", {}).get(what)
        if goal is None:
            return None
        figure = f"{goal['ratio']:.2f} of {goal['against']}{_size_text(goal['events'])}"
        if mine == "gridpipe each":
            figure += "; up to 24 MB of records are fetched before our clock starts"
        return Verdict(figure, goal["ratio"] >= goal["at_least"], [goal["origin"]], goal["runs"])

    return read


def _rate(kind: str, case: str, name: str, least: float) -> Measured:
    def read(saved: Series) -> Verdict | None:
        runs = saved.get(kind, {}).get("runs", {}).get(case)
        if not runs:
            return None
        found = median(runs, name)
        figure = f"{found:,.0f}" + (_size_text(runs[0]["events"]) if kind == "peers" else "")
        return Verdict(figure, found >= least, [saved[kind]["origins"][case]], len(runs))

    return read


def _register(saved: Series) -> Verdict | None:
    """Of the newest series that ran both sizes beside each other: what disturbed one disturbed the other."""
    found = [verdict for kind in ("peers", "processor") if (verdict := _register_of(saved.get(kind, {})))]
    return max(found, key=lambda verdict: max(str(each["at"]) for each in verdict.origins), default=None)


def _register_of(series: Mapping[str, Any]) -> Verdict | None:
    runs = series.get("runs", {})
    large = next((case for case in runs if case.startswith("gridpipe arrow, ")), None)
    if large is None or "gridpipe arrow" not in runs:
        return None
    origins = [series["origins"][case] for case in ("gridpipe arrow", large)]
    if origins[0]["begun"] != origins[1]["begun"]:
        return None
    small = {run["round"]: run["events_per_second"] for run in runs["gridpipe arrow"]}
    ratios = [run["events_per_second"] / small[run["round"]] for run in runs[large] if run["round"] in small]
    if not ratios:
        return None
    slower = 1 - statistics.median(ratios)
    more = max(run["peak_mb"] for run in runs[large]) - max(run["peak_mb"] for run in runs["gridpipe arrow"])
    figure = f"{slower:+.0%} slower, {more:+,.0f} MB"
    return Verdict(figure, slower <= 0.1 and more <= 1_024, origins, len(ratios))


def _latency(saved: Series) -> Verdict | None:
    """Of the run at the goal's rate, and without one of the fastest that was carried."""
    runs = saved.get("latency", {}).get("runs", {})
    if not runs:
        return None
    case, (run, *_) = max(
        runs.items(), key=lambda item: (item[1][0]["carried"], item[1][0]["asked_per_second"])
    )
    at_rate = {name: found[0] for name, found in runs.items() if found[0]["asked_per_second"] >= latency.GOAL}
    if at_rate:
        case = min(at_rate, key=lambda name: at_rate[name]["asked_per_second"])
        run = at_rate[case]
    figure = f"p50 {run['p50_ms']:.0f} ms, {tail_text(run)} at {run['asked_per_second']:,.0f} events/s"
    if not run["carried"]:
        figure += f", of which {run['stored_per_second']:,.0f} were stored"
    if not at_rate:
        capacity = run.get("capacity_per_second")
        figure += f"; not run at {latency.GOAL:,}/s"
        figure += f", the capacity was {capacity:,.0f}" if capacity else ""
    reached = bool(at_rate) and run["carried"] and run["p50_ms"] <= 150 and run["p99_ms"] <= 500
    return Verdict(figure, reached, [saved["latency"]["origins"][case]])


def _together(kind: str, least_seconds: float) -> Measured:
    """Of the last run that was long enough, and without one of the last run."""

    def read(saved: Series) -> Verdict | None:
        runs = saved.get(kind, {}).get("runs", {})
        if not runs:
            return None
        origins = saved[kind]["origins"]
        case = max(runs, key=lambda name: (runs[name][0]["seconds"] >= least_seconds, origins[name]["at"]))
        run = runs[case][0]
        held = "sustained" if run["sustained"] else "not sustained"
        stored = run["stored_per_second"]
        reached = run["sustained"] and run["seconds"] >= least_seconds and stored >= TOGETHER
        return Verdict(f"{stored:,.0f} events/s stored, {held} ({case})", reached, [origins[case]])

    return read


def _reads(cases: int, *, kind: str, most_ms: float) -> Measured:
    def read(saved: Series) -> Verdict | None:
        case = f"{cases} cases"
        runs = saved.get("reads", {}).get("runs", {}).get(case)
        if not runs:
            return None
        calls = reads.kinds(runs[0]["calls"], kind)
        slowest = max(calls, key=lambda name: calls[name])
        figure = f"{calls[slowest]:,.0f} ms ({slowest}, {runs[0]['calls'][slowest]['rounds']} rounds)"
        return Verdict(figure, calls[slowest] <= most_ms, [saved["reads"]["origins"][case]])

    return read


def steady(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of a growing store without the first, which warms up; two at least stay two."""
    return runs[min(1, max(0, len(runs) - 2)) :]


def _cost(*, within: float, chunks: int) -> Measured:
    """chunks : of a million events that the goal spans; fewer do not reach it."""

    def read(saved: Series) -> Verdict | None:
        found = saved.get("growth", {}).get("runs", {}).get("cost")
        if not found or len(found) < 2:
            return None
        apart, figures = {}, []
        for name, what in (("", "with merges"), ("_from_first_round", "without those that a restart left")):
            values = [run[f"cpu_seconds_per_million{name}"] for run in steady(found)]
            apart[name] = max(values) / min(values) - 1
            figures.append(f"{values[-1] / values[0] - 1:+.1%} {what}, {apart[name]:.1%} apart at most")
        figure = f"{'; '.join(figures)}; {len(found)} chunks"
        reached = apart[""] <= within and len(found) >= chunks
        return Verdict(figure, reached, [saved["growth"]["origins"]["cost"]])

    return read


def _soak(saved: Series) -> Verdict | None:
    runs = saved.get("growth", {}).get("runs", {}).get("soak")
    if not runs:
        return None
    grown = [share for share in runs[0]["memory_growth"].values() if share is not None]
    flat = len(grown) == len(runs[0]["memory_growth"]) > 0 and max(map(abs, grown)) <= MEMORY_TOLERANCE
    drained = runs[0]["drained_after_seconds"] is not None
    told = growth_text(runs[0]["memory_growth"]) + ("" if drained else "; not drained")
    # what grows by design stands in these words; the figure is what the process took
    told += "".join(f"; {words}" for words in runs[0].get("memory_told", {}).values() if ";" in words)
    reached = flat and drained and runs[0]["seconds"] >= _SOAK_SECONDS
    return Verdict(told, reached, [saved["growth"]["origins"]["soak"]])


GOALS: Final = (
    *(
        Goal(what, f"{least:g}", _ratio(what, mine),
             _per_record if mine == "gridpipe each" else _where_time_goes)
        for what, mine, _, least in RATIOS
    ),
    Goal("Arrow blocks, events/s", f"{EVENTS_PER_SECOND_GOAL:,}",
         _rate("peers", "gridpipe arrow", "events_per_second", EVENTS_PER_SECOND_GOAL), _where_time_goes),
    Goal("4.8 million persons against 500,000", "10 % slower and 1 GB more at most", _register,
         _always(_UNKNOWN)),
    Goal("gateway, batches of 500, events per processor second", "500,000",
         _rate("gateway", "gridpipe ndjson500", "events_per_cpu_second", 500_000), _gateway_functions),
    Goal("gateway, single events, requests per processor second", "25,000",
         _rate("gateway", "gridpipe single", "events_per_cpu_second", 25_000), _single),
    Goal("HTTP accepted → queryable at 100,000 events/s", "p50 150 ms, p99 500 ms at most", _latency,
         _small_rounds),
    Goal("everything together, one Kafka node, ten minutes", f"{TOGETHER:,} events/s sustained",
         _together("together", 590), _small_rounds),
    Goal("everything together, embedded broker, a burst", f"{TOGETHER:,} events/s", _together("burst", 0),
         _small_rounds),
    *(
        Goal(f"KPI calls {words}, {cases // 1_000_000} million cases, p95", f"{most:,} ms at most",
             _reads(cases, kind=kind, most_ms=most), _always(_SCAN))
        for cases, limits in reads.GOALS.items()
        for (words, kind), most in zip(
            (("for now", "now"), ("with a past as_of", "past")), limits, strict=True
        )
        if most is not None
    ),
    Goal("processor time per million events, second to fiftieth", "flat within 10 %",
         _cost(within=0.10, chunks=50), _always(_OLD_CASES)),
    Goal("memory of each process, soak of 30 minutes, last third over second", "flat within 5 %", _soak,
         _always(_UNKNOWN)),
)  # fmt: skip


def source_text(origins: list[Mapping[str, Any]], runs: int, commit: str) -> str:
    """How many runs, of which day and commit; commit : the one that the report is made at."""
    found = []
    for origin in sorted(origins, key=lambda each: str(each["at"])):
        day = datetime.fromisoformat(origin["at"]).strftime("%Y-%m-%d")
        other = "" if origin["commit"] == commit else ", another than now"
        found.append(f"{day}, commit {origin['commit']}{other}")
    return "; ".join([f"{runs} run{'' if runs == 1 else 's'}", *dict.fromkeys(found)])


def table(saved: Series, commit: str) -> list[list[str]]:
    """Rows for the report, the head first. commit : the one that the report is made at."""
    rows = [["goal", "at least", "measured", "", "runs of", "what limits it"]]
    for goal in GOALS:
        verdict = goal.measured(saved)
        if verdict is None:
            rows.append([goal.what, goal.at_least, "not run", "", "", ""])
        else:
            words = ["reached", ""] if verdict.reached else ["not reached", goal.limited_by(saved)]
            source = source_text(verdict.origins, verdict.runs, commit)
            rows.append([goal.what, goal.at_least, verdict.figure, words[0], source, words[1]])
    return rows
