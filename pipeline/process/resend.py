"""L2: a report sent again under a new id (design 9.19), decided after admission.

A resend has the content of an earlier report within minutes, or the same submission id of the same source
within days. What counts as the earlier report, the anchor, is the first *kept* one by position: a resend is
never an anchor itself (no chaining), nor is a rejected report. Windows compare `occurred_at`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.clock import utc_now
from pipeline.frames import DUPLICATE, NO_DUPLICATES, beside, with_own_texts
from pipeline.process.deduplicate import by_partition, duplicate_rows, milliseconds, positions
from pipeline.process.hashes import digest128, hash128, persons_text, words
from pipeline.reference.hash_index import HashIndex
from pipeline.reference.keys import is_given, is_true

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]
#: Source, event id and case id of the report that a resend repeats.
_Original = tuple[str, str, str]

_MILLISECOND: Final = timedelta(milliseconds=1)
_LATER_ITEM: Final = "\x1e"
#: What an anchor must tell about itself.
ANCHOR: Final = {
    "position": pl.Int64(),
    "occurred": pl.Int64(),
    "ingested": pl.Int64(),
    "l2_hi": pl.UInt64(),
    "l2_lo": pl.UInt64(),
    "sub_hi": pl.UInt64(),
    "sub_lo": pl.UInt64(),
    "event_id": pl.String(),
    "source": pl.String(),
    "case_id": pl.String(),
}


#: What is told of a row that may be a resend or what it repeats.
_TOLD: Final = [
    "_part", "_off", "_idx", "occurred_at", "ingested_at", "l2_hi", "l2_lo", "event_id", "source", "case_id",
    "outcome",
]  # fmt: skip
#: What an anchor is made of.
_ANCHOR_FROM: Final = [*_TOLD, "submission_id"]


@dataclass(frozen=True)
class ResendWindows:
    """content : between `occurred_at`s of equal content; submission : of equal submission ids;
    kept : how long after its receipt a report can be an anchor (bounds the memory; the redelivery window)."""

    content: timedelta
    submission: timedelta
    kept: timedelta


@dataclass(frozen=True)
class Resends:
    """kept : the rows judged plus l2_hi, l2_lo; duplicates : DUPLICATE, level L2. Heights add up."""

    kept: pl.DataFrame
    duplicates: pl.DataFrame


class Keys(NamedTuple):
    """128-bit keys of rows, each (n,). given : where there is one; elsewhere both halves are 0."""

    given: NDArray[np.bool_]
    hi: UInt64s
    lo: UInt64s

    @classmethod
    def of(cls, hi: pl.Series, lo: pl.Series) -> Keys:
        """hi, lo : UInt64, null where a row has no key."""
        missing = hi.null_count()
        if not missing:
            return cls(np.ones(len(hi), bool), hi.to_numpy(), lo.to_numpy())
        if missing == len(hi):
            return cls.at(np.empty(0, np.intp), np.empty((2, 0), np.uint64), missing)
        # pyarrow: each of polars' calls here is a query of its own, and there are some per partition
        high, low = hi.to_arrow(), lo.to_arrow()
        given = np.asarray(high.is_valid().to_numpy(zero_copy_only=False))
        return cls(given, high.fill_null(0).to_numpy(), low.fill_null(0).to_numpy())

    @classmethod
    def at(cls, rows: NDArray[np.intp], words: UInt64s, height: int) -> Keys:
        """Of `height` rows those at `rows` have a key: words (2, k)."""
        given, hi, lo = np.zeros(height, bool), np.zeros(height, np.uint64), np.zeros(height, np.uint64)
        given[rows], hi[rows], lo[rows] = True, *words
        return cls(given, hi, lo)

    def repeated(self, part: NDArray[np.uint16]) -> NDArray[np.intp]:
        """Rows whose key occurs more than once among those of their partition."""
        rows = np.flatnonzero(self.given)  # only reports have keys: few rows are compared
        keys = pl.DataFrame({"part": part[rows], "hi": self.hi[rows], "lo": self.lo[rows]})
        return np.asarray(rows[keys.is_duplicated().to_numpy()])

    def series(self, hi: str, lo: str) -> list[pl.Series]:
        """Two UInt64 columns, null where there is no key."""
        return [
            pl.Series(name, pa.array(words, mask=~self.given))
            for name, words in ((hi, self.hi), (lo, self.lo))
        ]

    def within(self, rows: slice) -> Keys:
        """Those of some rows."""
        return Keys(self.given[rows], self.hi[rows], self.lo[rows])


class Anchors:
    """The admitted reports of one partition that a resend can repeat, oldest position first per key.

    Rebuilt from ClickHouse on assignment, extended only after a commit.
    """

    def __init__(self, windows: ResendWindows) -> None:
        self.windows = windows
        self._rows = _Rows()
        self._count = 0
        self._next_eviction = 1 << 16
        self._clear_index()

    def _clear_index(self) -> None:
        # key -> newest row with it; `_previous` leads from there to the older ones
        self._by_content, self._by_submission = _Chains(), _Chains()

    def __len__(self) -> int:
        return self._count

    def candidates(self, content: tuple[int, int] | None, submission: tuple[int, int] | None) -> list[int]:
        """Numbers of anchors with this content or submission, by position."""
        found = set(self._by_content.of(content)) | set(self._by_submission.of(submission))
        return sorted(found)

    def known(self, content: Keys, submission: Keys) -> NDArray[np.bool_]:
        """Whether any anchor shares the row's content or submission, (n,)."""
        return self._by_content.known(content) | self._by_submission.known(submission)

    def row(self, number: int) -> dict[str, Any]:
        """One anchor as a mapping of `ANCHOR`."""
        return self._rows.row(number)

    def remember(self, anchors: pl.DataFrame) -> None:
        """Add anchors (`ANCHOR`), each once. Call after the commit only."""
        if anchors.is_empty():
            return
        anchors = anchors[list(ANCHOR)]
        position = anchors["position"].to_numpy()
        if (position[1:] < position[:-1]).any():
            anchors = anchors[np.argsort(position, kind="stable")]
        self._append(anchors)
        if self._count >= self._next_eviction:
            self._evict()

    def _append(self, anchors: pl.DataFrame) -> None:
        self._by_content.add(Keys.of(anchors["l2_hi"], anchors["l2_lo"]))
        self._by_submission.add(Keys.of(anchors["sub_hi"], anchors["sub_lo"]))
        self._rows.append(anchors)
        self._count += anchors.height

    def _evict(self) -> None:
        rows = self._rows.all()
        latest = rows["ingested"].max()
        assert isinstance(latest, int)
        hold = min(latest, int(utc_now().timestamp() * 1000)) - self.windows.kept // _MILLISECOND - 3_600_000
        keep = rows.filter(pl.col("ingested") >= hold)
        if keep.height <= 0.75 * self._count:
            self._rows, self._count = _Rows(), 0
            self._clear_index()
            self._append(keep)
        self._next_eviction = max(1 << 16, self._count * 3 // 2)


class _Rows:
    """Frames of `ANCHOR` one after the other. Neighbours are joined when they are of like size, so that few
    stay and a row is copied a few times only, however many blocks come."""

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []
        self._starts: list[int] = []

    def append(self, frame: pl.DataFrame) -> None:
        start = self._starts[-1] + self._frames[-1].height if self._frames else 0
        while self._frames and self._frames[-1].height < 2 * frame.height:
            frame, start = pl.concat([self._frames.pop(), frame]), self._starts.pop()
        self._frames.append(with_own_texts(frame))
        self._starts.append(start)

    def row(self, number: int) -> dict[str, Any]:
        at = bisect_right(self._starts, number) - 1
        return self._frames[at].row(number - self._starts[at], named=True)

    def all(self) -> pl.DataFrame:
        return pl.concat([pl.DataFrame(schema=ANCHOR), *self._frames])


class _Chains:
    """128-bit keys, each with a chain of row numbers: the newest row by key, from each row the one before."""

    def __init__(self) -> None:
        self._index = HashIndex()  # key -> slot
        self._newest = np.empty(0, np.int64)  # by slot
        self._before = np.empty(0, np.int64)  # by row, -1 at a chain's end
        self._rows = 0

    def known(self, keys: Keys) -> NDArray[np.bool_]:
        found = np.zeros(len(keys.given), bool)
        if len(self._index) and keys.given.any():
            at = np.flatnonzero(keys.given)
            found[at] = self._index.find(keys.hi[at], keys.lo[at]) >= 0
        return found

    def of(self, key: tuple[int, int] | None) -> list[int]:
        if key is None or not len(self._index):
            return []
        slot = int(self._index.find(np.array([key[0]], np.uint64), np.array([key[1]], np.uint64))[0])
        rows: list[int] = []
        row = int(self._newest[slot]) if slot >= 0 else -1
        while row >= 0:
            rows.append(row)
            row = int(self._before[row])
        return rows

    def add(self, keys: Keys) -> None:
        """The next rows' keys."""
        first, self._rows = self._rows, self._rows + len(keys.given)
        self._before = _grown(self._before, self._rows)
        self._before[first : self._rows] = -1
        at = np.flatnonzero(keys.given)
        if not len(at):
            return
        high, low = keys.hi[at], keys.lo[at]
        order = np.lexsort((at, high, low))
        at, high, low = at[order], high[order], low[order]
        same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])  # as the row before: linked to it
        self._before[first + at[1:][same]] = first + at[:-1][same]
        heads = np.flatnonzero(np.concatenate([[True], ~same])[: len(at)])
        tails = np.flatnonzero(np.concatenate([~same, [True]])[: len(at)])
        slots = self._index.find(high[heads], low[heads])
        known, fresh = slots >= 0, slots < 0
        self._before[first + at[heads[known]]] = self._newest[slots[known]]
        slots[fresh] = np.arange(len(self._index), len(self._index) + int(fresh.sum()))
        self._index.insert(high[heads[fresh]], low[heads[fresh]])
        self._newest = _grown(self._newest, len(self._index))
        self._newest[slots] = first + at[tails]


def _grown(array: Int64s, size: int) -> Int64s:
    """`array` with room for `size` entries; the new ones are not set."""
    if size <= len(array):
        return array
    grown = np.empty(max(size, len(array) * 3 // 2, 1024), np.int64)
    grown[: len(array)] = array
    return grown


class ContentKeys(NamedTuple):
    """content, submission : of each row judged; none where L2 does not apply (no REPORTED, no reporter key,
    neither text nor photo), and no submission where there is no submission id."""

    content: Keys
    submission: Keys


#: What the keys of a report are made of.
_KEYS_FROM: Final = [
    "source", "submission_id", "actor_key", "matter_code", "grid_code", "unit_code", "title", "description",
    "photos", "lon", "lat", "crs", "persons", "organisation_code", "organisation_name",
]  # fmt: skip
#: Of these, the ones that are compared as people read them.
_READ: Final = ("title", "description", "organisation_name")


def _normal(name: str) -> pl.Expr:
    """Text compared as people read it: compatibility forms folded, white space runs one blank."""
    return pl.col(name).str.normalize("NFKC").str.replace_all(r"\s+", " ").str.strip_chars().fill_null("")


def _degrees(name: str) -> pl.Expr:
    """Degrees to 5 decimals (about a metre) as whole numbers."""
    return (pl.col(name) * 100_000).round().cast(pl.Int64).cast(pl.String)


_NORMAL: Final = tuple(_normal(name) for name in _READ)
#: Whether a report whose texts are normalised may be sent again at all.
_APPLIES: Final = (
    ((pl.col("title") != "") | (pl.col("description") != "") | (pl.col("photos").list.len() > 0))
    .fill_null(False)
    .alias("applies")
)
_CONTENT: Final = digest128(
    [
        *(pl.col(name) for name in ("actor_key", "matter_code", "grid_code", "unit_code")),
        pl.concat_str("title", "description", separator=_LATER_ITEM),
        pl.col("photos").list.eval(pl.element().struct.field("sha256")).list.sort().list.join(_LATER_ITEM),
        _degrees("lon"),
        _degrees("lat"),
        pl.col("crs"),
        persons_text(),
        *(pl.col(name) for name in ("organisation_code", "organisation_name")),
    ]
).alias("content")


def content_keys(judged: pl.DataFrame) -> ContentKeys:
    """Keys of rows of DECODED or wider."""
    # most rows are no reports: only those that may have a key are normalised and hashed
    rows = np.flatnonzero(is_true(judged["event_type"] == "REPORTED") & is_given(judged["actor_key"]))
    # normalised once: each use in an expression would do it again
    reports = judged[_KEYS_FROM][rows].with_columns(_NORMAL)
    applies, digest = reports.select(_APPLIES, _CONTENT).get_columns()
    given = applies.to_numpy()
    sent = given & is_given(reports["submission_id"])
    return ContentKeys(
        Keys.at(rows[given], words(digest)[:, given], judged.height),
        Keys.at(rows[sent], _submission_hash(reports, np.flatnonzero(sent)), judged.height),
    )


_SUBMISSION: Final = (pl.col("source"), pl.col("submission_id"))


def _submission_hash(reports: pl.DataFrame, sent: NDArray[np.intp]) -> UInt64s:
    """(2, m), of the m rows `sent`: often none, and then polars need not be asked."""
    if not len(sent):
        return np.empty((2, 0), np.uint64)
    return hash128(reports.select("source", "submission_id")[sent], _SUBMISSION)


def drop_resends(judged: pl.DataFrame, anchors: Mapping[int, Anchors]) -> Resends:
    """Take the resends out of the rows that admission has judged.

    judged : DECODED + FEATURES + DECISION, of one or more partitions, each in position order.
    anchors : by partition; not changed.
    """
    keys = content_keys(judged)
    kept = judged.hstack(keys.content.series("l2_hi", "l2_lo"))
    suspect = np.zeros(judged.height, bool)
    for partition, part in by_partition(judged):
        suspect[part] = anchors[partition].known(keys.content.within(part), keys.submission.within(part))
    for each in keys:
        suspect[each.repeated(judged["_part"].to_numpy())] = True
    originals: dict[int, _Original] = {}
    if suspect.any():
        told = kept[_TOLD].hstack(keys.submission.series("sub_hi", "sub_lo"))
        for partition, part in by_partition(judged):
            found = _originals(told[part], np.flatnonzero(suspect[part]), anchors[partition])
            originals |= {row + part.start: original for row, original in found.items()}
    if not originals:
        return Resends(kept, NO_DUPLICATES)
    at = np.zeros(judged.height, bool)
    at[list(originals)] = True
    return Resends(
        kept[np.flatnonzero(~at)],
        _resend_rows(kept[np.flatnonzero(at)], [originals[row] for row in sorted(originals)]),
    )


def anchors_of(kept: pl.DataFrame) -> pl.DataFrame:
    """`_part` and `ANCHOR` of the admitted reports among kept rows (with l2_hi, l2_lo and `outcome`)."""
    admitted = np.flatnonzero(is_true(kept["outcome"] == "admitted") & is_given(kept["l2_hi"]))
    reports = kept[_ANCHOR_FROM][admitted]
    sent = np.flatnonzero(is_given(reports["submission_id"]))
    submission = Keys.at(sent, _submission_hash(reports, sent), reports.height)
    told = reports.hstack(
        [
            *submission.series("sub_hi", "sub_lo"),
            pl.Series("position", positions(reports)),
            reports["occurred_at"].cast(pl.Int64).alias("occurred"),
            reports["ingested_at"].cast(pl.Int64).alias("ingested"),
        ]
    )
    return beside([told["_part"], *(told[name].cast(dtype) for name, dtype in ANCHOR.items())])


def _originals(rows: pl.DataFrame, suspects: NDArray[np.intp], anchors: Anchors) -> dict[int, _Original]:
    """Row number -> the report that it repeats, of one partition. Walks only rows whose key
    occurs elsewhere: a resend is rare, and each decision depends on the one before."""
    if not len(suspects):
        return {}
    windows = anchors.windows
    content_ms, submission_ms = windows.content // _MILLISECOND, windows.submission // _MILLISECOND
    kept_ms = windows.kept // _MILLISECOND
    part = rows[suspects]
    part = part.hstack(
        [
            pl.Series("position", positions(part)),
            pl.Series("occurred", milliseconds(part["occurred_at"])),
            pl.Series("ingested", milliseconds(part["ingested_at"])),
        ]
    )[[*ANCHOR, "outcome"]]
    here: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    originals: dict[int, _Original] = {}
    for number, row in zip(suspects.tolist(), part.iter_rows(named=True), strict=True):
        content = _key(row, "l2_hi", "l2_lo")
        submission = _key(row, "sub_hi", "sub_lo")
        known = [anchors.row(anchor) for anchor in anchors.candidates(content, submission)]
        if content is not None:
            known += here.get(("l2", *content), [])
        if submission is not None:
            known += here.get(("sub", *submission), [])
        original = None
        for anchor in sorted(known, key=lambda found: found["position"]):
            if anchor["position"] >= row["position"] or abs(row["ingested"] - anchor["ingested"]) > kept_ms:
                continue
            apart = abs(row["occurred"] - anchor["occurred"])
            same_content = content is not None and _key(anchor, "l2_hi", "l2_lo") == content
            same_submission = submission is not None and _key(anchor, "sub_hi", "sub_lo") == submission
            if (same_content and apart <= content_ms) or (same_submission and apart <= submission_ms):
                original = anchor
                break
        if original is not None:
            originals[number] = (
                str(original["source"]), str(original["event_id"]), str(original["case_id"]),
            )  # fmt: skip
        elif row["outcome"] == "admitted":
            if content is not None:
                here.setdefault(("l2", *content), []).append(row)
            if submission is not None:
                here.setdefault(("sub", *submission), []).append(row)
    return originals


def _key(row: dict[str, Any], hi: str, lo: str) -> tuple[int, int] | None:
    high, low = row[hi], row[lo]
    return None if high is None or low is None else (int(high), int(low))


def _resend_rows(copies: pl.DataFrame, originals: list[_Original]) -> pl.DataFrame:
    return (
        duplicate_rows(copies, "L2")
        .with_columns(
            category=copies["category"],
            lead_department=copies["lead_department"],
            original_source=pl.Series([source for source, _, _ in originals], dtype=pl.String),
            original_event_id=pl.Series([event_id for _, event_id, _ in originals], dtype=pl.String),
            original_case_id=pl.Series([case_id for _, _, case_id in originals], dtype=pl.String),
        )
        .select(list(DUPLICATE))
    )
