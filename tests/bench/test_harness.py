"""What every benchmark relies on: checks that refuse wrong counts, ratios within a round."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from benchmarks import (
    cache,
    everything,
    gateway,
    growth,
    harness,
    peers_case,
    peers_inputs,
    reads,
    side_by_side,
)
from benchmarks.harness import (
    RunFailedError,
    Series,
    WrongCountsError,
    check_common,
    rounds,
    run_parts,
    run_program,
)
from benchmarks.workload import Ledger
from pipeline.errors import UnavailableError


@pytest.fixture(autouse=True)
def _short_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LOOK_SECONDS", 0.01)


LEDGER = Ledger(sent=100, admitted=20, recorded=70, rejected=3, duplicates=7, stored_checksum=555)
RIGHT = {"stored": 90, "rejected": 3, "duplicates": 7, "stored_checksum": 555}


def test_right_counts_pass() -> None:
    check_common("peer", {"counts": RIGHT}, LEDGER)


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_each_wrong_count_is_an_error(name: str) -> None:
    with pytest.raises(WrongCountsError, match=name):
        check_common("peer", {"counts": RIGHT | {name: RIGHT[name] + 1}}, LEDGER)


def test_program_that_says_nothing_of_its_rows_is_an_error() -> None:
    with pytest.raises(WrongCountsError):
        check_common("peer", {"counts": {}}, LEDGER)


def test_rounds_go_forth_and_back() -> None:
    assert list(rounds(2, "abc")) == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")]


def test_a_case_may_have_fewer_rounds_than_the_others() -> None:
    assert list(rounds(2, "abc", {"b": 1})) == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "a")]


def test_everything_fails_when_it_takes_longer_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1_201.0, 0.0, 1_199.0])
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(everything, "run_parts", lambda _: [])
    monkeypatch.setattr(everything.report, "main", lambda _: 0)
    monkeypatch.setattr(everything.time, "perf_counter", lambda: next(clock))
    assert everything.main(["--quick"]) == 1
    assert everything.main(["--quick"]) == 0


def test_ratio_is_taken_within_a_round_and_runs_are_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "HISTORY", tmp_path)
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    series = Series("trial", {"events": 1})
    # a disturbed second round slows both: the ratio does not show it, the quotient of medians would
    for number, (ours, theirs) in enumerate([(300.0, 100.0), (30.0, 10.0), (280.0, 140.0)]):
        series.add("ours", number, {"events_per_second": ours})
        series.add("theirs", number, {"events_per_second": theirs})
    assert series.ratio("ours", "theirs") == 3.0
    assert series.median("ours") == 280.0
    # of a round that one of the two was left out of nothing can be said, and the next ones stay pairs
    series.add("ours", 3, {"events_per_second": 50.0})
    for number, (ours, theirs) in enumerate([(400.0, 100.0), (400.0, 100.0)], start=4):
        series.add("ours", number, {"events_per_second": ours})
        series.add("theirs", number, {"events_per_second": theirs})
    assert series.ratio("ours", "theirs") == 3.0
    lines = [orjson.loads(line) for line in (tmp_path / "trial.jsonl").read_bytes().splitlines()]
    assert len(lines) == 11
    assert {"at", "commit", "machine", "settings", "case", "round"} <= set(lines[0])


def test_what_was_measured_is_there_for_the_report_whatever_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    series = Series("trial", {}, quick=True)
    series.facts["goals"] = {"a ratio": 5.0}
    series.add("ours", 0, {"events_per_second": 1.0})
    saved = orjson.loads((tmp_path / "quick" / "series" / "trial.json").read_bytes())
    assert saved["runs"]["ours"] == [{"round": 0, "events_per_second": 1.0}]
    assert saved["facts"] == {"goals": {"a ratio": 5.0}}


def test_a_part_that_fails_in_any_way_is_named_and_the_others_run() -> None:
    ran = []

    def fails() -> None:
        raise FileNotFoundError("[/no/such] profile")

    def answers() -> int:
        ran.append("answers")
        return 3

    assert run_parts({"one": fails, "two": answers, "three": lambda: ran.append("three")}) == ["one", "two"]
    assert ran == ["answers", "three"]


def test_growth_goes_on_after_a_part_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise RunFailedError("no")

    ran = []
    monkeypatch.setattr(growth, "cost", fails)
    monkeypatch.setattr(growth, "windows", lambda *_: ran.append("dedup"))
    assert growth.main(["--quick", "--only", "cost", "--only", "dedup"]) == 1
    assert ran == ["dedup"]


def test_a_series_of_some_cases_leaves_the_others_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of growth were gone from the report after a minute of `growth --only dedup`."""
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(harness, "HISTORY", tmp_path / "committed")
    older = Series("trial", {"events": 9}, _commit="of old")
    older.add("cost", 0, {"figure": 1.0})
    older.add("cost", 1, {"figure": 2.0})
    older.add("window", 0, {"figure": 3.0})
    older.leave_out("cost", "round 3: slow")
    older.leave_out("window", "round 2: wrong")
    older.facts["goals"] = {"a": 1, "b": 2}
    older.save()
    newer = Series("trial", {"events": 1}, _commit="of now")
    newer.facts["goals"] = {"b": 3}
    newer.add("window", 0, {"figure": 4.0})
    saved = harness.read_series(tmp_path / "series" / "trial.json")
    assert saved is not None
    assert [run["figure"] for run in saved["runs"]["cost"]] == [1.0, 2.0]
    assert [run["figure"] for run in saved["runs"]["window"]] == [4.0]
    told = {case: (one["commit"], one["settings"]) for case, one in saved["origins"].items()}
    assert told == {"cost": ("of old", {"events": 9}), "window": ("of now", {"events": 1})}
    assert saved["facts"] == {"goals": {"a": 1, "b": 3}, "left_out": {"cost": "round 3: slow"}}


def test_a_series_of_an_earlier_form_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    assert harness.read_series(path) is None
    path.write_text('{"kind":"old","commit":"abc","runs":{}}')
    assert harness.read_series(path) is None


def test_everything_makes_beforehand_what_its_parts_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fresh cache the twenty minutes were over before the last part."""
    made: set[tuple[object, ...]] = set()

    def events(count: int, persons: int, salt: str = "w") -> tuple[object, ...]:
        made.add(("events", count, persons, salt))
        return (count, persons)

    def records(source: tuple[object, ...], form: str, *, partitions: int = 12) -> None:
        made.add((form, *source))

    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(cache, "events", events)
    monkeypatch.setattr(cache, "records", records)
    monkeypatch.setattr(cache, "store", lambda persons: made.add(("store", persons)))
    monkeypatch.setattr(peers_inputs, "interpreter", lambda: made.add(("interpreter",)))
    monkeypatch.setattr(peers_inputs, "reference", lambda persons: made.add(("reference", persons)))
    monkeypatch.setattr(peers_inputs, "ndjson", lambda source: made.add(("file", *source)))
    parts = {}
    for module, more in everything._PARTS.values():
        module.prepare(more)
        parts[module.__name__.split(".")[-1]] = more
    assert parts["profile"] == ["--events", "300000"]
    assert made == {
        ("interpreter",), ("reference", 500_000), ("file", 300_000, 500_000),
        *(("store", persons) for persons in (20_000, 500_000, 4_800_000)),
        *(("events", 300_000, persons, "w") for persons in (500_000, 4_800_000)),
        *(("arrow", 300_000, persons) for persons in (500_000, 4_800_000)),
        ("ndjson", 300_000, 500_000),
        *(("events", count, 500_000, "w") for count in (30_000, 200_000)),
        *(("each", count, 500_000) for count in (30_000, 200_000)),
        ("events", 50_000, 500_000, "w"), ("events", 50_000, 20_000, "w"),
        ("events", 50_000, 500_000, "pass00000."), ("events", 50_000, 20_000, "pass00000."),
    }  # fmt: skip


def test_peers_whose_packages_cannot_be_had_are_left_out_and_ours_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    for name in ("store", "records", "events"):
        monkeypatch.setattr(cache, name, lambda *_, **__: None)
    for name in ("reference", "ndjson"):
        monkeypatch.setattr(peers_inputs, name, lambda _: None)
    monkeypatch.setattr(peers_inputs, "_VENV", tmp_path / "venv")
    monkeypatch.setattr(peers_inputs.sys, "executable", "false")

    def run(*_: object) -> dict[str, float]:
        return {"events": 10, "events_per_second": 5.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(side_by_side, "run_ours", run)
    monkeypatch.setattr(side_by_side, "run_peer", run)
    assert side_by_side.main(["--quick"]) == 1
    saved = harness.read_series(tmp_path / "quick" / "series" / "peers.json")
    assert saved is not None
    assert set(saved["runs"]) == {
        *(f"gridpipe {form}" for form in ("arrow", "ndjson", "each")),
        "parse_polars ndjson", "parse_msgspec ndjson",
    }  # fmt: skip
    assert "were not installed" in saved["facts"]["left_out"]["faust each"]


def test_a_peer_without_a_result_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_case, "PLACE", tmp_path)

    def fails() -> str:
        raise RunFailedError("no packages")

    monkeypatch.setattr(peers_inputs, "interpreter", fails)
    with pytest.raises(RunFailedError):
        peers_case.run_peer("faust", cache.Events(tmp_path, LEDGER, datetime.now(UTC)), "each", 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_reads_that_end_without_a_figure_fail_and_leave_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(reads, "PLACE", tmp_path)
    stores = []

    def run(arguments: list[str], *, seconds: float) -> dict[str, object]:
        place = Path(arguments[-3])
        stores.append(place)
        (place / "store").mkdir()
        if "1000000" in arguments:
            raise subprocess.TimeoutExpired(arguments, seconds)
        call = {"p50_ms": 1.0, "p95_ms": 2.0, "cpu_ms": 1.0, "rounds": 20}
        return {"peak_mb": 1.0, "calls": {kind: call | {"kind": kind} for kind in ("now", "past", "scrape")}}

    monkeypatch.setattr(reads, "run_program", run)
    assert reads.main(["--quick", "--cases", "1000000", "--cases", "5"]) == 1
    saved = harness.read_series(tmp_path / "quick" / "series" / "reads.json")
    assert saved is not None
    assert list(saved["runs"]) == ["5 cases"]
    assert list(saved["facts"]["left_out"]) == ["1000000 cases"]
    assert [place.exists() for place in stores] == [False, False]
    assert reads.main(["--quick", "--cases", "5"]) == 0


@pytest.mark.parametrize(("cases", "rounds"), [(1_000_000, 20), (100_000, 7), (10_000_000, 20)])
def test_calls_that_a_goal_is_about_have_a_p95(cases: int, rounds: int) -> None:
    assert reads.rounds_of(cases, 7) == rounds


def test_soak_without_kafka_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)

    def without_java(**_: object) -> None:
        raise UnavailableError("no Java")

    monkeypatch.setattr(growth.together, "measure", without_java)
    assert growth.main(["--quick", "--only", "soak"]) == 1
    monkeypatch.setattr(growth.together, "prepare", lambda _: None)
    assert growth.together.main([]) == 1


def test_what_a_restart_left_to_merge_is_counted_and_told_apart() -> None:
    result = {"cpu_seconds": 16.0, "before": {"cpu_seconds": 9.0, "merge_cpu_seconds": 2.0}}
    assert growth.costs(result, 2_000_000) == {
        "cpu_seconds_per_million": 9.0,
        "cpu_seconds_per_million_from_first_round": 8.0,
        "cpu_seconds_per_million_with_start": 12.5,
    }


def test_what_else_the_machine_does_is_looked_at_and_not_our_own_work() -> None:
    """The load average before a part was that of the part before it."""
    assert harness.others_cores(0.05) <= (os.cpu_count() or 1) + 0.5
    assert harness.machine()["others_cores"] >= 0
    busy = subprocess.Popen(harness.python("-c", "while True: pass"))
    try:
        deadline = time.monotonic() + 60
        while harness.others_cores(0.3) <= 0 and time.monotonic() < deadline:
            pass
        assert time.monotonic() < deadline
    finally:
        busy.kill()
        busy.wait()


def test_a_commit_is_marked_by_what_figures_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def git(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="abc" if "rev-parse" in command else " M schemas/x")

    monkeypatch.setattr(harness.subprocess, "run", git)
    assert harness.commit() == "abc+"
    assert {"pipeline", "schemas", "benchmarks", ":!benchmarks/history"} <= set(asked[1])


def test_a_look_leaves_what_was_measured_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(harness, "HISTORY", tmp_path / "committed")
    Series("trial", {}).add("ours", 0, {"events_per_second": 5.0})
    Series("trial", {}, quick=True).add("ours", 0, {"events_per_second": 1.0})
    Series("flames", {}, kept=False).add("ours", 0, {"share": 0.5})
    assert orjson.loads((tmp_path / "series" / "trial.json").read_bytes())["runs"]["ours"] == [
        {"round": 0, "events_per_second": 5.0}
    ]
    assert (tmp_path / "quick" / "series" / "trial.json").exists()
    assert (tmp_path / "series" / "flames.json").exists()
    assert [path.name for path in (tmp_path / "committed").iterdir()] == ["trial.jsonl"]
    assert len((tmp_path / "committed" / "trial.jsonl").read_bytes().splitlines()) == 1


def test_a_request_that_failed_costs_its_round_a_figure_and_no_other_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    given = iter([1, None, 1, 1])

    def measure(*_: object, **__: object) -> dict[str, float]:
        if next(given) is None:
            raise WrongCountsError("a 503")
        return {
            "events": 1, "events_per_second": 7.0, "cpu_seconds": 1.0, "events_per_cpu_second": 7.0,
            "client_cpu_share": 0.1, "late_seconds": 0.0,
        }  # fmt: skip

    monkeypatch.setattr(gateway, "measure", measure)
    monkeypatch.setattr(gateway, "prepare", lambda _: None)
    assert gateway.main(["--quick", "--rounds", "2", "--only", "single"]) == 1
    saved = orjson.loads((tmp_path / "quick" / "series" / "gateway.json").read_bytes())
    assert {case: len(runs) for case, runs in saved["runs"].items()} == {
        "gridpipe single": 2,
        "bare single": 1,
    }
    assert saved["facts"]["left_out"] == {"bare single": "round 1"}
    assert "FAILED, and without a figure: bare single, round 1" in capsys.readouterr().out


def test_program_that_fails_tells_why() -> None:
    with pytest.raises(RunFailedError, match="no such thing"):
        run_program(harness.python("-c", "raise SystemExit('no such thing')"))
