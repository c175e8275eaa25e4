"""The oracle itself, against the numbers and sentences of the domain description."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.oracle.build import MORNING, Builder, report_of
from tests.oracle.fold import Case, Event, fold_all
from tests.oracle.kpi import Names, kpi, percentiles

NAMES = Names(
    name_zh=lambda _by, _key: None, channel_kinds={"hotline_12345": "public", "grid_patrol": "staff"}
)
AS_OF = MORNING + timedelta(hours=48)


def folded(events: list[Event], hour: float = 1000) -> Case:
    (case,) = fold_all(events, MORNING + timedelta(hours=hour)).values()
    return case


def figures(events: list[Event], **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "by": "city", "from_": MORNING - timedelta(days=1), "to": AS_OF, "as_of": AS_OF, "view": "cohort",
    } | changes  # fmt: skip
    reports = [report_of(event) for event in events if event.event_type == "REPORTED"]
    (row,) = kpi(events, reports, names=NAMES, **arguments)["rows"]
    return dict(row)


HANDLED = "REPORTED 0, ACCEPTED 0.5, DISPATCHED 1, SIGNED {signed}, HANDLING {signed}"


def numeric_example() -> list[Event]:
    """Cases a to j of the check example: limits 2 h and 24 h, everything before AS_OF."""
    make = Builder()
    on_time = HANDLED.format(signed=1.5)
    events = [
        *make.case("a", f"{on_time}, RESOLVED 5, CLOSED 6"),
        *make.case("b", f"{on_time}, RESOLVED 20, CLOSED 30"),
        *make.case("c", "REPORTED 30, ACCEPTED 31, DISPATCHED 32"),
        *make.case("d", HANDLED.format(signed=5)),
        *make.case("e", "REPORTED 0", outcome=2),
        *make.case("f", f"{on_time}, VOIDED 7"),
        *make.case("g", "REPORTED 0, ACCEPTED 0.5"),
        make.event("g", "MERGED", 0.7, primary_case_id="a"),
        *make.case("h", f"{on_time}, RESOLVED 5, CLOSED 6, REOPENED 40"),
        *make.case("i", f"{on_time}, RESOLVED 5, REWORK 6, HANDLING 7, RESOLVED 8, CLOSED 9"),
        *make.case("j", f"{on_time}, RESOLVED 5, CLOSED 6"),
    ]
    closed_a = next(event for event in events if event.case_id == "a" and event.event_type == "CLOSED")
    return [*events, replace(closed_a, off=10_000, ingested_at=closed_a.ingested_at + timedelta(hours=1))]


def test_the_numeric_example_gives_the_published_rates() -> None:
    row = figures(numeric_example())
    assert row["cases"] == 7
    assert (row["closed"], row["voided"], row["merged"]) == (4, 1, 1)
    assert row["closure_rate"] == pytest.approx(4 / 7)
    assert row["closure_on_time_rate"] == pytest.approx(3 / 5)
    assert row["rework_rate"] == pytest.approx(2 / 5)
    assert row["response_rate"] == pytest.approx(6 / 7)
    assert row["timely_response_rate"] == pytest.approx(5 / 7)
    assert (row["admitted_reports"], row["rejected_reports"]) == (9, 1)


def test_arrival_order_changes_nothing() -> None:
    events = numeric_example()
    shuffled = random.Random(5).sample(events, len(events))
    assert fold_all(shuffled, AS_OF) == fold_all(events, AS_OF)


def test_a_case_without_report_is_an_orphan_until_its_report_comes() -> None:
    make = Builder()
    late = make.case("x", "SIGNED 3, CLOSED 4")
    assert folded(late).orphan
    assert figures(late)["orphans"] == 2
    joined = [*late, make.event("x", "REPORTED", 1)]
    case = folded(joined)
    assert (case.orphan, case.state, len(case.illegal)) == (False, "ADMITTED", 2)


def test_events_after_a_resend_belong_to_a_duplicate_case() -> None:
    make = Builder()
    events = [
        make.event("x", "REPORTED", 0, outcome=3, primary_case_id="first"),
        make.event("x", "SIGNED", 1),
    ]
    case = folded(events)
    assert (case.duplicate_case, case.orphan, case.duplicate_of_case_id) == (True, False, "first")
    assert figures(events)["orphans"] == 0


def test_unmerging_restores_the_state_before_and_the_case_counts_again() -> None:
    make = Builder()
    events = make.case("x", "REPORTED 0, ACCEPTED 1, DISPATCHED 2")
    events += [make.event("x", "MERGED", 3, primary_case_id="p"), make.event("x", "SIGNED", 4)]
    merged = folded(events)
    assert (merged.state, merged.is_counted, merged.primary_case_id) == ("MERGED", False, "p")
    case = folded([*events, make.event("x", "UNMERGED", 5), make.event("x", "SIGNED", 6)])
    assert (case.state, case.is_counted, case.primary_case_id) == ("SIGNED", True, None)
    assert case.first_signed_at == MORNING + timedelta(hours=6)


def test_extensions_are_legal_twice_and_only_forward() -> None:
    make = Builder(resolution_hours=10)
    events = make.case("x", "REPORTED 0, ACCEPTED 1, DISPATCHED 2, SIGNED 3")
    for hour, due in ((4, 11), (5, 12), (6, 20), (7, 30)):
        events.append(make.event("x", "EXTENDED", hour, due_at=MORNING + timedelta(hours=due)))
    case = folded(events)
    assert case.extended_count == 2
    assert case.due_at == MORNING + timedelta(hours=20)
    assert len(case.illegal) == 2


@pytest.mark.parametrize(
    ("steps", "state", "illegal"),
    [
        ("REPORTED 0, VOIDED 1", "VOIDED", 0),
        ("REPORTED 0, ACCEPTED 1, HANDLING 2", "ACCEPTED", 1),
        ("REPORTED 0, ACCEPTED 1, ESCALATED 2, SIGNED 3, DISPATCHED 4", "DISPATCHED", 1),
        ("REPORTED 0, ACCEPTED 1, DISPATCHED 2, SIGNED 3, RESOLVED 4, CLOSED 5, VOIDED 6", "CLOSED", 1),
        ("REPORTED 0, ACCEPTED 1, DISPATCHED 2, RETURNED 3, DISPATCHED 4, SIGNED 5", "SIGNED", 0),
        ("REPORTED 0, REPORTED 1, ACCEPTED 2, REPORTED 3", "ACCEPTED", 0),
        ("DISCOVERED 0, DISCOVERED 1, REPORTED 2, DISCOVERED 3", "ADMITTED", 2),
    ],
)  # fmt: skip
def test_transitions(steps: str, state: str, illegal: int) -> None:
    case = folded(Builder().case("x", steps))
    assert (case.state, len(case.illegal)) == (state, illegal)


def test_reopening_restarts_the_clock_and_a_second_acceptance_does_not() -> None:
    make = Builder(resolution_hours=10)
    steps = "REPORTED 0, ACCEPTED 1, DISPATCHED 2, SIGNED 3, RESOLVED 4, CLOSED 5, REOPENED 6, ACCEPTED 8"
    case = folded(make.case("x", steps))
    assert case.accepted_at == MORNING + timedelta(hours=1)
    assert case.due_at == MORNING + timedelta(hours=16)
    assert case.closed_at == MORNING + timedelta(hours=5)


def test_a_rejected_case_stays_rejected_and_later_reports_only_add_to_its_count() -> None:
    make = Builder()
    events = [
        make.event("x", "REPORTED", 0, outcome=2),
        make.event("x", "REPORTED", 1),
        make.event("x", "ACCEPTED", 2),
    ]
    case = folded(events)
    assert (case.state, case.report_count, len(case.illegal)) == ("REJECTED", 2, 1)


def test_the_smallest_position_decides_between_copies_of_one_id() -> None:
    make = Builder()
    first = make.event("x", "REPORTED", 0, department=None)
    copy = replace(first, off=99, occurred_at=first.occurred_at + timedelta(hours=1))
    assert folded([copy, first]).reported_at == first.occurred_at


def test_percentiles_are_elements_of_the_sorted_values() -> None:
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}
    assert percentiles([7]) == {"p50": 7, "p90": 7, "p99": 7}
    assert percentiles(range(1, 11)) == {"p50": 5, "p90": 9, "p99": 10}
    assert percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99}
    assert percentiles(range(1, 102)) == {"p50": 51, "p90": 91, "p99": 100}


def test_flow_counts_events_of_the_window_even_when_their_case_was_reported_before() -> None:
    events = Builder().case("x", f"{HANDLED.format(signed=1.5)}, RESOLVED 5, CLOSED 30")
    row = figures(events, view="flow", from_=MORNING + timedelta(hours=24), to=AS_OF)
    assert (row["cases"], row["closed"], row["closure_rate"]) == (0, 1, None)
    assert row["resolution_seconds"]["p50"] == round(29.5 * 3600)
    assert row["response_seconds"]["p50"] is None


def test_by_department_follows_the_last_legal_dispatch() -> None:
    make = Builder()
    events = make.case("x", "REPORTED 0, ACCEPTED 1")
    events.append(make.event("x", "DISPATCHED", 2, department="fire_rescue"))
    events.append(make.event("x", "DISPATCHED", 3, department="health"))  # illegal: already dispatched
    rows = kpi(
        events,
        [report_of(events[0])],
        by="department",
        from_=MORNING,
        to=AS_OF,
        as_of=AS_OF,
        view="cohort",
        names=NAMES,
    )["rows"]
    assert {row["key"]: (row["reports"], row["cases"]) for row in rows} == {
        "fire_rescue": (0, 1),
        "urban_management": (1, 0),
    }
