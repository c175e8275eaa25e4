"""What the report says of goals and profiles, from series as the harness saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import goals, harness, report
from benchmarks.plots import draw
from benchmarks.profile import dearest
from benchmarks.together import sustained

MACHINE = {
    "cpu": "a machine", "cores": 2, "memory_gb": 8.0, "python": "3.11", "load_before": 0.1, "packages": {},
}  # fmt: skip


def saved(kind: str, runs: dict[str, list[dict[str, Any]]], **facts: Any) -> dict[str, Any]:
    return {
        "kind": kind, "commit": "abc", "machine": MACHINE, "settings": {}, "at": "2026-11-28T00:00:00+00:00",
        "runs": runs, "facts": facts,
    }  # fmt: skip


def verdict(what: str, series: dict[str, Any]) -> list[str]:
    return next(row[2:] for row in goals.table(series) if row[0] == what)


def test_a_goal_without_its_series_is_not_run() -> None:
    head, *rows = goals.table({})
    assert len(head) == 5
    assert len(rows) == len(goals.GOALS)
    assert {tuple(row[2:]) for row in rows} == {("not run", "", "")}


@pytest.mark.parametrize(("p95", "reached"), [(149.0, True), (151.0, False)])
def test_a_goal_is_judged_by_its_slowest_call_and_says_what_limits_it(p95: float, reached: bool) -> None:
    calls = {
        "city cohort": {"p50_ms": 5.0, "p95_ms": 9.0},
        "grid cohort": {"p50_ms": 90.0, "p95_ms": p95},
        "grid cohort, past": {"p50_ms": 900.0, "p95_ms": 1_400.0},
    }
    series = {"reads": saved("reads", {"1000000 cases": [{"calls": calls}]})}
    figure, word, limit = verdict("KPI calls for now, 1 million cases, p95", series)
    assert figure == f"{p95:.0f} ms (grid cohort)"
    assert word == ("reached" if reached else "not reached")
    assert bool(limit) is not reached
    past = verdict("KPI calls with a past as_of, 1 million cases, p95", series)
    assert past == ["1,400 ms (grid cohort, past)", "reached", ""]


@pytest.mark.parametrize(
    ("sustained", "seconds", "word"),
    [(True, 600.0, "reached"), (True, 20.0, "not reached"), (False, 600.0, "not reached")],
)
def test_what_is_carried_together_counts_when_it_lasted(sustained: bool, seconds: float, word: str) -> None:
    run = {"stored_per_second": 160_000.0, "sustained": sustained, "seconds": seconds}
    series = {"together": saved("together", {"one Kafka node": [run]})}
    assert verdict("everything together, one Kafka node, ten minutes", series)[1] == word
    burst = {"burst": saved("burst", {"embedded broker": [run]})}
    assert verdict("everything together, embedded broker, a burst", burst)[1] == (
        "reached" if sustained else "not reached"
    )


def test_what_http_accepted_is_not_what_was_carried() -> None:
    run = {"events_per_second": 160_000.0, "stored_per_second": 70_000.0, "sustained": True, "seconds": 600.0}
    found = verdict(
        "everything together, one Kafka node, ten minutes",
        {"together": saved("together", {"one Kafka node": [run]})},
    )
    assert found[:2] == ["70,000 events/s stored, sustained (one Kafka node)", "not reached"]


@pytest.mark.parametrize(
    ("done", "waiting", "grown", "holds"),
    [
        (59_500, (500.0, 700.0), 0.01, True),
        (52_000, (500.0, 700.0), 0.01, False),  # 60,000 were asked: what is behind is more than on its way
        (59_500, (500.0, 1_700.0), 0.01, False),
        (59_500, (500.0, 700.0), 0.06, False),
        (59_500, (500.0, 700.0), None, False),
    ],
)
def test_a_rate_is_sustained_when_it_is_stored_and_nothing_grows(
    done: int, waiting: tuple[float, float], grown: float | None, holds: bool
) -> None:
    assert sustained(1_000.0, done, 60.0, waiting, {"store": grown}) is holds


@pytest.mark.parametrize(
    ("middle", "last", "change", "word"),
    [
        ([21.0] * 47, 17.0, "-15.0% over 50 runs, 23.5% apart at most", "not reached"),
        ([21.0] * 47, 21.0, "+5.0% over 50 runs, 5.0% apart at most", "reached"),
        ([21.0], 21.0, "+5.0% over 4 runs, 5.0% apart at most", "not reached"),
        ([21.0] * 46 + [30.0], 20.0, "+0.0% over 50 runs, 50.0% apart at most", "not reached"),
    ],
)
def test_growth_is_judged_in_both_directions_and_over_its_whole_length(
    middle: list[float], last: float, change: str, word: str
) -> None:
    runs = [{"cpu_seconds_per_million": value} for value in (30.0, 20.0, *middle, last)]
    series = {"growth": saved("growth", {"cost": runs})}
    found = verdict("processor time per million events, second to fiftieth", series)
    assert found[:2] == [change, word]


@pytest.mark.parametrize(
    ("store", "seconds", "word"),
    [
        (0.05, 1_800, "reached"),
        (-0.06, 1_800, "not reached"),
        (0.01, 600, "not reached"),
        (None, 1_800, "not reached"),
    ],
)
def test_soak_is_judged_by_each_process(store: float | None, seconds: int, word: str) -> None:
    run = {"memory_growth": {"store": store, "http": 0.0}, "seconds": seconds, "drained_after_seconds": 1.0}
    found = verdict(
        "memory of each process, soak of 30 minutes, last third over second",
        {"growth": saved("growth", {"soak": [run]})},
    )
    assert found[1] == word
    assert found[0].startswith("store ")


def test_samples_count_for_the_function_of_ours_that_is_nearest() -> None:
    folded = "\n".join(
        [
            "thread (0x1);run (pipeline/rounds.py:1);fold (pipeline/fold.py:1);collect (polars/x.py:1) 30",
            "thread (0x1);run (pipeline/rounds.py:1);fold (pipeline/fold.py:1) 10",
            "thread (0x2);run (pipeline/rounds.py:1) 10",
            "thread (0x2);_run_once (asyncio/base_events.py:1) 50",
            "thread (0x2);run (pipeline/x.py:1);EpollSelector.select (selectors.py:1) 500",
            "thread (0x2);_load (<frozen importlib._bootstrap>:1);<module> (pipeline/x.py:1) 500",
        ]
    )
    found = {one["function"].split(" ")[0]: (one["share"], one["in_libraries"]) for one in dearest(folded)}
    assert found == {"fold": (0.4, 0.75), "run": (0.1, 0.0), "libraries": (0.5, 1.0)}


def test_the_report_is_written_in_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    run = {
        "events": 1_000, "events_per_second": 71_000.0, "cpu_seconds": 0.02, "peak_mb": 900.0,
        "stages": {"decode": 0.002}, "thread_cpu_seconds": {"polars": 0.004},
    }  # fmt: skip
    functions = [{"function": "fold (pipeline/store/fold.py:1)", "share": 0.4, "in_libraries": 0.75}]
    series = {
        "processor": saved("processor", {"gridpipe arrow": [run, run]}),
        "profile": saved("profile", {"worker": [{"functions": functions}]}),
    }
    (tmp_path / "series").mkdir()
    for kind, one in series.items():
        (tmp_path / "series" / f"{kind}.json").write_bytes(orjson.dumps(one))
    assert report.main([]) == 0
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for text in (markdown, page):
        assert "71,000" in text
        assert "not run" in text
        assert "fold (pipeline/store/fold.py:1)" in text
        assert "processor time by kind of thread" in text
    assert "![Our worker" in markdown


def test_gateway_s_table_tells_the_share_of_its_client() -> None:
    run = {"events": 10, "events_per_second": 5.0, "cpu_seconds": 1.0, "peak_mb": 1.0}
    head, row = report._rate_table(saved("gateway", {"bare single": [run | {"client_cpu_share": 0.9}]}))
    assert (head[-1], row[-1]) == ("client's CPU share", "90%")
    head, row = report._rate_table(saved("processor", {"gridpipe arrow": [run]}))
    assert (head[-1], row[-1]) == ("runs", "1")


def test_every_series_that_goes_on_for_minutes_is_drawn(tmp_path: Path) -> None:
    run = {
        "waiting": [[1.0, 200], [2.0, 100]], "memory_mb": [[1, 900.0], [2, 910.0]],
        "stored_per_second": 31_000.0, "asked_per_second": 33_000.0, "events_per_second": 32_000.0,
    }  # fmt: skip
    growth = {
        "cost": [
            {"events_before": 0, "events": 1_000_000, "cpu_seconds_per_million": 20.0, "peak_mb": 900.0}
        ],
        "soak": [run],
        "4 partitions": [{"events_per_second": 40_000.0}, {"events_per_second": 41_000.0}],
        "2 workers": [{"events_per_second": 40_000.0}],
        "window of 1000000 ids": [{"ids": 1_000_000, "find_5000_ms": 0.4, "window_mb": 60.0}],
    }
    found = draw(
        {
            "together": saved("together", {"one Kafka node": [run]}),
            "burst": saved("burst", {"embedded broker": [run]}),
            "growth": saved("growth", growth),
        },
        tmp_path,
    )
    names = {kind: [path.stem for path in paths] for kind, paths in found.items()}
    parts = ["growth-cost", "growth-soak", "growth-partitions", "growth-workers", "growth-windows"]
    assert names == {"together": ["together"], "burst": ["burst"], "growth": parts}
    assert all(path.read_bytes().startswith(b"\x89PNG") for paths in found.values() for path in paths)
