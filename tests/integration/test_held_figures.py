"""What is held follows the store: whatever happens to the tables, a call answers what the store would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.read.held.figures import HeldFigures
from pipeline.read.kpi import BY, VIEWS, kpi, kpi_together
from pipeline.store.cases import refold
from pipeline.store.kpi_views import TOGETHER
from tests.integration.case_world import Event, KpiNames, World, at, chain

WINDOW: dict[str, Any] = {"from_": at(0), "to": at(48), "as_of": at(48)}
SHUT = [
    ("REPORTED", 0), ("ACCEPTED", 1), ("DISPATCHED", 2), ("SIGNED", 3), ("RESOLVED", 4), ("CLOSED", 5),
]  # fmt: skip


def following(client: Client, most_cases: int = 1_000) -> HeldFigures:
    held = HeldFigures(most_cases)
    held.keep_up(client)
    return held


def city(client: Client, held: HeldFigures, keys: Sequence[str] = ("city", "department")) -> dict[str, Any]:
    """The city's row as it is held; calls by `keys` give what the store gives."""
    for view in VIEWS:
        for by in keys:
            asked: dict[str, Any] = {"by": by, "view": view, "names": KpiNames(), **WINDOW}
            assert held.parts(client, view, by, (), **WINDOW) is not None, (view, by)
            assert kpi(client, held=held, **asked) == kpi(client, **asked), (view, by)
    row: dict[str, Any] = kpi(client, by="city", view="cohort", names=KpiNames(), held=held, **WINDOW)[
        "rows"
    ][0]
    return row


def answers(held: HeldFigures, client: Client) -> bool:
    return held.parts(client, "cohort", "city", (), **WINDOW) is not None


def test_what_is_stored_later_counts_in_the_next_call(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT[:3]), *chain("b", SHUT))
    held = following(clickhouse)
    assert city(clickhouse, held)["closed"] == 1
    world.write(*chain("a", SHUT[3:]), *chain("c", [("REPORTED", 7)]))
    row = city(clickhouse, held)
    assert (row["cases"], row["closed"], row["admitted_reports"]) == (3, 2, 3)
    world.write(Event("d", "REPORTED", at(8), outcome="rejected"))
    resend = Event("e", "REPORTED", at(9), outcome="resent", attributes={"primary_case_id": "c"})
    world.write(resend)
    world.redeliver(resend)
    row = city(clickhouse, held, BY)
    assert (row["reports"], row["rejected_reports"], row["duplicates"]) == (6, 1, {"L1": 1, "L2": 1, "L3": 0})


def test_merges_change_nothing(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    held = following(clickhouse)
    for number in range(4):
        world.write(*chain(f"b{number}", SHUT[: number + 2]), *chain("a", [("FEEDBACK", 6 + number)]))
        for table in ("cases", "events"):
            clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")
        assert city(clickhouse, held)["cases"] == number + 2
    # the same block once more, past the deduplication window of inserts
    world.write(*chain("a", SHUT), offset=0)
    assert city(clickhouse, held)["admitted_reports"] == 5


def test_parts_that_merge_between_the_look_and_the_reading_are_read_where_they_went(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.read.held import figures

    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    held = following(clickhouse)
    world.write(*chain("b", SHUT))
    world.write(*chain("c", SHUT))
    looked, read = figures.active_parts, []

    def look(client: Client, tables: Any) -> Any:
        parts = looked(client, tables)
        if not read:  # after the first look of this call
            for table in ("cases", "events"):
                client.command(f"OPTIMIZE TABLE {table} FINAL")
        read.append(1)
        return parts

    monkeypatch.setattr(figures, "active_parts", look)
    assert answers(held, clickhouse)
    assert len(read) > 2
    monkeypatch.undo()
    assert city(clickhouse, held)["cases"] == 3


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE cases UPDATE channel = 'grid_patrol' WHERE 1",
        "ALTER TABLE cases DELETE WHERE case_id = 'a'",
        "DELETE FROM cases WHERE case_id = 'a'",
        "ALTER TABLE events UPDATE channel = 'grid_patrol' WHERE 1",
        "ALTER TABLE events DELETE WHERE case_id = 'a'",
        "ALTER TABLE rejections UPDATE channel = 'grid_patrol' WHERE 1",
        "TRUNCATE TABLE events",
        "TRUNCATE TABLE cases",
        "ALTER TABLE events DROP PARTITION 202405",
    ],
)
def test_what_changes_in_place_is_read_anew(clickhouse: Client, change: str) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT), Event("r", "REPORTED", at(2), outcome="rejected"))
    world.write(*chain("b", SHUT))
    held = following(clickhouse)
    before = city(clickhouse, held)
    clickhouse.command(change, settings={"mutations_sync": 2, "lightweight_deletes_sync": 2})
    assert not answers(held, clickhouse)
    held.keep_up(clickhouse)
    after = city(clickhouse, held)
    assert before["cases"] == 2
    world.write(*chain("c", SHUT))
    assert city(clickhouse, held)["cases"] == after["cases"] + 1


def test_states_that_are_folded_again_take_the_place_of_the_old_ones(clickhouse: Client) -> None:
    """They have the version that they had."""
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT[:2]))
    clickhouse.command(
        "ALTER TABLE cases UPDATE is_closed = 0 WHERE case_id = 'a'", settings={"mutations_sync": 2}
    )
    held = following(clickhouse)
    assert city(clickhouse, held)["closed"] == 0
    assert list(refold(clickhouse)) == [2]
    assert city(clickhouse, held)["closed"] == 1


def test_a_past_instant_is_the_stores(clickhouse: Client) -> None:
    World(clickhouse).write(*chain("a", SHUT))
    held = following(clickhouse)
    past = WINDOW | {"as_of": at(2)}
    assert held.parts(clickhouse, "cohort", "city", (), **past) is None
    asked: dict[str, Any] = {"by": "city", "view": "cohort", "names": KpiNames(), **past}
    assert kpi(clickhouse, held=held, **asked) == kpi(clickhouse, **asked)


def test_orphans_are_found_until_their_report_comes(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", [("SIGNED", 1), ("CLOSED", 2)]))
    held = following(clickhouse)
    assert city(clickhouse, held)["orphans"] == 2
    world.write(Event("a", "REPORTED", at(1.5)))
    assert city(clickhouse, held)["orphans"] == 0


def test_several_keys_at_once(clickhouse: Client) -> None:
    World(clickhouse).write(*chain("a", SHUT), Event("r", "REPORTED", at(2), outcome="rejected"))
    held = following(clickhouse)
    together = kpi_together(clickhouse, TOGETHER, names=KpiNames(), held=held, **WINDOW)
    assert together == kpi_together(clickhouse, TOGETHER, names=KpiNames(), **WINDOW)


def test_more_cases_than_are_allowed_are_not_held(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT))
    held = following(clickhouse, most_cases=2)
    assert answers(held, clickhouse)
    world.write(*chain("c", SHUT))
    assert not answers(held, clickhouse)
    held.keep_up(clickhouse)
    assert not answers(held, clickhouse)
    assert not answers(following(clickhouse, most_cases=0), clickhouse)


def test_legal_events_of_states_that_were_replaced_are_left_behind(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.read.held import cases

    monkeypatch.setattr(cases, "_FEW_STEPS", 4)
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT))
    held = following(clickhouse)
    for hour in range(6, 16):
        world.write(*chain("a", [("FEEDBACK", hour, {"rating": 4})]))
        assert city(clickhouse, held)["ratings"] == hour - 5
    assert held._copy is not None
    assert len(held._copy.cases._steps) < 60
