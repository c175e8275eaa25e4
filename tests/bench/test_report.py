"""What the report says of goals and profiles, from series as the harness saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks import goals, harness, report
from benchmarks.latency import carried
from benchmarks.plots import draw
from benchmarks.profile import dearest
from benchmarks.together import sustained

MACHINE = {
    "cpu": "a machine", "cores": 2, "memory_gb": 8.0, "python": "3.11", "others_cores": 0.1, "packages": {},
}  # fmt: skip
ORIGIN = {
    "begun": "2026-11-28T00:00:00+00:00", "at": "2026-11-28T00:00:00+00:00", "commit": "abc",
    "machine": MACHINE, "settings": {},
}  # fmt: skip


def saved(kind: str, runs: dict[str, list[dict[str, Any]]], **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "origins": dict.fromkeys(runs, ORIGIN), "runs": runs, "facts": facts}


def verdict(what: str, series: dict[str, Any]) -> list[str]:
    """Figure, whether it is reached, the runs that it is of, what limits it."""
    return next(row[2:] for row in goals.table(series, "abc") if row[0] == what)


def test_a_goal_without_its_series_is_not_run() -> None:
    head, *rows = goals.table({}, "abc")
    assert len(head) == 6
    assert len(rows) == len(goals.GOALS)
    assert {tuple(row[2:]) for row in rows} == {("not run", "", "", "")}


def test_a_row_says_how_many_runs_it_is_of_and_of_which_commit() -> None:
    """Rows of one table were of several commits, and none said so."""
    run = {"events_per_cpu_second": 600_000.0}
    series = {"gateway": saved("gateway", {"gridpipe ndjson500": [run] * 5, "gridpipe single": [run]})}
    other = ORIGIN | {"commit": "def", "at": "2026-11-30T00:00:00+00:00"}
    series["gateway"]["origins"]["gridpipe single"] = other
    batches = "gateway, batches of 500, events per processor second"
    assert verdict(batches, series)[2] == "5 runs; 2026-11-28, commit abc"
    requests = "gateway, single events, requests per processor second"
    assert verdict(requests, series)[2] == "1 run; 2026-11-30, commit def, another than now"


def test_cases_that_were_not_run_beside_each_other_make_no_ratio() -> None:
    runs = {
        "gridpipe arrow": [{"round": 0, "events_per_second": 100.0, "peak_mb": 1.0}],
        "gridpipe arrow, 4,800,000 persons": [{"round": 0, "events_per_second": 95.0, "peak_mb": 2.0}],
    }
    series = {"processor": saved("processor", runs)}
    assert verdict("4.8 million persons against 500,000", series)[:2] == ["+5% slower, +1 MB", "reached"]
    peers = saved("peers", {case: [each[0] | {"peak_mb": 5.0, "events": 10}] for case, each in runs.items()})
    older, newer = ORIGIN | {"at": "2020-01-01T00:00:00+00:00"}, ORIGIN | {"at": "2100-01-01T00:00:00+00:00"}
    for at, told in ((older, "+1 MB"), (newer, "+0 MB")):
        peers["origins"] = dict.fromkeys(runs, at)
        both = series | {"peers": peers}
        assert verdict("4.8 million persons against 500,000", both)[0] == f"+5% slower, {told}"
    series["processor"]["origins"]["gridpipe arrow"] = ORIGIN | {"begun": "2026-11-29T00:00:00+00:00"}
    assert verdict("4.8 million persons against 500,000", series)[0] == "not run"


@pytest.mark.parametrize(("p95", "reached"), [(149.0, True), (151.0, False)])
def test_a_goal_is_judged_by_its_slowest_call_and_says_what_limits_it(p95: float, reached: bool) -> None:
    calls = {
        "city cohort": {"kind": "now", "rounds": 20, "p50_ms": 5.0, "p95_ms": 9.0},
        "grid cohort": {"kind": "now", "rounds": 20, "p50_ms": 90.0, "p95_ms": p95},
        "grid flow, past": {"kind": "past", "rounds": 20, "p50_ms": 900.0, "p95_ms": 1_400.0},
        # no KPI call
        "scrape": {"kind": "scrape", "rounds": 20, "p50_ms": 900.0, "p95_ms": 9_000.0},
    }
    series = {"reads": saved("reads", {"1000000 cases": [{"calls": calls}]})}
    figure, word, _, limit = verdict("KPI calls for now, 1 million cases, p95", series)
    assert figure == f"{p95:.0f} ms (grid cohort, 20 rounds)"
    assert word == ("reached" if reached else "not reached")
    assert bool(limit) is not reached
    past = verdict("KPI calls with a past as_of, 1 million cases, p95", series)
    assert past[:2] == ["1,400 ms (grid flow, past, 20 rounds)", "reached"]


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


def test_a_short_run_takes_no_place_of_a_long_one() -> None:
    long = {"stored_per_second": 160_000.0, "sustained": True, "seconds": 600.0}
    series = {"together": saved("together", {"of ten minutes": [long], "a look": [long | {"seconds": 60.0}]})}
    series["together"]["origins"]["a look"] = ORIGIN | {"at": "2026-11-30T00:00:00+00:00"}
    figure, word, *_ = verdict("everything together, one Kafka node, ten minutes", series)
    assert (figure.split(" (")[1], word) == ("of ten minutes)", "reached")


def test_what_http_accepted_is_not_what_was_carried() -> None:
    run = {"events_per_second": 160_000.0, "stored_per_second": 70_000.0, "sustained": True, "seconds": 600.0}
    found = verdict(
        "everything together, one Kafka node, ten minutes",
        {"together": saved("together", {"one Kafka node": [run]})},
    )
    assert found[:2] == ["70,000 events/s stored, sustained (one Kafka node)", "not reached"]


def test_latency_at_another_rate_is_not_the_goal_s() -> None:
    what = "HTTP accepted → queryable at 100,000 events/s"
    run = {
        "p50_ms": 90.0, "p99_ms": 200.0, "probes": 300, "asked_per_second": 30_000.0, "carried": True,
        "stored_per_second": 30_000.0, "capacity_per_second": 37_500.0,
    }  # fmt: skip
    shares = {"80% of the capacity": [run], "10% of the capacity": [run | {"asked_per_second": 4_000.0}]}
    assert verdict(what, {"latency": saved("latency", shares)})[:2] == [
        "p50 90 ms, p99 200 ms at 30,000 events/s; not run at 100,000/s, the capacity was 37,500",
        "not reached",
    ]
    asked = run | {"asked_per_second": 100_000.0, "stored_per_second": 98_000.0}
    at_rate = {"latency": saved("latency", shares | {"100,000 events/s": [asked]})}
    assert verdict(what, at_rate)[:2] == ["p50 90 ms, p99 200 ms at 100,000 events/s", "reached"]
    behind = asked | {"carried": False, "stored_per_second": 60_000.0}
    at_rate = {"latency": saved("latency", shares | {"100,000 events/s": [behind]})}
    assert verdict(what, at_rate)[:2] == [
        "p50 90 ms, p99 200 ms at 100,000 events/s, of which 60,000 were stored",
        "not reached",
    ]


def test_what_limits_is_read_from_the_runs_at_hand() -> None:
    """Shares of a version long gone stood there as if they had just been measured."""
    what, per_record = goals.RATIOS[0][0], goals.RATIOS[5][0]
    burst = "everything together, embedded broker, a burst"
    goal = {
        "against": "row_loop ndjson", "ratio": 0.5, "at_least": 2.5, "runs": 5, "events": 300_000,
        "origin": ORIGIN,
    }  # fmt: skip
    run = {
        "events": 1_000, "cpu_seconds": 0.02, "events_per_second": 1.0,
        "stages": {"fold": 3.0, "decode": 1.0}, "thread_cpu_seconds": {"event loop": 0.005, "polars": 0.015},
    }  # fmt: skip
    stages = {
        "insert @ 500": [{"seconds": 0.04}],
        "process_block @ 5000": [{"ns_per_row": 3_000.0}],
        "process_block @ 50000": [{"ns_per_row": 1_000.0}],
    }
    single = {
        "gridpipe single": [{"events_per_cpu_second": 5e3}],
        "bare single": [{"events_per_cpu_second": 1e4}],
    }
    series = {
        "peers": saved(
            "peers", {"gridpipe arrow": [run], "gridpipe each": [run]}, goals={what: goal, per_record: goal}
        ),
        "stages": saved("stages", stages),
        "burst": saved(
            "burst", {"a burst": [{"stored_per_second": 1.0, "sustained": False, "seconds": 60.0}]}
        ),
        "gateway": saved("gateway", single),
    }
    figure, word, source, limit = verdict(what, series)
    assert figure.startswith("0.50 of row_loop ndjson, of 300,000 events (of a million")
    assert (word, source) == ("not reached", "5 runs; 2026-11-28, commit abc")
    assert "fold 75%, decode 25%" in limit
    assert "of 20.0 µs of processor time an event polars 75%, event loop 25%" in limit
    figure, _, _, limit = verdict(per_record, series)
    assert "before our clock starts" in figure
    assert "5 of 20 µs" in limit
    assert "inserts of 500 rows take 40 ms" in verdict(burst, series)[3]
    assert "3.0 times" in verdict(burst, series)[3]
    requests = verdict("gateway, single events, requests per processor second", series)[3]
    assert requests.startswith("200 µs of processor time a request, the bare server 100; ")
    assert "28 November 2026" in requests
    del series["stages"]
    assert not any(letter.isdigit() for letter in verdict(burst, series)[3])


@pytest.mark.parametrize(
    ("change", "holds", "burst"),
    [
        ({}, True, True),
        ({"carried": False}, False, False),
        ({"waiting_last_third": 1_700.0}, False, False),
        ({"drained_after_seconds": None}, False, False),
        # the embedded broker holds all that it was sent
        ({"memory_growth": {"store": 0.06}}, False, True),
        ({"memory_growth": {"store": None}}, False, True),
    ],
)
def test_a_rate_is_sustained_when_it_is_stored_and_nothing_grows(
    change: dict[str, Any], holds: bool, burst: bool
) -> None:
    run = {
        "asked_per_second": 1_000.0, "carried": True, "waiting_second_third": 500.0,
        "waiting_last_third": 700.0, "drained_after_seconds": 1.0, "memory_growth": {"store": 0.01},
    }  # fmt: skip
    assert sustained(run | change, memory_counts=True) is holds
    assert sustained(run | change, memory_counts=False) is burst


def test_what_is_behind_by_more_than_a_block_on_its_way_was_not_carried() -> None:
    assert carried(1_000.0, 59_500, 60.0)
    assert not carried(1_000.0, 52_000, 60.0)


@pytest.mark.parametrize(
    ("middle", "last", "change", "word"),
    [
        ([21.0] * 47, 17.0, "-15.0% with merges, 23.5% apart at most", "not reached"),
        ([21.0] * 47, 21.0, "+5.0% with merges, 5.0% apart at most", "reached"),
        ([21.0], 21.0, "+5.0% with merges, 5.0% apart at most", "not reached"),
        ([21.0] * 46 + [30.0], 20.0, "+0.0% with merges, 50.0% apart at most", "not reached"),
    ],
)
def test_growth_is_judged_in_both_directions_and_over_its_whole_length(
    middle: list[float], last: float, change: str, word: str
) -> None:
    """And with what a restart left to merge; without it the figure is told beside."""
    runs = [
        {"cpu_seconds_per_million": value, "cpu_seconds_per_million_from_first_round": 10.0}
        for value in (30.0, 20.0, *middle, last)
    ]
    series = {"growth": saved("growth", {"cost": runs})}
    figure, found, *_ = verdict("processor time per million events, second to fiftieth", series)
    assert figure.split("; ") == [
        change, "+0.0% without those that a restart left, 0.0% apart at most", f"{len(runs)} chunks",
    ]  # fmt: skip
    assert found == word


def test_the_table_of_growth_begins_where_the_goal_does() -> None:
    names = ("", "_from_first_round", "_with_start")
    runs = [
        {f"cpu_seconds_per_million{name}": value for name in names} | {"peak_mb": 900.0}
        for value in (30.0, 20.0, 21.0)
    ]
    rows = report._growth(saved("growth", {"cost": runs}))
    assert rows[1] == ["cost: cpu_seconds_per_million", "20.00", "21.00", "+5%"]


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


def test_what_grew_by_design_in_a_soak_is_told_beside_it() -> None:
    told = {"store": "memory of store: +50%; 9 more ids: +1% without them", "http": "memory of http: +0%"}
    run = {"memory_growth": {"store": 0.5, "http": 0.0}, "seconds": 1_800, "drained_after_seconds": 1.0}
    found = verdict(
        "memory of each process, soak of 30 minutes, last third over second",
        {"growth": saved("growth", {"soak": [run | {"memory_told": told}]})},
    )
    assert found[1] == "not reached"
    assert found[0].endswith(f"; {told['store']}")


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
        "processor": saved(
            "processor",
            {"gridpipe arrow": [run, run], "gridpipe ndjson": [run]},
            left_out={"gridpipe each": "round 1"},
        ),
        "profile": saved("profile", {"worker": [{"functions": functions}]}),
    }
    busy = ORIGIN | {"at": "2026-11-29T00:00:00+00:00", "machine": MACHINE | {"others_cores": 1.3}}
    series["processor"]["origins"]["gridpipe ndjson"] = busy
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
        assert "Left out: gridpipe each, round 1." in text
        assert "other processes used 1.3 of 2 cores as it began" in text
        assert "Of an earlier series: gridpipe arrow (2026-11-28 00:00 UTC, commit abc; " in text
        assert "docs/plan.md" in text
    assert "![Our worker" in markdown
    link = markdown.split("“Learned”](")[1].split(")")[0]
    assert (tmp_path / link).resolve() == harness.ROOT / "docs" / "plan.md"


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
