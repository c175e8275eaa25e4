"""A worker that died together with its log, or whose records retention took: what it had stored must still
reach the cases, and what it had not is counted."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.errors import TransientError
from pipeline.process import partition
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.case_memory import CaseMemory
from pipeline.process.earlier import complete_earlier_log, tell_cases
from pipeline.process.flow import Block, BlockResult, PartitionState, process_block
from pipeline.process.partition import Span
from pipeline.process.records import Record
from pipeline.process.rounds import Work
from pipeline.process.worker import Worker
from pipeline.rules.archive import RuleArchive
from pipeline.settings import Settings
from pipeline.sink.retry import Stopping
from pipeline.sink.tables import Extent, Sink
from pipeline.store.cases import case_sets, refresh_cases
from tests.integration.worker_world import PRIVACY, event, load_reference, record, rules_of, run_round

EARLIER, LATER = 1_000, 2_000
TOPIC = "grid.events"


def extent(block: Block) -> Extent:
    return Extent(3, block.lo, block.hi)


def judged(client: Client, *numbers: int) -> tuple[Block, BlockResult]:
    records: list[Record] = [record(at, event(number)) for at, number in enumerate(numbers)]
    block = Block(3, records)
    return block, process_block(block, PartitionState.empty(Settings()), rules_of(client))


def known_cases(client: Client) -> list[str]:
    return [row[0] for row in client.query("SELECT case_id FROM case_current ORDER BY case_id").result_rows]


@pytest.mark.parametrize("handed_to_cases", [False, True])
def test_stored_rows_of_a_lost_log_reach_their_cases(
    clickhouse: Client, tmp_path: Path, handed_to_cases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_reference(clickhouse, tmp_path / "reference")
    block, result = judged(clickhouse, 1, 2, 3)
    with monkeypatch.context() as patch:
        if not handed_to_cases:  # the process died between two inserts
            patch.setattr(Sink, "write_case_events", lambda *_: None)
        Sink(clickhouse, TOPIC).write(result, inc=EARLIER, blocks=[extent(block)], rules="r")
    assert known_cases(clickhouse) == []
    assert complete_earlier_log(clickhouse, TOPIC, LATER, threading.Event()) == 1
    assert known_cases(clickhouse) == ["c1", "c2", "c3"]
    assert complete_earlier_log(clickhouse, TOPIC, LATER, threading.Event()) == 1, (
        "a step that may run again after a crash"
    )
    assert clickhouse.query("SELECT sum(report_count) FROM case_current").result_rows == [(3,)]


def test_the_last_two_blocks_of_a_partition_may_not_be_folded(clickhouse: Client, tmp_path: Path) -> None:
    """The second one was judged and written while the first was folded. What lies before them is known."""
    load_reference(clickhouse, tmp_path / "reference")
    for at in range(3):
        block = Block(3, [record(at, event(at))])
        result = process_block(block, PartitionState.empty(Settings()), rules_of(clickhouse))
        Sink(clickhouse, TOPIC).write(result, inc=EARLIER, blocks=[extent(block)], rules="r")
    assert complete_earlier_log(clickhouse, TOPIC, LATER, threading.Event()) == 2
    assert known_cases(clickhouse) == ["c1", "c2"]


def test_a_log_that_has_rows_already_leaves_the_earlier_one_alone(clickhouse: Client, tmp_path: Path) -> None:
    load_reference(clickhouse, tmp_path / "reference")
    block, result = judged(clickhouse, 1)
    Sink(clickhouse, TOPIC).write(result, inc=EARLIER, blocks=[extent(block)], rules="r")
    block, result = judged(clickhouse, 2)
    Sink(clickhouse, TOPIC).write(result, inc=LATER, blocks=[extent(block)], rules="r")
    assert complete_earlier_log(clickhouse, TOPIC, LATER, threading.Event()) == 0


def test_the_first_log_has_nothing_before_it(clickhouse: Client) -> None:
    assert complete_earlier_log(clickhouse, TOPIC, LATER, threading.Event()) == 0
    refresh_cases(clickhouse, LATER, [])


def test_who_remembers_sets_reads_those_anew_that_a_block_without_records_told(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cases are new to the store with it, so that a memory of all cases would take the next event of one
    for the whole of it."""
    load_reference(clickhouse, tmp_path / "reference")
    block, result = judged(clickhouse, 1)
    with (
        monkeypatch.context() as patch
    ):  # the process died between two inserts, and retention took the records
        patch.setattr(Sink, "write_case_events", lambda *_: None)
        Sink(clickhouse, TOPIC).write(result, inc=LATER, blocks=[extent(block)], rules="r")
    memory = CaseMemory()
    memory.begin(on=True)
    memory.know(clickhouse)
    tell_cases(clickhouse, TOPIC, LATER, [extent(block)], threading.Event(), told=memory.forget)
    accepted = Block(3, [record(1, event(1, event_id="e1-accepted", event_type="ACCEPTED"))])
    result = process_block(accepted, PartitionState.empty(Settings()), rules_of(clickhouse))
    Sink(clickhouse, TOPIC).write(result, inc=LATER, blocks=[extent(accepted)], rules="r")
    sets = memory.sets(clickhouse, case_sets(result.case_events, LATER))
    assert sets is not None
    assert sets["_off"].sort().to_list() == [0, 1]


def test_who_remembers_sets_reads_those_anew_that_a_rebuilt_block_told(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, of a block whose records are there still."""
    load_reference(clickhouse, tmp_path / "reference")
    block, result = judged(clickhouse, 1)
    with monkeypatch.context() as patch:  # the process died between two inserts
        patch.setattr(Sink, "write_case_events", lambda *_: None)
        Sink(clickhouse, TOPIC).write(result, inc=LATER, blocks=[extent(block)], rules="r")
    memory = CaseMemory()
    memory.begin(on=True)
    memory.know(clickhouse)
    buffer = PartitionBuffer(3, max_rows=10, budget=Budget(10_000), state=PartitionState.empty(Settings()))
    run_round(
        [Work(buffer, block, Span(0, 0, "r"))],
        clickhouse,
        topic=TOPIC,
        inc=LATER,
        rules=rules_of(clickhouse),
        earlier=RuleArchive(tmp_path),
        stopping=threading.Event(),
        heard=lambda: True,
        memory=memory,
    )
    accepted = Block(3, [record(1, event(1, event_id="e1-accepted", event_type="ACCEPTED"))])
    result = process_block(accepted, PartitionState.empty(Settings()), rules_of(clickhouse))
    Sink(clickhouse, TOPIC).write(result, inc=LATER, blocks=[extent(accepted)], rules="r")
    sets = memory.sets(clickhouse, case_sets(result.case_events, LATER))
    assert sets is not None
    assert sets["_off"].sort().to_list() == [0, 1]


@pytest.mark.timeout(30)
def test_a_stop_ends_the_telling_of_cases_that_the_store_does_not_take(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would try for ever otherwise, and hold the process up long after it was asked to end."""
    load_reference(clickhouse, tmp_path / "reference")
    block, result = judged(clickhouse, 1)
    Sink(clickhouse, TOPIC).write(result, inc=EARLIER, blocks=[extent(block)], rules="r")

    def refuse(*_: object, **__: object) -> None:
        raise TransientError("the store is away")

    monkeypatch.setattr(clickhouse, "raw_insert", refuse)
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Stopping):
        tell_cases(clickhouse, TOPIC, EARLIER, [extent(block)], stopping)


def test_any_number_of_blocks_is_folded(clickhouse: Client, tmp_path: Path) -> None:
    """The engine refuses a condition of 1,500 places, at each start anew."""
    load_reference(clickhouse, tmp_path / "reference")
    for number in (0, 3_998):
        begun(clickhouse, number, number, number)
    refresh_cases(clickhouse, LATER, [(3, number, number) for number in range(0, 4_000, 2)])
    assert known_cases(clickhouse) == ["c0", "c3998"]


def gap() -> float:
    return metrics.REGISTRY.get_sample_value("gridpipe_verifier_gap_total") or 0.0


def begun(client: Client, lo: int, hi: int, *offsets: int) -> None:
    """A block of which these records arrived before its worker died."""
    block = Block(3, [record(at, event(at)) for at in offsets])
    result = process_block(block, PartitionState.empty(Settings()), rules_of(client))
    Sink(client, TOPIC).write(result, inc=LATER, blocks=[Extent(3, lo, hi)], rules="r")


async def test_of_begun_blocks_without_records_what_is_stored_is_not_passed_over(
    clickhouse: Client, tmp_path: Path
) -> None:
    load_reference(clickhouse, tmp_path / "reference")
    begun(clickhouse, 0, 3, 0, 1, 2, 3)
    begun(clickhouse, 4, 6, 4, 6)
    worker = Worker(Settings(data_dir=tmp_path), lambda: clickhouse, "127.0.0.1:1", PRIVACY)
    worker._inc = LATER
    worker._account.starts_at(3, 0)
    buffer = PartitionBuffer(3, max_rows=10, budget=Budget(10_000), recovered=True)
    buffer.gone = [Span(0, 3, "r"), Span(4, 6, "r")]
    worker._complete(buffer)
    await asyncio.wait(worker._beside)
    assert buffer.gone == []
    before = gap()
    worker._account.committed([Extent(3, 9, 12)], [])
    assert gap() - before == 3, "5, and 7 and 8"


async def test_what_is_stored_of_begun_blocks_is_counted_as_they_are_reached(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that lost its commits has thousands of them: uncounted they are rebuilt one by one."""
    monkeypatch.setattr(partition, "COUNTED_OFFSETS", 4)
    load_reference(clickhouse, tmp_path / "reference")
    for lo in range(0, 12, 2):
        begun(clickhouse, lo, lo + 1, lo, lo + 1)
    found = partition.recover(clickhouse, inc=LATER, partition=3, committed=None, settings=Settings())
    worker = Worker(Settings(data_dir=tmp_path), lambda: clickhouse, "127.0.0.1:1", PRIVACY)
    worker._inc = LATER
    buffer = PartitionBuffer(3, max_rows=10, budget=Budget(100_000), next_offset=0, recovered=True)
    buffer.spans, buffer.counted_to = deque(found.spans), found.counted_to
    seen = []
    for offset in range(12):
        buffer.take(Record(offset, 0, None, b"{}"), 0.0)
    while buffer.spans:
        if buffer.uncounted is not None:
            worker._complete(buffer)
            await asyncio.wait(worker._beside)
        _, span, _ = buffer.cut(100)
        assert span is not None
        seen.append((span.lo, span.hi, span.rows))
    assert seen == [(0, 3, 4), (4, 7, 4), (8, 11, 4)]


def test_records_of_a_begun_block_that_are_gone_and_were_not_stored_are_counted(
    clickhouse: Client, tmp_path: Path
) -> None:
    """Retention took the first part of it."""
    load_reference(clickhouse, tmp_path / "reference")
    begun(clickhouse, 0, 5, 0, 4)
    buffer = PartitionBuffer(3, max_rows=10, budget=Budget(10_000), state=PartitionState.empty(Settings()))
    found = run_round(
        [Work(buffer, Block(3, [record(at, event(at)) for at in (3, 5)]), Span(0, 5, "r"))],
        clickhouse,
        topic=TOPIC,
        inc=LATER,
        rules=rules_of(clickhouse),
        earlier=RuleArchive(tmp_path),
        stopping=threading.Event(),
        heard=lambda: True,
        memory=CaseMemory(),
    )
    assert [stored.unread for stored in found.stored] == [2], "1 and 2"
