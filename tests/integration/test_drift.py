"""The verifier's look at cases: silent while all is well, naming each case that is not as its events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.process import drift
from pipeline.process.drift import drifted, stored_twice
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from pipeline.sink.tables import Extent, Sink
from pipeline.store.cases import refresh_cases
from tests.integration.worker_world import NOON, event, load_reference, record, rules_of

T = TypeVar("T")

ALL = Extent(0, 0, 9)
WINDOW = timedelta(days=7)


@pytest.fixture
def client(clickhouse: Client, tmp_path: Path) -> Client:
    """Three cases: one reported and accepted, one rejected, one whose report was sent again."""
    load_reference(clickhouse, tmp_path / "reference")
    records = [
        record(0, event(1), event(2, matter_code="NO-SUCH")),
        record(1, event(3, event_type="ACCEPTED", case_id="c1", minutes=5)),
        record(2, event(4, description=event(1)["description"], minutes=1)),
        record(3, event(5)),
    ]
    result = process_block(Block(0, records), PartitionState.empty(Settings()), rules_of(clickhouse))
    Sink(clickhouse, "t").write(result, inc=5, blocks=[ALL], rules="r")
    refresh_cases(clickhouse, 5, [ALL])
    return clickhouse


def test_cases_that_are_as_their_events_have_not_drifted(client: Client) -> None:
    assert drifted(client, 5, [ALL]) == set()
    assert drifted(client, 5, []) == set()
    assert drifted(client, 6, [ALL]) == set()


def test_a_row_that_its_case_was_not_told_of_is_found(client: Client) -> None:
    client.command("TRUNCATE TABLE case_events")
    assert drifted(client, 5, [ALL]) == {"c1", "c2", "c4", "c5"}
    assert drifted(client, 5, [Extent(0, 3, 3)]) == {"c5"}, "only the cases of these records are looked at"


def test_a_state_that_is_not_the_fold_is_found(client: Client) -> None:
    client.command(
        "ALTER TABLE cases UPDATE state = 'CLOSED' WHERE case_id = 'c1' SETTINGS mutations_sync = 2"
    )
    assert drifted(client, 5, [ALL]) == {"c1"}


def test_a_stored_case_that_differs_in_any_column_is_found(client: Client) -> None:
    """Version and state alone do not tell a wrong limit, time or district."""
    wrong = {
        "c1": "due_at = due_at + INTERVAL 1 HOUR",
        "c2": "first_response_at = rejected_at",
        "c4": "legal_departments = ['']",
        "c5": "grid_code = '440703002001001'",
    }
    for case_id, changes in wrong.items():
        client.command(
            f"ALTER TABLE cases UPDATE {changes} WHERE case_id = '{case_id}' SETTINGS mutations_sync = 2"
        )
    assert drifted(client, 5, [ALL]) == set(wrong)


def test_a_case_without_a_state_is_found(client: Client) -> None:
    client.command("TRUNCATE TABLE cases")
    assert drifted(client, 5, [Extent(0, 3, 3)]) == {"c5"}


async def test_cases_that_drifted_are_told_and_folded_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(drift, "_AGAIN_SECONDS", 0.01)
    client.command(
        "ALTER TABLE cases UPDATE state = 'CLOSED' WHERE case_id = 'c1' SETTINGS mutations_sync = 2"
    )
    told = metrics.verifier_drift._value.get()
    folded = asyncio.Event()

    async def in_thread(call: Callable[[Client], T]) -> T:
        await asyncio.sleep(0)
        return call(client)

    def fold_again(its: Client, extents: Sequence[Extent]) -> None:
        refresh_cases(its, 5, extents)
        folded.set()

    watch = asyncio.create_task(drift.watch_drift(in_thread, 5, lambda: [ALL], fold_again, WINDOW))
    await asyncio.wait_for(folded.wait(), 20)
    await asyncio.sleep(0.05)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert metrics.verifier_drift._value.get() == told + 1, "once: the next looks found nothing"
    assert drifted(client, 5, [ALL]) == set()


async def test_the_worker_mends_sets_and_states_that_it_finds_wrong(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that lacks a stored row is mended neither by folding it nor by a restart."""
    monkeypatch.setattr(drift, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(drift, "_AGAIN_SECONDS", 0.01)
    client.command("TRUNCATE TABLE case_events")
    client.command(
        "ALTER TABLE cases UPDATE state = 'CLOSED' WHERE case_id = 'c5' SETTINGS mutations_sync = 2"
    )

    async def in_thread(call: Callable[[Client], T]) -> T:
        return call(client)

    forgotten: list[str] = []
    worker = SimpleNamespace(
        _buffers={0: SimpleNamespace(partition=0, committed=10)},
        _cases=SimpleNamespace(forget=lambda: forgotten.append("all")),
        _inc=5,
        _settings=Settings(topic="t"),
        _stopping=threading.Event(),
        _in_thread=in_thread,
    )
    watch = asyncio.create_task(Worker._watch_drift(worker))  # type: ignore[arg-type]
    for _ in range(600):
        if not drifted(client, 5, [ALL]):
            break
        await asyncio.sleep(0.05)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert forgotten
    rows = client.query("SELECT case_id, state FROM cases FINAL ORDER BY case_id").result_rows
    assert rows == [("c1", "ACCEPTED"), ("c2", "REJECTED"), ("c4", ""), ("c5", "ADMITTED")]


async def test_an_id_that_stands_twice_is_told_each_minute(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy names another village, so that it lies in another partition, which has never seen the id."""
    monkeypatch.setattr(drift, "_EVERY_SECONDS", 0.01)
    copy = event(1) | {"grid_code": "440703002001001"}
    result = process_block(Block(1, [record(0, copy)]), PartitionState.empty(Settings()), rules_of(client))
    elsewhere = Extent(1, 0, 0)
    assert stored_twice(client, 5, [ALL], WINDOW) == set()
    Sink(client, "t").write(result, inc=5, blocks=[elsewhere], rules="r")
    refresh_cases(client, 5, [elsewhere])
    for extent in (ALL, elsewhere):
        assert stored_twice(client, 5, [extent], WINDOW) == {("handset", "e1")}
    assert stored_twice(client, 5, [Extent(0, 3, 3)], WINDOW) == set(), "another case"
    told, before = asyncio.Event(), metrics.verifier_double_ids._value.get()

    async def in_thread(call: Callable[[Client], T]) -> T:
        await asyncio.sleep(0)
        found = call(client)
        if found == {("handset", "e1")}:
            told.set()
        return found

    def fold_again(*_: object) -> None:
        raise AssertionError("no case has drifted")

    watch = asyncio.create_task(drift.watch_drift(in_thread, 5, lambda: [ALL], fold_again, WINDOW))
    await asyncio.wait_for(told.wait(), 20)
    await asyncio.sleep(0.05)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert metrics.verifier_double_ids._value.get() > before


@pytest.mark.parametrize(("days", "double"), [(6.9, True), (7.1, False)])
def test_the_same_id_is_another_event_after_the_window(client: Client, days: float, double: bool) -> None:
    later = NOON + timedelta(days=days, minutes=3)
    again = [record(20, event(1), received=later), record(21, event(1), received=later + WINDOW * 2)]
    # of a partition that has forgotten what it saw
    result = process_block(Block(0, again[:1]), PartitionState.empty(Settings()), rules_of(client))
    Sink(client, "t").write(result, inc=5, blocks=[Extent(0, 20, 20)], rules="r")
    result = process_block(Block(0, again[1:]), PartitionState.empty(Settings()), rules_of(client))
    Sink(client, "t").write(result, inc=5, blocks=[Extent(0, 21, 21)], rules="r")
    assert stored_twice(client, 5, [ALL], WINDOW) == ({("handset", "e1")} if double else set())
