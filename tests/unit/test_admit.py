"""Every reason fires and stays silent where it should; the decision says the rest of what it must."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import frames
from pipeline.errors import ContractError
from pipeline.process.decode import decode
from pipeline.rules.admit import admit, explain_rules
from pipeline.rules.catalogue import load_catalogues
from tests.integration.worker_world import PRIVACY, event, record
from tests.unit.admit_rows import (
    DISTRICTS,
    MORNING,
    NO_MODES,
    PHOTO,
    SCHEMA,
    about_person,
    catalogues,
    citizen,
    copy_catalogue,
    edit,
    frame,
    judge,
    mode,
    report,
)

UNDATED = PHOTO | {"taken_at": None}
EPIDEMIC = datetime(2022, 11, 1, 4, tzinfo=UTC)


def local_midnight(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, tzinfo=UTC) - timedelta(hours=8)


def early(matter: str, **changes: Any) -> dict[str, Any]:
    """A supply request in a temporary control area of 2022: right but for its matter's days and mode."""
    person = {"key": "a" * 64, "role": "subject"}
    return citizen(
        **{
            "matter_code": matter, "occurred_at": EPIDEMIC, "photos": [], "persons": [person],
            "persons_given": 1, "persons_found": 1, **changes,
        }
    )  # fmt: skip


OCTOBER, NOVEMBER = datetime(2022, 10, 1, tzinfo=UTC), datetime(2022, 11, 1, tzinfo=UTC)
ACTIVE = (mode("epidemic", "IV", "4407", OCTOBER),)
SUPPLY = "TMP-2022-EPI-01"

#: reason, a report that it rejects, the nearest report that it lets pass, modes known.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], tuple[Any, ...]]] = [
    ("MALFORMED", report(event_id=None), report(), ()),
    (
        "TIME_IN_FUTURE",
        report(ingested_at=MORNING - timedelta(minutes=5, milliseconds=1)),
        report(ingested_at=MORNING - timedelta(minutes=5)),
        (),
    ),
    (
        "TOO_OLD",
        report(ingested_at=MORNING + timedelta(days=30, milliseconds=1)),
        report(ingested_at=MORNING + timedelta(days=30)),
        (),
    ),
    ("UNKNOWN_MATTER", report(matter_code="SA-99"), report(), ()),
    (
        "MATTER_NOT_YET_IN_FORCE",
        report(occurred_at=local_midnight(2022, 4, 1) - timedelta(milliseconds=1), photos=[UNDATED]),
        report(occurred_at=local_midnight(2022, 4, 1), photos=[UNDATED]),
        (),
    ),
    (
        "TEMP_MATTER_EXPIRED",
        early(SUPPLY, occurred_at=local_midnight(2022, 11, 12)),
        early(SUPPLY, occurred_at=local_midnight(2022, 11, 12) - timedelta(milliseconds=1)),
        ACTIVE,
    ),
    (
        "MODE_NOT_ACTIVE",
        early(SUPPLY, occurred_at=NOVEMBER),
        early(SUPPLY, occurred_at=NOVEMBER - timedelta(milliseconds=1)),
        (mode("epidemic", "IV", "4407", OCTOBER, NOVEMBER),),
    ),
    ("CHANNEL_NOT_ALLOWED", citizen(channel="petition_market"), citizen(), ()),
    ("REPORTER_NOT_AUTHORISED", report(staff_in_grid=False), report(), ()),
    ("GRID_UNKNOWN", report(grid_found=False, grid_active=False, point_in_grid=None), report(), ()),
    ("GRID_INACTIVE", report(grid_active=False), report(), ()),
    ("GRID_OUT_OF_SCOPE", report(grid_code="440103001001001"), report(), ()),
    ("LOCATION_GRID_MISMATCH", report(point_in_grid=False), report(), ()),
    ("REQUIRED_FIELD_MISSING", report(description=" \t "), report(), ()),
    (
        "EVIDENCE_INVALID",
        report(photos=[PHOTO, PHOTO | {"taken_at": MORNING - timedelta(hours=24, milliseconds=1)}]),
        report(photos=[PHOTO, PHOTO | {"taken_at": MORNING - timedelta(hours=24)}]),
        (),
    ),
    ("PERSON_UNRESOLVED", about_person(persons_found=0), about_person(), ()),
    ("REFER_EMERGENCY_SERVICE", report(matter_code="REF-119"), report(), ()),
    ("OUT_OF_ADMIN_SCOPE", report(matter_code="REF-COURT"), report(), ()),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "bad", "good", "modes"), CASES, ids=[case[0] for case in CASES])
def test_a_reason_rejects_what_it_names_and_nothing_else(
    reason: str, bad: dict[str, Any], good: dict[str, Any], modes: tuple[Any, ...]
) -> None:
    decision = judge(bad, *modes)
    assert (decision["outcome"], decision["reasons"]) == ("rejected", [reason])
    decision = judge(good, *modes)
    assert (decision["outcome"], decision["reasons"]) == ("admitted", [])


def test_a_withdrawn_matter_is_rejected_from_its_last_day_on(tmp_path: Path) -> None:
    directory = copy_catalogue(tmp_path / "catalogue")
    file = directory / "matters" / "2022-04-01.yaml"
    text = file.read_text(encoding="utf-8")
    head, tail = text.split("  - code: SA-07\n", 1)
    file.write_text(
        head + "  - code: SA-07\n" + tail.replace("effective_to: null", "effective_to: 2026-05-01", 1)
    )
    rules = load_catalogues(directory)
    midnight = local_midnight(2026, 5, 1)
    assert judge(report(occurred_at=midnight, photos=[UNDATED]), rules=rules)["reasons"] == [
        "MATTER_WITHDRAWN"
    ]
    before = report(occurred_at=midnight - timedelta(milliseconds=1), photos=[UNDATED])
    assert judge(before, rules=rules)["outcome"] == "admitted"


def test_every_reason_code_has_a_case() -> None:
    covered = {case[0] for case in CASES} | {"MATTER_WITHDRAWN"}
    assert covered == set(catalogues().admission.reason_codes())


def test_all_failures_are_collected_in_rule_order() -> None:
    row = citizen(
        ingested_at=MORNING + timedelta(days=40),
        occurred_at=MORNING,
        channel="petition_market",
        grid_active=False,
        point_in_grid=False,
        photos=[{"sha256": "short", "taken_at": None}],
        description=None,
    )
    assert judge(row)["reasons"] == [
        "TOO_OLD", "CHANNEL_NOT_ALLOWED", "GRID_INACTIVE", "LOCATION_GRID_MISMATCH", "REQUIRED_FIELD_MISSING",
        "EVIDENCE_INVALID",
    ]  # fmt: skip


def results(row: dict[str, Any], *modes: tuple[Any, ...]) -> dict[int, str]:
    """Result per rule number, as explained from the stored columns."""
    explained = explain_rules(judge(row, *modes), catalogues())
    return {rule["number"]: rule["result"] for rule in explained}


def test_an_unknown_matter_leaves_the_rules_about_it_unknown() -> None:
    row = report(matter_code="SA-99", persons=[{"key": "x", "role": "subject"}], persons_given=1)
    assert results(row) == {
        1: "true", 2: "true", 3: "false", 4: "unknown", 5: "unknown", 6: "unknown", 7: "true", 8: "true",
        9: "true", 10: "unknown", 11: "true", 12: "unknown", 13: "true",
    }  # fmt: skip


def test_an_unknown_grid_leaves_mode_own_grid_and_location_unknown() -> None:
    row = report(grid_found=False, grid_active=False, point_in_grid=None, staff_in_grid=False)
    decision = judge(row)
    assert decision["reasons"] == ["GRID_UNKNOWN"]
    assert decision["rule_results"] == [1, 1, 1, 1, 2, 1, 2, 0, 2, 1, 1, 1, 1]


def test_an_unknown_grid_does_not_excuse_a_stranger() -> None:
    row = report(
        grid_found=False, grid_active=False, point_in_grid=None, staff_found=False, staff_active=None
    )
    assert judge(row)["reasons"] == ["REPORTER_NOT_AUTHORISED", "GRID_UNKNOWN"]


def test_without_a_location_the_location_rule_is_true() -> None:
    nowhere = {"lon": None, "lat": None, "point_in_grid": None}
    worker = {"persons": [{"key": "x", "role": "party"}], "persons_given": 1, "persons_found": 1}
    row = citizen(matter_code="PS-06", **nowhere, **worker)
    assert judge(row)["outcome"] == "admitted"
    assert results(row)[9] == "true"


def test_without_a_person_rule_10_fails_and_rule_12_is_unknown() -> None:
    row = about_person(persons=[], persons_given=0, persons_found=0)
    decision = judge(row)
    assert (decision["reasons"], decision["missing_fields"]) == (["REQUIRED_FIELD_MISSING"], ["person"])
    assert decision["rule_results"][11] == 2


def test_an_unknown_channel_leaves_open_whether_the_photo_is_missing() -> None:
    row = report(channel="no_such_channel", photos=[])
    decision = judge(row)
    assert (decision["reasons"], decision["missing_fields"]) == (["CHANNEL_NOT_ALLOWED"], [])
    assert not decision["evidence_pending"]
    assert results(row)[10] == "unknown"
    # what is missing whatever the channel is still told
    decision = judge(row | {"description": None})
    assert decision["reasons"] == ["CHANNEL_NOT_ALLOWED", "REQUIRED_FIELD_MISSING"]
    assert decision["missing_fields"] == ["description"]


def test_a_referral_is_no_unknown_matter_and_its_terms_are_unknown() -> None:
    row = report(matter_code="REF-110")
    assert {number: result for number, result in results(row).items() if result != "true"} == {
        4: "unknown", 5: "unknown", 6: "unknown", 10: "unknown", 12: "unknown", 13: "false",
    }  # fmt: skip


def test_features_that_reference_data_has_not_given_leave_rules_unknown_and_reject_nothing() -> None:
    row = report(**dict.fromkeys(frames.FEATURES))
    decision = judge(row)
    assert decision["outcome"] == "admitted"
    assert [n + 1 for n, result in enumerate(decision["rule_results"]) if result == 2] == [5, 7, 8, 9]
    assert decision["rule_results"].count(0) == 0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("location", {"lat": None, "point_in_grid": None}),
        ("photo", {"photos": []}),
        ("photo", {"photos": None}),
        ("description", {"description": None}),
    ],
)
def test_a_missing_field_is_named(field: str, changes: dict[str, Any]) -> None:
    decision = judge(report(**changes))
    assert (decision["reasons"], decision["missing_fields"]) == (["REQUIRED_FIELD_MISSING"], [field])


@pytest.mark.parametrize("given", [{"organisation_code": "o1"}, {"organisation_name": "某商行"}])
def test_an_organisation_is_present_by_code_or_name(given: dict[str, Any]) -> None:
    row = citizen(matter_code="ER-08", photos=[])
    assert judge(row)["missing_fields"] == ["organisation"]
    assert judge(row | given)["outcome"] == "admitted"


class TestReporter:
    """Rule 7 (design 9.15)."""

    @pytest.mark.parametrize("kind", ["professional", "clerk"])
    def test_professionals_and_clerks_may_report_in_their_district(self, kind: str) -> None:
        row = report(staff_kind=kind, staff_in_grid=False)
        assert judge(row)["outcome"] == "admitted"
        assert judge(row | {"staff_in_district": False})["reasons"] == ["REPORTER_NOT_AUTHORISED"]

    def test_nobody_reports_by_patrol_without_a_key(self) -> None:
        row = report(actor_key=None, staff_found=None, staff_active=None, staff_in_grid=None)
        assert judge(row)["reasons"] == ["REPORTER_NOT_AUTHORISED"]

    def test_staff_who_have_left_are_refused(self) -> None:
        assert judge(report(staff_active=False))["reasons"] == ["REPORTER_NOT_AUTHORISED"]

    def test_riders_report_in_any_grid_by_their_right(self) -> None:
        rider = report(
            channel="rider_qrcode", staff_kind="part_time", staff_in_grid=False, staff_in_district=False
        )
        assert judge(rider)["reasons"] == ["REPORTER_NOT_AUTHORISED"]
        assert judge(rider | {"staff_channel_rights": ["rider_qrcode"]})["outcome"] == "admitted"

    @pytest.mark.parametrize("kind", ["unit_head", "volunteer"])
    def test_unit_heads_and_volunteers_may_report_prioritised_matters_while_the_mode_is_active(
        self, kind: str
    ) -> None:
        row = report(staff_kind=kind, staff_in_grid=False)
        typhoon = mode("typhoon", "IV", "440704", MORNING - timedelta(hours=1))
        assert judge(row)["reasons"] == ["REPORTER_NOT_AUTHORISED"]
        assert judge(row, typhoon)["outcome"] == "admitted"
        assert judge(row | {"matter_code": "SA-01"}, typhoon)["reasons"] == ["REPORTER_NOT_AUTHORISED"]
        assert judge(row | {"staff_active": False}, typhoon)["reasons"] == ["REPORTER_NOT_AUTHORISED"]


class TestEvidence:
    def test_a_required_photo_is_waived_on_channels_that_carry_none(self) -> None:
        decision = judge(citizen(channel="hotline_12345", photos=[]))
        assert (decision["outcome"], decision["evidence_pending"]) == ("admitted", True)

    def test_no_evidence_is_pending_where_none_is_required_or_the_photo_is_there(self) -> None:
        assert judge(report())["evidence_pending"] is False
        gas = citizen(matter_code="SA-05", channel="hotline_12345", photos=[])
        assert judge(gas)["evidence_pending"] is False

    def test_in_an_active_mode_the_photo_of_a_prioritised_matter_may_follow(self) -> None:
        typhoon = mode("typhoon", "III", "440704", MORNING - timedelta(hours=1))
        decision = judge(report(photos=[]), typhoon)
        assert (decision["outcome"], decision["evidence_pending"]) == ("admitted", True)
        assert judge(report(matter_code="SA-01", photos=[]), typhoon)["missing_fields"] == ["photo"]

    @pytest.mark.parametrize("sha256", ["a" * 63, "a" * 65, "g" * 64, "é" * 32, "", None])
    def test_a_hash_must_have_64_hexadecimal_digits(self, sha256: str | None) -> None:
        photos = [PHOTO, {"sha256": sha256, "taken_at": None}]
        assert judge(report(photos=photos))["reasons"] == ["EVIDENCE_INVALID"]

    def test_photos_are_judged_report_by_report(self) -> None:
        far = PHOTO | {"taken_at": MORNING + timedelta(days=2)}
        rows = [report(), report(photos=[PHOTO, far]), report(photos=[]), report(photos=[PHOTO, PHOTO])]
        decided = admit(frame(rows), catalogues(), NO_MODES, districts=DISTRICTS)
        assert [result[10] for result in decided["rule_results"]] == [1, 0, 1, 1]


class TestLifeSafety:
    def test_any_rejection_of_an_emergency_alerts(self) -> None:
        assert judge(report(matter_code="SA-05", point_in_grid=False))["life_safety"] is True
        assert judge(report(matter_code="SA-05"))["life_safety"] is False

    @pytest.mark.parametrize("code", ["REF-110", "REF-119", "REF-120", "REF-COURT", "REF-OTHER"])
    def test_any_referral_alerts(self, code: str) -> None:
        """Rule 13, whatever else is wrong with the report (domain 7)."""
        assert judge(report(matter_code=code))["life_safety"] is True
        assert judge(report(matter_code=code, grid_found=False))["life_safety"] is True

    def test_other_rejections_do_not(self) -> None:
        assert judge(report(point_in_grid=False))["life_safety"] is False


class TestTime:
    def test_backfill_is_exempt_from_too_old_and_late(self) -> None:
        row = report(ingested_at=MORNING + timedelta(days=300), backfill=True)
        decision = judge(row)
        assert (decision["outcome"], decision["late_beyond_horizon"]) == ("admitted", False)
        assert judge(row | {"backfill": False})["reasons"] == ["TOO_OLD"]

    @pytest.mark.parametrize(
        "stamped",
        [
            "2028-02-29T12:00:00+08:00",
            "2028-01-31T00:00:00+08:00",  # thirty days on it is the first of March, for February has 29
            "2027-02-14T12:00:00-05:00",  # New York loses an hour a month later
            "2027-11-07T01:30:00-04:00",  # half past one, which comes a second time at -05:00
        ],
    )
    def test_limits_count_hours_whatever_calendar_and_clocks_do(self, stamped: str) -> None:
        read = decode([(0, [record(0, event(1, occurred_at=stamped))])], privacy=PRIVACY).events
        [occurred] = read["occurred_at"]
        assert occurred == datetime.fromisoformat(stamped)
        row = report(occurred_at=occurred, photos=[UNDATED])
        for hours, reason in ((-5 / 60, "TIME_IN_FUTURE"), (30 * 24, "TOO_OLD")):
            limit, beyond = occurred + timedelta(hours=hours), timedelta(milliseconds=1 if hours > 0 else -1)
            assert judge(row | {"ingested_at": limit})["reasons"] == []
            assert judge(row | {"ingested_at": limit + beyond})["reasons"] == [reason]

    def test_backfill_does_not_excuse_the_future(self) -> None:
        row = report(ingested_at=MORNING - timedelta(hours=1), backfill=True)
        assert judge(row)["reasons"] == ["TIME_IN_FUTURE"]

    @pytest.mark.parametrize("event_type", ["REPORTED", "CLOSED"])
    def test_later_than_seven_days_is_flagged(self, event_type: str) -> None:
        row = report(event_type=event_type, ingested_at=MORNING + timedelta(days=7))
        assert judge(row)["late_beyond_horizon"] is False
        late = row | {"ingested_at": MORNING + timedelta(days=7, milliseconds=1)}
        assert judge(late)["late_beyond_horizon"] is True

    def test_an_event_of_the_future_is_adjusted_unless_it_is_a_report(self) -> None:
        row = report(event_type="CLOSED", ingested_at=MORNING - timedelta(minutes=5, milliseconds=1))
        assert judge(row)["time_adjusted"] is True
        assert judge(row | {"event_type": "REPORTED"})["time_adjusted"] is False
        assert judge(row | {"ingested_at": MORNING - timedelta(minutes=5)})["time_adjusted"] is False


def test_other_events_are_recorded_without_being_judged() -> None:
    decision = judge(report(event_type="CLOSED", grid_found=False, matter_code="SA-07", actor_key=None))
    assert decision["outcome"] == "recorded"
    assert decision["reasons"] == decision["missing_fields"] == decision["rule_results"] == []
    assert (decision["category"], decision["urgency"]) == ("SA", "urgent")
    assert decision["lead_department"] == "housing_construction"
    assert decision["response_limit_seconds"] is None
    assert explain_rules(decision, catalogues()) == []


def test_the_decision_carries_the_terms_of_the_matter() -> None:
    decision = judge(report())
    assert decision["response_limit_seconds"] == 60 * 60
    assert decision["resolution_limit_seconds"] == 24 * 3600
    assert (decision["category"], decision["catalogue_version"]) == ("SA", "0.1")
    assert (decision["mode"], decision["mode_level"]) == (None, None)


def test_districts_that_do_not_take_part_are_out_of_scope() -> None:
    assert judge(report(), districts=["440703"])["reasons"] == ["GRID_OUT_OF_SCOPE"]


def test_rows_keep_their_order_and_other_columns() -> None:
    rows = [
        report(event_id="a", event_type="CLOSED"),
        report(event_id="b"),
        report(event_id="c", event_type="SIGNED"),
        report(event_id="d", matter_code="SA-99"),
        report(event_id="e"),
    ]
    events = frame(rows).with_columns(pl.Series("extra", range(5)))
    decided = admit(events, catalogues(), NO_MODES, districts=DISTRICTS)
    assert decided["event_id"].to_list() == ["a", "b", "c", "d", "e"]
    assert decided["outcome"].to_list() == ["recorded", "admitted", "recorded", "rejected", "admitted"]
    assert decided.columns == [*SCHEMA, "extra", *frames.DECISION]


def test_an_empty_frame_gives_an_empty_decision() -> None:
    decided = admit(frame([]), catalogues(), NO_MODES, districts=DISTRICTS)
    assert decided.height == 0
    assert {name: decided.schema[name] for name in frames.DECISION} == frames.DECISION


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ContractError, match="grid_found"):
        admit(frame([report()]).drop("grid_found"), catalogues(), NO_MODES, districts=DISTRICTS)


def test_the_explanation_names_every_rule_and_the_reasons_of_those_that_failed() -> None:
    explained = explain_rules(judge(report(point_in_grid=False, description=None)), catalogues())
    assert [rule["number"] for rule in explained] == list(range(1, 14))
    failed = {
        rule["number"]: (rule["name_zh"], rule["reasons"]) for rule in explained if rule["result"] == "false"
    }
    assert failed == {
        9: ("位置与网格相符", ["LOCATION_GRID_MISMATCH"]),
        10: ("必填项齐全", ["REQUIRED_FIELD_MISSING"]),
    }


def test_a_rule_entry_holds_from_its_day_on(tmp_path: Path) -> None:
    directory = copy_catalogue(tmp_path / "catalogue")
    new_entry = """  - number: 2
    name_zh: 时间有效
    name_en: Not older than one day
    effective_from: 2026-05-01
    reasons:
      - code: TOO_OLD
        name_zh: 超过1天
        name_en: More than a day
        fails_when: age_seconds > 86400
    examples:
      - {given: {age_seconds: 0}, result: true}
      - {given: {age_seconds: 86401}, result: false, reasons: [TOO_OLD]}

  - number: 3
"""
    edit(directory / "admission.yaml", "  - number: 3\n", new_entry)
    rules = load_catalogues(directory)
    midnight = local_midnight(2026, 5, 1)
    old = report(occurred_at=midnight, ingested_at=midnight + timedelta(days=2), photos=[UNDATED])
    assert judge(old, rules=rules)["reasons"] == ["TOO_OLD"]
    before = old | {"occurred_at": midnight - timedelta(milliseconds=1)}
    assert judge(before, rules=rules)["outcome"] == "admitted"
