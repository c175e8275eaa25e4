"""The case fold: from each case's set of events to its history and state, for all cases of a frame at once.

A case's state is a function of its *set* of events, never of their order of arrival. The stage

1. keeps one event per (source, event_id), the one with the smallest position;
2. sorts a case's events by (occurred_at, rank, event_id, source);
3. walks them (`fold_walk`): whether each transition is legal, state and limit after it;
4. reads every timestamp, count and name off the legal events.

The rules are those of `pipeline.store.fold`, which says the same in SQL: the store reads past instants with
it, and the verifier folds with it what this stage has folded. Source: docs/metrics.md, "How a case is
folded".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.frames import CASE_SET, RANK, TIMESTAMP, expect
from pipeline.reference.hash_index import SPREAD
from pipeline.reference.keys import owners
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
from pipeline.store.fold_walk import Bytes, Int64s, Walk, walk_cases

Mask = NDArray[np.bool_]

_HORIZON_MS: Final = HORIZON_DAYS * 24 * 3_600_000
#: What makes two entries of a set the same entry. The rest of an entry follows from its position, but for a
#: block that was judged again under other rules.
_POSITION: Final = ("_inc", "_part", "_off", "_idx")
#: More than there are ranks.
_RANKS: Final = 32
_ORDER: Final = ("case_id", "occurred_at", "rank", "event_id", "source")
#: Event types of which a state tells the first, the last, and how many there were.
_FIRST: Final = (
    "DISCOVERED", "REPORTED", "ACCEPTED", "DISPATCHED", "SIGNED", "HANDLING", "RESOLVED", "CLOSED",
)  # fmt: skip
_LAST: Final = (
    "MERGED", "DISPATCHED", "RETURNED", "ARRIVED", "ESCALATED", "RESOLVED", "CLOSED", "FEEDBACK", "REOPENED",
    "ARCHIVED", "VOIDED",
)  # fmt: skip
_COUNTED: Final = (
    "ACCEPTED", "DISPATCHED", "RETURNED", "EXTENDED", "ESCALATED", "RESOLVED", "REWORK", "CLOSED", "REOPENED",
)  # fmt: skip
_STATE_NAMES: Final = pl.Series([name for name, _ in sorted(STATES.items(), key=lambda item: item[1])])
_STATE_NUMBERS: Final = np.full(max(STATES.values()) + 1, 0, np.uint32)
_STATE_NUMBERS[sorted(STATES.values())] = np.arange(len(STATES))


def fold(sets: pl.DataFrame) -> pl.DataFrame:
    """History and state of every case: one row per case, columns `store.fold.ALL`.

    sets : (n, CASE_SET), all entries of the cases' sets, in any order, entries given twice included.
    Raises ContractError if a column is missing or has another dtype.
    """
    entries = expect(sets, CASE_SET, "sets of case events")
    order, doubtful = _plain_order(entries)
    # rows of a frame in pieces are gathered ten times as slowly
    plain = entries.drop(_POSITION).rechunk()[order]
    folded = [_Cases.of(plain, _lengths(plain["case_id"])).frame()]
    if len(doubtful):
        folded.append(_fold_exactly(entries[doubtful]))
    return pl.concat(folded)


def _fold_exactly(entries: pl.DataFrame) -> pl.DataFrame:
    """`fold` of cases with entries given twice, ids that occur twice, or events of one instant and rank."""
    # Whole entries decide only between entries of one position: their order must be as in SQL.
    names = [name for name in CASE_SET if name not in {"case_id", "source", "event_id", *_POSITION}]
    distinct = entries.unique().sort("case_id", "source", "event_id", *_POSITION, *names, nulls_last=True)
    versions = _lengths(distinct["case_id"])
    events = distinct.unique(["case_id", "source", "event_id"], keep="first").sort(_ORDER)
    return _Cases.of(events, versions).frame()


def _plain_order(entries: pl.DataFrame) -> tuple[Int64s, Int64s]:
    """Rows in fold order, a case's rows together, of the cases where numbers alone tell it; and the rows of
    the other cases, in which an id occurs twice or two events share time and rank. Sorting texts costs ten
    times as much."""
    nothing = np.empty(0, np.int64)
    if entries.is_empty():
        return nothing, nothing
    case = entries["case_id"].to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode().indices
    number = np.asarray(case.to_numpy()).astype(np.int64)
    hashed = pl.col("event_id").hash(1) ^ pl.col("source").hash(2)
    ids = entries.select(hashed).to_series().to_numpy() ^ (number.astype(np.uint64) * SPREAD)
    instant = _ms(entries["occurred_at"]) * _RANKS + entries["rank"].to_numpy()
    order = np.argsort(instant, kind="stable")
    # of 16 bits numpy sorts by radix
    keys = number[order].astype(np.uint16) if number.max() < 1 << 16 else number[order]
    order = order[np.argsort(keys, kind="stable")]
    doubtful = np.zeros(int(number.max()) + 1, bool)
    its, at = number[order], instant[order]
    doubtful[its[1:][(its[1:] == its[:-1]) & (at[1:] == at[:-1])]] = True
    alike = np.sort(ids)
    if (alike[1:] == alike[:-1]).any():  # or, once in a long while, two hashes that happen to agree
        by_id = np.argsort(ids, kind="stable")
        again = by_id[1:][ids[by_id[1:]] == ids[by_id[:-1]]]
        before = by_id[:-1][ids[by_id[1:]] == ids[by_id[:-1]]]
        doubtful[number[again]] = doubtful[number[before]] = True
    if not doubtful.any():
        return np.asarray(order), nothing
    return np.asarray(order[~doubtful[its]]), np.flatnonzero(doubtful[number])


def _lengths(case_ids: pl.Series) -> Int64s:
    """How many rows each case has, of case ids that lie together."""
    first, _ = owners(case_ids)
    return np.diff(np.append(np.flatnonzero(first), len(case_ids)))


@dataclass(frozen=True)
class _Cases:
    """Cases and their events, walked.

    events : one row per distinct event, in fold order, the events of a case together; case : (events,) number
    of the case; starts, lengths, versions : (cases,).
    opening : (cases,) row of the report that opened the case, -1 without one.
    """

    events: pl.DataFrame
    walk: Walk
    case: Int64s
    starts: Int64s
    lengths: Int64s
    versions: Int64s
    opening: Int64s

    @classmethod
    def of(cls, events: pl.DataFrame, versions: Int64s) -> _Cases:
        lengths = _lengths(events["case_id"]) if events.height else np.empty(0, np.int64)
        starts = np.cumsum(lengths) - lengths
        case = np.repeat(np.arange(len(lengths)), lengths)
        opens = (
            events.select(((pl.col("rank") == RANK["REPORTED"]) & (pl.col("outcome") != RESENT)).arg_true())
            .to_series()
            .to_numpy()
            .astype(np.int64)
        )
        opening = np.full(len(lengths), -1, np.int64)
        opening[case[opens][::-1]] = opens[::-1]  # of several the first stays
        seconds = _at(events["resolution_limit_seconds"], opening).cast(pl.Int64)
        limit_ms = (seconds * 1000).fill_null(NEVER).to_numpy()
        if events.is_empty():
            nothing = np.empty(0, np.uint8)
            walk = Walk(nothing, nothing, np.empty(0, np.int64))
        else:
            walk = walk_cases(events, starts, lengths, limit_ms)
        return cls(events, walk, case, starts, lengths, versions, opening)

    def frame(self) -> pl.DataFrame:
        """Columns `ALL` in its order."""
        legal = self._legal()
        history = self._history(legal)
        columns = history | self._state(history, legal)
        return pl.DataFrame([columns[name].alias(name) for name in ALL])

    # --- history

    def _history(self, legal: _Legal) -> dict[str, pl.Series]:
        events, verdicts = self.events, self.walk.verdicts
        times = events["occurred_at"]
        late = (
            ~events["backfill"].fill_null(False).to_numpy()
            & (events["outcome"].to_numpy() != RESENT)
            & (_ms(events["ingested_at"]) > _ms(times) + _HORIZON_MS)
        )
        illegal = np.flatnonzero(verdicts == ILLEGAL)
        rows = pl.Series(legal.rows.astype(np.uint32))
        all_legal = len(legal.rows) == events.height  # as a rule: nothing to gather
        gathered = {
            name: events[name] if all_legal else events[name].gather(rows)
            for name in ("occurred_at", "rank", "rating", "department", "level", "primary_case_id")
        }
        feedback = gathered["rank"] == RANK["FEEDBACK"]
        dispatched = gathered["rank"] == RANK["DISPATCHED"]
        ratings = pl.select(pl.when(feedback).then(gathered["rating"]).fill_null(0).cast(pl.Int8)).to_series()
        departments = pl.select(pl.when(dispatched).then(gathered["department"]).fill_null("")).to_series()
        resent = self._first(np.flatnonzero(verdicts == OF_ANOTHER_CASE))
        ids = pl.DataFrame({"source": events["source"], "event_id": events["event_id"]}).to_struct()
        return {
            "case_id": events["case_id"].gather(pl.Series(self.starts.astype(np.uint32))),
            "version": pl.Series(self.versions.astype(np.uint32)),
            "event_times": _listed(times, self.lengths),
            "event_verdicts": _listed(pl.Series(verdicts), self.lengths),
            "event_lates": _listed(pl.Series(late.astype(np.uint8)), self.lengths),
            "illegal_ids": _listed(
                ids.gather(pl.Series(illegal.astype(np.uint32))), self._counts(self.case[illegal])
            ),
            "resent_of": _at(events["primary_case_id"], resent).fill_null(""),
            "legal_times": _listed(gathered["occurred_at"], legal.counts),
            "legal_ranks": _listed(gathered["rank"], legal.counts),
            "legal_states": _listed(pl.Series(self.walk.states[legal.rows]), legal.counts),
            "legal_due_ms": _listed(pl.Series(self.walk.due_ms[legal.rows]), legal.counts),
            "legal_ratings": _listed(ratings, legal.counts),
            "legal_departments": _listed(departments, legal.counts),
            "legal_levels": _listed(gathered["level"].fill_null(""), legal.counts),
            "legal_primaries": _listed(gathered["primary_case_id"].fill_null(""), legal.counts),
            **self._opening(),
        }

    def _opening(self) -> dict[str, pl.Series]:
        """Attributes of the report that opened the case, blank without one."""
        events, opening = self.events, self.opening
        text = {
            "report_source": "source",
            "report_event_id": "event_id",
            "grid_code": "grid_code",
            "channel": "channel",
        }
        maybe = (
            "response_limit_seconds",
            "resolution_limit_seconds",
            "matter_code",
            "category",
            "lead_department",
        )
        return {
            **{name: _at(events[source], opening).fill_null("") for name, source in text.items()},
            **{name: _at(events[name], opening) for name in maybe},
            "report_ingested_at": _at(events["ingested_at"].to_physical(), opening)
            .fill_null(0)
            .cast(TIMESTAMP),
            "report_evidence_pending": _at(events["evidence_pending"], opening).fill_null(False),
        }

    # --- state

    def _state(self, history: dict[str, pl.Series], legal: _Legal) -> dict[str, pl.Series]:
        events, verdicts = self.events, self.walk.verdicts
        rank = events["rank"].to_numpy()
        times = events["occurred_at"]
        ranks = rank[legal.rows]
        of_type = {name: legal.rows[ranks == RANK[name]] for name in {*_FIRST, *_LAST, *_COUNTED}}
        first = {name: self._first(of_type[name]) for name in _FIRST}
        last = {name: self._last(of_type[name]) for name in _LAST}
        count = {
            name: pl.Series(self._counts(self.case[of_type[name]]).astype(np.uint32)) for name in _COUNTED
        }

        def first_at(name: str) -> pl.Series:
            return _at(times, first[name])

        def last_at(name: str) -> pl.Series:
            return _at(times, last[name])

        ends = self._last(legal.rows)
        state = np.where(ends >= 0, self.walk.states[ends], 0) if len(rank) else np.empty(0, np.uint8)
        reported = first["REPORTED"] >= 0
        resent_row = self._first(np.flatnonzero(verdicts == OF_ANOTHER_CASE))
        resent = resent_row >= 0
        admitted = self._first(legal.rows[self.walk.states[legal.rows] == STATES["ADMITTED"]]) >= 0
        final_due = np.where(ends >= 0, self.walk.due_ms[ends], NEVER) if len(rank) else np.empty(0, np.int64)
        due_known = reported & (final_due < NEVER)
        named = self._last(legal.rows[_named(events["department"], legal.rows, rank, "DISPATCHED")])
        ratings = events["rating"].fill_null(0).to_numpy()
        rated = of_type["FEEDBACK"][ratings[of_type["FEEDBACK"]] != 0]
        satisfied = rated[ratings[rated] >= 4]
        evidence = history["report_evidence_pending"].to_numpy() & reported
        responses = legal.rows[np.isin(rank[legal.rows], [RANK[name] for name in RESPONSES])]
        later_reports = self._counts(self.case[verdicts == REPEATED_REPORT])
        others = self._counts(self.case[verdicts == OF_ANOTHER_CASE])
        lates = history["event_lates"].list.sum()
        receipt = history["report_ingested_at"]
        response_ms = history["response_limit_seconds"].cast(pl.Int64) * 1000
        merged_into = _at(events["primary_case_id"], np.where(state == STATES["MERGED"], last["MERGED"], -1))
        only_resent = ~reported & resent
        closed = np.isin(state, [STATES[name] for name in CLOSED_STATES])
        numbers = pl.Series(_STATE_NUMBERS[state])
        return {
            "first_event_at": _at(times, self.starts),
            "last_event_at": _at(times, self.starts + self.lengths - 1),
            "state": _STATE_NAMES.gather(numbers),
            "orphan": pl.Series(~reported & ~resent),
            "duplicate_case": pl.Series(only_resent),
            "is_admitted": pl.Series(admitted),
            "is_counted": pl.Series(admitted & ~np.isin(state, [STATES["MERGED"], STATES["VOIDED"]])),
            "is_closed": pl.Series(closed),
            "is_resolved": pl.Series(closed | (state == STATES["RESOLVED"])),
            "resent_at": _at(times, resent_row),
            "department": _at(events["department"], named).fill_null(history["lead_department"]),
            "found_at": first_at("DISCOVERED"),
            "reported_at": first_at("REPORTED"),
            "admitted_at": receipt.set(pl.Series(~admitted), None),
            "rejected_at": receipt.set(pl.Series(~(reported & ~admitted)), None),
            "merged_at": last_at("MERGED"),
            "accepted_at": first_at("ACCEPTED"),
            "first_dispatched_at": first_at("DISPATCHED"),
            "last_dispatched_at": last_at("DISPATCHED"),
            "first_signed_at": first_at("SIGNED"),
            "returned_at": last_at("RETURNED"),
            "arrived_at": last_at("ARRIVED"),
            "first_action_at": first_at("HANDLING"),
            "escalated_at": last_at("ESCALATED"),
            "resolved_at": last_at("RESOLVED"),
            "first_closed_at": first_at("CLOSED"),
            "closed_at": last_at("CLOSED"),
            "feedback_at": last_at("FEEDBACK"),
            "reopened_at": last_at("REOPENED"),
            "archived_at": last_at("ARCHIVED"),
            "voided_at": last_at("VOIDED"),
            "first_response_at": _at(times, self._first(responses)),
            "response_due_at": (first_at("REPORTED").to_physical() + response_ms).cast(TIMESTAMP),
            "due_at": pl.Series(np.where(due_known, final_due, 0))
            .set(pl.Series(~due_known), None)
            .cast(TIMESTAMP),
            "report_count": pl.Series((later_reports + reported).astype(np.uint32)),
            "event_count": pl.Series((self.lengths - others).astype(np.uint32)),
            "accepted_count": count["ACCEPTED"],
            "dispatched_count": count["DISPATCHED"],
            "returned_count": count["RETURNED"],
            "extended_count": count["EXTENDED"],
            "escalated_count": count["ESCALATED"],
            "resolved_count": count["RESOLVED"],
            "rework_count": count["REWORK"],
            "closed_count": count["CLOSED"],
            "reopened_count": count["REOPENED"],
            "rating": _at(events["rating"], self._last(rated)),
            "rating_count": pl.Series(self._counts(self.case[rated]).astype(np.uint32)),
            "satisfied_count": pl.Series(self._counts(self.case[satisfied]).astype(np.uint32)),
            "level": _blank_to_null(_at(events["level"], last["ESCALATED"])),
            "primary_case_id": _blank_to_null(
                merged_into.fill_null(history["resent_of"].set(pl.Series(~only_resent), None))
            ),
            "evidence_pending": pl.Series(evidence),
            "resolved_without_evidence": pl.Series(evidence & (first["RESOLVED"] >= 0)),
            "illegal_count": pl.Series(self._counts(self.case[verdicts == ILLEGAL]).astype(np.uint32)),
            "late_count": lates.cast(pl.UInt32),
        }

    # --- rows by case

    def _legal(self) -> _Legal:
        rows = np.flatnonzero(self.walk.verdicts == LEGAL)
        return _Legal(rows, self._counts(self.case[rows]))

    def _counts(self, cases: Int64s) -> Int64s:
        """(cases,) how often each case is named."""
        return np.bincount(cases, minlength=len(self.lengths)).astype(np.int64)

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


@dataclass(frozen=True)
class _Legal:
    """rows : of the legal events, ascending; counts : (cases,)."""

    rows: Int64s
    counts: Int64s


def _named(texts: pl.Series, rows: Int64s, rank: Bytes, event_type: str) -> Mask:
    """Of `rows`, whether they are of this type and name a text that is not blank."""
    given = (texts.fill_null("") != "").to_numpy()[rows]
    return np.asarray(given & (rank[rows] == RANK[event_type]))


def _ms(times: pl.Series) -> Int64s:
    return np.asarray(times.to_physical().to_numpy())


def _at(values: pl.Series, rows: Int64s) -> pl.Series:
    """Values at `rows`, null where the row is -1."""
    if not len(values):
        return values
    # by a null place: `gather` and `set` are queries to polars, and there are forty of these
    places = pa.array(np.maximum(rows, 0).astype(np.uint32), mask=rows < 0)
    return values[pl.Series(places)]


def _blank_to_null(texts: pl.Series) -> pl.Series:
    return texts.set((texts == "").fill_null(False), None)


def _listed(values: pl.Series, counts: Int64s) -> pl.Series:
    """Lists of `counts` successive values."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # texts stay as polars holds them: offsets instead of views, and back, would be two copies
    flat: Any = values.to_arrow(compat_level=pl.CompatLevel.newest())
    return pl.Series(
        pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat), dtype=pl.List(values.dtype)
    )
