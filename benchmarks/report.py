"""The report of what was run last, case by case: Markdown with PNG plots, and the same as one HTML page.

    python -m benchmarks report [--quick]

Reads var/bench/series, writes var/bench/report.md with its plots, and report.html with the plots inside.
"""

from __future__ import annotations

import argparse
import base64
import html
import os
import statistics
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.cache import ROOT
from benchmarks.goals import median, steady, table
from benchmarks.harness import commit, out, read_series, report_place, series_path
from benchmarks.latency import tail_text
from benchmarks.plots import Saved, draw
from benchmarks.profile import svg
from benchmarks.together import growth_text

TITLES: Final = {
    "goals": "Goals",
    "peers": "Side by side with other programs",
    "processor": "Our worker: forms of records, size of the register",
    "stages": "Each stage alone",
    "gateway": "Gateway",
    "latency": "From accepted to visible",
    "together": "Everything together on one Kafka node",
    "burst": "Everything together on the embedded broker",
    "reads": "Reads",
    "growth": "Growth",
    "profile": "Profiles",
}

Rows = list[list[str]]
#: kind, note, tables
Section = tuple[str, str, list[Rows]]
#: Of all cores: above it other processes disturbed a series.
_BUSY: Final = 0.1
#: Letters of an error that the report tells; the whole is on the console.
_WHY: Final = 300
#: Where what was tried stands, by its headings.
_TRIED: Final = ("docs/plan.md", "Hot path", "Learned")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="of quick runs: var/bench/quick")
    quick = parser.parse_args(arguments).quick
    place = report_place(quick=quick)
    saved: dict[str, Saved] = {
        kind: found for kind in TITLES if (found := read_series(series_path(kind, quick=quick))) is not None
    }
    if not any(one["runs"] for one in saved.values()):
        out.print("nothing to report: run a benchmark first")
        return 1
    measured = {kind: one for kind, one in saved.items() if one["runs"]}
    plots, graphs = draw(measured, place), _graphs(measured, place)
    sections: list[Section] = [
        (kind, _note(one), _tables(kind, one) if kind in measured else []) for kind, one in saved.items()
    ]
    now = commit()
    goals = f"Made at commit {now}; a row is of the runs that it names. What was not run has no figure."
    sections.insert(0, ("goals", goals, [table(saved, now)]))
    (place / "report.md").write_text(_markdown(saved, sections, plots, graphs, place))
    (place / "report.html").write_text(_html(saved, sections, plots, graphs, place))
    out.print(f"report: {place / 'report.md'} and {place / 'report.html'}")
    return 0


def _machine(saved: dict[str, Saved]) -> str:
    origins = [origin for one in saved.values() for origin in one["origins"].values()]
    machine = max(origins, key=lambda origin: str(origin["at"]))["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB; "
        f"Python {machine['python']}; {packages}. "
        "All programs, brokers and load clients run on these cores: use the ratios."
    )


def _origin(origin: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in origin["settings"].items())
    begun = datetime.fromisoformat(origin["begun"]).strftime("%Y-%m-%d %H:%M UTC")
    cores, others = origin["machine"]["cores"], origin["machine"]["others_cores"]
    busy = (
        f"; other processes used {others:.1f} of {cores} cores as it began" if others > _BUSY * cores else ""
    )
    return f"{begun}, commit {origin['commit']}; {settings}{busy}."


def _note(saved: Saved) -> str:
    """Where the figures are from: the newest series, then what earlier ones left; and what has no figure."""
    series: dict[str, list[str]] = {}
    for case, origin in sorted(saved["origins"].items(), key=lambda item: str(item[1]["at"]), reverse=True):
        series.setdefault(_origin(origin), []).append(case)
    told = list(series)[:1]
    for one, cases in list(series.items())[1:]:
        told.append(f"Of an earlier series: {', '.join(cases)} ({one[:-1]}).")
    for case, why in sorted(saved["facts"].get("left_out", {}).items()):
        told.append(f"Left out: {case}, {' '.join(why.split())[:_WHY]}.")
    return " ".join(told)


def _tried(place: Path) -> tuple[str, str, str]:
    """Words, then name and address (from `place`) of the page that tells what was tried."""
    file, *headings = _TRIED
    parts = " and ".join(f"“{heading}”" for heading in headings)
    return "What was tried, and did not help: ", f"{file}, {parts}", os.path.relpath(ROOT / file, place)


def _tables(kind: str, saved: Saved) -> list[Rows]:
    if kind in ("peers", "processor", "gateway"):
        tables = [_rate_table(saved)]
        if stages := _stage_table(saved):
            tables.append(stages)
        if threads := _thread_table(saved):
            tables.append(threads)
        return tables
    if kind == "profile":
        return _profiles(saved)
    return [_SHAPES[kind](saved)]


def _rate_table(saved: Saved) -> Rows:
    """A load client takes from the machine that it measures: where there is one, its share is told."""
    by_client = any("client_cpu_share" in run for runs in saved["runs"].values() for run in runs)
    rows = [["program, records", "events/s", "range", "CPU µs per event", "peak MB", "runs"]]
    if by_client:
        rows[0].append("client's CPU share")
    for case, runs in sorted(saved["runs"].items(), key=lambda item: -median(item[1], "events_per_second")):
        values = [run["events_per_second"] for run in runs]
        rows.append(
            [
                case,
                f"{median(runs, 'events_per_second'):,.0f}",
                f"{min(values):,.0f} – {max(values):,.0f}",
                f"{statistics.median(run['cpu_seconds'] / run['events'] for run in runs) * 1e6:.2f}",
                f"{max(run.get('peak_mb', 0) for run in runs):,.0f}",
                str(len(runs)),
                *([f"{max(run['client_cpu_share'] for run in runs):.0%}"] if by_client else []),
            ]
        )
    return rows


def _stage_table(saved: Saved) -> Rows | None:
    """Wall time that threads spend in each stage, µs per event, median of the runs. Two rounds overlap."""
    cases = {case: runs for case, runs in saved["runs"].items() if runs[-1].get("stages")}
    if not cases:
        return None
    stages = sorted({stage for runs in cases.values() for run in runs for stage in run["stages"]})
    rows = [["time in threads, µs per event", *cases]]
    for stage in stages:
        cells = [
            f"{statistics.median(run['stages'].get(stage, 0.0) / run['events'] for run in runs) * 1e6:.2f}"
            for runs in cases.values()
        ]
        rows.append([stage, *cells])
    return rows


def _thread_table(saved: Saved) -> Rows | None:
    """Processor time by kind of thread, µs per event, median of the runs."""
    cases = {case: runs for case, runs in saved["runs"].items() if runs[-1].get("thread_cpu_seconds")}
    if not cases:
        return None
    kinds = sorted({kind for runs in cases.values() for run in runs for kind in run["thread_cpu_seconds"]})
    rows = [["processor time by kind of thread, µs per event", *cases]]
    for kind in kinds:
        cells = [
            statistics.median(run["thread_cpu_seconds"].get(kind, 0.0) / run["events"] for run in runs)
            for runs in cases.values()
        ]
        rows.append([kind, *(f"{cell * 1e6:.2f}" for cell in cells)])
    return rows


def _profiles(saved: Saved) -> list[Rows]:
    """The dearest functions of each process; the whole is in its flame graph."""
    tables = []
    for which, (run, *_) in saved["runs"].items():
        rows = [[f"{which}: our function, with the libraries it calls", "of all", "of it in libraries"]]
        rows += [
            [one["function"], f"{one['share']:.1%}", f"{one['in_libraries']:.0%}"] for one in run["functions"]
        ]
        tables.append(rows)
    return tables


def _together(saved: Saved) -> Rows:
    rows = [
        [
            "run", "asked", "accepted", "stored", "sustained", "waiting: second third, last third", "memory",
            "peak MB", "client's CPU share", "client behind its pace",
        ]
    ]  # fmt: skip
    for case, (run, *_) in saved["runs"].items():
        rows.append(
            [
                case,
                f"{run['asked_per_second']:,.0f}",
                f"{run['events_per_second']:,.0f}",
                f"{run['stored_per_second']:,.0f}",
                "yes" if run["sustained"] else "no",
                f"{run['waiting_second_third']:,.0f}, {run['waiting_last_third']:,.0f}",
                growth_text(run["memory_growth"]),
                f"{run['peak_mb']:,.0f}",
                f"{run['client_cpu_share']:.0%}",
                f"{run['late_seconds']:.1f} s",
            ]
        )
    return rows


def _stages(saved: Saved) -> Rows:
    runs = [runs[0] for runs in saved["runs"].values()]
    sizes = sorted({run["rows"] for run in runs})
    rows = [
        [
            "stage", *(f"ns per row at {size:,}" for size in sizes), "rows/s at the largest",
            "peak MB until then",
        ]
    ]  # fmt: skip
    for stage in dict.fromkeys(run["stage"] for run in runs):
        by_size = {run["rows"]: run for run in runs if run["stage"] == stage}
        largest = by_size[max(by_size)]
        cells = [f"{by_size[size]['ns_per_row']:,.0f}" if size in by_size else "" for size in sizes]
        rows.append([stage, *cells, f"{largest['rows_per_second']:,.0f}", f"{largest['peak_mb']:,.0f}"])
    return rows


def _latency(saved: Saved) -> Rows:
    rows = [
        [
            "load", "asked", "accepted", "stored", "p50 ms", "tail", "probes", "peak MB",
            "client's CPU share", "client behind its pace",
        ]
    ]  # fmt: skip
    for case, (run, *_) in saved["runs"].items():
        rows.append(
            [
                case,
                f"{run['asked_per_second']:,.0f}",
                f"{run['events_per_second']:,.0f}",
                f"{run['stored_per_second']:,.0f}",
                f"{run['p50_ms']:.0f}",
                tail_text(run),
                str(run["probes"]),
                f"{run['peak_mb']:,.0f}",
                f"{run['client_cpu_share']:.0%}",
                f"{run['late_seconds']:.1f} s",
            ]
        )
    return rows


def _reads(saved: Saved) -> Rows:
    names = list(dict.fromkeys(name for runs in saved["runs"].values() for name in runs[0]["calls"]))
    rows = [["call", *(f"{case}: p50 / p95 ms" for case in saved["runs"])]]
    for name in names:
        calls = [runs[0]["calls"].get(name) for runs in saved["runs"].values()]
        rows.append(
            [name, *(f"{call['p50_ms']:.0f} / {call['p95_ms']:.0f}" if call else "" for call in calls)]
        )
    rows.append(["peak MB", *(f"{runs[0]['peak_mb']:,.0f}" for runs in saved["runs"].values())])
    return rows


def _growth(saved: Saved) -> Rows:
    rows = [["series", "first", "last", "change"]]
    if runs := saved["runs"].get("cost"):
        runs = steady(runs)  # as the goal: the first one warms up
        for name in (
            "cpu_seconds_per_million",
            "cpu_seconds_per_million_from_first_round",
            "cpu_seconds_per_million_with_start",
            "peak_mb",
        ):
            first, last = runs[0][name], runs[-1][name]
            rows.append([f"cost: {name}", f"{first:,.2f}", f"{last:,.2f}", f"{last / first - 1:+.0%}"])
    for run in saved["runs"].get("soak", []):
        rows.append(
            [
                f"soak: MB of all processes, {run['seconds'] / 60:.0f} minutes",
                f"{run['memory_mb'][0][1]:,.0f}" if run["memory_mb"] else "",
                f"{run['memory_mb'][-1][1]:,.0f}" if run["memory_mb"] else "",
                growth_text(run["memory_growth"]) + " (last third over second)",
            ]
        )
    for case, runs in saved["runs"].items():
        if "partitions" in case or "workers" in case:
            peak = max(run["peak_mb"] for run in runs)
            rate = f"{median(runs, 'events_per_second'):,.0f} events/s"
            rows.append([case, rate, f"peak {peak:,.0f} MB", ""])
        elif "window" in case:
            rows.append(
                [case, f"{runs[0]['find_5000_ms']:.2f} ms per 5,000", f"{runs[0]['window_mb']:,.0f} MB", ""]
            )
    return rows


_SHAPES: Final = {
    "stages": _stages,
    "latency": _latency,
    "together": _together,
    "burst": _together,
    "reads": _reads,
    "growth": _growth,
}


def _markdown(
    saved: dict[str, Saved],
    sections: list[Section],
    plots: dict[str, list[Path]],
    graphs: list[Path],
    place: Path,
) -> str:
    parts = ["# Benchmarks", "", _machine(saved), ""]
    for kind, note, tables in sections:
        title = TITLES[kind]
        parts += [f"## {title}", "", note, ""]
        for head, *rows in tables:
            parts += ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
            parts += ["| " + " | ".join(row) + " |" for row in rows]
            parts.append("")
        if kind == "goals":
            before, name, address = _tried(place)
            parts += [f"{before}[{name}]({address}).", ""]
        parts += [f"![{title}]({path.name})\n" for path in plots.get(kind, ())]
        parts += [f"Flame graph: [{path.name}]({path.name})\n" for path in graphs if kind == "profile"]
    return "\n".join(parts)


_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def _html(
    saved: dict[str, Saved],
    sections: list[Section],
    plots: dict[str, list[Path]],
    graphs: list[Path],
    place: Path,
) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Benchmarks</title>",
        f"<style>{_STYLE}</style><h1>Benchmarks</h1><p>{html.escape(_machine(saved))}</p>",
    ]
    for kind, note, tables in sections:
        title = TITLES[kind]
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(note)}</p>")
        for head, *rows in tables:
            parts.append("<table>" + _row(head, "th") + "".join(_row(row, "td") for row in rows) + "</table>")
        if kind == "goals":
            before, name, address = map(html.escape, _tried(place))
            parts.append(f'<p>{before}<a href="{address}">{name}</a>.</p>')
        for path in plots.get(kind, ()):
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">')
        for path in graphs if kind == "profile" else ():
            data = base64.b64encode(path.read_bytes()).decode()
            name = html.escape(f"{path.stem}: flame graph")
            parts.append(f'<h3>{name}</h3><img alt="{name}" src="data:image/svg+xml;base64,{data}">')
    return "\n".join(parts) + "</html>\n"


def _graphs(saved: dict[str, Saved], place: Path) -> list[Path]:
    """Flame graphs of the profiles."""
    runs = saved["profile"]["runs"] if "profile" in saved else ()
    return [graph for which in runs if (graph := svg(place, which)).exists()]


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
