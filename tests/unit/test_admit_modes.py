"""Emergency modes: which one acts on a report, and what it changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.rules.admit import admit
from tests.unit.admit_rows import (
    DISTRICTS,
    MORNING,
    catalogues,
    citizen,
    frame,
    judge,
    mode,
    mode_frame,
    report,
)

SINCE = MORNING - timedelta(days=1)


def acting(decision: dict[str, Any]) -> tuple[str | None, str | None, int]:
    return decision["mode"], decision["mode_level"], decision["response_limit_seconds"]


@pytest.mark.parametrize(("level", "seconds"), [("IV", 3600), ("III", 2700), ("II", 1800), ("I", 1188)])
def test_the_response_limit_shrinks_with_the_level(level: str, seconds: int) -> None:
    decision = judge(report(), mode("typhoon", level, "4407", SINCE))
    assert acting(decision) == ("typhoon", level, seconds)
    assert decision["resolution_limit_seconds"] == 24 * 3600


@pytest.mark.parametrize(("level", "seconds"), [("IV", 900), ("III", 675), ("II", 600), ("I", 600)])
def test_the_response_limit_never_falls_under_ten_minutes(level: str, seconds: int) -> None:
    gas = report(matter_code="SA-05")  # 15 minutes
    assert acting(judge(gas, mode("typhoon", level, "4407", SINCE)))[2] == seconds


def test_a_mode_that_does_not_prioritise_the_matter_does_not_act() -> None:
    assert acting(judge(report(), mode("heat", "I", "4407", SINCE))) == (None, None, 3600)


@pytest.mark.parametrize(
    ("area", "acts"),
    [
        ("4407", True), ("440704", True), ("440704001", True),
        ("440703", False), ("440704002", False), ("4408", False), ("440704001001", True),
    ],
)  # fmt: skip
def test_a_mode_acts_in_its_area_only(area: str, acts: bool) -> None:
    decision = judge(report(), mode("typhoon", "II", area, SINCE))
    assert (decision["mode"] == "typhoon") is acts


def test_of_overlapping_modes_the_strongest_acts() -> None:
    flooded = report(matter_code="UE-09")  # flood, typhoon; 120 minutes
    city, town = mode("typhoon", "IV", "4407", SINCE), mode("flood", "II", "440704001", SINCE)
    for records in ((city, town), (town, city)):
        assert acting(judge(flooded, *records)) == ("flood", "II", 3600)
    elsewhere = flooded | {"grid_code": "440704004001003"}
    decision = judge(elsewhere, city, town)
    assert (decision["mode"], decision["mode_level"]) == ("typhoon", "IV")
    assert decision["response_limit_seconds"] == 2 * 3600


def test_at_equal_level_the_mode_that_the_catalogue_lists_first_is_named() -> None:
    flooded = report(matter_code="UE-09")
    records = mode("typhoon", "III", "4407", SINCE), mode("flood", "III", "4407", SINCE)
    assert {judge(flooded, *order)["mode"] for order in (records, records[::-1])} == {"flood"}


def test_a_raise_just_before_midnight_acts_from_its_minute_on() -> None:
    """Typhoon level IV raised to III at 23:30 local on 6 September 2025."""
    raised = datetime(2025, 9, 6, 15, 30, tzinfo=UTC)
    records = (
        mode("typhoon", "IV", "4407", datetime(2025, 9, 6, 4, tzinfo=UTC), raised),
        mode("typhoon", "III", "4407", raised),
    )
    rows = [
        report(occurred_at=raised - timedelta(milliseconds=1), photos=[]),
        report(occurred_at=raised, photos=[]),
        report(occurred_at=datetime(2025, 9, 6, 16, tzinfo=UTC), photos=[]),  # local midnight
        report(occurred_at=datetime(2025, 9, 6, 3, 59, tzinfo=UTC), photos=[]),
    ]
    decided = admit(frame(rows), catalogues(), mode_frame(*records), districts=DISTRICTS)
    assert decided["mode_level"].to_list() == ["IV", "III", "III", None]
    assert decided["response_limit_seconds"].to_list() == [3600, 2700, 2700, 3600]


def test_lowering_the_level_takes_effect_when_the_higher_record_ends() -> None:
    records = (
        mode("typhoon", "III", "4407", SINCE, MORNING),
        mode("typhoon", "IV", "4407", MORNING),
    )
    assert judge(report(), *records)["mode_level"] == "IV"
    earlier = report(occurred_at=MORNING - timedelta(seconds=1))
    assert judge(earlier, *records)["mode_level"] == "III"


def test_a_newer_version_of_a_record_replaces_it() -> None:
    opened = mode("typhoon", "II", "4407", SINCE, None, version=1)
    closed = mode("typhoon", "II", "4407", SINCE, MORNING, version=2)
    assert judge(report(), opened)["mode"] == "typhoon"
    assert judge(report(), opened, closed)["mode"] is None


def test_in_an_unknown_grid_no_mode_acts() -> None:
    row = report(grid_found=False, grid_active=False, point_in_grid=None)
    assert judge(row, mode("typhoon", "I", "4407", SINCE))["mode"] is None


def test_modes_and_levels_of_a_newer_catalogue_are_ignored() -> None:
    records = mode("earthquake", "I", "4407", SINCE), mode("typhoon", "V", "4407", SINCE)
    assert judge(report(), *records)["mode"] is None


def test_an_emergency_only_matter_needs_its_own_mode_not_any() -> None:
    night = datetime(2023, 9, 1, 15, tzinfo=UTC)
    row = citizen(matter_code="TMP-2023-TYP-01", occurred_at=night, photos=[])
    flood = mode("flood", "I", "4407", night - timedelta(hours=1))
    typhoon = mode("typhoon", "IV", "440704", night - timedelta(hours=1))
    assert judge(row, flood)["reasons"] == ["MODE_NOT_ACTIVE", "REQUIRED_FIELD_MISSING"]
    assert judge(row, flood, typhoon)["outcome"] == "admitted"


def test_other_events_are_not_touched_by_a_mode() -> None:
    decision = judge(report(event_type="SIGNED"), mode("typhoon", "I", "4407", SINCE))
    assert (decision["mode"], decision["response_limit_seconds"]) == (None, None)
