"""A round whose worker may have lost its partitions without knowing: it asks before each insert."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.case_memory import CaseMemory
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.process.partition import Span
from pipeline.process.rounds import AbandonedError, Finished, Work
from pipeline.rules.archive import RuleArchive
from pipeline.settings import Settings
from pipeline.sink.retry import Stopping
from pipeline.sink.tables import Extent, Sink
from tests.integration.worker_world import column, count, event, load_reference, record, rules_of, run_round

TABLES = ("events", "rejections", "duplicates", "quarantine", "case_events")


@pytest.fixture
def works() -> list[Work]:
    """One block of two partitions each."""
    found = []
    for partition in (0, 1):
        buffer = PartitionBuffer(partition, max_rows=100, budget=Budget(1_000_000))
        buffer.state = PartitionState.empty(Settings())
        found.append(Work(buffer, Block(partition, [record(0, event(f"{partition}"))]), None))
    return found


@pytest.fixture
def store(clickhouse: Client, tmp_path: Path, works: list[Work]) -> Callable[..., Finished]:
    load_reference(clickhouse, tmp_path / "reference")
    rules = rules_of(clickhouse)

    def run(heard: Callable[[], bool], stopping: threading.Event | None = None) -> Finished:
        return run_round(
            works,
            clickhouse,
            topic="t",
            inc=1,
            rules=rules,
            earlier=RuleArchive(tmp_path),
            stopping=stopping or threading.Event(),
            heard=heard,
            memory=CaseMemory(),
        )

    return run


def test_nothing_is_written_once_all_partitions_are_gone(
    clickhouse: Client, store: Callable[..., Finished], works: list[Work]
) -> None:
    def silence() -> bool:
        """The group is silent, and meanwhile it takes the partitions away."""
        for work in works:
            work.buffer.leaving = True
        return False

    with pytest.raises(AbandonedError):
        store(silence)
    assert count(clickhouse, *TABLES) == [0, 0, 0, 0, 0]


def test_partitions_that_go_between_two_inserts_end_the_round_there(
    clickhouse: Client, store: Callable[..., Finished], works: list[Work]
) -> None:
    asked = []

    def heard() -> bool:
        """Both partitions are revoked right after the first insert was allowed."""
        asked.append(1)
        for work in works:
            work.buffer.revoked = True
        return True

    with pytest.raises(AbandonedError):
        store(heard)
    assert len(asked) == 1
    assert count(clickhouse, *TABLES) == [2, 0, 0, 0, 0], "who owns them now rebuilds the rest from these"


def test_a_silent_group_is_waited_for(clickhouse: Client, store: Callable[..., Finished]) -> None:
    answers = iter([False, False, False])
    finished = store(lambda: next(answers, True))
    assert count(clickhouse, *TABLES) == [2, 0, 0, 0, 2]
    assert len(finished.stored) == 1


def test_a_stop_does_not_wait_for_a_silent_group(clickhouse: Client, store: Callable[..., Finished]) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Stopping):
        store(lambda: False, stopping)
    assert count(clickhouse, *TABLES) == [0, 0, 0, 0, 0]


def test_a_partition_that_stays_keeps_the_round_going(
    clickhouse: Client, store: Callable[..., Finished], works: list[Work]
) -> None:
    """Its rows stand in one insert with those of the other, under one token."""

    def heard() -> bool:
        works[0].buffer.revoked = True
        return True

    store(heard)
    assert count(clickhouse, *TABLES) == [2, 0, 0, 0, 2]


def test_a_block_is_rebuilt_again_and_again(
    clickhouse: Client, store: Callable[..., Finished], works: list[Work]
) -> None:
    """Rows that were stored, rebuilt and taken out once more, as torn parts are: the engine remembers the
    token of each of these inserts, and would refuse one that comes again."""
    block = Block(0, [record(0, event("a"), event("b")), record(1, event("c"))])

    def rebuild() -> list[int]:
        buffer = PartitionBuffer(0, max_rows=100, budget=Budget(1_000_000))
        buffer.state = PartitionState.empty(Settings())
        works[:] = [Work(buffer, block, Span(0, 1, "r"))]
        store(lambda: True)
        cases = clickhouse.query("SELECT uniqExact(case_id) FROM case_events").result_rows[0][0]
        return [*count(clickhouse, "events"), cases, *count(clickhouse, "cases FINAL")]

    assert rebuild() == [3, 3, 3]
    for _ in range(3):
        for table in ("events", "case_events"):
            clickhouse.command(f"ALTER TABLE {table} DELETE WHERE 1 SETTINGS mutations_sync = 2")
        assert rebuild() == [3, 3, 3]


def test_a_late_insert_that_was_judged_by_other_reference_data_stands_for_no_row_of_ours(
    clickhouse: Client, tmp_path: Path
) -> None:
    """A worker died with its insert on the way. It arrives between the look of the next one, which found
    nothing, and that one's own insert of the same offsets: under one token that was refused, and what the
    dead worker had not admitted was in no table, and committed."""
    block = Block(0, [record(0, event("a"), event("x"))])
    load_reference(clickhouse, tmp_path / "reference")
    rules = rules_of(clickhouse)
    full = process_block(block, PartitionState.empty(Settings()), rules)
    assert full.events["event_id"].to_list() == ["ea", "ex"]
    # by the reference data of then x was to go to `rejections`, which this worker never came to
    early = replace(full, events=full.events[:1], case_events=full.case_events.clear(), received=1)
    arrived = []

    def heard() -> bool:
        if not arrived:
            arrived.append(True)
            Sink(clickhouse, "t").write(early, inc=1, blocks=[Extent(0, 0, 0)], rules=rules.digest)
        return True

    buffer = PartitionBuffer(0, max_rows=100, budget=Budget(1_000_000))
    buffer.state = PartitionState.empty(Settings())
    run_round(
        [Work(buffer, block, None)],
        clickhouse,
        topic="t",
        inc=1,
        rules=rules,
        earlier=RuleArchive(tmp_path),
        stopping=threading.Event(),
        heard=heard,
        memory=CaseMemory(),
    )
    assert arrived
    assert sorted(set(column(clickhouse, "SELECT event_id FROM events"))) == ["ea", "ex"]
