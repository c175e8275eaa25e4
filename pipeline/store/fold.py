"""The case fold: one SQL expression from a case's set of events to its state.

A case's state is a function of its *set* of events, never of their order of arrival. The expression

1. keeps one tuple per (source, event_id), the one with the smallest position;
2. sorts by (occurred_at, rank, event_id);
3. walks the sorted events once with `arrayFold`, which decides for each event whether the transition is legal
   and notes state and limit after it: the case's history;
4. reads every timestamp, count and name off the legal events of the history.

Legality looks only backward in time, so the history up to an instant is a prefix of the whole: the state as
of T needs no second fold, only the prefix and step 4 again.

Source of the rules: docs/metrics.md, "How a case is folded".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from pipeline.frames import EVENT_TYPES, RANK

#: A case's state is the rank of the event type that led to it; 0, the empty name: nothing yet.
NO_STATE: Final = ""
STATES: Final = {NO_STATE: 0} | {
    name: rank for name, rank in RANK.items() if name not in {"UNMERGED", "EXTENDED"}
}
TERMINAL: Final = ("REJECTED", "MERGED", "VOIDED", "ARCHIVED")
CLOSED_STATES: Final = ("CLOSED", "FEEDBACK", "ARCHIVED")

_WORKING = ("ACCEPTED", "DISPATCHED", "SIGNED", "RETURNED", "ARRIVED", "HANDLING")

#: In which states an event is legal. A later REPORTED is neither legal nor illegal: it only adds to
#: `report_count`. ADMITTED and REJECTED are not stored: they are the outcome of their REPORTED.
LEGAL_IN: Final[dict[str, tuple[str, ...]]] = {
    "DISCOVERED": (NO_STATE,),
    "REPORTED": (NO_STATE, "DISCOVERED"),
    "ADMITTED": (),
    "REJECTED": (),
    "MERGED": ("ADMITTED", "ACCEPTED", "DISPATCHED"),
    "UNMERGED": ("MERGED",),
    "ACCEPTED": ("ADMITTED", "REOPENED"),
    "DISPATCHED": ("ACCEPTED", "RETURNED", "ESCALATED", "REWORK"),
    "SIGNED": ("DISPATCHED",),
    "RETURNED": ("DISPATCHED", "SIGNED"),
    "ARRIVED": ("SIGNED",),
    "HANDLING": ("SIGNED", "ARRIVED", "HANDLING", "REWORK"),
    "EXTENDED": ("SIGNED", "ARRIVED", "HANDLING"),
    "ESCALATED": _WORKING,
    "RESOLVED": ("HANDLING", "ARRIVED", "SIGNED"),
    "REWORK": ("RESOLVED",),
    "CLOSED": ("RESOLVED",),
    "FEEDBACK": ("CLOSED", "FEEDBACK"),
    "REOPENED": ("CLOSED", "FEEDBACK"),
    "ARCHIVED": ("CLOSED", "FEEDBACK"),
    "VOIDED": ("ADMITTED", *_WORKING, "ESCALATED", "RESOLVED", "REWORK", "REOPENED"),
}
#: Self-handled (自行处置) events may also follow ACCEPTED directly.
LEGAL_WHEN_SELF_HANDLED: Final = {"HANDLING": ("ACCEPTED",), "RESOLVED": ("ACCEPTED",)}
MOST_EXTENSIONS: Final = 2
#: Stands for "no limit known" while walking, ms since 1970: no extension is later than it.
NEVER: Final = 2**62
HORIZON_DAYS: Final = 7

#: Values of CASE_EVENT.outcome.
RECORDED, ADMITTED, REJECTED, RESENT = 0, 1, 2, 3
#: What the fold decides about an event.
ILLEGAL, LEGAL, REPEATED_REPORT, OF_ANOTHER_CASE = 0, 1, 2, 3

_TIME = "DateTime64(3, 'UTC')"

#: The tuple of `case_events`, ClickHouse type of each element. Same names as frames.CASE_EVENT, plus `_inc`.
#: Identity and position come first, so that a plain sort puts the first copy of an id before the others.
TUPLE_TYPES: Final[dict[str, str]] = {
    "source": "String",
    "event_id": "String",
    "_inc": "UInt64",
    "_part": "UInt16",
    "_off": "UInt64",
    "_idx": "UInt32",
    "occurred_at": _TIME,
    "rank": "UInt8",
    "ingested_at": _TIME,
    "outcome": "UInt8",
    "response_limit_seconds": "Nullable(UInt32)",
    "resolution_limit_seconds": "Nullable(UInt32)",
    "due_at": f"Nullable({_TIME})",
    "primary_case_id": "Nullable(String)",
    "self_handled": "Bool",
    "rating": "Nullable(Int8)",
    "department": "Nullable(String)",
    "level": "Nullable(String)",
    "evidence_pending": "Bool",
    "backfill": "Bool",
    "channel": "String",
    "matter_code": "Nullable(String)",
    "grid_code": "String",
    "category": "Nullable(String)",
    "lead_department": "Nullable(String)",
}


def _mask(states: tuple[str, ...]) -> int:
    return sum(1 << STATES[state] for state in states)


def _states_where_legal() -> str:
    """SQL: the states, as bits, in which the event is legal; self-handled events have a row of their own."""
    plain = [_mask(LEGAL_IN[name]) for name in EVENT_TYPES]
    self_handled = [_mask((*LEGAL_IN[name], *LEGAL_WHEN_SELF_HANDLED.get(name, ()))) for name in EVENT_TYPES]
    masks = ",".join(map(str, plain + self_handled))
    return f"[{masks}][rank + {len(EVENT_TYPES)} * toUInt8(self_handled)]"


def state_name(state: str) -> str:
    """SQL: the name of a state number."""
    names = ", ".join(f"'{name}'" for name in STATES)
    numbers = ", ".join(str(number) for number in STATES.values())
    return f"transform({state}, [{numbers}], [{names}], '')"


def _walk() -> str:
    """SQL: the `arrayFold` over the sorted events; its result is the accumulator described below."""
    r = RANK
    # a.1 state, a.2 state before a merge, a.3 due_at ms, a.4 extensions; then per event so far: a.5 verdict,
    # a.6 state before it, a.7 due_at ms before it. The limit is the opening report's, one for the whole case.
    # L2 duplicates of other reports are no REPORTED of this case: legal nowhere.
    named = "toUnixTimestamp64Milli(due)"  # by EXTENDED; null otherwise
    no_extension = f"rank = {r['EXTENDED']} AND (a.4 >= {MOST_EXTENSIONS} OR ifNull({named} <= a.3, 1))"
    legal = f"(bitTest({_states_where_legal()}, a.1) AND outcome != {RESENT} AND NOT ({no_extension}))"
    # a merge notes the state it ends; an illegal MERGED may note one too, which the next legal one replaces.
    # Only a case's first ACCEPTED finds it ADMITTED, so that later ones leave the limit alone.
    return f"""arrayFold(
        (a, at, rank, outcome, self_handled, due) -> (
            toUInt8(multiIf(NOT {legal} OR rank = {r["EXTENDED"]}, a.1, rank = {r["UNMERGED"]}, a.2,
                rank = {r["REPORTED"]} AND outcome = {ADMITTED}, {r["ADMITTED"]},
                rank = {r["REPORTED"]}, {r["REJECTED"]}, rank)),
            if(rank = {r["MERGED"]} AND a.1 != {r["MERGED"]}, a.1, a.2),
            multiIf(NOT {legal}, a.3,
                rank IN ({r["REPORTED"]}, {r["REOPENED"]})
                    OR (rank = {r["ACCEPTED"]} AND a.1 = {r["ADMITTED"]}),
                    least(toUnixTimestamp64Milli(at) + limit_ms, {NEVER}),
                rank = {r["EXTENDED"]}, ifNull({named}, a.3),
                a.3),
            toUInt8(a.4 + (rank = {r["EXTENDED"]} AND {legal})),
            arrayPushBack(a.5, toUInt8(multiIf({legal}, {LEGAL}, outcome = {RESENT}, {OF_ANOTHER_CASE},
                rank = {r["REPORTED"]}, {REPEATED_REPORT}, {ILLEGAL}))),
            arrayPushBack(a.6, a.1),
            arrayPushBack(a.7, a.3)
        ),
        times, ranks, outcomes, self_handled, dues,
        (toUInt8(0), toUInt8(0), toInt64({NEVER}), toUInt8(0), emptyArrayUInt8(), emptyArrayUInt8(),
            emptyArrayInt64())
    )"""


#: Arrays that the walk and the history are made of: name → element of the tuple. One length, fold order.
_ARRAYS: Final = {
    "times": "occurred_at",
    "ranks": "rank",
    "sources": "source",
    "event_ids": "event_id",
    "ingested": "ingested_at",
    "outcomes": "outcome",
    "response_limits": "response_limit_seconds",
    "resolution_limits": "resolution_limit_seconds",
    "dues": "due_at",
    "primaries": "primary_case_id",
    "self_handled": "self_handled",
    "ratings": "rating",
    "departments": "department",
    "levels": "level",
    "evidence": "evidence_pending",
    "backfilled": "backfill",
    "channels": "channel",
    "matters": "matter_code",
    "grids": "grid_code",
    "categories": "category",
    "lead_departments": "lead_department",
}


# An alias used twice in one SELECT would be analysed twice, so that steps are queries of their own. The
# tuples become plain arrays early: functions over them are quicker to analyse.
def sorted_sets(tuples: str) -> str:
    """SQL query: case_id, version, and the arrays of _ARRAYS: one entry per distinct event, in fold order;
    then `opening` (index of the report that opened the case, 0 without one) and `limit_ms`, its resolution
    limit.

    tuples : query with the columns case_id and tuples, one row per case.
    """
    arrays = ", ".join(f"known.{element} AS {name}" for name, element in _ARRAYS.items())
    return f"""
        SELECT case_id, version, {arrays},
            arrayFirstIndex(e -> e.rank = {RANK["REPORTED"]} AND e.outcome != {RESENT}, known) AS opening,
            ifNull(toInt64(known[opening].resolution_limit_seconds) * 1000, toInt64({NEVER})) AS limit_ms
        FROM (
            SELECT case_id, version, arraySort(e -> (e.occurred_at, e.rank, e.event_id, e.source),
                arrayFilter((e, n) -> n = 1, arrived, arrayEnumerateUniq(arrived.source, arrived.event_id))
            ) AS known
            FROM (
                SELECT case_id, toUInt32(length(tuples)) AS version, arraySort(tuples) AS arrived
                FROM ({tuples})
            )
        )"""


def walked_sets(tuples: str) -> str:
    """SQL query: `sorted_sets` with verdicts, states and due_ms (after the event), one entry per event; and
    `legal`: times, ranks, states, due_ms, ratings, departments, levels, primaries of the legal events."""
    legal = "times, ranks, states, due_ms, ratings, departments, levels, primaries, verdicts"
    return f"""
        SELECT *,
            walked.5 AS verdicts,
            arrayPushBack(arrayPopFront(walked.6), walked.1) AS states,
            arrayPushBack(arrayPopFront(walked.7), walked.3) AS due_ms,
            arrayFilter(e -> e.9 = {LEGAL}, arrayZip({legal})) AS legal
        FROM (SELECT *, {_walk()} AS walked FROM ({sorted_sets(tuples)}))"""


_MAYBE_WORD = "LowCardinality(Nullable(String))"
_WORD = "LowCardinality(String)"
_MAYBE_TIME = f"Nullable({_TIME})"


def _opening(array: str) -> str:
    """SQL over `walked_sets`: an attribute of the report that opened the case, a default without one."""
    return f"{array}[opening]"


#: What is stored of a case so that its state at any instant can be read off a prefix:
#: name → (ClickHouse type, SQL over the columns of `walked_sets`).
HISTORY: Final[dict[str, tuple[str, str]]] = {
    "case_id": ("String", "case_id"),
    # the set only grows, so that of two folds of one case the later has the greater version
    "version": ("UInt32", "version"),
    # all events, in fold order
    "event_times": (f"Array({_TIME})", "times"),
    "event_verdicts": ("Array(UInt8)", "verdicts"),
    "event_lates": (
        "Array(UInt8)",
        (
            f"arrayMap((t, i, b, o) -> NOT b AND o != {RESENT} AND i > t + toIntervalDay({HORIZON_DAYS}), "
            "times, ingested, backfilled, outcomes)"
        ),
    ),
    "illegal_ids": (
        "Array(Tuple(String, String))",
        f"arrayFilter((x, v) -> v = {ILLEGAL}, arrayZip(sources, event_ids), verdicts)",
    ),
    "resent_of": ("String", f"ifNull(primaries[indexOf(verdicts, {OF_ANOTHER_CASE})], '')"),
    # legal events, in fold order
    "legal_times": (f"Array({_TIME})", "legal.1"),
    "legal_ranks": ("Array(UInt8)", "legal.2"),
    "legal_states": ("Array(UInt8)", "legal.3"),
    "legal_due_ms": ("Array(Int64)", "legal.4"),
    "legal_ratings": (
        "Array(Int8)",
        f"arrayMap(e -> if(e.2 = {RANK['FEEDBACK']}, ifNull(e.5, 0), 0), legal)",
    ),
    "legal_departments": (
        "Array(LowCardinality(String))",
        f"arrayMap(e -> if(e.2 = {RANK['DISPATCHED']}, ifNull(e.6, ''), ''), legal)",
    ),
    "legal_levels": ("Array(LowCardinality(String))", "arrayMap(e -> ifNull(e.7, ''), legal)"),
    "legal_primaries": ("Array(String)", "arrayMap(e -> ifNull(e.8, ''), legal)"),
    # the opening report
    "report_source": (_WORD, _opening("sources")),
    "report_event_id": ("String", _opening("event_ids")),
    "report_ingested_at": (_TIME, _opening("ingested")),
    "report_evidence_pending": ("Bool", _opening("evidence")),
    "response_limit_seconds": ("Nullable(UInt32)", _opening("response_limits")),
    "resolution_limit_seconds": ("Nullable(UInt32)", _opening("resolution_limits")),
    "grid_code": (_WORD, _opening("grids")),
    "channel": (_WORD, _opening("channels")),
    "matter_code": (_MAYBE_WORD, _opening("matters")),
    "category": (_MAYBE_WORD, _opening("categories")),
    "lead_department": (_MAYBE_WORD, _opening("lead_departments")),
}  # fmt: skip


def _first(event_type: str) -> str:
    return f"arrayElementOrNull(legal_times, indexOf(legal_ranks, {RANK[event_type]}))"


def _last(event_type: str) -> str:
    return f"arrayElementOrNull(legal_times, {_last_index(event_type)})"


def _last_index(event_type: str) -> str:
    # counted from the end; 0, no element, when there is none
    return f"-toInt32(indexOf(backward, {RANK[event_type]}))"


def _count(event_type: str) -> str:
    return f"toUInt32(countEqual(legal_ranks, {RANK[event_type]}))"


def _is(*states: str) -> str:
    return "state_number IN (" + ", ".join(str(STATES[name]) for name in states) + ")"


#: The first of these is the response.
RESPONSES: Final = ("SIGNED", "ARRIVED", "HANDLING", "RESOLVED")
_RESPONSES = ", ".join(str(RANK[name]) for name in RESPONSES)

#: The state of a case: name → (ClickHouse type, SQL over `with_helpers`).
STATE: Final[dict[str, tuple[str, str]]] = {
    "first_event_at": (_TIME, "event_times[1]"),
    "last_event_at": (_TIME, "event_times[-1]"),
    "state": (_WORD, state_name("state_number")),
    "orphan": ("Bool", "NOT reported AND NOT resent"),
    "duplicate_case": ("Bool", "NOT reported AND resent"),
    "is_admitted": ("Bool", "admitted"),
    "is_counted": ("Bool", f"admitted AND NOT {_is('MERGED', 'VOIDED')}"),
    "is_closed": ("Bool", _is(*CLOSED_STATES)),
    "is_resolved": ("Bool", _is(*CLOSED_STATES, "RESOLVED")),
    "resent_at": (
        _MAYBE_TIME,
        f"arrayElementOrNull(event_times, indexOf(event_verdicts, {OF_ANOTHER_CASE}))",
    ),
    "department": (_MAYBE_WORD, "if(last_department = '', lead_department, last_department)"),
    # timestamps, each fixed by legal events only
    "found_at": (_MAYBE_TIME, _first("DISCOVERED")),
    "reported_at": (_MAYBE_TIME, _first("REPORTED")),
    "admitted_at": (_MAYBE_TIME, "if(admitted, report_ingested_at, NULL)"),
    "rejected_at": (_MAYBE_TIME, "if(reported AND NOT admitted, report_ingested_at, NULL)"),
    "merged_at": (_MAYBE_TIME, _last("MERGED")),
    "accepted_at": (_MAYBE_TIME, _first("ACCEPTED")),
    "first_dispatched_at": (_MAYBE_TIME, _first("DISPATCHED")),
    "last_dispatched_at": (_MAYBE_TIME, _last("DISPATCHED")),
    "first_signed_at": (_MAYBE_TIME, _first("SIGNED")),
    "returned_at": (_MAYBE_TIME, _last("RETURNED")),
    "arrived_at": (_MAYBE_TIME, _last("ARRIVED")),
    "first_action_at": (_MAYBE_TIME, _first("HANDLING")),
    "escalated_at": (_MAYBE_TIME, _last("ESCALATED")),
    "resolved_at": (_MAYBE_TIME, _last("RESOLVED")),
    "first_closed_at": (_MAYBE_TIME, _first("CLOSED")),
    "closed_at": (_MAYBE_TIME, _last("CLOSED")),
    "feedback_at": (_MAYBE_TIME, _last("FEEDBACK")),
    "reopened_at": (_MAYBE_TIME, _last("REOPENED")),
    "archived_at": (_MAYBE_TIME, _last("ARCHIVED")),
    "voided_at": (_MAYBE_TIME, _last("VOIDED")),
    "first_response_at": (
        _MAYBE_TIME,
        f"arrayElementOrNull(legal_times, arrayFirstIndex(r -> r IN ({_RESPONSES}), legal_ranks))",
    ),
    # limits
    "response_due_at": (_MAYBE_TIME, f"addSeconds({_first('REPORTED')}, response_limit_seconds)"),
    "due_at": (
        _MAYBE_TIME,
        # drivers convert the value under a NULL too, so that it must be a time as well
        "if(due_known, fromUnixTimestamp64Milli(if(due_known, legal_due_ms[-1], 0), 'UTC'), NULL)",
    ),
    # counts of legal events; report_count also counts later reports of the case
    "report_count": ("UInt32", f"reported + countEqual(event_verdicts, {REPEATED_REPORT})"),
    "event_count": ("UInt32", f"length(event_verdicts) - countEqual(event_verdicts, {OF_ANOTHER_CASE})"),
    "accepted_count": ("UInt32", _count("ACCEPTED")),
    "dispatched_count": ("UInt32", _count("DISPATCHED")),
    "returned_count": ("UInt32", _count("RETURNED")),
    "extended_count": ("UInt32", _count("EXTENDED")),
    "escalated_count": ("UInt32", _count("ESCALATED")),
    "resolved_count": ("UInt32", _count("RESOLVED")),
    "rework_count": ("UInt32", _count("REWORK")),
    "closed_count": ("UInt32", _count("CLOSED")),
    "reopened_count": ("UInt32", _count("REOPENED")),
    "rating": ("Nullable(Int8)", "nullIf(arrayLast(x -> x != 0, legal_ratings), 0)"),
    "rating_count": ("UInt32", "length(legal_ratings) - countEqual(legal_ratings, 0)"),
    "satisfied_count": ("UInt32", "arrayCount(x -> x >= 4, legal_ratings)"),
    "level": (_MAYBE_WORD, f"nullIf(legal_levels[{_last_index('ESCALATED')}], '')"),
    "primary_case_id": (
        "Nullable(String)",
        (
            f"nullIf(multiIf({_is('MERGED')}, legal_primaries[{_last_index('MERGED')}], "
            "NOT reported AND resent, resent_of, ''), '')"
        ),
    ),
    # flags and faults
    "evidence_pending": ("Bool", "reported AND report_evidence_pending"),
    "resolved_without_evidence": (
        "Bool",
        f"reported AND report_evidence_pending AND has(legal_ranks, {RANK['RESOLVED']})",
    ),
    "illegal_count": ("UInt32", f"countEqual(event_verdicts, {ILLEGAL})"),
    "late_count": ("UInt32", "arraySum(event_lates)"),
}

#: Attributes of the opening report: blank until it has been made.
_ATTRIBUTES: Final = (
    "report_source", "report_event_id", "grid_code", "channel", "matter_code", "category", "lead_department",
    "response_limit_seconds", "resolution_limit_seconds",
)  # fmt: skip
#: Arrays of the history that `prefix` cuts → the length that it leaves.
_CUT: Final = {
    "event_times": "events", "event_verdicts": "events", "event_lates": "events", "illegal_ids": "illegal",
    "legal_times": "legals", "legal_ranks": "legals", "legal_states": "legals", "legal_due_ms": "legals",
    "legal_ratings": "legals", "legal_departments": "legals", "legal_levels": "legals",
    "legal_primaries": "legals",
}  # fmt: skip


ALL: Final = (*HISTORY, *STATE)

#: What several columns of STATE are made of: name → SQL over the columns of HISTORY.
_HELPERS: Final = {
    "backward": "reverse(legal_ranks)",
    "reported": f"has(legal_ranks, {RANK['REPORTED']})",
    "resent": f"has(event_verdicts, {OF_ANOTHER_CASE})",
    "admitted": f"has(legal_states, {STATES['ADMITTED']})",
    "state_number": "legal_states[-1]",
    "due_known": f"has(legal_ranks, {RANK['REPORTED']}) AND legal_due_ms[-1] < {NEVER}",
    "last_department": "arrayLast(x -> x != '', legal_departments)",
}


def _made_of(only: Collection[str]) -> tuple[list[str], list[str]]:
    """(columns of HISTORY, helpers) that these columns are made of. What a query does not need costs it a
    quarter of a millisecond of analysis each."""
    sql = " ".join([STATE[name][1] for name in STATE if name in only])
    helpers = [name for name in _HELPERS if name in _words(sql)]
    used = _words(sql) | _words(" ".join(_HELPERS[name] for name in helpers)) | set(only)
    return [name for name in HISTORY if name in used], helpers


def _words(sql: str) -> set[str]:
    return set(re.findall(r"\w+", sql))


def states_of(histories: str, only: Collection[str] = ALL) -> str:
    """SQL query: the columns of HISTORY and STATE, from a query that gives those of HISTORY that they need.

    only : the columns wanted.
    """
    columns = [name for name in HISTORY if name in only]
    columns += [f"CAST({sql} AS {kind}) AS {name}" for name, (kind, sql) in STATE.items() if name in only]
    helpers = ", ".join(f"{_HELPERS[name]} AS {name}" for name in _made_of(only)[1])
    return f"""
        SELECT {", ".join(columns)}
        FROM (SELECT *{"," if helpers else ""} {helpers} FROM ({histories}))"""


def fold(tuples: str, as_of: str | None = None, only: Collection[str] = ALL) -> str:
    """SQL query: the folded cases, `only` columns of HISTORY and STATE.

    tuples : query with the columns case_id and tuples, one row per case.
    as_of : instant of the states; cases that did not begin by then are left out. None: all events.
    """
    made_of = _made_of(only)[0]
    names = made_of if as_of is None else tuple(HISTORY)  # what is cut in time needs more
    columns = ", ".join(f"CAST({HISTORY[name][1]} AS {HISTORY[name][0]}) AS {name}" for name in names)
    histories = f"SELECT {columns} FROM ({walked_sets(tuples)})"
    return states_of(histories if as_of is None else prefix(histories, as_of, made_of), only)


def prefix(histories: str, as_of: str, only: Collection[str] = tuple(HISTORY)) -> str:
    """SQL query: histories cut after `as_of`; cases that did not begin by then are left out.

    histories : query that gives these, and the times, verdicts and ranks. only : columns of HISTORY wanted.
    """

    def column(name: str) -> str:
        if name in _CUT:
            return f"arraySlice(whole.{name}, 1, whole.{_CUT[name]})"
        if name in _ATTRIBUTES:
            return f"if(whole.opened <= {as_of}, whole.{name}, defaultValueOfTypeName('{HISTORY[name][0]}'))"
        return f"whole.{name}"

    columns = ", ".join(f"{column(name)} AS {name}" for name in HISTORY if name in only)
    lengths = {
        "illegal": f"arrayCount((t, v) -> v = {ILLEGAL} AND t <= {as_of}, event_times, event_verdicts)",
        "legals": f"arrayCount(t -> t <= {as_of}, legal_times)",
    }
    used = {_CUT[name] for name in only if name in _CUT}
    cuts = "".join(f"{sql} AS {name}, " for name, sql in lengths.items() if name in used)
    return f"""
        SELECT {columns}
        FROM (
            SELECT *, {cuts}
                legal_times[indexOf(legal_ranks, {RANK["REPORTED"]})] AS opened,
                arrayCount(t -> t <= {as_of}, event_times) AS events
            FROM ({histories})
        ) AS whole
        WHERE events > 0"""


def states_at(as_of: str, only: Collection[str] = ALL, where: str = "1", *, past: bool = True) -> str:
    """SQL query: `only` columns of every case as of an instant: the stored state where nothing happened
    since, else the state at the end of the history until then.

    where : condition on the stored columns, to leave cases out early; what it tests must not change in time.
    past : False where the caller knows that no case has an event after the instant: stored states suffice.
    """
    names = ", ".join(name for name in ALL if name in only)
    if not past:
        return f"SELECT {names} FROM cases FINAL WHERE {where}"
    made_of = _made_of(only)[0]
    read = {*made_of, "event_times", "event_verdicts", "legal_times", "legal_ranks"}
    history = ", ".join(name for name in HISTORY if name in read)
    changed = f"last_event_at > {as_of} AND first_event_at <= {as_of} AND {where}"
    # FINAL merges every column that it reads, of every case: the arrays are read afterwards, of these cases
    # only. A refresh that was repeated leaves equal rows.
    latest = f"SELECT case_id, version FROM cases FINAL WHERE {changed}"
    histories = f"SELECT {history} FROM cases WHERE (case_id, version) IN ({latest}) LIMIT 1 BY case_id"
    cut = prefix(histories, as_of, made_of)
    return f"""
        SELECT {names} FROM cases FINAL WHERE last_event_at <= {as_of} AND {where}
        UNION ALL
        SELECT {names} FROM ({states_of(cut, only)})"""
