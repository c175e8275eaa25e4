"""Corners of the KPI call: flow, percentiles, duplicates, attribution, orphans, windows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.errors import ContractError
from pipeline.read.held.figures import HeldFigures
from pipeline.read.kpi import kpi
from pipeline.store.cases import refresh_cases
from pipeline.store.kpi_views import BY, LOOK
from tests.integration.case_world import DISTRICTS, GRID, Event, KpiNames, World, at, chain

OTHER_GRID = "440703002001001"
SHUT = [
    ("REPORTED", 0), ("ACCEPTED", 1), ("DISPATCHED", 2), ("SIGNED", 3), ("RESOLVED", 4), ("CLOSED", 5),
]  # fmt: skip


def ask(client: Client, **changes: Any) -> dict[str, dict[str, Any]]:
    asked: dict[str, Any] = {"by": "city", "from_": at(0), "to": at(48), "as_of": at(48), "view": "cohort"}
    answer = kpi(client, names=KpiNames(), **(asked | changes))
    held = HeldFigures(most_cases=1_000_000)
    held.keep_up(client)
    assert kpi(client, names=KpiNames(), held=held, **(asked | changes)) == answer
    return {row["key"]: row for row in answer["rows"]}


def test_without_any_event_city_and_districts_are_listed_with_zeros_and_nulls(clickhouse: Client) -> None:
    rows = ask(clickhouse, by="district")
    assert tuple(rows) == DISTRICTS
    row = rows["440704"]
    assert (row["reports"], row["cases"], row["closure_rate"]) == (0, 0, None)
    assert row["response_seconds"] == {"p50": None, "p90": None, "p99": None}
    assert row["duplicates"] == {"L1": 0, "L2": 0, "L3": 0}
    assert ask(clickhouse, by="grid") == {}


def test_reports_and_their_copies_count_once_each(clickhouse: Client) -> None:
    world = World(clickhouse)
    report, rejected = Event("a", "REPORTED", at(0)), Event("b", "REPORTED", at(1), outcome="rejected")
    resend = Event("c", "REPORTED", at(2), outcome="resent", attributes={"primary_case_id": "a"})
    follow_up = Event("c", "SIGNED", at(3))
    world.write(report, rejected, resend, follow_up)
    world.redeliver(report, rejected, follow_up)
    # the whole block once more, as after a lost answer past the deduplication window of inserts
    world.write(report, rejected, resend, follow_up, offset=0)
    # and one redelivery that the stream no longer knew: too old by then
    world.write(Event("a", "REPORTED", at(0), event_id=report.event_id, outcome="rejected"))
    (row,) = ask(clickhouse).values()
    assert (row["admitted_reports"], row["rejected_reports"], row["reports"]) == (1, 1, 5)
    assert row["duplicates"] == {"L1": 2, "L2": 1, "L3": 0}
    assert row["admission_rate"] == pytest.approx(1 / 2)
    assert row["duplicate_rate"] == pytest.approx(3 / 5)
    assert (row["cases"], row["orphans"]) == (1, 0)


def test_the_window_ends_before_its_last_instant(clickhouse: Client) -> None:
    World(clickhouse).write(Event("a", "REPORTED", at(0)), Event("b", "REPORTED", at(1)))
    assert ask(clickhouse, to=at(1))["4407"]["cases"] == 1
    assert ask(clickhouse, from_=at(1))["4407"]["cases"] == 1
    assert ask(clickhouse, as_of=at(0.5))["4407"]["reports"] == 1


def test_percentiles_are_elements_of_the_sorted_whole_seconds(clickhouse: Client) -> None:
    world = World(clickhouse)
    for number in range(1, 11):
        world.write(
            *chain(f"c{number}", [*SHUT[:3], ("SIGNED", 2 + (number * 1.0009) / 3600)]), refresh=number == 10
        )
    # refreshing the last block folds its case only: fold the others too
    refresh_cases(clickhouse, world.inc, [(0, 0, world.next_offset)])
    (row,) = ask(clickhouse).values()
    assert row["department_response_seconds"] == {"p50": 5, "p90": 9, "p99": 10}
    assert row["dispatch_seconds"] == {"p50": 7200, "p90": 7200, "p99": 7200}
    assert row["resolution_seconds"] == {"p50": None, "p90": None, "p99": None}


def test_flow_counts_what_happened_in_the_window(clickhouse: Client) -> None:
    world = World(clickhouse)
    again = [
        ("REOPENED", 6),
        ("ACCEPTED", 7),
        ("DISPATCHED", 8),
        ("SIGNED", 9),
        ("RESOLVED", 10),
        ("CLOSED", 11),
    ]
    world.write(*chain("a", [*SHUT, *again, ("FEEDBACK", 12, {"rating": 4})]))
    world.write(*chain("b", [("REPORTED", 4.5), ("VOIDED", 5.5)]))
    (row,) = ask(clickhouse, view="flow", from_=at(4), to=at(20)).values()
    assert (row["cases"], row["closed"], row["closure_rate"]) == (1, 2, 2.0)
    assert (row["voided"], row["ratings"], row["responded"]) == (1, 1, 0)
    assert row["resolution_seconds"] == {"p50": 4 * 3600, "p90": 10 * 3600, "p99": 10 * 3600}
    assert row["open"] is row["overdue"] is row["response_rate"] is row["admission_rate"] is None
    assert ask(clickhouse, view="flow", by="grid", from_=at(30)) == {}


def test_a_case_counts_under_its_opening_report_and_the_department_that_a_dispatch_names(
    clickhouse: Client,
) -> None:
    world = World(clickhouse)
    steps: list[Any] = [
        ("REPORTED", 0, {"grid_code": OTHER_GRID, "matter_code": "UE-01", "channel": "grid_patrol"}),
        ("ACCEPTED", 1, {"grid_code": GRID}),
        ("DISPATCHED", 2, {"department": "fire_rescue"}),
    ]
    world.write(*chain("a", steps))
    for by, key in [
        ("district", "440703"), ("town", "440703002"), ("village", "440703002001"), ("grid", OTHER_GRID),
        ("matter", "UE-01"), ("category", "UE"), ("channel", "grid_patrol"),
    ]:  # fmt: skip
        assert [k for k, row in ask(clickhouse, by=by).items() if row["cases"]] == [key]
    departments = ask(clickhouse, by="department")
    assert {key: (row["reports"], row["cases"]) for key, row in departments.items()} == {
        "fire_rescue": (0, 1),
        "urban_management": (1, 0),
    }
    assert departments["urban_management"]["closure_rate"] is None


def test_orphans_count_until_their_report_comes(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", [("SIGNED", 1), ("CLOSED", 2)]))
    assert ask(clickhouse)["4407"]["orphans"] == 2
    week = ask(clickhouse, as_of=at(24 * 7 + 1.5))["4407"]
    assert (week["orphans"], week["orphans_overdue"]) == (2, 1)
    assert ask(clickhouse, by="grid") == {}
    world.write(Event("a", "REPORTED", at(1.5)))
    assert ask(clickhouse)["4407"]["orphans"] == 0
    assert ask(clickhouse, as_of=at(1.2))["4407"]["orphans"] == 1


def test_demand_resolution_needs_a_citizen_channel_and_no_bad_last_rating(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", [*SHUT, ("FEEDBACK", 6, {"rating": 1}), ("FEEDBACK", 7, {"rating": 5})]))
    world.write(*chain("b", [*SHUT, ("FEEDBACK", 6, {"rating": 2})]))
    world.write(*chain("c", [("REPORTED", 0, {"channel": "grid_patrol"}), *SHUT[1:]]))
    (row,) = ask(clickhouse).values()
    assert row["demand_resolution_rate"] == pytest.approx(1 / 2)
    assert (row["ratings"], row["satisfaction_rate"]) == (3, pytest.approx(1 / 3))


def test_faults_of_cases_are_counted(clickhouse: Client) -> None:
    """Unproven: counted cases whose report lacked a photo; late and illegal events: of all admitted ones."""
    world = World(clickhouse)
    unproven = {"evidence_pending": True}
    world.write(*chain("a", [("REPORTED", 0, unproven), *SHUT[1:]]))
    world.write(*chain("b", [("REPORTED", 0, unproven), ("VOIDED", 1), ("SIGNED", 2)]))
    world.write(Event("c", "REPORTED", at(1), outcome="rejected", attributes=unproven))
    world.write(*chain("d", [("REPORTED", 0), ("CLOSED", 1), ("ACCEPTED", 2)]))
    world.write(Event("d", "DISPATCHED", at(3), ingested_at=at(3 + 7 * 24 + 0.01)))
    world.write(Event("d", "SIGNED", at(4), ingested_at=at(4 + 7 * 24)))
    (row,) = ask(clickhouse).values()
    assert (row["cases"], row["voided"], row["unproven"]) == (2, 1, 1)
    assert (row["illegal_events"], row["late_events"]) == (2, 1)
    (flow,) = ask(clickhouse, view="flow").values()
    assert flow["unproven"] is flow["illegal_events"] is flow["late_events"] is None


def test_a_time_that_runs_backward_makes_an_illegal_event_and_no_duration(clickhouse: Client) -> None:
    """A duration ends with an event that is legal only behind the one that begins it: none is negative."""
    world = World(clickhouse)
    world.write(*chain("a", [("REPORTED", 2), ("ACCEPTED", 3), ("DISPATCHED", 4), ("SIGNED", 1)]))
    world.write(*chain("b", [("REPORTED", 1), ("ACCEPTED", 0), ("DISPATCHED", 0.5), ("SIGNED", 0.7)]))
    (row,) = ask(clickhouse).values()
    assert (row["cases"], row["illegal_events"], row["negative_durations"]) == (2, 4, 0)
    assert (row["responded"], row["response_seconds"]["p50"]) == (0, None)
    assert row["dispatch_seconds"] == {"p50": 7200, "p90": 7200, "p99": 7200}


def test_only_admitted_cases_make_an_instant_past(clickhouse: Client) -> None:
    """The past costs more to read: a rejected report dated years ahead must not make all calls pay for it."""
    world = World(clickhouse)
    as_of = "'2024-05-03 00:00:00.000'"

    def past() -> bool:
        return bool(clickhouse.query(re.sub(r"{as_of:.*?'\)}", as_of, LOOK)).result_rows[0][0])

    world.write(*chain("a", SHUT), Event("b", "REPORTED", at(24 * 700), outcome="rejected"))
    assert not past()
    world.write(Event("c", "REPORTED", at(0)), Event("c", "ACCEPTED", at(24 * 700)))
    assert past()


@pytest.mark.parametrize("view", ["cohort", "flow"])
def test_the_view_for_dashboards_gives_the_figures_of_the_call(clickhouse: Client, view: str) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    lent = {"grid_code": OTHER_GRID, "matter_code": "PS-01", "lead_department": "civil_affairs"}
    again = Event("b", "REPORTED", at(1), attributes=lent)
    named = Event("b", "DISPATCHED", at(3), attributes={"department": "fire_rescue"})
    resent = Event("c", "REPORTED", at(2), outcome="resent", attributes={"primary_case_id": "b"})
    rejected = Event("d", "REPORTED", at(2), outcome="rejected", attributes=lent)
    matter = {"matter_code": "SA-07", "category": "SA", "lead_department": "urban_management"}
    orphan = Event("e", "SIGNED", at(4), attributes=matter)
    world.write(again, Event("b", "ACCEPTED", at(2)), named, resent, rejected, orphan)
    world.redeliver(again)
    channels = ", citizen_channels = ['hotline_12345']" if view == "cohort" else ""
    counts = ("reports", "admitted_reports", "rejected_reports", "orphans", "cases", "closed", "closure_rate")
    for by in BY:
        rows = clickhouse.query(
            f"SELECT * FROM kpi_{view}(by = '{by}', from = '2024-05-01 00:00:00.000', "
            f"to = '2024-05-03 00:00:00.000', as_of = '2024-05-03 00:00:00.000'{channels}) WHERE listed"
        ).named_results()
        seen = {
            row["key"]: [
                *(row[name] for name in counts),
                row["duplicates_l1"], row["duplicates_l2"], row["response_seconds_p50"],
            ]
            for row in rows
        }  # fmt: skip
        told = {
            key: [
                *(row[name] for name in counts),
                row["duplicates"]["L1"], row["duplicates"]["L2"], row["response_seconds"]["p50"],
            ]
            for key, row in ask(clickhouse, by=by, view=view).items()
            if row["reports"] or row["cases"]  # the call lists every district, the view what there is
        }  # fmt: skip
        assert seen == told, by
        # each part is there, so that nothing is equal because both say nothing
        assert [sum(row[at] for row in seen.values()) for at in (0, 3, 4, 7, 8)] == [5, 1, 2, 1, 1], by


def test_an_unknown_dimension_or_view_is_refused(clickhouse: Client) -> None:
    with pytest.raises(ContractError, match="by must be one of"):
        ask(clickhouse, by="street")
    with pytest.raises(ContractError, match="view must be one of"):
        ask(clickhouse, view="stock")
