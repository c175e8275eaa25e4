"""PNG plots of the series, for the report: ours in blue, other programs grey, floors pale."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

_OURS, _OTHER, _FLOOR = "#1f5fbf", "#8a8a8a", "#d2d2d2"
_DPI: Final = 110

Saved = dict[str, Any]


def draw(saved: dict[str, Saved], directory: Path) -> dict[str, list[Path]]:
    """Plots by series; only of the series that there are."""
    found: dict[str, list[Path]] = {}
    for kind, plot in _PLOTS.items():
        if kind in saved:
            found[kind] = [path for path in plot(saved[kind], directory) if path is not None]
    return found


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def _bars(path: Path, values: dict[str, list[float]], title: str, unit: str) -> Path:
    """Horizontal bars of medians, with the range of the runs."""
    names = list(values)[::-1]
    middle = [statistics.median(values[name]) for name in names]
    spans = [
        [at - min(values[name]) for name, at in zip(names, middle, strict=True)],
        [max(values[name]) - at for name, at in zip(names, middle, strict=True)],
    ]
    colours = [
        _OURS if "gridpipe" in name else _FLOOR if "only" in name or "parse" in name else _OTHER
        for name in names
    ]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.32 * len(names)), layout="constrained")
    axes.barh(names, middle, xerr=spans, color=colours, ecolor="#444444", capsize=2)
    for at, value in enumerate(middle):
        axes.text(value + spans[1][at], at, f" {value:,.0f}", va="center", fontsize=8)
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return path


def _rates(kind: str, title: str) -> Any:
    def plot(saved: Saved, directory: Path) -> list[Path]:
        rates = {case: [run["events_per_second"] for run in runs] for case, runs in saved["runs"].items()}
        found = [_bars(directory / f"{kind}.png", rates, title, "events/s")]
        with_stages = {case: runs[-1] for case, runs in saved["runs"].items() if runs[-1].get("stages")}
        if with_stages:
            found.append(_stages_of_runs(directory / f"{kind}-stages.png", with_stages))
        return found

    return plot


def _stages_of_runs(path: Path, runs: dict[str, dict[str, Any]]) -> Path:
    """Where the threads' time goes: one stacked bar per form."""
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * len(runs)), layout="constrained")
    names = sorted({stage for run in runs.values() for stage in run["stages"]})
    left = dict.fromkeys(runs, 0.0)
    palette = plt.get_cmap("tab20")
    for number, stage in enumerate(names):
        widths = [run["stages"].get(stage, 0.0) / run["events"] * 1e6 for run in runs.values()]
        axes.barh(list(runs), widths, left=list(left.values()), color=palette(number % 20), label=stage)
        left = {case: at + width for (case, at), width in zip(left.items(), widths, strict=True)}
    axes.set_title("where the time goes: time in threads, µs per event")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _stages(saved: Saved, directory: Path) -> list[Path]:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    runs = [runs[0] for runs in saved["runs"].values()]
    for number, stage in enumerate(dict.fromkeys(run["stage"] for run in runs)):
        points = sorted((run["rows"], run["ns_per_row"]) for run in runs if run["stage"] == stage)
        axes.loglog(
            *zip(*points, strict=True), marker="o", label=stage, color=plt.get_cmap("tab20")(number % 20)
        )
    axes.set(title="each stage alone", xlabel="rows of the batch", ylabel="ns per row")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    return [_save(figure, directory / "stages.png")]


def _latency(saved: Saved, directory: Path) -> list[Path]:
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    points = sorted(
        ((runs[0]["asked_per_second"], runs[0]) for runs in saved["runs"].values()),
        key=lambda point: point[0],
    )
    for name in ("p50_ms", "p99_ms"):
        axes.plot([rate for rate, _ in points], [run[name] for _, run in points], marker="o", label=name[:3])
    axes.set(title="HTTP accepted → visible in a query", xlabel="events/s", ylabel="ms", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    return [_save(figure, directory / "latency.png")]


def _together(kind: str) -> Any:
    def plot(saved: Saved, directory: Path) -> list[Path]:
        """What waits between HTTP and the store, and what all processes hold, over the minutes."""
        found = []
        for number, (case, (run, *_)) in enumerate(saved["runs"].items()):
            figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
            above.plot([at / 60 for at, _ in run["waiting"]], [n for _, n in run["waiting"]])
            stored, asked = run["stored_per_second"], run["asked_per_second"]
            title = f"{case}: {stored:,.0f} of {asked:,.0f} events/s stored"
            above.set(title=title, ylabel="events that wait", ylim=(0, None))
            below.plot([at / 60 for at, _ in run["memory_mb"]], [mb for _, mb in run["memory_mb"]])
            below.set(xlabel="minutes", ylabel="MB of all processes", ylim=(0, None))
            found.append(_save(figure, directory / f"{kind}{number or ''}.png"))
        return found

    return plot


def _reads(saved: Saved, directory: Path) -> list[Path]:
    found = []
    for case, runs in saved["runs"].items():
        calls = sorted(runs[0]["calls"].items(), key=lambda item: -item[1]["p95_ms"])
        # the bar ends at the p50, its error bar at the p95
        values = {name: [call["p50_ms"], call["p50_ms"], call["p95_ms"]] for name, call in calls}
        path = directory / f"reads-{case.split()[0]}.png"
        found.append(_bars(path, values, f"KPI calls at {case}, p50 to p95", "ms"))
    return found


def _growth(saved: Saved, directory: Path) -> list[Path]:
    found = []
    if runs := saved["runs"].get("cost"):
        figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
        at = [(run["events_before"] + run["events"]) / 1e6 for run in runs]
        above.plot(at, [run["cpu_seconds_per_million"] for run in runs], marker=".")
        above.set(title="cost", ylabel="CPU s per million", ylim=(0, None))
        below.plot(at, [run["peak_mb"] for run in runs], marker=".")
        below.set(xlabel="million events stored", ylabel="peak MB", ylim=(0, None))
        found.append(_save(figure, directory / "growth-cost.png"))
    for run in saved["runs"].get("soak", []):
        figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
        axes.plot([at / 60 for at, _ in run["memory_mb"]], [mb for _, mb in run["memory_mb"]])
        title = f"soak at {run['stored_per_second']:,.0f} events/s"
        axes.set(title=title, xlabel="minutes", ylabel="MB of all processes", ylim=(0, None))
        found.append(_save(figure, directory / "growth-soak.png"))
    for name in ("partitions", "workers"):
        rates = {
            f"gridpipe, {case}": [run["events_per_second"] for run in runs]
            for case, runs in saved["runs"].items()
            if case.endswith(name)
        }
        if rates:
            found.append(_bars(directory / f"growth-{name}.png", rates, f"by {name}", "events/s"))
    windows = sorted(
        (runs[0]["ids"], runs[0]) for case, runs in saved["runs"].items() if case.startswith("window")
    )
    if windows:
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        ids = [count / 1e6 for count, _ in windows]
        for at, (name, unit) in enumerate((("find_5000_ms", "ms to find 5,000"), ("window_mb", "MB"))):
            axes[at].plot(ids, [run[name] for _, run in windows], marker="o", color=_OURS)
            axes[at].set(xlabel="million ids in the window", ylabel=unit, ylim=(0, None))
        figure.suptitle("deduplication window")
        found.append(_save(figure, directory / "growth-windows.png"))
    return found


_PLOTS: Final = {
    "peers": _rates("peers", "topic → ClickHouse, side by side"),
    "processor": _rates("processor", "our worker, topic → ClickHouse"),
    "stages": _stages,
    "gateway": _rates("gateway", "HTTP in → broker's ack"),
    "latency": _latency,
    "together": _together("together"),
    "burst": _together("burst"),
    "reads": _reads,
    "growth": _growth,
}
