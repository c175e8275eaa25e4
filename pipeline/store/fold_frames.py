"""The case fold: from each case's set of events to its history and state, for all cases of a frame at once.

A case's state is a function of its *set* of events, never of their order of arrival. The stage

1. keeps one event per (source, event_id), the one with the smallest position;
2. sorts a case's events by (occurred_at, rank, event_id, source);
3. walks them (`fold_walk`): whether each transition is legal, state and limit after it;
4. reads every timestamp, count and name off the legal events.

The rules are those of `pipeline.store.fold`, which says the same in SQL: the store reads past instants with
it, and the verifier folds with it what this stage has folded. Source: docs/metrics.md, "How a case is
folded".

Numbers are taken out of the frame at once, and the columns made by numpy and pyarrow: a query of polars for
each of eighty columns cost a small round more than its events.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.frames import CASE_SET, RANK, expect
from pipeline.reference.hash_index import SPREAD
from pipeline.reference.keys import owners
from pipeline.reference.lists import by_number
from pipeline.store.fold import (
    ALL,
    CLOSED_STATES,
    HORIZON_DAYS,
    ILLEGAL,
    LEGAL,
    NEVER,
    OF_ANOTHER_CASE,
    REPEATED_REPORT,
    RESENT,
    RESPONSES,
    STATES,
)
from pipeline.store.fold_walk import NO_LIMIT, Events, Int64s, Mask, Walk, walk_cases

_HORIZON_MS: Final = HORIZON_DAYS * 24 * 3_600_000
#: What makes two entries of a set the same entry. The rest of an entry follows from its position, but for a
#: block that was judged again under other rules.
_POSITION: Final = ("_inc", "_part", "_off", "_idx")
#: More than there are ranks.
_RANKS: Final = 32
_ORDER: Final = ("case_id", "occurred_at", "rank", "event_id", "source")
_NO_SECONDS: Final = -1
#: The columns of `Events`, and a hash of the id, of every entry.
_NUMBERS: Final = [
    pl.col("occurred_at", "ingested_at").to_physical(),
    pl.col("rank", "outcome"),
    pl.col("due_at").to_physical().fill_null(NO_LIMIT),
    pl.col("rating").fill_null(0),
    pl.col("self_handled", "backfill", "evidence_pending").fill_null(False),
    pl.col("response_limit_seconds", "resolution_limit_seconds").cast(pl.Int64).fill_null(_NO_SECONDS),
    (pl.col("event_id").hash(1) ^ pl.col("source").hash(2)).alias("id"),
]
_TEXTS: Final = [name for name, dtype in CASE_SET.items() if dtype == pl.String()]
#: Texts of the report that opened a case: column → its name in the report. Blank without a report.
_OPENING: Final = {
    "report_source": "source",
    "report_event_id": "event_id",
    "grid_code": "grid_code",
    "channel": "channel",
}
#: The same, null without a report.
_OPENING_MAYBE: Final = ("matter_code", "category", "lead_department")
#: Times and counts of legal events: column → event type.
_FIRST: Final = {
    "found_at": "DISCOVERED",
    "reported_at": "REPORTED",
    "accepted_at": "ACCEPTED",
    "first_dispatched_at": "DISPATCHED",
    "first_signed_at": "SIGNED",
    "first_action_at": "HANDLING",
    "first_closed_at": "CLOSED",
}
_LAST: Final = {
    "merged_at": "MERGED",
    "last_dispatched_at": "DISPATCHED",
    "returned_at": "RETURNED",
    "arrived_at": "ARRIVED",
    "escalated_at": "ESCALATED",
    "resolved_at": "RESOLVED",
    "closed_at": "CLOSED",
    "feedback_at": "FEEDBACK",
    "reopened_at": "REOPENED",
    "archived_at": "ARCHIVED",
    "voided_at": "VOIDED",
}
_COUNTED: Final = {
    f"{name.lower()}_count": name
    for name in (
        "ACCEPTED", "DISPATCHED", "RETURNED", "EXTENDED", "ESCALATED", "RESOLVED", "REWORK", "CLOSED",
        "REOPENED",
    )
}  # fmt: skip
_TEXT: Final = pa.large_string()
#: Blank, and the names of the states. By polars: the first array that pyarrow makes of values brings pandas
#: along, for which a command that folds nothing would wait.
_WORDS: Final = pl.Series(
    ["", *(name for name, _ in sorted(STATES.items(), key=lambda item: item[1]))], dtype=pl.String
).to_arrow(compat_level=pl.CompatLevel.oldest())
_BLANK: Final = _WORDS[0]
_STATE_NAMES: Final = _WORDS[1:]
_STATE_NUMBERS: Final = np.full(max(STATES.values()) + 1, 0, np.uint32)
_STATE_NUMBERS[sorted(STATES.values())] = np.arange(len(STATES))
_INSTANT: Final = pa.timestamp("ms", tz="UTC")
#: By number of a state, or rank.
_IS_CLOSED: Final = np.isin(np.arange(_RANKS), [STATES[name] for name in CLOSED_STATES])
_MAY_COUNT: Final = ~np.isin(np.arange(_RANKS), [STATES["MERGED"], STATES["VOIDED"]])
_IS_RESPONSE: Final = np.isin(np.arange(_RANKS), [RANK[name] for name in RESPONSES])


def fold(sets: pl.DataFrame) -> pa.Table:
    """History and state of every case: one row per case, columns `store.fold.ALL`, as the store takes them.

    sets : (n, CASE_SET), all entries of the cases' sets, in any order, entries given twice included. Who has
    numbered the cases, from 0, says so by `number`, the order of the states: it is a tenth of a fold.
    Raises ContractError if a column is missing or has another dtype.
    """
    # by names, for a selection is a query to polars
    entries = expect(
        sets[[name for name in sets.columns if name != "number"]], CASE_SET, "sets of case events"
    )
    numbers = entries.select(_NUMBERS)
    case = sets["number"].to_numpy() if "number" in sets.columns else _case_numbers(entries["case_id"])
    order, doubtful = _plain_order(case, numbers)
    folded = []
    if len(order) or not len(doubtful):
        folded.append(_Cases.of(entries, numbers, order, case[order]).states())
    if len(doubtful):
        folded.append(_fold_exactly(entries[doubtful]))
    return pa.Table.from_batches(folded)


def _fold_exactly(entries: pl.DataFrame) -> pa.RecordBatch:
    """`fold` of cases with entries given twice, ids that occur twice, or events of one instant and rank."""
    # Whole entries decide only between entries of one position: their order must be as in SQL.
    names = [name for name in CASE_SET if name not in {"case_id", "source", "event_id", *_POSITION}]
    distinct = entries.unique().sort("case_id", "source", "event_id", *_POSITION, *names, nulls_last=True)
    versions = np.bincount(owners(distinct["case_id"])[1])
    events = distinct.unique(["case_id", "source", "event_id"], keep="first").sort(_ORDER)
    rows, case = np.arange(events.height), owners(events["case_id"])[1]
    return _Cases.of(events, events.select(_NUMBERS), rows, case, versions).states()


def _case_numbers(case_ids: pl.Series) -> Int64s:
    """(n,) a number for each row's case, from 0."""
    encoded = case_ids.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    return np.asarray(encoded.indices.to_numpy()).astype(np.int64)


def _plain_order(case: Int64s, numbers: pl.DataFrame) -> tuple[Int64s, Int64s]:
    """Rows in fold order, a case's rows together, of the cases where numbers alone tell it; and the rows of
    the other cases, in which an id occurs twice or two events share time and rank. Sorting texts costs ten
    times as much.

    case : (n,) number of each row's case; numbers : (n, _NUMBERS).
    """
    nothing = np.empty(0, np.int64)
    if not len(case):
        return nothing, nothing
    ids = numbers["id"].to_numpy() ^ (case.astype(np.uint64) * SPREAD)
    instant = numbers["occurred_at"].to_numpy() * _RANKS + numbers["rank"].to_numpy()
    order = np.argsort(instant, kind="stable")
    order = order[by_number(case[order])]
    doubtful = np.zeros(int(case.max()) + 1, bool)
    its, at = case[order], instant[order]
    doubtful[its[1:][(its[1:] == its[:-1]) & (at[1:] == at[:-1])]] = True
    alike = np.sort(ids)
    if (alike[1:] == alike[:-1]).any():  # or, once in a long while, two hashes that happen to agree
        by_id = np.argsort(ids, kind="stable")
        again = by_id[1:][ids[by_id[1:]] == ids[by_id[:-1]]]
        before = by_id[:-1][ids[by_id[1:]] == ids[by_id[:-1]]]
        doubtful[case[again]] = doubtful[case[before]] = True
    if not doubtful.any():
        return np.asarray(order), nothing
    return np.asarray(order[~doubtful[its]]), np.flatnonzero(doubtful[case])


@dataclass(frozen=True)
class _Cases:
    """Cases and their events, walked.

    texts : (entries, those of _TEXTS that any entry names); rows : (events,) row there of each event, in fold
    order, the events of a case together; events : the same in numbers; case : (events,) number of the case.
    starts, lengths, versions : (cases,).
    opening : (cases,) the report that opened the case, -1 without one.
    """

    texts: pl.DataFrame
    rows: Int64s
    events: Events
    walk: Walk
    case: Int64s
    starts: Int64s
    lengths: Int64s
    versions: Int64s
    opening: Int64s

    @classmethod
    def of(
        cls,
        entries: pl.DataFrame,
        numbers: pl.DataFrame,
        rows: Int64s,
        owner: Int64s,
        versions: Int64s | None = None,
    ) -> _Cases:
        """rows : see above; owner : (events,) ascending, equal for events of one case.

        versions : (cases,) how many entries each set has, where that is not how many events.
        """
        events = Events(**{name: numbers[name].to_numpy()[rows] for name in Events._fields})
        lengths = np.bincount(owner).astype(np.int64)
        lengths = lengths[lengths > 0]
        starts = np.cumsum(lengths) - lengths
        case = np.repeat(np.arange(len(lengths)), lengths)
        opens = np.flatnonzero((events.rank == RANK["REPORTED"]) & (events.outcome != RESENT))
        opening = np.full(len(lengths), -1, np.int64)
        opening[case[opens][::-1]] = opens[::-1]  # of several the first stays
        if len(rows):
            seconds = _at(events.resolution_limit_seconds, opening, _NO_SECONDS)
            walk = walk_cases(events, starts, lengths, np.where(seconds < 0, NEVER, seconds * 1000))
        else:
            nothing = np.empty(0, np.uint8)
            walk = Walk(nothing, nothing, np.empty(0, np.int64))
        named = [name for name in _TEXTS if entries[name].null_count() < entries.height]
        # rows of a frame in pieces are gathered ten times as slowly
        texts = entries[named].rechunk()
        versions = lengths if versions is None else versions
        return cls(texts, rows, events, walk, case, starts, lengths, versions, opening)

    def states(self) -> pa.RecordBatch:
        """Columns `ALL` in its order."""
        legal = self._legal()
        columns = self._history(legal) | self._state(legal)
        return pa.RecordBatch.from_arrays([columns[name] for name in ALL], names=list(ALL))

    # --- history

    def _history(self, legal: _Legal) -> dict[str, pa.Array]:
        events, verdicts = self.events, self.walk.verdicts
        illegal = np.flatnonzero(verdicts == ILLEGAL)
        id_names = ["source", "event_id"]
        rank = events.rank[legal.rows]
        ratings = np.where(rank == RANK["FEEDBACK"], events.rating[legal.rows], 0).astype(np.int8)
        dispatched = np.where(rank == RANK["DISPATCHED"], legal.rows, -1)
        of_case, of_legal = _offsets(self.lengths), _offsets(legal.number.sum(axis=0))
        return {
            "case_id": self._text("case_id", self.starts),
            "version": _count(self.versions),
            "event_times": _listed(_instants(events.occurred_at), of_case),
            "event_verdicts": _listed(pa.array(verdicts), of_case),
            "event_lates": _listed(pa.array(self._late().astype(np.uint8)), of_case),
            "illegal_ids": _listed(
                pa.StructArray.from_arrays(self._texts(id_names, illegal), id_names),
                _offsets(self._counts(illegal)),
            ),
            "resent_of": self._text("primary_case_id", self._resent(), blank=True),
            "legal_times": _listed(_instants(events.occurred_at[legal.rows]), of_legal),
            "legal_ranks": _listed(pa.array(rank), of_legal),
            "legal_states": _listed(pa.array(self.walk.states[legal.rows]), of_legal),
            "legal_due_ms": _listed(pa.array(self.walk.due_ms[legal.rows]), of_legal),
            "legal_ratings": _listed(pa.array(ratings), of_legal),
            "legal_departments": _listed(self._text("department", dispatched, blank=True), of_legal),
            "legal_levels": _listed(self._text("level", legal.rows, blank=True), of_legal),
            "legal_primaries": _listed(self._text("primary_case_id", legal.rows, blank=True), of_legal),
            **self._opening(),
        }

    def _opening(self) -> dict[str, pa.Array]:
        """Attributes of the report that opened the case, blank without one."""
        events, opening = self.events, self.opening
        response = _at(events.response_limit_seconds, opening, _NO_SECONDS)
        resolution = _at(events.resolution_limit_seconds, opening, _NO_SECONDS)
        return {
            **dict(zip(_OPENING, self._texts(_OPENING.values(), opening, blank=True), strict=True)),
            **dict(zip(_OPENING_MAYBE, self._texts(_OPENING_MAYBE, opening), strict=True)),
            "response_limit_seconds": _maybe(response.astype(np.uint32), response < 0),
            "resolution_limit_seconds": _maybe(resolution.astype(np.uint32), resolution < 0),
            "report_ingested_at": _instants(_at(events.ingested_at, opening, 0)),
            "report_evidence_pending": pa.array(_at(events.evidence_pending, opening, False)),
        }

    # --- state

    def _state(self, legal: _Legal) -> dict[str, pa.Array]:
        events, walk = self.events, self.walk
        times, verdicts, rank = events.occurred_at, walk.verdicts, events.rank[legal.rows]
        ends = self._last(legal.rows)
        state, due = _at(walk.states, ends, 0), _at(walk.due_ms, ends, NEVER)
        first_report, resent = legal.first[RANK["REPORTED"]], self._resent()
        reported = first_report >= 0
        only_resent = ~reported & (resent >= 0)
        admitted = self._first(legal.rows[walk.states[legal.rows] == STATES["ADMITTED"]]) >= 0
        closed = _IS_CLOSED[state]
        received = _at(events.ingested_at, self.opening, 0)
        response = _at(events.response_limit_seconds, self.opening, _NO_SECONDS)
        rated = legal.rows[(rank == RANK["FEEDBACK"]) & (events.rating[legal.rows] != 0)]
        rating = self._last(rated)
        merged = np.where(state == STATES["MERGED"], legal.last[RANK["MERGED"]], -1)
        primary = self._naming("primary_case_id", np.where(only_resent, resent, merged))
        level = self._naming("level", legal.last[RANK["ESCALATED"]])
        evidence = reported & _at(events.evidence_pending, self.opening, False)

        rows = {
            "first_event_at": self.starts,
            "last_event_at": self.starts + self.lengths - 1,
            "resent_at": resent,
            **{name: legal.first[RANK[kind]] for name, kind in _FIRST.items()},
            **{name: legal.last[RANK[kind]] for name, kind in _LAST.items()},
            "first_response_at": self._first(legal.rows[_IS_RESPONSE[rank]]),
        }
        at = np.concatenate(list(rows.values()))
        numbers = legal.number[[RANK[kind] for kind in _COUNTED.values()]]
        return {
            **_columns(list(rows), _instants(times[at], at < 0)),
            **_columns(list(_COUNTED), _count(numbers.ravel())),
            "state": _STATE_NAMES.take(pa.array(_STATE_NUMBERS[state])),
            "orphan": pa.array(~reported & ~only_resent),
            "duplicate_case": pa.array(only_resent),
            "is_admitted": pa.array(admitted),
            "is_counted": pa.array(admitted & _MAY_COUNT[state]),
            "is_closed": pa.array(closed),
            "is_resolved": pa.array(closed | (state == STATES["RESOLVED"])),
            "department": self._department(legal),
            "admitted_at": _instants(received, ~admitted),
            "rejected_at": _instants(received, ~reported | admitted),
            "response_due_at": _instants(times[first_report] + response * 1000, ~reported | (response < 0)),
            "due_at": _instants(due, ~reported | (due >= NEVER)),
            "report_count": _count(self._counts(verdicts == REPEATED_REPORT) + reported),
            "event_count": _count(self.lengths - self._counts(verdicts == OF_ANOTHER_CASE)),
            "rating": _maybe(events.rating[rating], rating < 0),
            "rating_count": _count(self._counts(rated)),
            "satisfied_count": _count(self._counts(rated[events.rating[rated] >= 4])),
            "level": self._text("level", level),
            "primary_case_id": self._text("primary_case_id", primary),
            "evidence_pending": pa.array(evidence),
            "resolved_without_evidence": pa.array(evidence & (legal.first[RANK["RESOLVED"]] >= 0)),
            "illegal_count": _count(self._counts(verdicts == ILLEGAL)),
            "late_count": _count(self._counts(self._late())),
        }

    def _late(self) -> Mask:
        events = self.events
        behind = events.ingested_at > events.occurred_at + _HORIZON_MS
        return np.asarray(~events.backfill & (events.outcome != RESENT) & behind)

    def _resent(self) -> Int64s:
        """(cases,) the first copy of another case's report, -1 without one."""
        return self._first(np.flatnonzero(self.walk.verdicts == OF_ANOTHER_CASE))

    def _department(self, legal: _Legal) -> pa.Array:
        """The last that a legal DISPATCHED names, else the one that leads the report's matter."""
        naming = self._naming("department", legal.rows)
        named = self._last(naming[(naming >= 0) & (self.events.rank[legal.rows] == RANK["DISPATCHED"])])
        lead = self._text("lead_department", self.opening)
        if (named < 0).all():
            return lead
        return pc.coalesce(self._text("department", named), lead)

    # --- rows by case

    def _legal(self) -> _Legal:
        rows = np.flatnonzero(self.walk.verdicts == LEGAL)
        cases = len(self.lengths)
        place = self.events.rank[rows] * np.int64(cases) + self.case[rows]
        first, last = np.full(_RANKS * cases, -1), np.full(_RANKS * cases, -1)
        # of several writes to one place the last stays
        last[place] = rows
        first[place[::-1]] = rows[::-1]
        tables = (first, last, np.bincount(place, minlength=_RANKS * cases))
        return _Legal(rows, *(table.reshape(_RANKS, cases) for table in tables))

    def _counts(self, rows: Int64s | Mask) -> Int64s:
        """(cases,) how many of `rows` each case has."""
        return np.bincount(self.case[rows], minlength=len(self.lengths))

    def _first(self, rows: Int64s) -> Int64s:
        """(cases,) the first of `rows` (ascending) of each case, -1 without one."""
        found = np.full(len(self.lengths), -1, np.int64)
        found[self.case[rows][::-1]] = rows[::-1]
        return found

    def _last(self, rows: Int64s) -> Int64s:
        """(cases,) the last of `rows` (ascending) of each case, -1 without one."""
        found = np.full(len(self.lengths), -1, np.int64)
        found[self.case[rows]] = rows
        return found

    # --- texts

    def _text(self, name: str, rows: Int64s, *, blank: bool = False) -> pa.Array:
        """What the events `rows` name; null or blank where they name nothing and where the row is -1."""
        return self._texts([name], rows, blank=blank)[0]

    def _texts(self, names: Collection[str], rows: Int64s, *, blank: bool = False) -> list[pa.Array]:
        """`_text` of several columns."""
        nothing = pa.repeat(_BLANK, len(rows)) if blank else pa.nulls(len(rows), _TEXT)
        missing = rows < 0
        if missing.all() or all(self._absent(name) for name in names):
            return [nothing for _ in names]
        # by null places: `gather` and `set` are queries to polars
        places = pl.Series(pa.array(self.rows[rows].astype(np.uint32), mask=missing))
        found = [
            nothing
            if self._absent(name)
            else self.texts[name][places].to_arrow(compat_level=pl.CompatLevel.oldest())
            for name in names
        ]
        return [texts.fill_null("") for texts in found] if blank else found

    def _naming(self, name: str, rows: Int64s) -> Int64s:
        """`rows`, -1 instead of those that name no such text or a blank one."""
        if self._absent(name):
            return np.full(len(rows), -1)
        given = (self.texts[name] != "").fill_null(False).to_numpy()[self.rows]
        return np.where(given[rows], rows, -1)

    def _absent(self, name: str) -> bool:
        return name not in self.texts.columns


@dataclass(frozen=True)
class _Legal:
    """The legal events. rows : of them, ascending.

    first, last, number : (ranks, cases) of those of one type: row of the first and of the last, -1 without
    one; how many.
    """

    rows: Int64s
    first: Int64s
    last: Int64s
    number: Int64s


def _at(values: NDArray[Any], rows: Int64s, without: int) -> NDArray[Any]:
    """Values at `rows`, `without` where the row is -1."""
    return np.where(rows < 0, without, values[rows])


def _maybe(values: NDArray[Any], missing: Mask) -> pa.Array:
    """Numbers, null where they are missing; 0 below it, which packs best."""
    return pa.array(np.where(missing, 0, values).astype(values.dtype, copy=False), mask=missing)


def _count(numbers: Int64s) -> pa.Array:
    return pa.array(numbers.astype(np.uint32))


def _instants(times: Int64s, missing: Mask | None = None) -> pa.Array:
    """Times (ms since 1970), null where they are missing."""
    values = pa.array(times) if missing is None else _maybe(times, missing)
    return values.view(_INSTANT)


def _columns(names: Sequence[str], values: pa.Array) -> dict[str, pa.Array]:
    """Columns cut out of all their values, one column's after the other: an array costs 20 µs, a slice 1."""
    height = len(values) // len(names)
    return {name: values.slice(number * height, height) for number, name in enumerate(names)}


def _offsets(counts: Int64s) -> pa.Array:
    """Where lists of so many successive elements begin, and the end of the last."""
    return pa.array(np.concatenate([[0], np.cumsum(counts)]))


def _listed(elements: pa.Array, offsets: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(offsets, elements)
