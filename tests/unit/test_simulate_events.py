"""Simulated events: the published year, legal lives, valid events, determinism, exact counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.contract.parse import parse_ndjson
from pipeline.errors import ConfigurationError
from pipeline.settings import load_settings
from pipeline.simulate.events import Simulation, ledger, simulate
from pipeline.simulate.lifecycle import STEP, Rates
from pipeline.simulate.ndjson import to_json
from pipeline.simulate.plan import Noise, Plan, ordinary_days, published_year
from pipeline.simulate.published import PUBLISHED_YEARS
from pipeline.simulate.sample import sample, write_sample
from pipeline.simulate.scene import Scene
from tests.unit.simulate_world import CATALOGUE, small_city, small_scene

END = datetime(2026, 3, 1, tzinfo=UTC)


def days(cases: int, seed: int = 1, **changes: Any) -> Plan:
    plan = ordinary_days(cases, END - timedelta(days=28), END, seed=seed, tag="test", source="local")
    return replace(plan, **changes)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return small_scene()


@pytest.fixture(scope="module")
def busy(scene: Scene) -> Simulation:
    """Every optional step and every kind of noise is frequent."""
    rates = Rates(
        returned=0.2, extended=0.2, escalated=0.2, rework=0.2, reopened=0.2, merged_in_error=0.2,
        signed_late=0.2, never_accepted=0.2,
    )  # fmt: skip
    noise = Noise(
        merged=0.2, voided=0.2, rejected=0.5, orphans=0.1, supplements=0.1, resends=0.2, redeliveries=0.1,
        conflicts=0.02,
    )  # fmt: skip
    year = published_year(END, 3, "local")
    small = tuple(
        replace(district, cases=district.cases // 40, closed=(district.closed or 0) // 40)
        for district in year.districts
    )
    return simulate(scene, replace(year, districts=small, rates=rates, noise=noise))


def test_published_year_is_in_the_ledger_exactly(scene: Scene) -> None:
    expected = ledger(simulate(scene, published_year(END, 11, "demo")))
    found = {row["code"]: (row["cases"], row["closed"]) for row in expected["districts"]}
    assert found == {
        "440703": (23_800, 23_500),
        "440704": (16_000, 15_920),
        "440784": (2_000, 2_000),
        "440785": (9_160, 9_160),
    }
    events = expected["events"]
    copies = events["duplicates"]["L1"] + events["duplicates"]["L2"]
    assert events["sent"] == (
        events["admitted"] + events["recorded"] + events["rejected"] + copies + events["quarantined"]
    )
    assert all(row["merged"] > 0 and row["voided"] > 0 for row in expected["districts"])
    assert min(events["rejected"], copies, events["quarantined"]) > 0


def test_published_rates_are_unrounded_and_heshan_states_none() -> None:
    rates = {year.code: year.closure_rate for year in PUBLISHED_YEARS}
    assert rates == {"440703": 23_500 / 23_800, "440704": 0.995, "440784": None, "440785": 1.0}
    assert {year.code for year in PUBLISHED_YEARS if year.response_rate == 1.0} == {"440704"}


@pytest.mark.parametrize("seed", [1, 11])
def test_every_case_of_jianghai_is_responded_to_also_those_left_open(scene: Scene, seed: int) -> None:
    """It publishes a response rate of 100 %; the others publish none, and leave some cases unanswered."""
    simulation = simulate(scene, published_year(END, seed, "demo"))
    responses = {"SIGNED", "ARRIVED", "HANDLING", "RESOLVED"}
    answered = simulation.events.filter(pl.col("event_type").is_in(responses) & ~pl.col("copy"))["case_id"]
    counted = simulation.cases.filter("counted")
    silent = counted.filter(~pl.col("case_id").is_in(answered.implode()))["district_code"].value_counts()
    assert set(silent["district_code"]) == {"440703"}, silent
    open_ = counted.filter((pl.col("district_code") == "440704") & ~pl.col("closed"))
    stopped = simulation.events.filter(pl.col("case_id").is_in(open_["case_id"].implode()) & ~pl.col("copy"))
    last = stopped.sort("at").group_by("case_id").last()["event_type"].unique()
    assert {"SIGNED", "HANDLING", "RESOLVED"} <= set(last), "they are still left at different steps"
    responded = {row["code"]: row["responded"] for row in ledger(simulation)["districts"]}
    assert responded["440704"] == 16_000
    assert responded["440703"] == 23_800 - len(counted.filter(~pl.col("case_id").is_in(answered.implode())))


def test_cases_lie_in_the_year_before_the_end(busy: Simulation) -> None:
    reports = busy.events.filter((pl.col("step") == STEP["reported"]) & (pl.col("outcome") == "admitted"))
    assert reports["at"].min() >= busy.plan.start_ms  # type: ignore[operator]
    lives = busy.events.filter(pl.col("outcome").is_in(["admitted", "recorded"]))
    assert lives["at"].max() < busy.plan.end_ms  # type: ignore[operator]


#: States in which an event is legal, written anew from the lifecycle table of the domain model.
SELF = ("ACCEPTED", True)  # handled without a department
LEGAL: dict[str, set[str | None]] = {
    "REPORTED": {None, "DISCOVERED"},
    "ACCEPTED": {"ADMITTED", "REOPENED"},
    "DISPATCHED": {"ACCEPTED", "RETURNED", "ESCALATED", "REWORK"},
    "SIGNED": {"DISPATCHED"},
    "RETURNED": {"DISPATCHED", "SIGNED"},
    "ARRIVED": {"SIGNED"},
    "ESCALATED": {"ACCEPTED", "DISPATCHED", "SIGNED", "RETURNED", "ARRIVED", "HANDLING"},
    "REWORK": {"RESOLVED"},
    "CLOSED": {"RESOLVED"},
    "FEEDBACK": {"CLOSED", "FEEDBACK"},
    "REOPENED": {"CLOSED", "FEEDBACK"},
    "ARCHIVED": {"CLOSED", "FEEDBACK"},
    "MERGED": {"ADMITTED", "ACCEPTED", "DISPATCHED"},
}


def end_state(events: list[dict[str, Any]]) -> tuple[str | None, int]:
    """State after a case's events and how many of them were illegal."""
    state: str | None = None
    before_merge: str | None = None
    illegal = extended = 0
    for event in events:
        kind = event["event_type"]
        if kind == "DISCOVERED":
            legal = state is None
        elif kind == "REPORTED" and state not in {None, "DISCOVERED"}:
            continue  # a later report under the same case
        elif kind == "UNMERGED":
            legal = state == "MERGED"
        elif kind == "EXTENDED":
            extended += 1
            legal = state in {"SIGNED", "ARRIVED", "HANDLING"} and extended <= 2
        elif kind == "HANDLING":
            legal = state in {"SIGNED", "ARRIVED", "HANDLING", "REWORK"} or bool(
                state == "ACCEPTED" and event["own"]
            )
        elif kind == "RESOLVED":
            legal = state in {"HANDLING", "ARRIVED", "SIGNED"} or (state, event["own"]) == SELF
        elif kind == "VOIDED":
            legal = state not in {None, "DISCOVERED", "CLOSED", "FEEDBACK", "ARCHIVED", "VOIDED", "MERGED"}
        else:
            legal = state in LEGAL[kind]
        if not legal:
            illegal += 1
        elif kind == "UNMERGED":
            state = before_merge
        elif kind != "EXTENDED":
            before_merge = state if kind == "MERGED" else before_merge
            state = "ADMITTED" if kind == "REPORTED" else kind
    return state, illegal


def test_lives_end_as_the_ledger_says_and_only_late_sign_ins_are_illegal(busy: Simulation) -> None:
    own = busy.events.filter(pl.col("outcome").is_in(["admitted", "recorded"]))
    by_case = own.sort("at", "step").partition_by("case_id", as_dict=True)
    closed_states = {"CLOSED", "FEEDBACK", "ARCHIVED"}
    ends = Counter[int]()
    for case in busy.cases.iter_rows(named=True):
        rows = by_case[case["case_id"],].rows(named=True)
        state, illegal = end_state(rows)
        assert illegal == sum(row["step"] == STEP["signed_late"] for row in rows), case
        assert (state in closed_states) == case["closed"] or not case["counted"], (case, state)
        assert case["counted"] == (state not in {"MERGED", "VOIDED"}), (case, state)
        ends[case["fate"]] += 1
    assert len(ends) == 4  # closed, open, merged, voided


def test_every_event_keeps_the_contract(busy: Simulation, scene: Scene) -> None:
    texts = to_json(scene, busy.events, "local")
    parsed = parse_ndjson("\n".join(texts).encode(), max_depth=32, max_events=len(texts))
    assert parsed.errors == []
    schema = orjson.loads((load_settings().schemas_dir / "event.v1.json").read_bytes())
    validator = jsonschema.Draft202012Validator(schema)
    picked = np.random.default_rng(1).choice(len(texts), 400, replace=False)
    events = [orjson.loads(texts[int(number)]) for number in picked]
    assert not [error.message for event in events for error in validator.iter_errors(event)]
    assert {event["event_type"] for event in events} > {"REPORTED", "CLOSED", "MERGED", "VOIDED", "FEEDBACK"}
    assert "null" not in texts.str.join().item()


def test_events_are_about_as_large_as_real_ones(busy: Simulation, scene: Scene) -> None:
    mean = to_json(scene, busy.events, "local").str.len_bytes().mean()
    assert 350 < mean < 550  # type: ignore[operator]


def test_redeliveries_repeat_an_earlier_event_exactly(busy: Simulation, scene: Scene) -> None:
    events = busy.events.with_columns(json=to_json(scene, busy.events, "local"), place=pl.int_range(pl.len()))
    first = events.filter(~pl.col("copy")).select("event_id", pl.col("json").alias("original"), first="place")
    copies = events.filter("copy").join(first, on="event_id", how="left")
    assert (copies["place"] > copies["first"]).all()
    same = copies["json"] == copies["original"]
    assert same.filter(copies["outcome"] == "L1").all()
    assert not same.filter(copies["outcome"] == "quarantined").any()
    assert first["event_id"].n_unique() == len(first)


def test_resends_follow_their_original_and_differ_in_id_and_time_only(busy: Simulation) -> None:
    events = busy.events.with_row_index("place").filter(~pl.col("copy"))
    resent = events.filter(pl.col("outcome") == "L2").with_columns(
        original=pl.col("event_id").str.strip_suffix("D")
    )
    both = resent.join(events, left_on="original", right_on="event_id", how="left", suffix="_first")
    assert len(both) > 20
    assert (both["outcome_first"] == "admitted").all()
    assert (both["place"] > both["place_first"]).all()
    for column in ("actor_key", "actor_id", "matter", "grid", "lon", "description", "photos", "person_id"):
        assert both[column].equals(both[f"{column}_first"], null_equal=True), column
    apart = both["at"] - both["at_first"]
    same_submission = (both["submission_id"] == both["submission_id_first"]).fill_null(value=False)
    assert (apart > 0).all()
    assert ((apart <= 600_000) | (same_submission & (apart <= 72 * 3_600_000))).all()


def test_same_plan_gives_the_same_events_and_another_seed_others(scene: Scene) -> None:
    first, again, other = (simulate(scene, days(300, seed)) for seed in (1, 1, 2))
    assert_frame_equal(first.events, again.events)
    assert_frame_equal(first.cases, again.cases)
    assert not first.events["at"].equals(other.events["at"])


@pytest.mark.parametrize("count", [1, 7, 500, 3_001])
def test_sample_holds_exactly_as_many_events_as_asked_for(scene: Scene, count: int) -> None:
    drawn = sample(scene, count=count, seed=4, end=END, days=20, source="local")
    assert len(drawn.events) == count
    expected = ledger(drawn)["events"]
    assert expected["sent"] == count == sum(drawn.events["outcome"].value_counts()["count"])


def test_sample_file_and_ledger_are_written(tmp_path: Path) -> None:
    expected = write_sample(
        city_dir=small_city(), catalogue_dir=CATALOGUE, count=400, seed=4, end=END, days=20, source="s1",
        out=tmp_path / "new" / "events.ndjson", truth=tmp_path / "truth.json",
    )  # fmt: skip
    lines = (tmp_path / "new" / "events.ndjson").read_bytes().splitlines()
    assert len(lines) == 400
    assert {orjson.loads(line)["source"] for line in lines} == {"s1"}
    assert orjson.loads((tmp_path / "truth.json").read_bytes())["events"] == expected["events"]


def test_open_cases_are_mostly_recent(scene: Scene) -> None:
    simulation = simulate(scene, published_year(END, 5, "demo"))
    reported = simulation.events.filter((pl.col("step") == STEP["reported"]) & ~pl.col("copy"))
    reported = reported.filter(pl.col("outcome") == "admitted").select("case_id", "at")
    open_ = simulation.cases.filter(pl.col("counted") & ~pl.col("closed")).join(reported, on="case_id")
    assert len(open_) == 380
    recent = open_["at"] > simulation.plan.end_ms - 60 * 24 * 3_600_000
    assert recent.mean() > 0.8  # type: ignore[operator]


def test_a_city_without_residents_is_refused_in_one_line(tmp_path: Path) -> None:
    from pipeline.simulate.city import generate_city

    generate_city(tmp_path / "empty", catalogue_dir=CATALOGUE, seed=1, persons=0)
    with pytest.raises(ConfigurationError, match=r"too few residents.*--persons"):
        Scene.load(tmp_path / "empty", CATALOGUE)
    with pytest.raises(ConfigurationError, match="gridpipe simulate city --out"):
        Scene.load(tmp_path / "nowhere", CATALOGUE)
