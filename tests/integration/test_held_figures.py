"""What is held follows the store: whatever happens to the tables, a call answers what the store would."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.read.held import cases as held_cases
from pipeline.read.held import figures
from pipeline.read.held.figures import HeldFigures
from pipeline.read.kpi import BY, VIEWS, kpi, kpi_together
from pipeline.store.cases import refold
from pipeline.store.kpi_views import TOGETHER
from tests.integration.case_world import GRID, Event, KpiNames, World, at, chain

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
            parts = held.parts(client, view, (by,), (), **WINDOW)
            assert parts is not None, (view, by)
            assert parts[0].cases is not None, (view, by)
            assert kpi(client, held=held, **asked) == kpi(client, **asked), (view, by)
    row: dict[str, Any] = kpi(client, by="city", view="cohort", names=KpiNames(), held=held, **WINDOW)[
        "rows"
    ][0]
    return row


def answers(held: HeldFigures, client: Client) -> bool:
    parts = held.parts(client, "cohort", ("city",), (), **WINDOW)
    return parts is not None and parts[0].cases is not None


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


@pytest.mark.parametrize("most_later", [0, 2_000])
def test_as_of_a_past_instant_cases_with_later_events_stood_otherwise(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch, most_later: int
) -> None:
    """Few of them are asked for by themselves, many are counted by the store."""
    monkeypatch.setattr(figures, "_MOST_LATER", most_later)
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT[:2]), *chain("c", [("REPORTED", 4)]))
    world.write(*chain("d", [("SIGNED", 1), ("REPORTED", 3.5)]))
    dispatched: dict[str, Any] = {"department": "never_heard_of"}
    world.write(*chain("e", [("REPORTED", 0), ("ACCEPTED", 1), ("DISPATCHED", 2, dispatched), ("SIGNED", 5)]))
    held = following(clickhouse)
    for _ in range(2):
        for view in VIEWS:
            for by in ("city", "department"):
                for hour in (0.5, 1, 2, 3, 3.7, 4.5):
                    past = WINDOW | {"as_of": at(hour)}
                    parts = held.parts(clickhouse, view, (by,), (), **past)
                    assert parts is not None
                    assert (parts[0].cases is None) == (most_later == 0)
                    asked: dict[str, Any] = {"by": by, "view": view, "names": KpiNames(), **past}
                    assert kpi(clickhouse, held=held, **asked) == kpi(clickhouse, **asked)
        # a case that stands otherwise since the states were asked for
        world.write(*chain("b", [("DISPATCHED", 3)]))


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
    monkeypatch.setattr(held_cases, "_FEW_STEPS", 4)
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT))
    held = following(clickhouse)
    for hour in range(6, 16):
        world.write(*chain("a", [("FEEDBACK", hour, {"rating": 4})]))
        assert city(clickhouse, held)["ratings"] == hour - 5
    assert held._copy is not None
    assert len(held._copy.cases._steps) < 60


def test_merges_with_what_was_changed_in_place_earlier_end_nothing(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    clickhouse.command("ALTER TABLE cases UPDATE channel = channel WHERE 1", settings={"mutations_sync": 2})
    held = following(clickhouse)
    for number in range(3):
        world.write(*chain(f"b{number}", SHUT))
        assert answers(held, clickhouse)
        clickhouse.command("OPTIMIZE TABLE cases FINAL")
        assert answers(held, clickhouse)


def test_what_went_into_a_part_that_is_not_read_yet_is_looked_after(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT), *chain("b", SHUT))
    held = following(clickhouse)
    world.write(*chain("c", SHUT), refresh=False)
    looked, looks = figures.active_parts, []

    def look(client: Client, names: Any) -> Any:
        looks.append(1)
        if (
            len(looks) == 2
        ):  # after the reading of events: an insert into cases, merged with all others at once
            world.write(*chain("d", SHUT))
            client.command("OPTIMIZE TABLE cases FINAL")
        return looked(client, names)

    monkeypatch.setattr(figures, "active_parts", look)
    assert answers(held, clickhouse)
    monkeypatch.undo()
    clickhouse.command("ALTER TABLE cases DELETE WHERE case_id = 'a'", settings={"mutations_sync": 2})
    assert not answers(held, clickhouse)
    held.keep_up(clickhouse)
    city(clickhouse, held)


def test_of_equal_versions_the_one_stored_last_stays_whenever_it_is_read(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    clickhouse.command("ALTER TABLE cases UPDATE is_closed = 0 WHERE 1", settings={"mutations_sync": 2})
    held = following(clickhouse)
    assert city(clickhouse, held)["closed"] == 0
    world.write(*chain("b", SHUT))
    looked, looks = figures.active_parts, []

    def look(client: Client, names: Any) -> Any:
        looks.append(1)
        if len(looks) > 1:
            return looked(client, names)
        before = looked(client, names)
        last = max(part.last for part in before["cases"])
        client.command("OPTIMIZE TABLE cases FINAL")  # ends after the look
        assert list(refold(client)) == [2]  # its part was there at the look
        before["cases"] += [part for part in looked(client, names)["cases"] if part.first > last]
        return before

    monkeypatch.setattr(figures, "active_parts", look)
    assert answers(held, clickhouse)
    monkeypatch.undo()
    assert len(looks) > 2
    assert city(clickhouse, held)["closed"] == 2


def test_no_answer_has_more_rows_than_a_reader_is_granted(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(clickhouse)
    world.write(*(event for number in range(40) for event in chain(f"c{number}", SHUT[:2])))
    monkeypatch.setattr(figures, "_SLICE_ROWS", 4)
    clickhouse.set_client_setting("max_result_rows", "20")
    try:
        held = following(clickhouse)
    finally:
        clickhouse.set_client_setting("max_result_rows", "0")
    assert city(clickhouse, held)["cases"] == 40


def test_too_many_cases_are_not_read_over_and_over(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(clickhouse)
    world.write(*(event for name in "abc" for event in chain(name, SHUT)))
    held, reads, now = HeldFigures(2), [], [1_000.0]
    monkeypatch.setattr(figures._Copy, "_read", lambda *_: reads.append(1))
    monkeypatch.setattr(figures.time, "monotonic", lambda: now[0])
    for _ in range(60):
        held.keep_up(clickhouse)
        now[0] += 61
    assert not reads


def test_a_table_that_was_made_anew_is_another_one(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    held = following(clickhouse)
    for table in ("cases", "events"):
        made = clickhouse.query(f"SHOW CREATE TABLE {table}").result_rows[0][0]
        clickhouse.command(f"DROP TABLE {table} SYNC")
        clickhouse.command(made)
    world.write(*chain("z", SHUT[:2]), *chain("y", SHUT[:2]))
    assert not answers(held, clickhouse)
    held.keep_up(clickhouse)
    assert city(clickhouse, held)["cases"] == 2


def test_a_second_copy_that_is_read_again_adds_nothing(clickhouse: Client) -> None:
    world = World(clickhouse)
    held = following(clickhouse)
    world.write(Event("a", "REPORTED", at(1), event_id="same", outcome="rejected"))
    city(clickhouse, held)
    world.write(Event("a", "REPORTED", at(1), event_id="same"))
    for number in range(3):
        city(clickhouse, held)
        assert held._copy is not None
        assert len(held._copy.reports) == 2
        world.write(Event(f"c{number}", "SIGNED", at(1)))  # received in the same second


class _Counting:
    """A lock that tells how many came to it."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self.came = lock, 0

    def acquire(self, timeout: float) -> bool:
        self.came += 1
        return self.lock.acquire(timeout=timeout)

    def release(self) -> None:
        self.lock.release()


def test_who_waits_for_a_look_that_began_after_it_came_does_not_look_again(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    World(clickhouse).write(*chain("a", SHUT))
    held = following(clickhouse)
    lock = _Counting(held._lock)
    monkeypatch.setattr(held, "_lock", lock)
    monkeypatch.setattr(figures, "_PATIENCE_SECONDS", 30.0)
    looked, looks = figures.active_parts, []

    def look(client: Client, names: Any) -> Any:
        looks.append(1)
        deadline = time.monotonic() + 20
        while len(looks) == 1 and lock.came < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        return looked(client, names)

    monkeypatch.setattr(figures, "active_parts", look)
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(answers, held, clickhouse) for _ in range(6)]
        assert all(call.result() for call in calls)
    assert lock.came == 6
    assert len(looks) == 2  # the one that they waited for began before five of them came


def test_who_waits_too_long_asks_the_store(clickhouse: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    World(clickhouse).write(*chain("a", SHUT))
    held = following(clickhouse)
    monkeypatch.setattr(figures, "_PATIENCE_SECONDS", 0.05)
    with held._lock:
        assert not answers(held, clickhouse)
    assert answers(held, clickhouse)


def test_an_error_in_the_mere_look_ends_nothing(clickhouse: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(clickhouse)
    world.write(*chain("a", SHUT))
    held = following(clickhouse)

    def broken(*_: Any) -> Any:
        raise OSError("gone")

    monkeypatch.setattr(figures, "active_parts", broken)
    with pytest.raises(OSError, match="gone"):
        answers(held, clickhouse)
    monkeypatch.undo()
    assert answers(held, clickhouse)
    world.write(*chain("b", SHUT))
    monkeypatch.setattr(figures.HeldCases, "take", broken)
    with pytest.raises(OSError, match="gone"):
        answers(held, clickhouse)
    monkeypatch.undo()
    assert not answers(held, clickhouse)
    held.keep_up(clickhouse)
    assert city(clickhouse, held)["cases"] == 2


def test_what_waits_for_its_report_is_held_by_name_and_nothing_else(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("a", [("DISCOVERED", 0), ("REPORTED", 1)]), *chain("b", [("SIGNED", 2)]))
    held = following(clickhouse)
    assert held._copy is not None
    assert set(held._copy.cases._orphans.values()) == {"b"}
    early = WINDOW | {"as_of": at(0.5)}  # a is one then
    asked: dict[str, Any] = {"by": "city", "view": "cohort", "names": KpiNames(), **early}
    answer = kpi(clickhouse, held=held, **asked)
    assert answer == kpi(clickhouse, **asked)
    assert answer["rows"][0]["orphans"] == 1


_COMMON = (
    "ACCEPTED", "DISPATCHED", "SIGNED", "RESOLVED", "CLOSED", "FEEDBACK", "REOPENED", "ACCEPTED",
    "DISPATCHED", "SIGNED", "HANDLING", "RESOLVED", "REWORK", "RESOLVED", "CLOSED", *["FEEDBACK"] * 4,
    "REOPENED", "ACCEPTED", "DISPATCHED", "SIGNED", "RESOLVED", "CLOSED",
)  # fmt: skip


def _any_case(rng: random.Random, number: int) -> list[Event]:
    """A long life with steps that are not legal, from time to time without a report or a limit."""
    name, events, hour = f"c{number}", [], 3.0
    grid = rng.choice([GRID, "440703002001001", "440785009009009", ""])
    if rng.random() < 0.9:
        report = {
            "grid_code": grid,
            "channel": rng.choice(["hotline_12345", "grid_patrol"]),
            "matter_code": rng.choice(["SA-07", "UM-01", None]),
            "resolution_limit_seconds": rng.choice([None, 3_600, 180_000]),
            "response_limit_seconds": rng.choice([None, 60, 7_200]),
        }
        outcome = rng.choice(["admitted"] * 5 + ["rejected"])
        events.append(
            Event(name, "REPORTED", at(rng.choice([1, 2, 5, 20])), outcome=outcome, attributes=report)
        )
    for step in _COMMON[: rng.randrange(len(_COMMON) + 1)]:
        hour += rng.choice([0.1, 1, 2.5])
        kind = rng.choice(["MERGED", "UNMERGED", "VOIDED", "EXTENDED", step]) if rng.random() < 0.12 else step
        given = {
            "rating": rng.choice([None, 1, 3, 5]),
            "due_at": at(hour + 40) if kind == "EXTENDED" else None,
            "department": rng.choice([None, "police"]),
            "primary_case_id": "c1" if kind == "MERGED" else None,
            "grid_code": grid,
        }
        events.append(Event(name, kind, at(hour), event_id=f"{name}-{hour:.2f}", attributes=given))
    return events


def test_lives_of_any_kind_in_windows_that_cut_them(clickhouse: Client) -> None:
    rng, world = random.Random(5), World(clickhouse)
    events = [event for number in range(120) for event in _any_case(rng, number)]
    rng.shuffle(events)
    held = following(clickhouse)
    for first in range(0, len(events), 500):
        world.write(*events[first : first + 500])
        for from_, to, as_of in ((0, 100, 100), (2, 9, 100), (6.5, 20, 100), (10, 5, 100), (0, 30, 15)):
            window = {"from_": at(from_), "to": at(to), "as_of": at(as_of)}
            for view in VIEWS:
                for by in ("town", "channel"):
                    asked: dict[str, Any] = {"by": by, "view": view, "names": KpiNames(), **window}
                    found, wanted = kpi(clickhouse, held=held, **asked), kpi(clickhouse, **asked)
                    assert repr(found) == repr(wanted), (view, by, window)
