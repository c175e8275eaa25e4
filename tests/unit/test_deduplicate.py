"""L1 by position: an id is known from its first kept row on, and no row is a duplicate of itself."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from pipeline.contract.privacy import Privacy
from pipeline.frames import DUPLICATE, QUARANTINED
from pipeline.process.decode import decode
from pipeline.process.deduplicate import Entry, SeenIds, Unique, deduplicate
from pipeline.process.records import Record
from tests.integration.worker_world import NOON, PRIVACY, event, ids, record

WINDOW = timedelta(days=7)


def rows(*records: Record) -> pl.DataFrame:
    return decode([(0, records)], privacy=PRIVACY).events


def remember(seen: SeenIds, kept: pl.DataFrame) -> None:
    seen.remember(kept["id_hi"].to_numpy(), kept["id_lo"].to_numpy(), Entry.of(kept))


def outcome(unique: Unique, height: int) -> tuple[list[int], list[int], list[int]]:
    assert unique.duplicates.schema == DUPLICATE
    assert unique.conflicts.schema == QUARANTINED
    parts = (unique.kept, unique.duplicates, unique.conflicts)
    assert sum(part.height for part in parts) == height
    kept, copies, conflicts = (part["_off"].to_list() for part in parts)
    return kept, copies, conflicts


def at(days: float) -> datetime:
    return NOON + timedelta(days=days)


def test_within_a_block_the_first_position_is_kept() -> None:
    block = rows(record(0, event(1)), record(1, event(2)), record(2, event(1)), record(3, event(1)))
    assert outcome(deduplicate(block, {0: SeenIds(WINDOW)}, WINDOW), 4) == ([0, 1], [2, 3], [])


def test_a_copy_says_what_it_copies() -> None:
    block = rows(record(0, event(1)), record(1, event(1)))
    copy = deduplicate(block, {0: SeenIds(WINDOW)}, WINDOW).duplicates.row(0, named=True)
    assert (copy["level"], copy["original_source"], copy["original_event_id"]) == ("L1", "handset", "e1")
    assert copy["original_case_id"] == "c1"


def test_the_same_id_of_another_source_is_another_event() -> None:
    block = rows(record(0, event(1)), record(1, event(1, source="other")))
    assert outcome(deduplicate(block, {0: SeenIds(WINDOW)}, WINDOW), 2) == ([0, 1], [], [])


def test_a_replayed_block_gives_what_it_gave() -> None:
    block = rows(record(0, event(1)), record(1, event(2)), record(2, event(1)))
    seen = SeenIds(WINDOW)
    first = deduplicate(block, {0: seen}, WINDOW)
    remember(seen, first.kept)
    again = deduplicate(block, {0: seen}, WINDOW)
    assert again.kept.equals(first.kept)
    assert again.duplicates.equals(first.duplicates)


def test_only_a_smaller_position_counts() -> None:
    seen = SeenIds(WINDOW)
    remember(seen, rows(record(9, event(1))))
    assert outcome(deduplicate(rows(record(8, event(1))), {0: seen}, WINDOW), 1) == ([8], [], [])
    assert outcome(deduplicate(rows(record(10, event(1))), {0: seen}, WINDOW), 1) == ([], [10], [])


def test_other_content_under_a_known_id_is_a_conflict_and_the_first_stays() -> None:
    seen = SeenIds(WINDOW)
    remember(seen, rows(record(0, event(1))))
    later = rows(record(1, event(1, description="别的")), record(2, event(1)))
    unique = deduplicate(later, {0: seen}, WINDOW)
    assert outcome(unique, 2) == ([], [2], [1])
    assert unique.conflicts["reason"].to_list() == ["ID_CONFLICT"]
    assert "别的" in unique.conflicts["payload"][0]


@pytest.mark.parametrize("same_block", [True, False])
def test_a_copy_across_the_activation_of_a_pseudonym_key_is_a_copy(same_block: bool) -> None:
    """Pseudonyms are part of the content: under another key the same person reads otherwise."""
    old, new = Privacy(b"k" * 32), Privacy(b"n" * 32, 2, {1: b"k" * 32})
    citizen = {"type": "citizen", "id_number": "999999199001011234"}
    concerned = [{"role": "subject", "id_number": "999999198502023456"}]
    staff = event(4)
    documents = [event(1, actor=citizen), event(2, persons=concerned), event(3, actor=citizen), staff]
    before = decode([(0, [record(at, document) for at, document in enumerate(documents)])], privacy=old)
    again = [*documents[:2], event(3, description="别的"), staff | {"description": "别的"}]
    after = decode([(0, [record(10 + at, document) for at, document in enumerate(again)])], privacy=new)
    seen = SeenIds(WINDOW)
    if same_block:
        block, kept = pl.concat([before.events, after.events]), [0, 1, 2, 3]
    else:
        remember(seen, before.events)
        block, kept = after.events, []
    # whoever is named by no pseudonym, is compared as ever
    assert outcome(deduplicate(block, {0: seen}, WINDOW), block.height) == (kept, [10, 11], [12, 13])


def test_a_copy_stored_before_its_keys_version_was_is_compared_as_ever() -> None:
    citizen = {"type": "citizen", "id_number": "999999199001011234"}
    first = rows(record(0, event(1, actor=citizen)))
    seen = SeenIds(WINDOW)
    remember(seen, first.with_columns(key_version=pl.lit(0, pl.UInt16)))
    later = rows(record(1, event(1, actor=citizen)), record(2, event(1, actor=citizen, description="别的")))
    assert outcome(deduplicate(later, {0: seen}, WINDOW), 2) == ([], [1], [2])


def test_conflict_within_a_block() -> None:
    block = rows(record(0, event(1)), record(1, event(1, description="别的")), record(2, event(1)))
    assert outcome(deduplicate(block, {0: SeenIds(WINDOW)}, WINDOW), 3) == ([0], [2], [1])


@pytest.mark.parametrize(("days", "kept"), [(6.999, False), (7.0, False), (7.001, True)])
@pytest.mark.parametrize("same_block", [True, False])
def test_the_window_ends_after_seven_days_between_receipts(days: float, kept: bool, same_block: bool) -> None:
    first, copy = record(0, event(1), received=at(0)), record(1, event(1), received=at(days))
    seen = SeenIds(WINDOW)
    if same_block:
        block = rows(first, copy)
    else:
        remember(seen, rows(first))
        block = rows(copy)
    offsets, _, _ = outcome(deduplicate(block, {0: seen}, WINDOW), block.height)
    assert (1 in offsets) is kept


@pytest.mark.parametrize(
    "stamped",
    [
        "2028-02-25T12:00:00+08:00",  # the leap day is inside
        "2028-02-29T23:59:59.999+08:00",
        "2027-03-10T12:00:00-05:00",  # New York loses an hour on the 14th
        "2027-11-07T01:30:00-04:00",  # half past one, which comes a second time at -05:00
    ],
)
@pytest.mark.parametrize(("more", "kept"), [(0, False), (1, True)])
def test_the_window_is_168_hours_whatever_calendar_and_clocks_do(stamped: str, more: int, kept: bool) -> None:
    occurred = datetime.fromisoformat(stamped).astimezone(UTC)
    received = occurred + timedelta(minutes=3)
    late = received + timedelta(hours=168, milliseconds=more)
    new_york = occurred.astimezone(ZoneInfo("America/New_York")).isoformat()
    block = rows(
        record(0, event(1, occurred_at=stamped), received=received),
        # the same instant as another clock tells it: a copy, and no other content
        record(1, event(1, occurred_at=new_york), received=late),
    )
    assert block["occurred_at"].to_list() == [occurred, occurred]
    offsets, copies, conflicts = outcome(deduplicate(block, {0: SeenIds(WINDOW)}, WINDOW), block.height)
    assert (1 in offsets) is kept
    assert (1 in copies) is not kept
    assert conflicts == []


def test_a_copy_kept_beyond_the_window_is_what_the_next_copy_repeats() -> None:
    stream = [
        record(offset, event(1), received=at(days)) for offset, days in enumerate((0, 8, 10, 14.9, 15.1))
    ]
    whole = outcome(deduplicate(rows(*stream), {0: SeenIds(WINDOW)}, WINDOW), 5)
    assert whole == ([0, 1, 4], [2, 3], [])


@pytest.mark.parametrize("seed", range(20))
def test_the_result_does_not_depend_on_how_the_log_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    stream = [
        record(
            offset,
            event(chance.randrange(12), description=chance.choice(["a", "a", "a", "b"])),
            received=at(chance.random() * 20),
        )
        for offset in range(60)
    ]
    whole = outcome(deduplicate(rows(*stream), {0: SeenIds(WINDOW)}, WINDOW), 60)
    seen, parts = SeenIds(WINDOW), ([], [], [])  # type: ignore[var-annotated]
    start = 0
    while start < len(stream):
        end = start + chance.randint(1, 15)
        block = rows(*stream[start:end])
        unique = deduplicate(block, {0: seen}, WINDOW)
        remember(seen, unique.kept)
        for part, offsets in zip(parts, outcome(unique, block.height), strict=True):
            part.extend(offsets)
        start = end
    assert parts == whole


def test_memory_is_bounded_by_the_window() -> None:
    seen = SeenIds(WINDOW)
    base = rows(*[record(number, event(number)) for number in range(2_000)])
    for day in range(80):
        shift = pl.Series([day], dtype=pl.UInt64)[0]
        moved = base.with_columns(
            (pl.col("id_lo") // 2 + shift * 7_919 * 10**9).alias("id_lo"),
            ingested_at=pl.lit(at(day - 200)).cast(pl.Datetime("ms", "UTC")),
            _off=pl.col("_off") + day * 2_000,
        )
        remember(seen, moved)
    assert len(seen) <= 66_000  # 160,000 were remembered; 8 days of 2,000 are inside the window
    assert seen.forgotten == 0


def test_an_id_is_forgotten_an_hour_after_its_window_for_receipts_interleave() -> None:
    """Of two gateways one may be behind: the newest receipt is no end of the window for what it still sends.
    A quarter must go, or nothing does."""
    base = rows(record(0, event(1)))

    def many(first: int, number: int, receipt: datetime) -> pl.DataFrame:
        return pl.concat([base] * number).with_columns(
            id_lo=pl.int_range(number, dtype=pl.UInt64, eager=True) + first,
            ingested_at=pl.lit(receipt).cast(pl.Datetime("ms", "UTC")),
            _off=pl.int_range(number, dtype=pl.UInt64, eager=True) + first,
        )

    newest, number = at(-30), 1 << 16
    gone = many(0, number, newest - WINDOW - timedelta(minutes=61))
    late = many(number, number, newest - WINDOW - timedelta(minutes=30))
    seen = SeenIds(WINDOW)
    for kept in (gone, late, many(2 * number, number + 1, newest)):
        remember(seen, kept)
    assert len(seen) == 2 * number + 1
    copy = late.head(1).with_columns(
        ingested_at=pl.lit(newest - timedelta(minutes=40)).cast(pl.Datetime("ms", "UTC")),
        _off=pl.lit(3 * number + 1, pl.UInt64),
    )
    assert outcome(deduplicate(copy, {0: seen}, WINDOW), 1) == ([], [3 * number + 1], [])


def test_above_the_bound_the_oldest_are_forgotten_and_counted() -> None:
    seen = SeenIds(timedelta(days=1000), max_entries=50_000)
    base = rows(*[record(number, event(number)) for number in range(2_000)])
    for day in range(60):
        remember(
            seen,
            base.with_columns(
                (pl.col("id_lo") // 2 + day * 7_919 * 10**9).cast(pl.UInt64).alias("id_lo"),
                ingested_at=pl.lit(at(day - 100)).cast(pl.Datetime("ms", "UTC")),
                _off=(pl.col("_off") + day * 2_000).cast(pl.UInt64),
            ),
        )
    assert seen.forgotten > 0
    assert len(seen) <= 70_000
    newest = base.with_columns((pl.col("id_lo") // 2 + 59 * 7_919 * 10**9).cast(pl.UInt64).alias("id_lo"))
    assert (seen.find(newest["id_hi"].to_numpy(), newest["id_lo"].to_numpy()) >= 0).all()


def test_an_empty_block_is_no_problem() -> None:
    empty = rows(record(0, event(1))).clear()
    assert outcome(deduplicate(empty, {0: SeenIds(WINDOW)}, WINDOW), 0) == ([], [], [])
    assert ids(empty) == []
