"""The case fold: one SQL expression from a case's set of events to its state.

A case's state is a function of its *set* of events, never of their order of arrival. The expression

1. keeps one tuple per (source, event_id), the one with the smallest position;
2. sorts by (occurred_at, rank, event_id);
3. walks the sorted events once with `arrayFold`, which decides for each event whether the transition is legal,
   and carries only what legality depends on: the state, the state before a merge, the current limit;
4. reads every timestamp, count and name off the legal events.

Source of the rules: docs/metrics.md, "How a case is folded".
"""

from __future__ import annotations

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
_NEVER: Final = 2**62
HORIZON_DAYS: Final = 7

#: Values of CASE_EVENT.outcome.
RECORDED, ADMITTED, REJECTED, RESENT = 0, 1, 2, 3
#: What the fold decides about an event.
ILLEGAL, LEGAL, REPEATED_REPORT = 0, 1, 2

_TIME = "DateTime64(3, 'UTC')"

#: The tuple of `case_events`, ClickHouse type of each element. Same names as frames.CASE_EVENT, plus `_inc`.
TUPLE_TYPES: Final[dict[str, str]] = {
    "occurred_at": _TIME,
    "rank": "UInt8",
    "event_id": "String",
    "source": "String",
    "_inc": "UInt64",
    "_part": "UInt16",
    "_off": "UInt64",
    "_idx": "UInt32",
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


def _legality_masks() -> str:
    """Bit sets of states by event rank (1-based), first for ordinary events, then for self-handled ones."""
    plain = [_mask(LEGAL_IN[name]) for name in EVENT_TYPES]
    self_handled = [_mask((*LEGAL_IN[name], *LEGAL_WHEN_SELF_HANDLED.get(name, ()))) for name in EVENT_TYPES]
    return "[" + ", ".join(f"toUInt32({mask})" for mask in plain + self_handled) + "]"


def state_name(state: str) -> str:
    """SQL: the name of a state number."""
    names = ", ".join(f"'{name}'" for name in STATES)
    numbers = ", ".join(str(number) for number in STATES.values())
    return f"transform({state}, [{numbers}], [{names}], '')"


def _walk() -> str:
    """SQL: the `arrayFold` over the sorted events; its result is the accumulator described beside it."""
    r = RANK
    # accumulator: 1 state, 2 state before a merge, 3 due_at ms, 4 resolution limit ms, 5 extensions,
    # 6 accepted before, 7 verdict on each event so far
    initial = "(toUInt8(0), toUInt8(0), toInt64(0), toInt64(0), toUInt8(0), toUInt8(0), emptyArrayUInt8())"
    legal = (
        f"(bitTest({_legality_masks()}[toUInt8(rank + {len(EVENT_TYPES)} * self_handled)], a.1)"
        f" AND NOT (rank = {r['EXTENDED']} AND (a.5 >= {MOST_EXTENSIONS} OR due <= a.3)))"
    )
    verdict = f"multiIf({legal}, {LEGAL}, rank = {r['REPORTED']}, {REPEATED_REPORT}, {ILLEGAL})"
    return f"""arrayFold(
        (a, at, rank, admitted, self_handled, due, limit) -> (
            toUInt8(multiIf(NOT {legal}, a.1,
                rank = {r["REPORTED"]}, if(admitted, {STATES["ADMITTED"]}, {STATES["REJECTED"]}),
                rank = {r["UNMERGED"]}, a.2,
                rank = {r["EXTENDED"]}, a.1,
                rank)),
            toUInt8(if({legal} AND rank = {r["MERGED"]}, a.1, a.2)),
            toInt64(multiIf(NOT {legal}, a.3,
                rank = {r["REPORTED"]}, least(at + limit, {_NEVER}),
                rank = {r["ACCEPTED"]} AND a.6 = 0, least(at + a.4, {_NEVER}),
                rank = {r["EXTENDED"]}, due,
                rank = {r["REOPENED"]}, least(at + a.4, {_NEVER}),
                a.3)),
            toInt64(if({legal} AND rank = {r["REPORTED"]}, limit, a.4)),
            toUInt8(a.5 + ({legal} AND rank = {r["EXTENDED"]})),
            toUInt8(a.6 OR ({legal} AND rank = {r["ACCEPTED"]})),
            arrayPushBack(a.7, toUInt8({verdict}))
        ),
        arrayMap(e -> toUnixTimestamp64Milli(e.occurred_at), events),
        events.rank,
        arrayMap(e -> toUInt8(e.outcome = {ADMITTED}), events),
        arrayMap(e -> toUInt8(e.self_handled), events),
        arrayMap(e -> toInt64(ifNull(toUnixTimestamp64Milli(e.due_at), 0)), events),
        arrayMap(e -> ifNull(toInt64(e.resolution_limit_seconds) * 1000, toInt64({_NEVER})), events),
        {initial}
    )"""


def sorted_sets(tuples: str, as_of: str | None = None) -> str:
    """SQL query: case_id, version, events (sorted, one per id), resent (L2 duplicates of other reports).

    tuples : query with the columns case_id and tuples, one row per case.
    as_of : SQL expression of the instant; later events are left out. None: all that is known.
    """
    until = f"e -> e.occurred_at <= {as_of}" if as_of else "e -> 1"
    return f"""
        SELECT
            case_id,
            length(tuples) AS version,
            arraySort(e -> (e._inc, e._part, e._off, e._idx), tuples) AS arrived,
            arrayFilter(
                (e, nth) -> nth = 1, arrived, arrayEnumerateUniq(arrived.source, arrived.event_id)
            ) AS kept,
            arraySort(e -> (e.occurred_at, e.rank, e.event_id, e.source), arrayFilter({until}, kept)) AS known,
            arrayFilter(e -> e.outcome != {RESENT}, known) AS events,
            arrayFilter(e -> e.outcome = {RESENT}, known) AS resent
        FROM ({tuples})
        {"WHERE notEmpty(known)" if as_of else ""}"""


def folded_sets(tuples: str, as_of: str | None = None) -> str:
    """SQL query: `sorted_sets` plus the walk: state number, due_at in ms, verdict on each event, legal events."""
    return f"""
        SELECT
            case_id, version, known, events, resent,
            {_walk()} AS walked,
            walked.1 AS state_number,
            walked.3 AS due_ms,
            walked.7 AS verdicts,
            arrayFilter((e, verdict) -> verdict = {LEGAL}, events, verdicts) AS legal,
            legal.rank AS ranks,
            legal.occurred_at AS times
        FROM ({sorted_sets(tuples, as_of)})"""


def _first(event_type: str) -> str:
    return f"arrayElementOrNull(times, indexOf(ranks, {RANK[event_type]}))"


def _last(event_type: str) -> str:
    return f"arrayElementOrNull(reverse(times), indexOf(reverse(ranks), {RANK[event_type]}))"


def _count(event_type: str) -> str:
    return f"toUInt32(countEqual(ranks, {RANK[event_type]}))"


def _states(names: tuple[str, ...]) -> str:
    return "state_number IN (" + ", ".join(str(STATES[name]) for name in names) + ")"


_RESPONSES = ", ".join(str(RANK[name]) for name in ("SIGNED", "ARRIVED", "HANDLING", "RESOLVED"))
_HAS_REPORT = f"has(ranks, {RANK['REPORTED']})"
_REPORT = f"legal[indexOf(ranks, {RANK['REPORTED']})]"
_ORPHAN_FIELDS = ("occurred_at", "grid_code", "channel", "matter_code", "category", "lead_department")
_ORPHANS = "Array(Tuple(" + ", ".join(f"{name} {TUPLE_TYPES[name]}" for name in _ORPHAN_FIELDS) + "))"
_ORPHANS_OF_EVENTS = "arrayMap(e -> (" + ", ".join(f"e.{name}" for name in _ORPHAN_FIELDS) + "), events)"
_QUOTED_ORPHANS = "'" + _ORPHANS.replace("'", "\\'") + "'"
_WORD = "LowCardinality(String)"
_MAYBE_WORD = "LowCardinality(Nullable(String))"
_MAYBE_TIME = f"Nullable({_TIME})"

#: Columns of a folded case: name → (ClickHouse type, SQL over the columns of `folded_sets`).
#: Order matters: an expression may use the columns above it.
CASE_COLUMNS: Final[dict[str, tuple[str, str]]] = {
    "case_id": ("String", "case_id"),
    # the set only grows, so that of two folds of one case the later has the greater version
    "version": ("UInt32", "version"),
    "first_event_at": (_TIME, "known[1].occurred_at"),
    "last_event_at": (_TIME, "known[-1].occurred_at"),
    "state": (_WORD, state_name("state_number")),
    "orphan": ("Bool", f"NOT {_HAS_REPORT} AND empty(resent)"),
    "duplicate_case": ("Bool", f"NOT {_HAS_REPORT} AND notEmpty(resent)"),
    "is_admitted": ("Bool", f"{_HAS_REPORT} AND {_REPORT}.outcome = {ADMITTED}"),
    "is_counted": ("Bool", f"is_admitted AND NOT {_states(('MERGED', 'VOIDED'))}"),
    "is_closed": ("Bool", _states(CLOSED_STATES)),
    "is_resolved": ("Bool", _states((*CLOSED_STATES, "RESOLVED"))),
    # attribution: the opening report's
    "report_source": (_WORD, f"{_REPORT}.source"),
    "report_event_id": ("String", f"{_REPORT}.event_id"),
    "grid_code": (_WORD, f"{_REPORT}.grid_code"),
    "district_code": (_WORD, "substring(grid_code, 1, 6)"),
    "town_code": (_WORD, "substring(grid_code, 1, 9)"),
    "village_code": (_WORD, "substring(grid_code, 1, 12)"),
    "channel": (_WORD, f"{_REPORT}.channel"),
    "matter_code": (_MAYBE_WORD, f"{_REPORT}.matter_code"),
    "category": (_MAYBE_WORD, f"{_REPORT}.category"),
    "lead_department": (_MAYBE_WORD, f"{_REPORT}.lead_department"),
    "department": (_MAYBE_WORD, "ifNull(arrayLastOrNull(x -> x != '', departments), lead_department)"),
    # timestamps, each fixed by legal events only
    "found_at": (_MAYBE_TIME, _first("DISCOVERED")),
    "reported_at": (_MAYBE_TIME, _first("REPORTED")),
    "admitted_at": (_MAYBE_TIME, f"if(is_admitted, {_REPORT}.ingested_at, NULL)"),
    "rejected_at": (_MAYBE_TIME, f"if({_HAS_REPORT} AND NOT is_admitted, {_REPORT}.ingested_at, NULL)"),
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
    "first_response_at": (_MAYBE_TIME, f"arrayFirstOrNull((t, r) -> r IN ({_RESPONSES}), times, ranks)"),
    # limits
    "response_limit_seconds": ("Nullable(UInt32)", f"{_REPORT}.response_limit_seconds"),
    "resolution_limit_seconds": ("Nullable(UInt32)", f"{_REPORT}.resolution_limit_seconds"),
    "response_due_at": (_MAYBE_TIME, "addSeconds(reported_at, response_limit_seconds)"),
    "due_at": (
        _MAYBE_TIME,
        f"if(due_ms = {_NEVER} OR empty(legal), NULL, fromUnixTimestamp64Milli(due_ms, 'UTC'))",
    ),
    # counts of legal events; report_count also counts later reports of the case
    "report_count": ("UInt32", f"countEqual(events.rank, {RANK['REPORTED']})"),
    "event_count": ("UInt32", "length(events)"),
    "accepted_count": ("UInt32", _count("ACCEPTED")),
    "dispatched_count": ("UInt32", _count("DISPATCHED")),
    "returned_count": ("UInt32", _count("RETURNED")),
    "extended_count": ("UInt32", _count("EXTENDED")),
    "escalated_count": ("UInt32", _count("ESCALATED")),
    "resolved_count": ("UInt32", _count("RESOLVED")),
    "rework_count": ("UInt32", _count("REWORK")),
    "reopened_count": ("UInt32", _count("REOPENED")),
    "closed_count": ("UInt32", _count("CLOSED")),
    "rating": ("Nullable(Int8)", "arrayLastOrNull(x -> isNotNull(x), ratings)"),
    "rating_count": ("UInt32", "arrayCount(x -> isNotNull(x), ratings)"),
    "satisfied_count": ("UInt32", "arrayCount(x -> ifNull(x >= 4, 0), ratings)"),
    "level": (_MAYBE_WORD, f"arrayLast(e -> e.rank = {RANK['ESCALATED']}, legal).level"),
    "primary_case_id": (
        "Nullable(String)",
        f"multiIf({_states(('MERGED',))}, "
        f"arrayLast(e -> e.rank = {RANK['MERGED']}, legal).primary_case_id, "
        "duplicate_case, resent[1].primary_case_id, NULL)",
    ),
    # flags and faults
    "evidence_pending": ("Bool", f"{_REPORT}.evidence_pending"),
    "resolved_without_evidence": ("Bool", "evidence_pending AND resolved_count > 0"),
    "illegal_count": ("UInt32", f"countEqual(verdicts, {ILLEGAL})"),
    "illegal_events": (
        "Array(Tuple(source String, event_id String))",
        f"arrayMap(e -> (e.source, e.event_id), arrayFilter((e, v) -> v = {ILLEGAL}, events, verdicts))",
    ),
    "late_count": (
        "UInt32",
        "arrayCount(e -> NOT e.backfill "
        f"AND e.ingested_at > e.occurred_at + toIntervalDay({HORIZON_DAYS}), events)",
    ),
    # what the flow view counts by window
    "legal_times": (f"Array({_TIME})", "times"),
    "legal_ranks": ("Array(UInt8)", "ranks"),
    "rated_times": (f"Array({_TIME})", "arrayFilter((t, x) -> isNotNull(x), times, ratings)"),
    "orphan_events": (_ORPHANS, f"CAST(if(orphan, {_ORPHANS_OF_EVENTS}, []), {_QUOTED_ORPHANS})"),
}  # fmt: skip


def fold(tuples: str, as_of: str | None = None) -> str:
    """SQL query: the folded cases, the columns of CASE_COLUMNS.

    tuples : query with the columns case_id and tuples, one row per case.
    as_of : SQL expression; events after it are left out, and cases without any event left.
    """
    columns = ",\n            ".join(
        f"CAST({expression} AS {kind}) AS {name}" if name not in ("case_id", "version") else name
        for name, (kind, expression) in CASE_COLUMNS.items()
    )
    return f"""
        WITH
            arrayMap(e -> if(e.rank = {RANK["FEEDBACK"]}, e.rating, NULL), legal) AS ratings,
            arrayMap(e -> if(e.rank = {RANK["DISPATCHED"]}, ifNull(e.department, ''), ''), legal) AS departments
        SELECT
            {columns}
        FROM ({folded_sets(tuples, as_of)})"""
