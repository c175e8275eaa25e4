"""The case fold on a real engine: from the set of events to the state."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from tests.integration.case_world import World, at, chain

ROUND = [
    ("REPORTED", 0), ("ACCEPTED", 0.1), ("DISPATCHED", 0.2), ("SIGNED", 0.5), ("ARRIVED", 1),
    ("HANDLING", 1.5), ("RESOLVED", 3), ("CLOSED", 4),
]  # fmt: skip


def test_a_case_goes_from_report_to_closure(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("c1", ROUND))
    case = world.case("c1")
    assert case["state"] == "CLOSED"
    assert case["is_counted"]
    assert case["reported_at"] == at(0)
    assert case["first_response_at"] == at(0.5)
    assert case["closed_at"] == at(4)
    assert case["due_at"] == at(24.1)
    assert case["response_due_at"] == at(1)
    assert case["illegal_count"] == 0
    early = world.case("c1", at(0.3))
    assert early["state"] == "DISPATCHED"
    assert early["first_response_at"] is None
