"""The worked example of the metrics, from events in real tables to the answer of the KPI call."""

from __future__ import annotations

from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.read.kpi import kpi
from tests.integration.case_world import GRID, Event, KpiNames, World, at, chain, flat

#: As of 48 h: limits are 1 h for the first response and 24 h for the resolution.
AS_OF = at(48)
TIMELY = [("REPORTED", 0), ("ACCEPTED", 0.1), ("DISPATCHED", 0.2), ("SIGNED", 0.5), ("HANDLING", 1)]
CLOSED = [*TIMELY, ("RESOLVED", 5), ("CLOSED", 6)]


def example() -> list[Event]:
    """a closed on time; b closed late; c open, not due, never responded; d open, overdue, responded late;
    e rejected; f voided; g merged into a; h reopened, new limit not due; i closed on time after one rework;
    j closed on time; and CLOSED of a redelivered."""
    return flat(
        [
            chain("a", CLOSED),
            chain("b", [*TIMELY, ("RESOLVED", 29), ("CLOSED", 30)]),
            chain("c", [("REPORTED", 30), ("ACCEPTED", 30.5), ("DISPATCHED", 31)]),
            chain("d", [("REPORTED", 0), ("ACCEPTED", 0.1), ("DISPATCHED", 0.2), ("SIGNED", 3)]),
            [Event("e", "REPORTED", at(0), outcome="rejected")],
            chain("f", [*TIMELY, ("VOIDED", 7)]),
            chain("g", [("REPORTED", 0), ("ACCEPTED", 0.1), ("MERGED", 0.2, {"primary_case_id": "a"})]),
            chain("h", [*CLOSED, ("REOPENED", 40)]),
            chain(
                "i",
                [*TIMELY, ("RESOLVED", 5), ("REWORK", 6), ("HANDLING", 7), ("RESOLVED", 8), ("CLOSED", 9)],
            ),
            chain("j", CLOSED),
        ]
    )


def ask(client: Client, **changes: Any) -> list[dict[str, Any]]:
    asked: dict[str, Any] = {"by": "city", "from_": at(-24), "to": AS_OF, "as_of": AS_OF, "view": "cohort"}
    return list(kpi(client, names=KpiNames(), **(asked | changes))["rows"])


def test_the_worked_example_gives_its_published_rates(clickhouse: Client) -> None:
    world = World(clickhouse)
    events = example()
    world.write(*events)
    closed_a = next(event for event in events if event.case_id == "a" and event.event_type == "CLOSED")
    world.redeliver(closed_a)
    # a redelivery after the window of stream-side deduplication reaches the tables: the fold absorbs it
    world.write(closed_a)
    (row,) = ask(clickhouse)
    assert row["key"] == "4407"
    assert (row["cases"], row["closed"], row["voided"], row["merged"]) == (7, 4, 1, 1)
    assert row["closure_rate"] == pytest.approx(4 / 7)
    assert row["closure_on_time_rate"] == pytest.approx(3 / 5)
    assert row["rework_rate"] == pytest.approx(2 / 5)
    assert row["response_rate"] == pytest.approx(6 / 7)
    assert row["timely_response_rate"] == pytest.approx(5 / 7)
    assert (row["reports"], row["admitted_reports"], row["rejected_reports"]) == (10, 9, 1)
    assert row["admission_rate"] == pytest.approx(9 / 10)
    assert row["void_rate"] == pytest.approx(1 / 9)
    assert row["duplicates"] == {"L1": 0, "L2": 0, "L3": 1}
    assert (row["open"], row["overdue"]) == (3, 1)
    assert world.case("a")["merged_count"] == 1
    (district,) = [r for r in ask(clickhouse, by="district") if r["key"] == GRID[:6]]
    assert {k: v for k, v in district.items() if k not in ("key", "name_zh")} == {
        k: v for k, v in row.items() if k not in ("key", "name_zh")
    }
