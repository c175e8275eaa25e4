"""L2: the same report under a new id. The anchor is the first kept report, no rejected one; no chains."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from pipeline.frames import DUPLICATE
from pipeline.process.decode import decode
from pipeline.process.records import Record
from pipeline.process.resend import Anchors, ResendWindows, anchors_of, content_keys, drop_resends
from tests.integration.worker_world import NOON, PRIVACY, event, record

WINDOWS = ResendWindows(
    content=timedelta(seconds=600), submission=timedelta(hours=72), kept=timedelta(days=7)
)
TEXT = "阳台铁皮松动"


def report(number: int, minutes: float = 0, **changes: Any) -> dict[str, Any]:
    """A report whose content is the same whatever its number."""
    return event(number, minutes=minutes, **{"description": TEXT, **changes})


def judged(*records: Record, rejected: tuple[str, ...] = ()) -> pl.DataFrame:
    rows = decode([(0, records)], privacy=PRIVACY).events
    is_report = pl.col("event_type") == "REPORTED"
    return rows.with_columns(
        outcome=pl.when(pl.col("event_id").is_in(rejected))
        .then(pl.lit("rejected"))
        .when(is_report)
        .then(pl.lit("admitted"))
        .otherwise(pl.lit("recorded")),
        category=pl.lit("SA"),
        lead_department=pl.lit("D-EMERGENCY"),
    )


def stream(*documents: dict[str, Any]) -> list[Record]:
    at = NOON + timedelta(hours=1)
    return [record(offset, document, received=at) for offset, document in enumerate(documents)]


def copies(*documents: dict[str, Any], rejected: tuple[str, ...] = ()) -> dict[str, str]:
    """Event id of each resend -> the one it repeats, all documents in one block."""
    rows = judged(*stream(*documents), rejected=rejected)
    found = drop_resends(rows, {0: Anchors(WINDOWS)})
    assert found.duplicates.schema == DUPLICATE
    assert found.kept.height + found.duplicates.height == rows.height
    return dict(found.duplicates.select("event_id", "original_event_id").iter_rows())


def test_a_double_tap_is_one_report() -> None:
    assert copies(report(1), report(2, minutes=0.1), report(3, minutes=9)) == {"e2": "e1", "e3": "e1"}


@pytest.mark.parametrize(("minutes", "copy"), [(10, True), (-10, True), (10.001, False), (-10.001, False)])
def test_ten_minutes_between_the_occurrences_are_the_limit(minutes: float, copy: bool) -> None:
    assert copies(report(1), report(2, minutes=minutes)) == ({"e2": "e1"} if copy else {})


def test_no_chaining() -> None:
    # 2 repeats 1; 3 is too late for 1, and 2 is no anchor; so 3 is kept and 4 repeats 3
    assert copies(report(1), report(2, 8), report(3, 12), report(4, 20)) == {"e2": "e1", "e4": "e3"}


def test_the_first_of_several_anchors_is_named() -> None:
    assert copies(report(1), report(2, 12), report(3, 6)) == {"e3": "e1"}


def test_a_rejected_report_is_no_anchor() -> None:
    assert copies(report(1), report(2, 1), report(3, 2), rejected=("e1",)) == {"e3": "e2"}


def test_nothing_but_reports_can_be_a_resend() -> None:
    assert copies(report(1), report(2, event_type="ACCEPTED"), report(3, event_type="FEEDBACK")) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "别的"},
        {"title": "标题"},
        {"matter_code": "SA-01"},
        {"grid_code": "440704001001004"},
        {"actor": {"type": "full_time", "key": "w-0002"}},
        {"location": {"lon": 113.10001, "lat": 22.57, "crs": "wgs84"}},
        {"location": None},
        {"photos": [{"sha256": "f" * 64}]},
        {"photos": None},
        {"persons": [{"role": "subject", "key": "a" * 64}]},
        {"organisation": {"code": "G1"}},
    ],
)
def test_other_content_is_another_report(changes: dict[str, Any]) -> None:
    assert copies(report(1), report(2, 1, **changes)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "  阳台铁皮\n松动 ".replace("\n", "")},
        {"case_id": "another"},
        {"channel": "yuepingan"},
        {"location": {"lon": 113.100001, "lat": 22.570004, "crs": "wgs84", "address": "江南路"}},
        {"submission_id": "s2"},
    ],
)
def test_what_a_resend_may_differ_in(changes: dict[str, Any]) -> None:
    assert copies(report(1), report(2, 1, **changes)) == {"e2": "e1"}


def test_text_is_compared_as_people_read_it() -> None:
    assert copies(report(1, description="３栋 ２楼  漏水"), report(2, 1, description="3栋 2楼 漏水 ")) == {
        "e2": "e1"
    }


def test_photo_order_does_not_matter() -> None:
    one, two = {"sha256": "a" * 64}, {"sha256": "b" * 64}
    assert copies(report(1, photos=[one, two]), report(2, photos=[two, one])) == {"e2": "e1"}


def test_without_reporter_key_or_without_text_and_photo_there_is_no_resend() -> None:
    anonymous = {"actor": {"type": "citizen"}}
    assert copies(report(1, **anonymous), report(2, **anonymous)) == {}
    silent = {"description": " ", "photos": None}
    assert copies(report(1, **silent), report(2, **silent)) == {}
    assert not content_keys(judged(*stream(report(1, **silent)))).content.given.any()


def test_an_equal_submission_is_a_resend_for_72_hours_whatever_the_text() -> None:
    def sent(number: int, hours: float, **more: Any) -> dict[str, Any]:
        return report(number, hours * 60, submission_id="s1", **{"description": f"text {number}", **more})

    assert copies(sent(1, 0), sent(2, 72)) == {"e2": "e1"}
    assert copies(sent(1, 0), sent(2, 72.001)) == {}
    assert copies(sent(1, 0), sent(2, 1, source="other")) == {}


def test_a_copy_names_event_and_case_that_it_duplicates_and_where_it_counts() -> None:
    found = drop_resends(judged(*stream(report(1), report(2, 1))), {0: Anchors(WINDOWS)}).duplicates
    copy = found.row(0, named=True)
    assert (copy["level"], copy["event_id"], copy["case_id"]) == ("L2", "e2", "c2")
    assert (copy["original_source"], copy["original_event_id"], copy["original_case_id"]) == (
        "handset", "e1", "c1",
    )  # fmt: skip
    assert (copy["category"], copy["lead_department"]) == ("SA", "D-EMERGENCY")


def test_a_replayed_block_does_not_meet_itself() -> None:
    rows = judged(*stream(report(1), report(2, 1), report(3, 12)))
    anchors = Anchors(WINDOWS)
    first = drop_resends(rows, {0: anchors})
    anchors.remember(anchors_of(first.kept))
    again = drop_resends(rows, {0: anchors})
    assert again.kept.equals(first.kept)
    assert again.duplicates.equals(first.duplicates)


@pytest.mark.parametrize("seed", range(30))
def test_the_result_does_not_depend_on_how_the_log_is_cut(seed: int) -> None:
    chance = random.Random(seed)
    documents = [
        report(
            number,
            minutes=chance.uniform(0, 60),
            description=chance.choice(["a", "b", "c"]),
            submission_id=chance.choice([None, None, "s1", "s2"]),
        )
        for number in range(50)
    ]
    rejected = tuple(f"e{number}" for number in range(50) if chance.random() < 0.2)
    records = stream(*documents)
    whole = drop_resends(judged(*records, rejected=rejected), {0: Anchors(WINDOWS)})
    anchors, kept, dropped = Anchors(WINDOWS), [], []
    start = 0
    while start < len(records):
        end = start + chance.randint(1, 12)
        part = drop_resends(judged(*records[start:end], rejected=rejected), {0: anchors})
        anchors.remember(anchors_of(part.kept))
        kept.append(part.kept)
        dropped.append(part.duplicates)
        start = end
    assert pl.concat(kept).equals(whole.kept)
    assert pl.concat(dropped).equals(whole.duplicates)
    assert whole.duplicates.height > 5


def test_anchors_hold_their_own_texts_and_those_of_no_other_row() -> None:
    """Texts of a whole round lie together: what shares a piece of them keeps all of it in memory."""
    anchors, long = Anchors(WINDOWS), "x" * 40
    for block in range(20):
        numbers = range(100 * block, 100 * block + 100)
        records = stream(*(report(n, event_id=f"{long}{n}", description=f"{TEXT}{n}") for n in numbers))
        few = tuple(f"{long}{n}" for n in numbers if n % 50)
        kept = drop_resends(judged(*records, rejected=few), {0: anchors}).kept
        anchors.remember(anchors_of(kept))
    assert len(anchors) == 40
    texts = [row["event_id"] for row in map(anchors.row, range(40))]
    assert texts == [f"{long}{50 * n}" for n in range(40)]
    columns = [frame["event_id"] for frame in anchors._rows._frames]
    held = sum(
        buffer.size
        for column in columns
        for buffer in column.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()[2:]
    )
    assert held == sum(map(len, texts))


def test_an_anchor_is_forgotten_after_the_redelivery_window() -> None:
    def late(days: float) -> datetime:
        return NOON + timedelta(days=days)

    anchors = Anchors(WINDOWS)
    first = drop_resends(judged(record(0, report(1), received=late(0))), {0: anchors})
    anchors.remember(anchors_of(first.kept))
    near = judged(record(1, report(2, 1), received=late(6.9)))
    far = judged(record(1, report(2, 1), received=late(7.1)))
    assert drop_resends(near, {0: anchors}).duplicates.height == 1
    assert drop_resends(far, {0: anchors}).duplicates.height == 0
