"""The views that define every metric once: `kpi_cohort` and `kpi_flow`, one row per key.

Both are parameterised: `by` (what a key is), `from` and `to` (the window, `to` excluded), `as_of`;
`kpi_cohort` also takes `citizen_channels`, the channels of kind public, care and desk. Formulae and their
corners: docs/metrics.md. Beside the rates stand the numerators and denominators they are made of.
"""

from __future__ import annotations

from typing import Final

from pipeline.frames import RANK
from pipeline.store.fold import HORIZON_DAYS, OF_ANOTHER_CASE, states_at

#: What a row of the KPI call can stand for, and where its key comes from.
BY: Final = ("city", "district", "town", "village", "grid", "matter", "category", "department", "channel")
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


def _key(department: str) -> str:
    """SQL: the key that a row counts under; '' where it has none. Needs grid_code and the attributes."""
    return f"""toString(ifNull(multiIf(
            {{by:String}} = 'city', '{CITY}',
            {{by:String}} = 'district', substring(grid_code, 1, 6),
            {{by:String}} = 'town', substring(grid_code, 1, 9),
            {{by:String}} = 'village', substring(grid_code, 1, 12),
            {{by:String}} = 'grid', toString(grid_code),
            {{by:String}} = 'matter', toString(matter_code),
            {{by:String}} = 'category', toString(category),
            {{by:String}} = 'department', toString({department}),
            {{by:String}} = 'channel', toString(channel),
            NULL), ''))"""


def _in_window(time: str) -> str:
    return f"({time} >= {_FROM} AND {time} < {_TO})"


def _seconds(start: str, end: str) -> str:
    """SQL: whole seconds from start to end, NULL when one is missing or the duration is negative."""
    ms = f"(toUnixTimestamp64Milli({end}) - toUnixTimestamp64Milli({start}))"
    return f"if({ms} >= 0, intDiv({ms}, 1000), NULL)"


def _percentiles(name: str, values: str) -> str:
    """SQL columns: elements ⌈p·n/100⌉ of the sorted values; `values` is an array without NULL."""
    return ",\n            ".join(
        f"arrayElementOrNull({values}, intDiv({p} * length({values}) + 99, 100)) AS {name}_p{p}"
        for p in PERCENTILES
    )


#: Sources of a case's durations: name → (start, end).
_DURATION_ENDS: Final = {
    "response_seconds": ("reported_at", "first_response_at"),
    "dispatch_seconds": ("reported_at", "first_dispatched_at"),
    "department_response_seconds": ("first_dispatched_at", "first_signed_at"),
    "resolution_seconds": ("accepted_at", "closed_at"),
}

# --- reports: from the outcome tables, one count per (source, event_id), one per position for copies
_REPORT_FILTER = f"event_type = 'REPORTED' AND {_in_window('occurred_at')} AND occurred_at <= {_AS_OF}"

_REPORTS = f"""
    SELECT
        key,
        countIf(kind = 1) AS admitted_reports,
        countIf(kind = 2) AS rejected_reports,
        countIf(kind = 3) AS duplicates_l1,
        countIf(kind = 4) AS duplicates_l2
    FROM (
        SELECT argMin(key, (_inc, _part, _off, _idx)) AS key, argMin(kind, (_inc, _part, _off, _idx)) AS kind
        FROM (
            SELECT id_hi, id_lo, _inc, _part, _off, _idx, 1 AS kind, {_key("lead_department")} AS key
            FROM events WHERE {_REPORT_FILTER}
            UNION ALL
            SELECT id_hi, id_lo, _inc, _part, _off, _idx, 2 AS kind, {_key("lead_department")} AS key
            FROM rejections WHERE {_REPORT_FILTER}
        )
        GROUP BY id_hi, id_lo
        UNION ALL
        SELECT any(key), any(kind)
        FROM (
            SELECT _inc, _part, _off, _idx, if(level = 'L1', 3, 4) AS kind, {_key("lead_department")} AS key
            FROM duplicates WHERE {_REPORT_FILTER}
        )
        GROUP BY _inc, _part, _off, _idx
    )
    WHERE key != ''
    GROUP BY key"""

# --- orphans: events of cases that, as of T, have neither a report nor a resend of one
_ORPHAN_FIELDS = ("grid_code", "channel", "matter_code", "category", "lead_department")
_ORPHANS = f"""
    SELECT
        {_key("lead_department")} AS key,
        count() AS orphans,
        countIf(occurred_at < {_AS_OF} - toIntervalDay({HORIZON_DAYS})) AS orphans_overdue
    FROM (
        SELECT e.occurred_at AS occurred_at, {", ".join(f"e.{name} AS {name}" for name in _ORPHAN_FIELDS)}
        FROM case_events
        ARRAY JOIN events AS e
        WHERE case_id IN (
            SELECT case_id FROM cases FINAL
            WHERE first_event_at <= {_AS_OF} AND ifNull(reported_at > {_AS_OF}, 1) AND NOT arrayExists(
                (t, v) -> v = {OF_ANOTHER_CASE} AND t <= {_AS_OF}, event_times, event_verdicts)
        )
        ORDER BY e._inc, e._part, e._off, e._idx
        LIMIT 1 BY case_id, e.source, e.event_id
    )
    WHERE {_in_window("occurred_at")} AND occurred_at <= {_AS_OF} AND key != ''
    GROUP BY key"""

# --- cohort: cases reported in the window, state as of T
_COHORT_COUNTS: Final = {
    "admitted_cases": "1",
    "cases": "is_counted",
    "voided": "state = 'VOIDED'",
    "merged": "state = 'MERGED'",
    "closed": "is_counted AND is_closed",
    "open": "is_counted AND NOT is_closed",
    "overdue": "is_counted AND NOT is_closed AND due",
    "responded": "is_counted AND isNotNull(first_response_at)",
    "response_owed": f"is_counted AND (isNotNull(first_response_at) OR ifNull(response_due_at <= {_AS_OF}, 0))",
    "responded_in_time": "is_counted AND ifNull(first_response_at <= response_due_at, 0)",
    "due_to_close": "is_counted AND (is_closed OR due)",
    "closed_in_time": "is_counted AND is_closed AND ifNull(closed_at <= due_at, 0)",
    "due_to_handle": "is_counted AND (is_resolved OR due)",
    "handled_in_time": "is_counted AND is_resolved AND ifNull(resolved_at <= due_at, 0)",
    "resolved_cases": "is_counted AND resolved_count > 0",
    "reworked_cases": "is_counted AND resolved_count > 0 AND (rework_count > 0 OR reopened_count > 0)",
    "accepted_cases": "is_counted AND accepted_count > 0",
    "extended_cases": "is_counted AND extended_count > 0",
    "demands": "is_counted AND citizen",
    "demands_settled": "is_counted AND citizen AND is_closed AND ifNull(rating > 2, 1)",
    "evidence_pending": "is_counted AND evidence_pending",
}
_COHORT_SUMS: Final = {
    "returns": "if(is_counted, returned_count, 0)",
    "dispatches": "if(is_counted, dispatched_count, 0)",
    "ratings": "if(is_counted, rating_count, 0)",
    "satisfied": "if(is_counted, satisfied_count, 0)",
    "illegal_events": "illegal_count",
    "late_events": "late_count",
}
_RATE_OF: Final = {
    "admission_rate": ("admitted_reports", "admitted_reports + rejected_reports"),
    "duplicate_rate": ("duplicates_l1 + duplicates_l2 + merged", "reports"),
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
_REPORT_COUNTS: Final = ("admitted_reports", "rejected_reports", "duplicates_l1", "duplicates_l2")
_ORPHAN_COUNTS: Final = ("orphans", "orphans_overdue")


def _columns(items: dict[str, str]) -> str:
    return ",\n            ".join(f"{expression} AS {name}" for name, expression in items.items())


_NEGATIVE = " + ".join(
    f"ifNull(toUnixTimestamp64Milli({end}) < toUnixTimestamp64Milli({start}), 0)"
    for start, end in _DURATION_ENDS.values()
)

_ATTRIBUTES = ("grid_code", "channel", "matter_code", "category", "department")
_COHORT_COLUMNS: Final = (
    *_ATTRIBUTES, "state", "is_counted", "is_closed", "is_resolved", "reported_at", "accepted_at",
    "first_dispatched_at", "first_signed_at", "first_response_at", "resolved_at", "closed_at",
    "response_due_at", "due_at", "accepted_count", "dispatched_count", "returned_count", "extended_count",
    "resolved_count", "rework_count", "reopened_count", "rating", "rating_count", "satisfied_count",
    "evidence_pending", "illegal_count", "late_count",
)  # fmt: skip
_COHORT_CASES = f"""
    SELECT
        key,
        {_columns({name: f"countIf({condition})" for name, condition in _COHORT_COUNTS.items()})},
        {_columns({name: f"sum({value})" for name, value in _COHORT_SUMS.items()})},
        sum(negative) AS negative_durations,
        {_columns({name: f"arraySort(groupArray({name}))" for name in DURATIONS})}
    FROM (
        SELECT
            *,
            {_key("department")} AS key,
            ifNull(due_at <= {_AS_OF}, 0) AS due,
            has({{citizen_channels:Array(String)}}, channel) AS citizen,
            if(is_counted, {_NEGATIVE}, 0) AS negative,
            {
    _columns(
        {
            name: f"if(is_counted{' AND is_closed' if name == 'resolution_seconds' else ''}, "
            f"{_seconds(start, end)}, NULL)"
            for name, (start, end) in _DURATION_ENDS.items()
        }
    )
}
        FROM ({
    states_at(
        _AS_OF,
        _COHORT_COLUMNS,
        f"is_admitted AND {_in_window('reported_at')} AND reported_at <= {_AS_OF}",
    )
})
    )
    WHERE key != ''
    GROUP BY key"""


def _in_window_of_rank(rank: int) -> str:
    return f"arrayFilter((t, r) -> r = {rank} AND {_in_window('t')}, legal_times, legal_ranks)"


_FLOW_SUMS: Final = {
    "cases": f"length({_in_window_of_rank(RANK['REPORTED'])})",
    "closed": "length(closed_times)",
    "voided": f"length({_in_window_of_rank(RANK['VOIDED'])})",
    "merged": f"length({_in_window_of_rank(RANK['MERGED'])})",
    "responded": f"ifNull({_in_window('first_response_at')}, 0)",
    "ratings": f"arrayCount((t, x) -> x != 0 AND {_in_window('t')}, legal_times, legal_ratings)",
}
_FLOW_ENDS: Final = {name: ends for name, ends in _DURATION_ENDS.items() if name != "resolution_seconds"}
_RESOLUTIONS_MS = "toUnixTimestamp64Milli(t) - toUnixTimestamp64Milli(assumeNotNull(accepted_at))"

_FLOW_COLUMNS: Final = (
    *_ATTRIBUTES, "legal_times", "legal_ranks", "legal_ratings", "reported_at", "accepted_at",
    "first_dispatched_at", "first_signed_at", "first_response_at",
)  # fmt: skip
_FLOW_CASES = f"""
    SELECT
        key,
        {_columns({name: f"sum(n_{name})" for name in _FLOW_SUMS})},
        {_columns({name: f"arraySort(groupArray({name}))" for name in _FLOW_ENDS})},
        arraySort(groupArrayArray(resolutions)) AS resolution_seconds
    FROM (
        SELECT
            {_key("department")} AS key,
            {_in_window_of_rank(RANK["CLOSED"])} AS closed_times,
            {_columns({f"n_{name}": value for name, value in _FLOW_SUMS.items()})},
            {
    _columns(
        {
            name: f"if({_in_window(end)}, {_seconds(start, end)}, NULL)"
            for name, (start, end) in _FLOW_ENDS.items()
        }
    )
},
            arrayMap(t -> intDiv({_RESOLUTIONS_MS}, 1000), closed_times) AS resolutions
        FROM ({
    states_at(
        _AS_OF,
        _FLOW_COLUMNS,
        f"is_admitted AND last_event_at >= {_FROM} AND reported_at < {_TO} AND reported_at <= {_AS_OF}",
    )
})
        WHERE arrayExists(t -> {_in_window("t")}, legal_times)
    )
    WHERE key != ''
    GROUP BY key"""


def _joined(cases: str, case_counts: tuple[str, ...]) -> str:
    """SQL query: the parts of a row side by side; a key that one part lacks counts zero there."""
    counts = (*case_counts, *_REPORT_COUNTS, *_ORPHAN_COUNTS)

    def part(source: str, given: tuple[str, ...]) -> str:
        columns = [name if name in given else f"toUInt64(0) AS {name}" for name in counts]
        columns += [name if name in given else f"CAST([] AS Array(Int64)) AS {name}" for name in DURATIONS]
        # orphans alone do not put a key on the list
        return f"SELECT key, {', '.join(columns)}, {int(source != _ORPHANS)} AS listed FROM ({source})"

    return f"""
        SELECT
            key,
            {_columns({name: f"sum(part.{name})" for name in counts})},
            {_columns({name: f"groupArrayArray(part.{name})" for name in DURATIONS})},
            max(part.listed) AS listed
        FROM (
            {part(cases, (*case_counts, *DURATIONS))}
            UNION ALL {part(_REPORTS, _REPORT_COUNTS)}
            UNION ALL {part(_ORPHANS, _ORPHAN_COUNTS)}
        ) AS part
        GROUP BY key"""


def _row(name: str, source: str, counts: tuple[str, ...], rates: tuple[str, ...]) -> str:
    rate_columns = {
        rate: f"if({whole} = 0, NULL, ({part}) / ({whole}))"
        for rate, (part, whole) in _RATE_OF.items()
        if rate in rates
    }
    percentiles = ",\n            ".join(_percentiles(duration, duration) for duration in DURATIONS)
    return f"""
    CREATE VIEW {name} AS
    SELECT
        key,
        admitted_reports + rejected_reports + duplicates_l1 + duplicates_l2 AS reports,
        {", ".join((*_REPORT_COUNTS, *_ORPHAN_COUNTS, *counts))},
        {_columns(rate_columns)},
        {percentiles},
        listed
    FROM ({source})"""


_COHORT_NAMES = (*_COHORT_COUNTS, *_COHORT_SUMS, "negative_durations")
_FLOW_NAMES = tuple(_FLOW_SUMS)

KPI_VIEWS: Final = {
    "kpi_cohort": _row("kpi_cohort", _joined(_COHORT_CASES, _COHORT_NAMES), _COHORT_NAMES, RATES),
    "kpi_flow": _row("kpi_flow", _joined(_FLOW_CASES, _FLOW_NAMES), _FLOW_NAMES, ("closure_rate",)),
}
