"""What GET /v1/cases shows of a case."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from pipeline.read.cases import case
from tests.integration.case_world import Event, World, at, chain


def test_a_case_shows_its_events_in_fold_order_with_the_verdict_on_each(clickhouse: Client) -> None:
    world = World(clickhouse)
    events = chain(
        "c1", [("REPORTED", 0), ("CLOSED", 0.05), ("ACCEPTED", 0.1), ("REPORTED", 0.2), ("DISPATCHED", 1)]
    )
    world.write(*reversed(events))
    world.write(*chain("c2", [("REPORTED", 0), ("MERGED", 1, {"primary_case_id": "c1"})]))
    found = case(clickhouse, "c1")
    assert found is not None
    assert [(e["event_type"], e["transition_ok"], e["state_after"]) for e in found["events"]] == [
        ("REPORTED", True, "ADMITTED"),
        ("CLOSED", False, "ADMITTED"),
        ("ACCEPTED", True, "ACCEPTED"),
        ("REPORTED", True, "ACCEPTED"),
        ("DISPATCHED", True, "DISPATCHED"),
    ]
    assert found["state"] == "DISPATCHED"
    assert found["counts"]["illegal_count"] == 1
    assert (found["counts"]["report_count"], found["counts"]["merged_count"]) == (2, 1)
    assert found["merged_case_ids"] == ["c2"]
    assert found["timestamps"]["accepted_at"] == "2024-05-01T00:06:00.000Z"
    assert found["limits"]["due_at"] == "2024-05-02T00:06:00.000Z"


def test_a_rejected_case_says_why(clickhouse: Client) -> None:
    World(clickhouse).write(
        Event(
            "c1", "REPORTED", at(0), outcome="rejected", attributes={"reasons": ["TOO_OLD", "GRID_UNKNOWN"]}
        )
    )
    found = case(clickhouse, "c1")
    assert found is not None
    assert found["state"] == "REJECTED"
    assert found["report"] is not None
    assert found["report"]["reasons"] == ["TOO_OLD", "GRID_UNKNOWN"]
    assert (found["report"]["outcome"], found["report"]["ahead"]) == ("rejected", False)


def test_an_orphan_and_an_unknown_case(clickhouse: Client) -> None:
    World(clickhouse).write(Event("c1", "SIGNED", at(0)))
    found = case(clickhouse, "c1")
    assert found is not None
    assert (found["state"], found["orphan"], found["report"]) == (None, True, None)
    assert case(clickhouse, "nobody") is None


def test_a_case_whose_state_is_not_stored_yet_is_told_by_its_events(clickhouse: Client) -> None:
    """States are stored after their events, and later still while ClickHouse refuses them."""
    world = World(clickhouse)
    world.write(*chain("c1", [("REPORTED", 0), ("ACCEPTED", 0.1)]), refresh=False)
    found = case(clickhouse, "c1")
    assert found is not None
    assert (found["state"], found["is_counted"], found["orphan"]) == ("ACCEPTED", True, False)
    assert found["report"] == {
        "source": "s1", "event_id": "c1-REPORTED-01000000000000", "occurred_at": "2024-05-01T00:00:00.000Z",
        "outcome": "admitted", "reasons": [], "ahead": False,
    }  # fmt: skip
    assert (found["district_code"], found["department"]) == ("440704", "urban_management")
    assert found["limits"]["due_at"] == "2024-05-02T00:06:00.000Z"
    world.write(*chain("c2", [("REPORTED", 0)]))
    world.write(*chain("c2", [("ACCEPTED", 0.1)]), refresh=False)
    behind = case(clickhouse, "c2")
    assert behind is not None
    assert behind["state"] == behind["events"][-1]["state_after"] == "ACCEPTED"


def test_a_case_is_told_as_of_an_instant(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("c1", [("REPORTED", 0), ("ACCEPTED", 0.1), ("DISPATCHED", 2)]))
    world.write(*chain("c2", [("REPORTED", 0), ("MERGED", 2, {"primary_case_id": "c1"})]))
    found = case(clickhouse, "c1", now=at(1))
    assert found is not None
    assert (found["state"], found["counts"]["event_count"], len(found["events"])) == ("ACCEPTED", 2, 3)
    assert (found["counts"]["merged_count"], found["merged_case_ids"]) == (0, [])


def test_an_orphan_whose_report_is_dated_ahead_tells_of_it(clickhouse: Client) -> None:
    """Rejected for its future time, the report stands in the fold at that time and not before: nobody need
    look for a report that is missing."""
    World(clickhouse).write(
        Event("c1", "SIGNED", at(0)),
        Event("c1", "REPORTED", at(48), outcome="rejected", attributes={"reasons": ["TIME_IN_FUTURE"]}),
    )
    found = case(clickhouse, "c1", now=at(1))
    assert found is not None
    assert (found["state"], found["orphan"]) == (None, True)
    assert found["report"] == {
        "source": "s1", "event_id": "c1-REPORTED-03000000000000", "occurred_at": "2024-05-03T00:00:00.000Z",
        "outcome": "rejected", "reasons": ["TIME_IN_FUTURE"], "ahead": True,
    }  # fmt: skip
    then = case(clickhouse, "c1", now=at(48))
    assert then is not None
    assert then["report"] is not None
    assert (then["state"], then["orphan"], then["report"]["ahead"]) == ("REJECTED", False, False)
