"""What a partition buffers: no record is passed over, and nothing waits for ever."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import polars as pl

from pipeline.ingest.blocks import encode_frame
from pipeline.process.buffer import Budget, PartitionBuffer, Taken, rows_at_most
from pipeline.process.looks import waiting
from pipeline.process.partition import Span
from pipeline.process.records import ARROW, Record
from pipeline.process.topic import TopicFacts
from pipeline.process.worker import Worker
from pipeline.settings import Settings
from tests.integration.worker_world import PRIVACY


def record(offset: int, size: int = 0) -> Record:
    return Record(offset, 0, None, b"x" * size)


def buffer(max_bytes: int = 10_000, **given: object) -> PartitionBuffer:
    return PartitionBuffer(0, max_rows=100, budget=Budget(max_bytes), recovered=True, **given)  # type: ignore[arg-type]


def offsets(buffered: PartitionBuffer) -> list[int]:
    records, _, _ = buffered.cut(100)
    return [one.offset for one in records]


def test_a_hole_is_believed_when_it_shows_twice() -> None:
    held = buffer(next_offset=5)
    assert [held.take(record(offset), 0.0) for offset in (10, 11, 10, 11)] == [
        Taken.GAP, Taken.SKIPPED, Taken.KEPT, Taken.KEPT,
    ]  # fmt: skip
    assert held.missing(1_000.0) is None


def test_a_block_ends_before_a_hole_that_is_believed() -> None:
    """The verifier goes by the bounds of blocks: within one nobody would count what was passed over."""
    held = buffer(next_offset=0)
    for offset in (0, 1, 2, 50, 50, 51):
        held.take(record(offset), 0.0)
    assert [offsets(held), offsets(held)] == [[0, 1, 2], [50, 51]]
    held = buffer(next_offset=0, spans=deque([Span(0, 51, "r")]))
    for offset in (0, 1, 2, 50, 50, 51):
        held.take(record(offset), 0.0)
    assert offsets(held) == [0, 1, 2, 50, 51], "a recovered block keeps its bounds"


def test_missing_records_that_do_not_come_are_asked_for_again_and_again() -> None:
    held = buffer(next_offset=5)
    held.take(record(10), 0.0)
    assert held.missing(1.0) is None, "they are on their way"
    assert held.missing(6.0) == 5
    assert held.missing(7.0) is None
    assert held.missing(12.0) == 5
    assert [held.take(record(offset), 13.0) for offset in (5, 6)] == [Taken.KEPT, Taken.KEPT]
    assert held.missing(60.0) is None


def test_a_log_that_begins_behind_an_offset_that_is_not_believed_is_read_from_its_beginning() -> None:
    """Retention took what is before 30; a commit of another log had the fetch begin at 50."""
    held = buffer()
    assert held.take(record(50), 0.0) is Taken.KEPT
    assert not held.start_at(0, 0.1, fetched=False)
    # the fetch that was asked for comes to where the log begins, not to the offset that was seen first
    assert [held.take(record(offset), 0.2) for offset in (51, 30, 31, 50)] == [
        Taken.SKIPPED, Taken.GAP, Taken.SKIPPED, Taken.SKIPPED,
    ]  # fmt: skip
    assert [held.take(record(offset), 0.3) for offset in (30, 31)] == [Taken.KEPT, Taken.KEPT]
    assert offsets(held) == [30, 31]


def test_a_hole_that_grows_while_it_is_read_again_does_not_stop_the_partition() -> None:
    held = buffer(next_offset=5)
    held.take(record(10), 0.0)
    # the log lost its records up to 12 before they could be read again
    assert held.take(record(12), 1.0) is Taken.SKIPPED
    assert held.missing(6.0) == 5
    assert [held.take(record(offset), 6.1) for offset in (12, 12)] == [Taken.GAP, Taken.KEPT]


def test_without_a_commit_the_partition_begins_where_the_log_begins() -> None:
    held = buffer()
    held.take(record(3), 0.0)  # what came before it found no buffer
    assert not held.start_at(0, 0.0)
    assert [held.take(record(offset), 0.1) for offset in (0, 1, 2, 3)] == [Taken.KEPT] * 4
    assert offsets(held) == [0, 1, 2, 3]


def test_a_fetch_that_began_too_late_is_started_again_though_nothing_came_yet() -> None:
    held = buffer()
    assert not held.start_at(0, 0.0, fetched=False)
    assert held.missing(6.0) == 0
    assert held.take(record(0), 7.0) is Taken.KEPT


def test_a_paused_fetch_goes_on_for_a_block_that_must_be_completed() -> None:
    held = buffer(max_bytes=1_000)
    for offset in range(3):
        held.take(record(offset, 400), 0.0)
    assert held.full
    assert not held.hungry
    held.spans = deque([Span(0, 5, "r")])
    assert not held.ready
    assert held.hungry, "else the block would wait for ever"


def test_a_replaced_or_cut_log_is_told_from_one_that_grew() -> None:
    opened = TopicFacts("id", "cluster", {0: 5, 1: 7})
    assert opened.differs(TopicFacts("id", "cluster", {0: 9, 1: 7}), {0: 9, 1: 7}) is None
    assert opened.differs(TopicFacts("id", "cluster", {}), {0: 9}) is None, "a broker that does not tell"
    assert "replaced" in str(opened.differs(TopicFacts("other", "cluster", {}), {}))
    assert "partitions" in str(
        TopicFacts("id", "cluster", {}, 12).differs(TopicFacts("id", "cluster", {}, 24), {})
    )
    assert "[1]" in str(opened.differs(TopicFacts("id", "cluster", {0: 9, 1: 6}), {0: 9, 1: 7}))


def test_all_partitions_share_one_budget() -> None:
    budget = Budget(3_000)
    first, second = (
        PartitionBuffer(part, max_rows=100, budget=budget, recovered=True, next_offset=0) for part in (0, 1)
    )
    for offset in range(3):
        first.take(record(offset, 1_000), 0.0)
    assert second.full, "what one holds, no other may"
    assert not second.hungry
    first.cut(100)
    assert second.hungry
    second.take(record(0, 1_000), 0.0)
    second.drop()
    assert budget.used == 0


def test_a_partition_that_stands_still_holds_nothing_and_asks_for_nothing() -> None:
    held = buffer()
    held.take(record(0, 1_000), 0.0)
    held.stand_still()
    assert (held.budget.used, held.hungry, held.ready) == (0, False, False)


def test_a_begun_block_whose_records_are_gone_is_told_of_before_anything_else() -> None:
    held = buffer(max_bytes=1_000)
    held.spans = deque([Span(0, 5, "r"), Span(8, 9, "r")])
    for offset in range(8, 12):
        held.take(record(offset, 10), 0.0)
    assert not held.ready
    assert held.gone == [Span(0, 5, "r")]
    held.gone.clear()
    assert held.ready
    records, span, _ = held.cut(100)
    assert ([one.offset for one in records], span) == ([8, 9], Span(8, 9, "r"))


def test_recovered_blocks_that_are_complete_go_out_together() -> None:
    """Records of one event each. What is not complete, not next to them or judged otherwise goes alone."""

    def cut(spans: list[Span], most_rows: int = 100) -> list[tuple[int, int, int]]:
        held = buffer()
        held.spans = deque(spans)
        for offset in range(10):
            held.take(record(offset), 0.0)
        found = []
        while held.spans:
            records, span, _ = held.cut(most_rows)
            assert span is not None
            assert (records[0].offset, records[-1].offset) == (span.lo, span.hi)
            found.append((span.lo, span.hi, span.rows))
        return found

    together = [Span(0, 1, "r", 2), Span(2, 2, "r", 1), Span(3, 5, "r", 3)]
    assert cut(together) == [(0, 5, 6)]
    assert cut(together, most_rows=3) == [(0, 2, 3), (3, 5, 3)]
    assert cut([Span(0, 1, "r", 2), Span(2, 3, "r", 1), Span(4, 5, "r", 2), Span(6, 6, "r", 1)]) == [
        (0, 1, 2), (2, 3, 1), (4, 6, 3),
    ]  # fmt: skip
    assert cut([Span(0, 1, "r", 1), Span(2, 3, "r", 2)]) == [(0, 1, 1), (2, 3, 2)]
    assert cut([Span(0, 1, "r", 2), Span(2, 3, "other", 2)]) == [(0, 1, 2), (2, 3, 2)]
    assert cut([Span(0, 1, "r"), Span(2, 3, "r")]) == [(0, 1, -1), (2, 3, -1)]


def test_a_list_of_events_is_as_many_rows_as_it_holds_events() -> None:
    """Taken for one it made a begun block look complete of which a single event had been stored."""
    many = b' [{"a": "x,[{", "b": [1, {"c": 2}]}, {}, {"d": "\\\\"}]'
    assert [rows_at_most(Record(0, 0, None, value)) for value in (many, b"[]", b"{}", b"{}\n{}", b"")] == [
        3, 1, 1, 2, 1,
    ]  # fmt: skip
    held = buffer(next_offset=0, spans=deque([Span(0, 0, "r", 1), Span(1, 1, "r", 1)]))
    held.take(Record(0, 0, None, many), 0.0)
    held.take(record(1), 0.0)
    assert [held.cut(100)[1] for _ in range(2)] == [Span(0, 0, "r", 1), Span(1, 1, "r", 1)]


def test_recovered_blocks_go_out_together_as_far_as_their_records_have_come() -> None:
    held = buffer()
    held.spans = deque([Span(0, 1, "r", 2), Span(2, 3, "r", 2), Span(6, 7, "r", 2)])
    for offset in range(3):
        held.take(record(offset), 0.0)
    assert held.cut(100)[1] == Span(0, 1, "r", 2)
    for offset in range(3, 8):
        held.take(record(offset), 0.0)
    assert held.cut(100)[1] == Span(2, 3, "r", 2)
    assert [one.offset for one in held.cut(100)[0]] == [4, 5]  # what nobody began lies between
    assert held.cut(100)[1] == Span(6, 7, "r", 2)


def test_a_block_is_as_large_as_its_room_and_one_record_at_least() -> None:
    """By the events that are in a record, not by its bytes: small blocks take more of them each."""
    held = buffer(max_bytes=10_000_000, next_offset=0)
    for offset, size in enumerate((3, 30, 4, 200, 1)):
        held.take(Record(offset, 0, ARROW, block_of(size)), 0.0)
    assert [(len(records), rows) for records, _, rows in (held.cut(37), held.cut(50), held.cut(50))] == [
        (3, 37), (1, 200), (1, 1),
    ]  # fmt: skip


def block_of(size: int) -> bytes:
    return encode_frame(pl.DataFrame({"event_id": ["e"] * size}))


async def test_a_round_is_no_larger_than_a_block_may_be(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, block_max_rows=60, block_linger_seconds=0)
    worker = Worker(settings, _no_store, "127.0.0.1:1", PRIVACY)  # type: ignore[arg-type]
    for partition in range(4):
        held = PartitionBuffer(partition, max_rows=60, budget=worker._budget, recovered=True, next_offset=0)
        for offset in range(5):
            held.take(Record(offset, 0, ARROW, block_of(10)), float(partition))
        worker._buffers[partition] = held
    rounds = [[(work.block.partition, work.block.hi) for work in worker._cut_round()] for _ in range(2)]
    assert rounds == [[(0, 4), (1, 0)], [(2, 4), (3, 0)]], "room for six records of ten events"


def _no_store() -> None:
    raise AssertionError("no store here")


def test_while_a_partition_is_recovered_what_waits_is_not_the_whole_log() -> None:
    held = PartitionBuffer(0, max_rows=100, budget=Budget(10_000))
    assert waiting(held, end=1_000) is None, "nobody knows yet where it begins"
    for offset in (990, 991):
        held.take(record(offset), 0.0)
    assert waiting(held, end=1_000) == 10
    held.start_at(991, 1.0)  # recovery found that 990 is stored
    held.recovered, held.committed = True, 991
    assert waiting(held, end=1_000) == 9
    held.committed = None  # nothing was ever committed: then it is the whole log
    assert waiting(held, end=1_000) == 1_000


def test_what_was_counted_changes_no_block_behind() -> None:
    """A group that lost its offsets has hundreds of thousands of blocks, and each window is counted apart."""
    spans = [Span(0, 5, "r"), Span(6, 12, "r"), Span(13, 20, "r"), Span(21, 30, "r")]
    held = buffer(next_offset=0, spans=deque(spans))
    held.counted({(0, 5): 6, (13, 20): 8}, 18)
    assert list(held.spans) == [Span(0, 5, "r", 6), Span(6, 12, "r"), Span(13, 20, "r", 8), Span(21, 30, "r")]
    assert held.spans[3] is spans[3]
    assert held.uncounted is None
    held.spans.popleft(), held.spans.popleft(), held.spans.popleft()
    assert held.uncounted == 21
