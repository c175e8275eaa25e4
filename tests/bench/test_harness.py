"""What every benchmark relies on: checks that refuse wrong counts, ratios within a round."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from benchmarks import everything, gateway, growth, harness
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
    series.facts["capacity"] = 5.0
    series.add("ours", 0, {"events_per_second": 1.0})
    saved = orjson.loads((tmp_path / "quick" / "series" / "trial.json").read_bytes())
    assert saved["runs"]["ours"] == [{"round": 0, "events_per_second": 1.0}]
    assert saved["facts"] == {"capacity": 5.0}


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


def test_everything_keeps_the_series_that_it_does_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(everything, "run_parts", lambda _: ["reads"])
    monkeypatch.setattr(everything.report, "main", lambda _: 0)
    places = tmp_path / "series", tmp_path / "quick" / "series"
    for place in places:
        place.mkdir(parents=True)
        for kind in ("growth", "together", "reads"):
            (place / f"{kind}.json").write_text("{}")
    looked = {"growth", "together"}
    assert everything.main(["--quick"]) == 1
    assert [{path.stem for path in place.iterdir()} for place in places] == [looked | {"reads"}, looked]
    assert everything.main([]) == 1
    assert {path.stem for path in places[0].iterdir()} == looked


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
            "client_cpu_share": 0.1,
        }  # fmt: skip

    monkeypatch.setattr(gateway, "measure", measure)
    assert gateway.main(["--quick", "--rounds", "2", "--only", "single"]) == 1
    saved = orjson.loads((tmp_path / "quick" / "series" / "gateway.json").read_bytes())
    assert {case: len(runs) for case, runs in saved["runs"].items()} == {
        "gridpipe single": 2,
        "bare single": 1,
    }
    assert saved["facts"]["left_out"] == ["bare single, round 1"]
    assert "FAILED, and without a figure: bare single, round 1" in capsys.readouterr().out


def test_program_that_fails_tells_why() -> None:
    with pytest.raises(RunFailedError, match="no such thing"):
        run_program(harness.python("-c", "raise SystemExit('no such thing')"))
