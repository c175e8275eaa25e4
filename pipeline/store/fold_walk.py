"""The walk over the sorted events of cases: which transitions are legal, and what each leads to.

Step k decides on the k-th event of every case together; the last few cases that go on are walked one by one.
The rules are those of `pipeline.store.fold`, which says the same in SQL. Source: docs/metrics.md, "How a case
is folded".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.frames import EVENT_TYPES, RANK
from pipeline.store.fold import (
    ADMITTED,
    ILLEGAL,
    LEGAL,
    LEGAL_IN,
    LEGAL_WHEN_SELF_HANDLED,
    MOST_EXTENSIONS,
    NEVER,
    OF_ANOTHER_CASE,
    REPEATED_REPORT,
    RESENT,
    STATES,
)

Int64s = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

#: Stands for the limit that an event does not name: earlier than every other, and so never an extension.
NO_LIMIT: Final = -(2**63)
#: Of so few cases the rest is walked event by event: a step of numpy costs some 80 µs however few go on.
_FEW_CASES: Final = 32


def _legal_in() -> NDArray[np.uint32]:
    """(2, ranks + 1): the states, as bits, in which an event is legal; the second row if self-handled."""
    masks = np.zeros((2, len(EVENT_TYPES) + 1), np.uint32)
    for name in EVENT_TYPES:
        also = LEGAL_WHEN_SELF_HANDLED.get(name, ())
        masks[0, RANK[name]] = sum(1 << STATES[state] for state in LEGAL_IN[name])
        masks[1, RANK[name]] = sum(1 << STATES[state] for state in {*LEGAL_IN[name], *also})
    return masks


_LEGAL_IN: Final = _legal_in()


class Events(NamedTuple):
    """Columns of CASE_EVENT as numbers without nulls, (events,) each; times in ms since 1970."""

    occurred_at: Int64s
    ingested_at: Int64s
    rank: Bytes
    outcome: Bytes
    due_at: Int64s  # named by EXTENDED, else NO_LIMIT
    rating: NDArray[np.int8]  # 0 without one
    self_handled: Mask
    backfill: Mask
    evidence_pending: Mask
    response_limit_seconds: Int64s  # -1 without one
    resolution_limit_seconds: Int64s


@dataclass(frozen=True)
class Walk:
    """What the walk decided on each event: verdict, state after it, limit after it (ms since 1970)."""

    verdicts: Bytes
    states: Bytes
    due_ms: Int64s


def walk_cases(events: Events, starts: Int64s, lengths: Int64s, limit_ms: Int64s) -> Walk:
    """Decide on the k-th event of every case that has one, for k = 0, 1, …

    events : in fold order. limit_ms : (cases,) the opening report's limit; NEVER without one.
    """
    rank, outcome, at, named = events.rank, events.outcome, events.occurred_at, events.due_at
    own = _LEGAL_IN[events.self_handled.astype(np.intp), rank]
    own[outcome == RESENT] = 0  # L2 duplicates of other reports are no REPORTED of this case
    verdicts, states = np.empty(len(rank), np.uint8), np.empty(len(rank), np.uint8)
    due_ms = np.empty(len(rank), np.int64)
    # the longest cases first, so that those that go on are a prefix
    order = np.argsort(-lengths, kind="stable")
    starts, lengths, limit_ms = starts[order], lengths[order], limit_ms[order]
    state, before = np.zeros(len(order), np.uint8), np.zeros(len(order), np.uint8)
    due, extensions = np.full(len(order), NEVER, np.int64), np.zeros(len(order), np.uint8)
    for step in range(int(lengths[0])):
        going = int(np.searchsorted(-lengths, -step, side="left"))
        if going <= _FEW_CASES:
            columns = [
                values.tolist() for values in (state[:going], before[:going], due[:going], extensions[:going])
            ]
            for one, (first, end) in enumerate(
                zip(starts[:going] + step, (starts + lengths)[:going], strict=True)
            ):
                rows = slice(int(first), int(end))
                taken = _Steps(*(values[rows].tolist() for values in (rank, outcome, own, at, named)))
                so_far = _SoFar(*(values[one] for values in columns))
                verdicts[rows], states[rows], due_ms[rows] = _walk_on(taken, so_far, int(limit_ms[one]))
            break
        here = starts[:going] + step
        its_rank, was, limit = rank[here], state[:going], due[:going]
        extended = its_rank == RANK["EXTENDED"]
        legal = (own[here] >> was) & 1 == 1
        if extended.any():
            late = (named[here] <= limit) | (extensions[:going] >= MOST_EXTENSIONS)
            legal &= ~(extended & late)
        reported = its_rank == RANK["REPORTED"]
        admitted = reported & (outcome[here] == ADMITTED)
        verdicts[here] = np.where(
            legal,
            LEGAL,
            np.where(outcome[here] == RESENT, OF_ANOTHER_CASE, np.where(reported, REPEATED_REPORT, ILLEGAL)),
        )
        restarts = legal & (
            reported
            | (its_rank == RANK["REOPENED"])
            | ((its_rank == RANK["ACCEPTED"]) & (was == STATES["ADMITTED"]))
        )
        new_due = np.where(restarts, np.minimum(at[here] + limit_ms[:going], NEVER), limit)
        new_due = np.where(legal & extended, named[here], new_due)
        # a merge notes the state it ends; an illegal one may note one too, which the next legal one replaces
        merged = (its_rank == RANK["MERGED"]) & (was != STATES["MERGED"])
        became = np.where(
            admitted, STATES["ADMITTED"], np.where(reported, STATES["REJECTED"], its_rank)
        ).astype(np.uint8)
        became = np.where(its_rank == RANK["UNMERGED"], before[:going], became)
        new_state = np.where(legal & ~extended, became, was)
        before[:going] = np.where(merged, was, before[:going])
        extensions[:going] += legal & extended
        state[:going], due[:going] = new_state, new_due
        states[here], due_ms[here] = new_state, new_due
    return Walk(verdicts, states, due_ms)


class _Steps(NamedTuple):
    """The remaining events of one case: a value each per event."""

    rank: list[int]
    outcome: list[int]
    legal_in: list[int]
    at: list[int]
    named: list[int]


class _SoFar(NamedTuple):
    """Where a case stands: state, state before a merge, limit, extensions."""

    state: int
    before: int
    due: int
    extensions: int


def _walk_on(steps: _Steps, so_far: _SoFar, limit_ms: int) -> tuple[list[int], list[int], list[int]]:
    """(verdicts, states, limits): the rules of `walk_cases` for the rest of one case, event by event.

    A case of 20,000 events would cost `walk_cases` as many steps of numpy for one case each, 1.7 s in all.
    """
    state, before, due, extensions = so_far
    verdicts: list[int] = []
    states: list[int] = []
    dues: list[int] = []
    for rank, outcome, legal_in, at, named in zip(*steps, strict=True):
        legal = legal_in >> state & 1 == 1
        reported, extended = rank == RANK["REPORTED"], rank == RANK["EXTENDED"]
        if extended and (named <= due or extensions >= MOST_EXTENSIONS):
            legal = False
        if legal:
            verdicts.append(LEGAL)
        elif outcome == RESENT:
            verdicts.append(OF_ANOTHER_CASE)
        else:
            verdicts.append(REPEATED_REPORT if reported else ILLEGAL)
        was = state
        if legal and extended:
            due, extensions = named, extensions + 1
        elif legal:
            if (
                reported
                or rank == RANK["REOPENED"]
                or (rank == RANK["ACCEPTED"] and was == STATES["ADMITTED"])
            ):
                due = min(at + limit_ms, NEVER)
            if rank == RANK["UNMERGED"]:
                state = before
            elif reported:
                state = STATES["ADMITTED"] if outcome == ADMITTED else STATES["REJECTED"]
            else:
                state = rank
        if rank == RANK["MERGED"] and was != STATES["MERGED"]:
            before = was
        states.append(state)
        dues.append(due)
    return verdicts, states, dues
