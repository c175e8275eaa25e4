"""Every ruling on the fold as a small case: its events, and what must be known of it.

All cases are written once, shuffled over blocks, so that order of arrival has no say in any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.store.migrate import migrate
from tests.integration.case_world import Event, World, at, chain, flat

DATABASE: Final = "test_fold_rules"
OPEN = (("REPORTED", 0), ("ACCEPTED", 1))
SENT = (*OPEN, ("DISPATCHED", 2))
SIGNED = (*SENT, ("SIGNED", 3))
DONE = (*SIGNED, ("RESOLVED", 4))
SHUT = (*DONE, ("CLOSED", 5))
MERGE = {"primary_case_id": "primary"}
SELF = {"self_handled": True}


def extend(hour: float, due: float) -> tuple[str, float, dict[str, Any]]:
    return ("EXTENDED", hour, {"due_at": at(due)})


#: What the case shows → (its steps, what must hold). Limits: 1 h to respond, 24 h to resolve.
CASES: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "accepting sets the limit": (OPEN, {"state": "ACCEPTED", "due_at": at(25), "accepted_at": at(1)}),
    "until accepted the limit is provisional": ([("REPORTED", 0)], {"state": "ADMITTED", "due_at": at(24)}),
    "admission stands at the receipt of its report": ([("REPORTED", 0)], {"admitted_at": at(30 / 3600)}),
    "closed before accepted is illegal": (
        [("REPORTED", 0), ("CLOSED", 1)],
        {"state": "ADMITTED", "illegal_count": 1, "closed_at": None},
    ),
    "rank orders events of one instant": (
        [("CLOSED", 4), ("RESOLVED", 4), ("SIGNED", 4), ("DISPATCHED", 4), ("ACCEPTED", 4), ("REPORTED", 4)],
        {"state": "CLOSED", "illegal_count": 0},
    ),
    "a found case": ([("DISCOVERED", 0), ("REPORTED", 1)], {"found_at": at(0), "reported_at": at(1)}),
    "found after the report": ([("REPORTED", 0), ("DISCOVERED", 1)], {"found_at": None, "illegal_count": 1}),
    "later reports only count": (
        [*OPEN, ("REPORTED", 2), ("REPORTED", 3), ("DISPATCHED", 4)],
        {"report_count": 3, "illegal_count": 0, "reported_at": at(0), "state": "DISPATCHED"},
    ),
    "extended twice, forward": (
        [*SIGNED, extend(4, 30), extend(5, 40)],
        {"due_at": at(40), "extended_count": 2, "illegal_count": 0, "state": "SIGNED"},
    ),
    "a third extension": (
        [*SIGNED, extend(4, 30), extend(5, 40), extend(6, 50)],
        {"due_at": at(40), "extended_count": 2, "illegal_count": 1},
    ),
    "an extension that is not later": ([*SIGNED, extend(4, 25)], {"due_at": at(25), "illegal_count": 1}),
    "extended before signed": ([*SENT, extend(4, 99)], {"due_at": at(25), "illegal_count": 1}),
    "reopening restarts the clock": (
        [*SHUT, ("REOPENED", 50), ("ACCEPTED", 60)],
        {"due_at": at(74), "accepted_at": at(1), "state": "ACCEPTED", "reopened_count": 1,
         "is_closed": False},
    ),
    "reopened and closed again": (
        [*SHUT, ("REOPENED", 50), ("ACCEPTED", 51), ("DISPATCHED", 52), ("SIGNED", 53), ("RESOLVED", 54),
         ("CLOSED", 55)],
        {"first_closed_at": at(5), "closed_at": at(55), "first_signed_at": at(3), "closed_count": 2},
    ),
    "returned and sent again": (
        [*SENT, ("RETURNED", 3), ("DISPATCHED", 4), ("SIGNED", 5), ("RETURNED", 6)],
        {"returned_count": 2, "returned_at": at(6), "first_dispatched_at": at(2), "last_dispatched_at": at(4),
         "first_response_at": at(5), "state": "RETURNED"},
    ),
    "escalation ends in a dispatch": (
        [*SENT, ("ESCALATED", 3, {"level": "district"}), ("SIGNED", 4), ("DISPATCHED", 5)],
        {"level": "district", "escalated_at": at(3), "illegal_count": 1, "state": "DISPATCHED"},
    ),
    "resolved cannot be escalated": ([*DONE, ("ESCALATED", 5)], {"state": "RESOLVED", "illegal_count": 1}),
    "self-handled": (
        [*OPEN, ("HANDLING", 1.5, SELF), ("RESOLVED", 2), ("CLOSED", 3)],
        {"state": "CLOSED", "first_response_at": at(1.5), "first_action_at": at(1.5)},
    ),
    "resolved by the finder": ([*OPEN, ("RESOLVED", 2, SELF)], {"state": "RESOLVED", "illegal_count": 0}),
    "handled without being sent": ([*OPEN, ("HANDLING", 2)], {"state": "ACCEPTED", "illegal_count": 1}),
    "self-handled means nothing elsewhere": ([*SENT, ("RESOLVED", 3, SELF)], {"state": "DISPATCHED"}),
    "rework": (
        [*DONE, ("REWORK", 5), ("HANDLING", 6), ("RESOLVED", 7), ("CLOSED", 8)],
        {"rework_count": 1, "resolved_at": at(7), "state": "CLOSED"},
    ),
    "voided": ([*SENT, ("VOIDED", 3)], {"state": "VOIDED", "is_counted": False, "is_admitted": True}),
    "voided when reopened": ([*SHUT, ("REOPENED", 6), ("VOIDED", 7)], {"state": "VOIDED"}),
    "closed cannot be voided": ([*SHUT, ("VOIDED", 6)], {"state": "CLOSED", "illegal_count": 1}),
    "rejected cannot be voided": (
        [("REPORTED", 0, {"outcome": "rejected"}), ("VOIDED", 1)],
        {"state": "REJECTED", "illegal_count": 1, "is_admitted": False, "rejected_at": at(30 / 3600)},
    ),
    "rejected stays rejected": (
        [("REPORTED", 0, {"outcome": "rejected"}), ("REPORTED", 1), ("ACCEPTED", 2)],
        {"state": "REJECTED", "report_count": 2, "illegal_count": 1, "is_counted": False},
    ),
    "merged": (
        [*SENT, ("MERGED", 3, MERGE), ("SIGNED", 4), ("VOIDED", 5)],
        {"state": "MERGED", "is_counted": False, "primary_case_id": "primary", "illegal_count": 2},
    ),
    "unmerged": (
        [*SENT, ("MERGED", 3, MERGE), ("UNMERGED", 4), ("SIGNED", 5)],
        {"state": "SIGNED", "is_counted": True, "primary_case_id": None, "merged_at": at(3),
         "illegal_count": 0},
    ),
    "an illegal merge does not forget the state before the legal one": (
        [*OPEN, ("MERGED", 2, MERGE), ("MERGED", 3, MERGE), ("UNMERGED", 4)],
        {"state": "ACCEPTED", "illegal_count": 1},
    ),
    "signed cannot be merged": (
        [*SIGNED, ("MERGED", 4, MERGE)],
        {"state": "SIGNED", "primary_case_id": None},
    ),
    "the last rating counts": (
        [*SHUT, ("FEEDBACK", 6, {"rating": 5}), ("FEEDBACK", 7), ("FEEDBACK", 8, {"rating": 2})],
        {"rating": 2, "rating_count": 2, "satisfied_count": 1, "feedback_at": at(8), "is_closed": True},
    ),
    "archived is the end": (
        [*SHUT, ("ARCHIVED", 6), ("REOPENED", 7)],
        {"state": "ARCHIVED", "illegal_count": 1},
    ),
    "the department that a dispatch names": (
        [*OPEN, ("DISPATCHED", 2, {"department": "health"}), ("RETURNED", 3), ("DISPATCHED", 4),
         ("DISPATCHED", 5, {"department": "fire_rescue"})],
        {"department": "health", "illegal_count": 1},
    ),
    "evidence pending": (
        [("REPORTED", 0, {"evidence_pending": True}), *DONE[1:]],
        {"evidence_pending": True, "resolved_without_evidence": True, "illegal_count": 0},
    ),
    "orphan": ([("SIGNED", 3), ("CLOSED", 4)], {"state": "", "orphan": True, "duplicate_case": False}),
    "an orphan's report comes late": (
        [("SIGNED", 3), ("REPORTED", 1)],
        {"orphan": False, "illegal_count": 1},
    ),
    "events of a resend": (
        [("REPORTED", 0, {"outcome": "resent", "primary_case_id": "first"}), ("SIGNED", 1)],
        {"orphan": False, "duplicate_case": True, "primary_case_id": "first", "report_count": 0},
    ),
    "a resend of a kept report": (
        [*OPEN, ("REPORTED", 2, {"outcome": "resent", "primary_case_id": "x"})],
        {"duplicate_case": False, "report_count": 1, "primary_case_id": None, "state": "ACCEPTED"},
    ),
    "no known limit": (
        [("REPORTED", 0, {"resolution_limit_seconds": None, "response_limit_seconds": None}), *SIGNED[1:],
         extend(4, 9)],
        {"due_at": None, "response_due_at": None, "illegal_count": 1},
    ),
    "late beyond the horizon": (
        [("REPORTED", 0), ("ACCEPTED", 1, {"ingested_at": at(1 + 7 * 24 + 0.1)}),
         ("DISPATCHED", 2, {"ingested_at": at(200), "backfill": True})],
        {"late_count": 1, "state": "DISPATCHED"},
    ),
}  # fmt: skip


def events_of(name: str, steps: Any) -> list[Event]:
    events = chain(name, steps)
    for event in events:
        event.outcome = event.attributes.pop("outcome", event.outcome)
        event.ingested_at = event.attributes.pop("ingested_at", event.ingested_at)
    return events


@pytest.fixture(scope="module")
def world(open_client: Client) -> Iterator[World]:
    migrate(open_client, DATABASE)
    written = World(open_client)
    events = flat(events_of(name, steps) for name, (steps, _) in CASES.items())
    random.Random(7).shuffle(events)
    for third in range(3):
        written.write(*events[third::3])
    yield written
    open_client.command(f"DROP DATABASE {DATABASE}")
    open_client.database = "default"


@pytest.fixture(scope="module")
def current(world: World) -> dict[str, dict[str, Any]]:
    rows = world.client.query("SELECT * FROM case_current", tz_mode="aware").named_results()
    return {row["case_id"]: dict(row) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_case_folds_as_ruled(current: dict[str, dict[str, Any]], name: str) -> None:
    expected = CASES[name][1]
    assert {column: current[name][column] for column in expected} == expected


def test_a_past_instant_shows_what_had_happened_by_then(world: World) -> None:
    name = "reopened and closed again"
    assert world.case(name, at(5))["state"] == "CLOSED"
    past = world.case(name, at(50.5))
    assert (past["state"], past["due_at"], past["closed_count"]) == ("REOPENED", at(74), 1)
    assert world.case("unmerged", at(3.5))["primary_case_id"] == "primary"
    before = world.case("an orphan's report comes late", at(1))
    assert (before["orphan"], before["illegal_count"]) == (False, 0)


def test_refreshing_again_and_writing_a_block_again_change_nothing(world: World) -> None:
    client = world.client

    def states() -> list[Any]:
        return list(client.query("SELECT * FROM case_current ORDER BY case_id").result_rows)

    before = states()
    events = events_of("voided", CASES["voided"][0])
    world.write(*events)  # the same ids at later positions: a redelivery past the window
    assert [row[0] for row in states()] == [row[0] for row in before]
    name = {
        column: n for n, column in enumerate(client.query("SELECT * FROM case_current LIMIT 0").column_names)
    }
    ignored = {name["version"]}
    assert [[v for n, v in enumerate(row) if n not in ignored] for row in states()] == [
        [v for n, v in enumerate(row) if n not in ignored] for row in before
    ]


def test_the_first_copy_of_an_id_counts_whichever_arrives_first(world: World) -> None:
    copy = Event("copies", "REPORTED", at(9), event_id="same")
    first = Event("copies", "REPORTED", at(8), event_id="same")
    world.write(copy, offset=5_001)
    world.write(first, offset=5_000)
    case = world.case("copies")
    assert (case["reported_at"], case["report_count"]) == (at(8), 1)
