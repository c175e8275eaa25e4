"""The views that define every metric once: `kpi_cohort` and `kpi_flow`, one row per key.

Both are parameterised: `by` (what a key is), `from` and `to` (the window, `to` excluded), `as_of`;
`kpi_cohort` also takes `citizen_channels`, the channels of kind public, care and desk. Formulae and their
corners: docs/metrics.md. Beside the rates stand the numerators and denominators they are made of.

A view joins three parts: the cases, the reports and the orphans. `cases_query`, `reports_query` and
`orphans_query` give each part for one `by`: without the choice of the key, the joins and the nesting in a
view, the parts are analysed in a third of the time and can be asked for at once. They also give the rows of
several at once, for half of what these cost one by one.
"""

from __future__ import annotations

from typing import Final

from pipeline.frames import RANK
from pipeline.store.fold import HORIZON_DAYS, states_at

CITY: Final = "4407"
PERCENTILES: Final = (50, 90, 99)
DURATIONS: Final = (
    "response_seconds",
    "dispatch_seconds",
    "department_response_seconds",
    "resolution_seconds",
)
RATES: Final = (
    "admission_rate", "duplicate_rate", "closure_rate", "response_rate", "timely_response_rate",
    "closure_on_time_rate", "handling_on_time_rate", "rework_rate", "extension_rate", "return_rate",
    "void_rate", "satisfaction_rate", "demand_resolution_rate",
)  # fmt: skip

_AS_OF = "{as_of:DateTime64(3, 'UTC')}"
_FROM = "{from:DateTime64(3, 'UTC')}"
_TO = "{to:DateTime64(3, 'UTC')}"

#: What a row of the KPI call can stand for → SQL of its key, over a report's or an opening report's
#: attributes and the column that `{department}` stands for.
_KEYS: Final = {
    "city": f"'{CITY}'",
    "district": "substring(grid_code, 1, 6)",
    "town": "substring(grid_code, 1, 9)",
    "village": "substring(grid_code, 1, 12)",
    "grid": "grid_code",
    "matter": "matter_code",
    "category": "category",
    "department": "{department}",
    "channel": "channel",
}
#: A case's department is its matter's lead department, or the one a DISPATCHED named; of a single report only
#: the first is known.
_OF_CASES: Final = "department"
_OF_REPORTS: Final = "lead_department"
BY: Final = tuple(_KEYS)
#: What can be asked for at once, some or all of it: reading the cases and analysing the query costs more than
#: the rows. Each key then has the name of its `by` before it, as `town:440703001`.
TOGETHER: Final = ("city", "district", "town", "department")
_Keys = str | tuple[str, ...] | None


def _key(by: str | None, department: str) -> str:
    """SQL: the key that a row counts under, '' where it has none; `by` None: as the parameter says.

    department : the column of that name.
    """
    keys = {name: f"ifNull(toString({key.format(department=department)}), '')" for name, key in _KEYS.items()}
    if by is not None:
        return keys[by]
    choices = ", ".join(f"{{by:String}} = '{name}', {key}" for name, key in keys.items())
    return f"multiIf({choices}, '')"


def _groups(by: _Keys, department: str) -> tuple[dict[str, str], str, str]:
    """SQL of what a row is grouped by (column → key), of the key that a group is told under, and of the
    grouping.

    by : one of BY, None as of `_key`, or some of TOGETHER, where what has no key has the mere name of its
    `by`; the city is among them.
    """
    if not isinstance(by, tuple):
        return {"area": _key(by, department)}, "area", "WHERE area != '' GROUP BY area"
    areas = {f"of_{name}": _key(name, department) for name in by if name != "city"}
    if "of_town" in areas:  # a shorter row while copies of reports are found
        areas.pop("of_district", None)
    sets = {name: f"of_{name}" if f"of_{name}" in areas else "substring(of_town, 1, 6)" for name in by[1:]}
    told = ", ".join(f"grouping({column}) = 0, concat('{name}:', {column})" for name, column in sets.items())
    grouping = "".join(f"({column}), " for column in sets.values())
    return areas, f"multiIf({told}, 'city:{CITY}')", f"GROUP BY GROUPING SETS ({grouping}())"


def _in_window(time: str) -> str:
    return f"({time} >= {_FROM} AND {time} < {_TO})"


def _columns(items: dict[str, str]) -> str:
    return ", ".join(f"{sql} AS {name}" for name, sql in items.items())


def _ms(start: str, end: str) -> str:
    return f"(toUnixTimestamp64Milli({end}) - toUnixTimestamp64Milli({start}))"


def _whole_seconds(ms: str) -> str:
    """SQL: whole seconds of a duration; NULL when it is unknown or negative (a fault of the data)."""
    return f"if({ms} >= 0, intDiv({ms}, 1000), NULL)"


def _percentiles(values: str) -> dict[str, str]:
    """Columns: element ⌈p·n/100⌉ of each array of sorted values; NULL when it is empty."""
    return {
        f"{values}_p{p}": f"arrayElementOrNull({values}, intDiv({p} * length({values}) + 99, 100))"
        for p in PERCENTILES
    }


#: A case's durations: name → (start, end).
_ENDS: Final = {
    "response_seconds": ("reported_at", "first_response_at"),
    "dispatch_seconds": ("reported_at", "first_dispatched_at"),
    "department_response_seconds": ("first_dispatched_at", "first_signed_at"),
    "resolution_seconds": ("accepted_at", "closed_at"),
}


# --- reports: one count per (source, event_id), its first copy; one per position for L1 and L2 copies
def reports_query(by: _Keys) -> str:
    """SQL query: what was reported, one row per key; `by` as of `_groups`."""
    where = f"event_type = 'REPORTED' AND {_in_window('occurred_at')} AND occurred_at <= {_AS_OF}"
    areas, told, grouping = _groups(by, _OF_REPORTS)
    given, any_of = _columns(areas), _columns({name: f"any({name})" for name in areas})
    # position and kind as one number (42 bits of milliseconds, then 16, 46, 22 and 2 bits): its minimum tells
    # the kind of the first copy, at half the cost of argMin
    first = (
        "bitOr(bitShiftLeft(toUInt128(_inc), 86), bitOr(bitShiftLeft(toUInt128(_part), 70), "
        "bitOr(bitShiftLeft(toUInt128(_off), 24), toUInt128(bitOr(bitShiftLeft(_idx, 2), {kind})))))"
    )
    stored = " UNION ALL ".join(
        f"SELECT id_hi, id_lo, {first.format(kind=kind)} AS first, {given} FROM {table} WHERE {where}"
        for kind, table in ((1, "events"), (2, "rejections"))
    )
    return f"""
        SELECT {told} AS key,
            countIf(kind = 1) AS admitted_reports, countIf(kind = 2) AS rejected_reports,
            countIf(kind = 3) AS duplicates_l1, countIf(kind = 4) AS duplicates_l2,
            count() AS reports,
            admitted_reports / nullIf(admitted_reports + rejected_reports, 0) AS admission_rate,
            1 AS has_reports
        FROM (
            SELECT {any_of}, bitAnd(toUInt8(min(first)), 3) AS kind
            FROM ({stored})
            GROUP BY id_hi, id_lo
            UNION ALL
            SELECT {given}, if(level = 'L1', 3, 4) AS kind FROM duplicates FINAL WHERE {where}
        )
        {grouping}"""


# --- orphans: events of cases that, as of T, have neither a report nor a resend of one
_IS_ORPHAN: Final = (
    f"first_event_at <= {_AS_OF} AND ifNull(reported_at > {_AS_OF}, 1) AND ifNull(resent_at > {_AS_OF}, 1)"
)

#: One row: has an admitted case an event after `as_of` (`past`), and can there be orphans as of then. It
#: reads every version of a state: what holds of none holds of no case. Rejected reports may be dated years
#: ahead, and count in no state.
LOOK: Final = f"""
    SELECT maxIf(last_event_at, is_admitted) > {_AS_OF} AS past, countIf({_IS_ORPHAN}) > 0 AS orphans
    FROM cases"""


#: So many cases can be named in a query.
MOST_NAMED: Final = 5_000


def orphans_query(by: _Keys, *, named: bool = False) -> str:
    """SQL query: events of cases without a report, one row per key that has any; `by` as of `_groups`.

    named : the parameter `orphans` says which cases these are; else every state is read to find them.
    """
    orphans = f"SELECT case_id FROM cases FINAL WHERE {_IS_ORPHAN}"
    if named:
        orphans = "SELECT arrayJoin({orphans:Array(String)})"
    attributes = ("grid_code", "channel", "matter_code", "category", "lead_department")
    areas, told, grouping = _groups(by, _OF_REPORTS)
    return f"""
        SELECT {told} AS key, count() AS orphans,
            countIf(occurred_at < {_AS_OF} - toIntervalDay({HORIZON_DAYS})) AS orphans_overdue
        FROM (
            SELECT *, {_columns(areas)}
            FROM (
                SELECT e.occurred_at AS occurred_at, {_columns({name: f"e.{name}" for name in attributes})}
                FROM case_events
                ARRAY JOIN events AS e
                WHERE case_id IN ({orphans})
                ORDER BY e._inc, e._part, e._off, e._idx
                LIMIT 1 BY case_id, e.source, e.event_id
            )
            WHERE {_in_window("occurred_at")} AND occurred_at <= {_AS_OF}
        )
        {grouping}"""


_ATTRIBUTES: Final = ("grid_code", "channel", "matter_code", "category", "department")

# --- cohort: cases reported in the window, their state as of T
_COHORT_COLUMNS: Final = (
    *_ATTRIBUTES, "state", "is_counted", "is_closed", "is_resolved", "reported_at", "accepted_at",
    "first_dispatched_at", "first_signed_at", "first_response_at", "resolved_at", "closed_at",
    "response_due_at", "due_at", "accepted_count", "dispatched_count", "returned_count", "extended_count",
    "resolved_count", "rework_count", "reopened_count", "rating", "rating_count", "satisfied_count",
    "evidence_pending", "illegal_count", "late_count",
)  # fmt: skip
#: Of all admitted cases.
_ADMITTED_COUNTS: Final = {
    "admitted_cases": "count()",
    "voided": "countIf(void_now)",
    "merged": "countIf(merged_now)",
    "illegal_events": "sum(illegal_count)",
    "late_events": "sum(late_count)",
}
#: What COUNTED is made of. FACTS hold of a state as it is stored, MOMENTS go by the instant or the catalogue.
FACTS: Final = {
    "counted": "is_counted",
    "closed_now": "is_closed",
    "resolved_now": "is_resolved",
    "answered": "isNotNull(first_response_at)",
    "answered_in_time": "ifNull(first_response_at <= response_due_at, 0)",
    "closed_by_limit": "is_closed AND ifNull(closed_at <= due_at, 0)",
    "resolved_by_limit": "is_resolved AND ifNull(resolved_at <= due_at, 0)",
    "once_resolved": "resolved_count > 0",
    "once_reworked": "rework_count + reopened_count > 0",
    "once_accepted": "accepted_count > 0",
    "once_extended": "extended_count > 0",
    "not_displeased": "ifNull(rating, 5) > 2",
    "without_proof": "evidence_pending",
    "void_now": "state = 'VOIDED'",
    "merged_now": "state = 'MERGED'",
}
MOMENTS: Final = {
    "limit_passed": f"ifNull(due_at <= {_AS_OF}, 0)",
    "response_limit_passed": f"ifNull(response_due_at <= {_AS_OF}, 0)",
    "citizen": "has({citizen_channels:Array(String)}, channel)",
}
#: Of the counted cases C: name → condition over FACTS and MOMENTS, in words that SQL of any engine has.
COUNTED: Final = {
    "closed": "closed_now",
    "open": "NOT closed_now",
    "overdue": "NOT closed_now AND limit_passed",
    "responded": "answered",
    "response_owed": "answered OR response_limit_passed",
    "responded_in_time": "answered_in_time",
    "due_to_close": "closed_now OR limit_passed",
    "closed_in_time": "closed_by_limit",
    "due_to_handle": "resolved_now OR limit_passed",
    "handled_in_time": "resolved_by_limit",
    "resolved_cases": "once_resolved",
    "reworked_cases": "once_resolved AND once_reworked",
    "accepted_cases": "once_accepted",
    "extended_cases": "once_extended",
    "demands": "citizen",
    "demands_settled": "citizen AND closed_now AND not_displeased",
    "unproven": "without_proof",
}
COUNTED_SUMS: Final = {
    "returns": "returned_count",
    "dispatches": "dispatched_count",
    "ratings": "rating_count",
    "satisfied": "satisfied_count",
    "negative_durations": " + ".join(f"ifNull({name}_ms < 0, 0)" for name in _ENDS),
}
#: Milliseconds of a case's durations, so that a negative fraction of a second is still seen as negative.
DURATIONS_MS: Final = {f"{name}_ms": _ms(*ends) for name, ends in _ENDS.items()} | {
    "resolution_seconds_ms": f"if(is_closed, {_ms(*_ENDS['resolution_seconds'])}, NULL)"
}
#: Rate of the cohort view → the columns that hold its numerator and its denominator.
COHORT_RATES: Final = {
    "closure_rate": ("closed", "cases"),
    "response_rate": ("responded", "response_owed"),
    "timely_response_rate": ("responded_in_time", "response_owed"),
    "closure_on_time_rate": ("closed_in_time", "due_to_close"),
    "handling_on_time_rate": ("handled_in_time", "due_to_handle"),
    "rework_rate": ("reworked_cases", "resolved_cases"),
    "extension_rate": ("extended_cases", "accepted_cases"),
    "return_rate": ("returns", "dispatches"),
    "void_rate": ("voided", "admitted_cases"),
    "satisfaction_rate": ("satisfied", "ratings"),
    "demand_resolution_rate": ("demands_settled", "demands"),
}


def _cohort_cases(by: _Keys, past: bool) -> str:
    cases = states_at(
        _AS_OF,
        _COHORT_COLUMNS,
        f"is_admitted AND {_in_window('reported_at')} AND reported_at <= {_AS_OF}",
        past=past,
    )
    areas, told, grouping = _groups(by, _OF_CASES)
    counts = {name: f"countIf(counted AND ({condition}))" for name, condition in COUNTED.items()}
    sums = {name: f"sumIf({value}, counted)" for name, value in COUNTED_SUMS.items()}
    values = {
        name: f"arraySort(groupArrayIf(intDiv({name}_ms, 1000), counted AND {name}_ms >= 0))"
        for name in _ENDS
    }
    rates = {name: f"{part} / nullIf({whole}, 0)" for name, (part, whole) in COHORT_RATES.items()}
    percentiles = {name: sql for duration in DURATIONS for name, sql in _percentiles(duration).items()}
    return f"""
        SELECT * EXCEPT ({", ".join(DURATIONS)}), {_columns(rates)}, {_columns(percentiles)}, 1 AS has_cases
        FROM (
            SELECT {told} AS key, {_columns(_ADMITTED_COUNTS)}, countIf(counted) AS cases,
                {_columns(counts)}, {_columns(sums)}, {_columns(values)}
            FROM (
                SELECT *, {_columns(areas | FACTS | MOMENTS | DURATIONS_MS)}
                FROM ({cases})
            )
            {grouping}
        )"""


# --- flow: legal events in the window, of all admitted cases
_FLOW_COLUMNS: Final = (
    *_ATTRIBUTES, "legal_times", "legal_ranks", "legal_ratings", "reported_at", "accepted_at",
    "first_dispatched_at", "first_signed_at", "first_response_at",
)  # fmt: skip


def _in_window_count(event_type: str) -> str:
    return f"arrayCount((t, r) -> r = {RANK[event_type]} AND {_in_window('t')}, legal_times, legal_ranks)"


_FLOW_COUNTS: Final = {
    "cases": _in_window_count("REPORTED"),
    "voided": _in_window_count("VOIDED"),
    "merged": _in_window_count("MERGED"),
    "responded": f"ifNull({_in_window('first_response_at')}, 0)",
    "ratings": f"arrayCount((t, x) -> x != 0 AND {_in_window('t')}, legal_times, legal_ratings)",
    "closed": "length(resolutions)",
}


def _flow_cases(by: str | None, past: bool) -> str:
    cases = states_at(
        _AS_OF,
        _FLOW_COLUMNS,
        f"is_admitted AND last_event_at >= {_FROM} AND reported_at < {_TO} AND reported_at <= {_AS_OF}",
        past=past,
    )
    closures = f"arrayFilter((t, r) -> r = {RANK['CLOSED']} AND {_in_window('t')}, legal_times, legal_ranks)"
    # a CLOSED is legal only after an ACCEPTED, so that accepted_at is there and not later
    resolutions = f"arrayMap(t -> intDiv({_ms('assumeNotNull(accepted_at)', 't')}, 1000), {closures})"
    values = {
        name: f"if({_in_window(ends[1])}, {_whole_seconds(_ms(*ends))}, NULL)"
        for name, ends in _ENDS.items()
        if name != "resolution_seconds"
    }
    sorted_values = {name: f"arraySort(groupArray({name}))" for name in values}
    percentiles = {name: sql for duration in DURATIONS for name, sql in _percentiles(duration).items()}
    return f"""
        SELECT * EXCEPT ({", ".join(DURATIONS)}), closed / nullIf(cases, 0) AS closure_rate,
            {_columns(percentiles)}, 1 AS has_cases
        FROM (
            SELECT key, {_columns({name: f"sum({sql})" for name, sql in _FLOW_COUNTS.items()})},
                {_columns(sorted_values)}, arraySort(groupArrayArray(resolutions)) AS resolution_seconds
            FROM (
                SELECT *, {_key(by, _OF_CASES)} AS key, {resolutions} AS resolutions, {_columns(values)}
                FROM ({cases})
                WHERE arrayExists(t -> {_in_window("t")}, legal_times)
            )
            WHERE key != ''
            GROUP BY key
        )"""


def cases_query(view: str, by: _Keys, *, past: bool = True) -> str:
    """SQL query: the cases of a view (cohort, flow), one row per key; `by` as of `_groups`, of a flow as of
    `_key`.

    past : False where no case has an event after `as_of`: the stored states suffice.
    """
    if view == "cohort":
        return _cohort_cases(by, past)
    assert not isinstance(by, tuple)
    return _flow_cases(by, past)


#: SQL over the joined parts. The KPI call, which joins them itself, repeats the formula.
_DUPLICATE_RATE: Final = "(duplicates_l1 + duplicates_l2 + merged) / nullIf(reports, 0)"


def _view(view: str) -> str:
    """SQL query: the three parts joined.

    A key that one part lacks counts zero there. Orphans alone do not put a key on the list (`listed`).
    """
    return f"""
    SELECT * EXCEPT (has_cases, has_reports), {_DUPLICATE_RATE} AS duplicate_rate,
        has_cases + has_reports > 0 AS listed
    FROM ({cases_query(view, None)}) AS c
    FULL JOIN ({reports_query(None)}) AS r USING (key)
    FULL JOIN ({orphans_query(None)}) AS o USING (key)"""


KPI_VIEWS: Final = {f"kpi_{view}": f"CREATE VIEW kpi_{view} AS {_view(view)}" for view in ("cohort", "flow")}
