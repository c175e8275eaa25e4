"""Every report once and every copy of one, in columns: what was reported is counted from them.

A report is one (source, event_id), whose first copy says whether it was admitted; a copy that L1 or L2 found
is one position. Either may be stored more than once: rows that share their identity are told apart when they
are counted, and are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.read.held.columns import Columns, Ints, Window, Words
from pipeline.reference.hash_index import HashIndex

#: Kinds of rows, as in `kpi_views.reports_query`.
_EVENTS, _REJECTIONS, _L1, _L2 = 1, 2, 3, 4
#: Words of a report: column → what it is called where words are shared with cases.
WORDS: Final = {
    "grid_code": "grid", "matter_code": "matter", "category": "category", "lead_department": "department",
    "channel": "channel",
}  # fmt: skip
_POSITION: Final = ("_inc", "_part", "_off", "_idx")


def _query(table: str) -> str:
    """SQL query: the reports of a table, one of {slices} slices, in no order; a condition is to be added."""
    of, kind = {
        "events": ("id_hi, id_lo", str(_EVENTS)),
        "rejections": ("id_hi, id_lo", str(_REJECTIONS)),
        "duplicates": (", ".join(_POSITION), f"if(level = 'L1', {_L1}, {_L2})"),
    }[table]
    words = ", ".join(f"ifNull(toString({name}), '') AS told_{name}" for name in WORDS)
    return f"""
        SELECT xxh3({of}) AS told_hi, cityHash64({of}) AS told_lo, toUInt8({kind}) AS told_kind,
            {", ".join(f"{name} AS told{name}" for name in _POSITION)},
            toUnixTimestamp64Milli(occurred_at) AS told_at, {words}
        FROM {table}
        WHERE event_type = 'REPORTED' AND xxh3(_inc, _part, _off) % {{slices:UInt32}} = {{slice:UInt32}}"""


REPORTS: Final = {table: _query(table) for table in ("events", "rejections", "duplicates")}

_DTYPES: Final = {
    "hi": np.uint64, "lo": np.uint64, "kind": np.uint8,
    "inc": np.uint64, "part": np.uint16, "off": np.uint64, "idx": np.uint32,
    "at": np.int64, "shares": np.bool_,
    **dict.fromkeys(WORDS, np.uint32),
}  # fmt: skip
#: With its identity, what makes a row itself.
_EXACTLY: Final = ("kind", "inc", "part", "off", "idx")


class HeldReports:
    """words : vocabularies by name of WORDS; shared with the cases."""

    def __init__(self, words: Mapping[str, Words]) -> None:
        self._words = words
        self._index = HashIndex()
        self._rows = Columns(_DTYPES)
        #: By number of the index: the row that it stands for.
        self._row_of = Columns({"row": np.int64})
        #: The rows that share their identity with others; few.
        self._sharing: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._row_of.nbytes + self._rows.nbytes

    def take(self, told: pl.DataFrame) -> None:
        """Rows of one of `REPORTS`; those that are known already change nothing."""
        told = told.rename(lambda name: name.removeprefix("told_")).unique(
            ["hi", "lo", *_EXACTLY], keep="first"
        )
        hi, lo = told["hi"].to_numpy(), told["lo"].to_numpy()
        numbers = self._index.find(hi, lo)
        known = numbers >= 0
        numbers[known] = self._row_of["row"][numbers[known]]
        if known.any():
            same = np.flatnonzero(known)
            again = np.ones(len(same), bool)
            for name in _EXACTLY:
                again &= self._rows[name][numbers[same]] == told[name].to_numpy()[same]
            # of what shares its identity, others than the one that the index finds are known by all they are
            others = same[~again]
            if len(others) and self._sharing:
                exact = told[others].select("hi", "lo", *_EXACTLY).rows()
                again[~again] = [row in self._sharing for row in exact]
            left = np.ones(len(numbers), bool)
            left[same[again]] = False
            if not left.all():
                told, hi, lo = told.filter(pl.Series(left)), hi[left], lo[left]
                numbers, known = numbers[left], known[left]
        if not len(hi):
            return
        shares = known | told.select(pl.struct("hi", "lo").is_duplicated()).to_series().to_numpy()
        held_shares = self._rows["shares"]
        held_shares[numbers[known]] = True
        rows = {name: told[name].to_numpy() for name in _DTYPES if name in told.columns and name not in WORDS}
        rows |= {name: self._words[word].numbers(told[name]) for name, word in WORDS.items()}
        added = self._rows.add(rows | {"shares": shares})
        if shares.any():
            self._sharing.update(told.filter(pl.Series(shares)).select("hi", "lo", *_EXACTLY).rows())
        # of rows that share their identity the first one found stands for it
        self._index.insert(hi[~known], lo[~known])
        self._row_of.add({"row": added[~known]})

    def counts(
        self, word: str, keys: Sequence[str], key_of_word: NDArray[np.uint32], window: Window
    ) -> pl.DataFrame:
        """What `kpi_views.reports_query` gives. word : of WORDS. key_of_word : number of each word's key."""
        held = self._rows
        inside = window.holds(held["at"]) & (held["at"] <= window.as_of)
        rows = np.flatnonzero(inside & ~held["shares"])
        rows = np.r_[rows, self._first_of_each(np.flatnonzero(inside & held["shares"]))]
        cells = key_of_word[held[word][rows]].astype(np.int64) * 5 + held["kind"][rows]
        counted = np.bincount(cells, minlength=5 * len(keys)).reshape(len(keys), 5)
        admitted, rejected, l1, l2 = (counted[:, kind] for kind in (_EVENTS, _REJECTIONS, _L1, _L2))
        found = pl.DataFrame(
            {
                "key": pl.Series(keys, dtype=pl.String),
                "admitted_reports": admitted,
                "rejected_reports": rejected,
                "duplicates_l1": l1,
                "duplicates_l2": l2,
                "reports": counted.sum(axis=1),
            }
        ).filter((pl.col("key") != "") & (pl.col("reports") > 0))
        both = pl.col("admitted_reports") + pl.col("rejected_reports")
        return found.with_columns(
            admission_rate=pl.when(both > 0).then(pl.col("admitted_reports") / both),
            has_reports=pl.lit(1),
        )

    def _first_of_each(self, rows: Ints) -> Ints:
        """Of rows that share their identity the one of the first position."""
        if not len(rows):
            return rows
        order = pl.DataFrame(
            {name: self._rows[name][rows] for name in ("hi", "lo", *_EXACTLY)} | {"row": rows}
        )
        return (
            order.sort("inc", "part", "off", "idx", "kind")
            .unique(["hi", "lo"], keep="first", maintain_order=True)["row"]
            .to_numpy()
        )
