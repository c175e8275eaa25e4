"""Every report once and every copy of one, in columns: what was reported is counted from them.

A report is one (source, event_id), whose first copy says whether it was admitted; a copy that L1 or L2 found
is one position. Either may be stored more than once: rows that share their identity are told apart when they
are counted, and are few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import polars as pl

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
    """SQL query: the reports of a table, in no order; a condition is to be added."""
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
        FROM {table} WHERE event_type = 'REPORTED'"""


REPORTS: Final = {table: _query(table) for table in ("events", "rejections", "duplicates")}

_DTYPES: Final = {
    "hi": np.uint64, "lo": np.uint64, "kind": np.uint8,
    "inc": np.uint64, "part": np.uint16, "off": np.uint64, "idx": np.uint32,
    "at": np.int64, "shares": np.bool_,
    **dict.fromkeys(WORDS, np.uint32),
}  # fmt: skip


class HeldReports:
    """words : vocabularies by name of WORDS; shared with the cases."""

    def __init__(self, words: Mapping[str, Words]) -> None:
        self._words = words
        self._index = HashIndex()
        self._rows = Columns(_DTYPES)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._rows.nbytes

    def take(self, told: pl.DataFrame) -> None:
        """Rows of one of `REPORTS`; those that are known already change nothing."""
        told = told.rename(lambda name: name.removeprefix("told_")).unique(
            ["hi", "lo", "kind", "inc", "part", "off", "idx"], keep="first"
        )
        hi, lo = told["hi"].to_numpy(), told["lo"].to_numpy()
        numbers = self._index.find(hi, lo)
        known = numbers >= 0
        if known.any():
            same = np.flatnonzero(known)
            held = self._rows
            again = np.ones(len(same), bool)
            for name in ("kind", "inc", "part", "off", "idx"):
                again &= held[name][numbers[same]] == told[name].to_numpy()[same]
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
        # of rows that share their identity the first one found stands for it
        self._index.insert(hi[~known], lo[~known], added[~known])

    def counts(self, word: str, key_of: Callable[[str], str], window: Window) -> pl.DataFrame:
        """What `kpi_views.reports_query` gives, by the keys of a column of WORDS."""
        held = self._rows
        keys, of_word = self._words[WORDS[word]].keyed(key_of)
        inside = window.holds(held["at"]) & (held["at"] <= window.as_of)
        rows = np.flatnonzero(inside & ~held["shares"])
        rows = np.r_[rows, self._first_of_each(np.flatnonzero(inside & held["shares"]))]
        cells = of_word[held[word][rows]].astype(np.int64) * 5 + held["kind"][rows]
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
            {name: self._rows[name][rows] for name in ("hi", "lo", "inc", "part", "off", "idx", "kind")}
            | {"row": rows}
        )
        return (
            order.sort("inc", "part", "off", "idx", "kind")
            .unique(["hi", "lo"], keep="first", maintain_order=True)["row"]
            .to_numpy()
        )
