"""Whatever dated files follow one another: nothing is lost or overlaps, and a second time nothing happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl
from hypothesis import given, settings
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
