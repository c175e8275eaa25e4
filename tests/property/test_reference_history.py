"""Whatever dated files follow one another: nothing is lost or overlaps, and a second time nothing happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.frames import TIMESTAMP
from pipeline.reference import history
from pipeline.reference.schema import GRIDS

FIRST_LOAD = datetime(2026, 1, 1, tzinfo=UTC)
_MS: dict[str, Any] = dict.fromkeys(("valid_from", "valid_to", "updated_at"), pl.Int64)
_OTHERS: dict[str, Any] = {history.KEY: pl.String, "version": pl.Int64, "row_digest": pl.UInt64}


class Version(NamedTuple):
    valid_from: int
    valid_to: int | None
    digest: int
    updated_at: int | None


def ms(year: int | None) -> int | None:
    return None if year is None else round(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000)


@st.composite
def files(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of one grid, each of a year of its own; some of the future."""
    rows = []
    for start in draw(st.sets(st.integers(2018, 2031), min_size=1, max_size=3)):
        length = draw(st.none() | st.integers(0, 5))
        rows.append(
            {
                history.KEY: "g", "version": draw(st.none() | st.integers(1, 3)), "valid_from": ms(start),
                "valid_to": None if length is None else ms(start + length),
                "row_digest": draw(st.integers(1, 3)),
                "updated_at": ms(draw(st.none() | st.integers(2017, 2026))),
            }
        )  # fmt: skip
    return rows


def load(store: dict[int, Version], file: list[dict[str, Any]], now: datetime) -> list[str]:
    """What a load of `file` does to `store` (versions by number); the actions taken."""
    stored = [
        {history.KEY: "g", "version": number, "valid_from": v.valid_from, "row_digest": v.digest,
         "valid_to": -1 if v.valid_to is None else v.valid_to,
         "updated_at": -1 if v.updated_at is None else v.updated_at}
        for number, v in sorted(store.items(), key=lambda item: item[1].valid_from)
    ]  # fmt: skip
    known = history.Stored._of(GRIDS, [pl.DataFrame(stored, schema=_OTHERS | _MS)])
    rows = pl.DataFrame(file, schema=_OTHERS | _MS).with_columns(pl.col(list(_MS)).cast(TIMESTAMP))
    compared = history.compare(GRIDS, rows, known, now).with_columns(pl.col(list(_MS)).dt.epoch("ms"))
    for row in compared.filter(~pl.col("action").is_in([history.UNCHANGED, history.OLDER])).to_dicts():
        assert (row["version"] in store) == (row["action"] == history.CORRECTED)
        store[row["version"]] = Version(
            row["valid_from"], row["valid_to"], row["row_digest"], row["updated_at"]
        )
    ordered = sorted(store, key=lambda number: store[number].valid_from)
    for number, after in pairwise(ordered):  # as the loader closes them
        end, following = store[number].valid_to, store[after].valid_from
        if end is None or end > following:
            store[number] = store[number]._replace(valid_to=following)
    return compared["action"].to_list()


@settings(max_examples=60, deadline=None)
@given(sequence=st.lists(files(), min_size=1, max_size=4))
def test_dated_files_in_any_order(sequence: list[list[dict[str, Any]]]) -> None:
    store: dict[int, Version] = {}
    for number, file in enumerate(sequence):
        now = FIRST_LOAD + timedelta(days=200 * number)
        load(store, file, now)
        starts = [version.valid_from for version in store.values()]
        assert len(starts) == len(set(starts)), "one version per beginning"
        assert {row["valid_from"] for row in file} <= set(starts), "every beginning that a file names counts"
        assert all(v.valid_to is None or v.valid_from <= v.valid_to for v in store.values())
        again = load(store, file, now + timedelta(seconds=1))
        assert set(again) <= {history.UNCHANGED, history.OLDER}


def in_force(store: dict[int, Version], at: datetime) -> int | None:
    """The digest in force at an instant."""
    now = round(at.timestamp() * 1000)
    found = [v for v in store.values() if v.valid_from <= now and (v.valid_to is None or now < v.valid_to)]
    return found[0].digest if found else None


def row(start: str, end: str | None, digest: int) -> dict[str, Any]:
    times = [None if day is None else round(_day(day).timestamp() * 1000) for day in (start, end)]
    return {history.KEY: "g", "version": None, "valid_from": times[0], "valid_to": times[1],
            "row_digest": digest, "updated_at": None}  # fmt: skip


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(store: dict[int, Version]) -> list[tuple[str, str | None, int]]:
    """Versions by beginning, as `row` takes them."""
    told = [
        (
            *(None if at is None else f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d}" for at in v[:2]),
            v[2],
        )
        for v in sorted(store.values())
    ]
    return [(str(start), end, digest) for start, end, digest in told]


A, B, C = 1, 2, 3


def snapshots(*given: tuple[str, dict[str, Any]]) -> dict[int, Version]:
    store: dict[int, Version] = {}
    for at, what in given:
        load(store, [what], _day(at))
    return store


THREE = [
    (at, row("2020-01-01", None, what))
    for at, what in (("2026-01-01", A), ("2026-03-01", B), ("2026-06-01", C))
]


@pytest.mark.parametrize(
    ("stored", "archive", "expected"),
    [
        pytest.param(
            THREE,
            [row("2020-01-01", "2026-02-20", A), row("2026-02-20", "2026-05-20", B)],
            [
                ("2020-01-01", "2026-02-20", A), ("2026-02-20", "2026-03-01", B),
                ("2026-03-01", "2026-06-01", B), ("2026-06-01", None, C),
            ],
            id="its last row begins between two and ends after the later one begins",
        ),
        pytest.param(
            [
                ("2025-01-01", row("2020-01-01", "2023-01-01", A)),
                ("2025-01-02", row("2023-01-01", "2025-01-01", B)),
                ("2025-01-03", row("2025-01-01", None, C)),
            ],
            [row("2020-01-01", "2024-01-01", A)],
            [("2020-01-01", "2023-01-01", A), ("2023-01-01", "2025-01-01", B), ("2025-01-01", None, C)],
            id="a row that overlaps the next version",
        ),
        pytest.param(
            [("2025-02-01", row("2020-01-01", "2025-01-01", A)), ("2025-02-02", row("2025-01-01", None, B))],
            [row("2020-01-01", "2025-01-02", A)],
            [("2020-01-01", "2025-01-01", A), ("2025-01-01", None, B)],
            id="a row that overlaps the version in force",
        ),
        pytest.param(
            [("2025-02-01", row("2020-01-01", "2025-01-01", A)), ("2025-02-02", row("2025-01-01", None, B))],
            [row("2020-01-01", "2022-01-01", A), row("2022-01-01", "2025-01-02", C)],
            [("2020-01-01", "2022-01-01", A), ("2022-01-01", "2025-01-01", C), ("2025-01-01", None, B)],
            id="a version that was missing, and overlaps the one in force",
        ),
    ],
)  # fmt: skip
def test_an_archive_leaves_the_version_in_force(
    stored: list[tuple[str, dict[str, Any]]],
    archive: list[dict[str, Any]],
    expected: list[tuple[str, str | None, int]],
) -> None:
    store = snapshots(*stored)
    load(store, archive, _day("2026-07-01"))
    assert days(store) == expected
    assert set(load(store, archive, _day("2026-07-02"))) <= {history.UNCHANGED, history.OLDER}
    assert days(store) == expected


@settings(max_examples=100, deadline=None)
@given(sequence=st.lists(files(), min_size=1, max_size=3), archive=files())
def test_rows_that_ended_before_it_began_leave_the_version_in_force(
    sequence: list[list[dict[str, Any]]], archive: list[dict[str, Any]]
) -> None:
    store: dict[int, Version] = {}
    for number, file in enumerate(sequence):
        load(store, file, FIRST_LOAD + timedelta(days=200 * number))
    now = FIRST_LOAD + timedelta(days=200 * len(sequence))
    now_ms = round(now.timestamp() * 1000)
    current = max((v for v in store.values() if v.valid_from <= now_ms), default=None)
    assume(current is not None)
    assert current is not None
    # what is stored as in force may be told anew with an end: that ends it, and is no archive
    rows = [
        one | {"valid_to": min(one["valid_to"] or current.valid_from, current.valid_from)}
        for one in archive
        if one["valid_from"] < current.valid_from and one["row_digest"] != current.digest
    ]
    assume(rows)
    load(store, rows, now)
    assert current in store.values()


def test_a_successor_begins_where_a_change_that_came_with_an_end_left_off() -> None:
    store = snapshots(
        ("2026-01-01", row("2020-01-01", None, A)), ("2026-06-01", row("2020-01-01", "2026-05-01", B))
    )
    successor = row("2026-05-01", None, C)
    assert load(store, [successor], _day("2026-07-01")) == [history.CORRECTED]
    assert days(store) == [("2020-01-01", "2026-05-01", A), ("2026-05-01", None, C)]
    assert load(store, [successor], _day("2026-07-02")) == [history.UNCHANGED]


def test_a_record_that_changes_and_ends_at_once_ends() -> None:
    """Its source keeps the beginning of the record: what it says is of the present."""
    store = snapshots(("2026-01-01", row("2020-01-01", None, A)), ("2026-03-01", row("2020-01-01", None, B)))
    load(store, [row("2020-01-01", "2026-06-30", C)], _day("2026-07-01"))
    assert in_force(store, _day("2026-07-01")) is None
    assert in_force(store, _day("2026-06-01")) == B
