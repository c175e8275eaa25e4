"""Every metric in plain Python, over the oracle's folded cases. Gives the JSON of the KPI call.

Where the documents leave a choice, this is the reading:

- A case belongs to the window of its `reported_at` (cohort); an event to the window of its fold time (flow).
- `orphans` counts events, each under its own grid, matter and channel, by fold time; both views.
- Reports (admitted, rejected, L1 and L2 copies) count under their own attributes, `department` being their
  matter's lead department, by their own `occurred_at`; both views.
- Flow counts the legal events of all admitted cases, whatever became of them later; `voided`, `merged` and
  `ratings` are VOIDED, MERGED and rated FEEDBACK events. Open and overdue are states, not throughput: null.
- In flow each legal CLOSED ends a resolution; the other three durations end once per case.
- `by` other than city and district lists the keys that have a report or a case; a row without the attribute
  (a rejected report of an unknown matter has no category) has no key and appears in no row.
- `orphans_overdue`: orphans that occurred more than 7 days before `as_of`.
- `unproven` are counted cases with `evidence_pending`; `illegal_events` and `late_events` are those of all
  admitted cases, as far as they happened by `as_of`; in flow, where cases are not states, null.
- `negative_durations`: of counted cases, the durations of which the end lies before the start.
- Overdue: open with `due_at` not after `as_of`, the same comparison as in "due to close".
- A row that an unknown grid puts outside the listed districts is in no district row, but in the city's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tests.oracle.fold import HORIZON, Case, Event, fold_all

CITY: Final = "4407"
DISTRICTS: Final = ("440703", "440704", "440705", "440781", "440783", "440784", "440785")
CITIZEN_KINDS: Final = frozenset({"public", "care", "desk"})
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


@dataclass(frozen=True)
class Report:
    """One REPORTED received. outcome: admitted, rejected, L1 or L2."""

    outcome: str
    source: str
    event_id: str
    position: tuple[int, int, int, int]
    occurred_at: datetime
    channel: str
    matter_code: str | None
    grid_code: str
    category: str | None
    lead_department: str | None


@dataclass(frozen=True)
class Names:
    """(by, key) -> Chinese name, and the kind of every channel."""

    name_zh: Callable[[str, str], str | None]
    channel_kinds: Mapping[str, str]


def key_of(by: str, item: Event | Report, department: str | None) -> str | None:
    """The key under which an event or report counts."""
    lengths = {"district": 6, "town": 9, "village": 12, "grid": 15}
    if by == "city":
        return CITY
    if by in lengths:
        return item.grid_code[: lengths[by]] or None
    if by == "matter":
        return item.matter_code
    if by == "category":
        return item.category
    if by == "channel":
        return item.channel
    assert by == "department"
    return department


def kpi(
    events: Iterable[Event],
    reports: Iterable[Report],
    *,
    by: str,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    view: str,
    names: Names,
) -> dict[str, Any]:
    """The answer of GET /v1/kpi; times are given back as they were given."""

    def in_window(at: datetime) -> bool:
        return from_ <= at < to and at <= as_of

    groups: dict[str, _Group] = {}
    if by == "city":
        groups[CITY] = _Group()
    elif by == "district":
        groups = {district: _Group() for district in DISTRICTS}

    def group(key: str | None) -> _Group:
        if key is None or (by == "district" and key not in DISTRICTS):
            return _Group()  # counts nowhere
        return groups.setdefault(key, _Group())

    for report in _distinct_reports(reports):
        if in_window(report.occurred_at):
            group(key_of(by, report, report.lead_department)).reports.append(report)

    cases = fold_all(events, as_of)
    for case in cases.values():
        if case.opening is None:
            for event in case.orphan_events:
                if in_window(event.occurred_at):
                    orphaned = group(key_of(by, event, event.lead_department))
                    orphaned.orphans += 1
                    orphaned.orphans_overdue += event.occurred_at < as_of - HORIZON
            continue
        target = key_of(by, case.opening, case.department)
        if not case.is_admitted:
            continue
        if view == "cohort":
            if in_window(case.opening.occurred_at):
                group(target).cases.append(case)
        elif any(in_window(event.occurred_at) for event in case.legal_events):
            group(target).cases.append(case)

    make = _cohort if view == "cohort" else _flow
    rows = []
    for key in sorted(groups):
        found = groups[key]
        if by in {"city", "district"} or found.reports or found.cases:
            figures = make(found, as_of, in_window, names.channel_kinds)
            rows.append({"key": key, "name_zh": names.name_zh(by, key), **figures})
    return {"from": from_, "to": to, "as_of": as_of, "view": view, "rows": rows}


class _Group:
    """What counts under one key."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.cases: list[Case] = []
        self.orphans = 0
        self.orphans_overdue = 0


def _distinct_reports(reports: Iterable[Report]) -> list[Report]:
    """One per identity for admitted and rejected, one per position for copies."""
    kept: dict[tuple[Any, ...], Report] = {}
    for report in reports:
        copy = report.outcome in {"L1", "L2"}
        identity = report.position if copy else (report.source, report.event_id)
        known = kept.get((report.outcome, identity))
        if known is None or report.position < known.position:
            kept[(report.outcome, identity)] = report
    return list(kept.values())


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def whole_seconds(start: datetime | None, end: datetime | None) -> int | None:
    """Floor of the difference in seconds; None when one is missing or the difference is negative."""
    if start is None or end is None or end < start:
        return None
    difference = end - start
    return difference.days * 86_400 + difference.seconds


def percentiles(values: Iterable[int | None]) -> dict[str, int | None]:
    """Element ⌈p·n/100⌉ (counted from 1) of the sorted values."""
    ordered = sorted(value for value in values if value is not None)
    count = len(ordered)
    return {
        f"p{p}": ordered[-(-p * count // 100) - 1] if count else None  # -(-a // b) is the ceiling of a / b
        for p in (50, 90, 99)
    }


def _report_figures(found: _Group, merged: int) -> dict[str, Any]:
    counts = {
        outcome: sum(report.outcome == outcome for report in found.reports)
        for outcome in ("admitted", "rejected", "L1", "L2")
    }
    duplicates = {"L1": counts["L1"], "L2": counts["L2"], "L3": merged}
    return {
        "reports": len(found.reports),
        "admitted_reports": counts["admitted"],
        "rejected_reports": counts["rejected"],
        "admission_rate": ratio(counts["admitted"], counts["admitted"] + counts["rejected"]),
        "duplicates": duplicates,
        "duplicate_rate": ratio(sum(duplicates.values()), len(found.reports)),
        "orphans": found.orphans,
        "orphans_overdue": found.orphans_overdue,
    }


def _cohort(
    found: _Group, as_of: datetime, in_window: Callable[[datetime], bool], channel_kinds: Mapping[str, str]
) -> dict[str, Any]:
    def due(at: datetime | None) -> bool:
        return at is not None and at <= as_of

    def not_after(at: datetime | None, limit: datetime | None) -> bool:
        return at is not None and limit is not None and at <= limit

    admitted = found.cases
    counted = [case for case in admitted if case.is_counted]
    closed = [case for case in counted if case.is_closed]
    still_open = [case for case in counted if not case.is_closed]
    voided = sum(case.state == "VOIDED" for case in admitted)
    merged = sum(case.state == "MERGED" for case in admitted)
    responded = [case for case in counted if case.first_response_at is not None]
    owed_response = [
        case for case in counted if case.first_response_at is not None or due(case.response_due_at)
    ]
    timely = [case for case in responded if not_after(case.first_response_at, case.response_due_at)]
    due_to_close = len(closed) + sum(due(case.due_at) for case in still_open)
    resolved = [case for case in counted if case.state == "RESOLVED" or case.is_closed]
    due_to_handle = len(resolved) + sum(due(case.due_at) for case in counted if case not in resolved)
    ratings = [rating for case in counted for rating in case.ratings]
    demands = [
        case
        for case in counted
        if case.opening is not None and channel_kinds.get(case.opening.channel) in CITIZEN_KINDS
    ]
    settled = [
        case for case in demands if case.is_closed and not (case.rating is not None and case.rating <= 2)
    ]
    ever_resolved = [case for case in counted if case.resolved_count]
    return {
        **_report_figures(found, merged),
        "cases": len(counted),
        "voided": voided,
        "merged": merged,
        "closed": len(closed),
        "closure_rate": ratio(len(closed), len(counted)),
        "responded": len(responded),
        "response_rate": ratio(len(responded), len(owed_response)),
        "timely_response_rate": ratio(len(timely), len(owed_response)),
        "closure_on_time_rate": ratio(
            sum(not_after(case.closed_at, case.due_at) for case in closed), due_to_close
        ),
        "handling_on_time_rate": ratio(
            sum(not_after(case.resolved_at, case.due_at) for case in resolved), due_to_handle
        ),
        "rework_rate": ratio(
            sum(bool(case.rework_count or case.reopened_count) for case in ever_resolved), len(ever_resolved)
        ),
        "extension_rate": ratio(
            sum(case.extended_count > 0 for case in counted), sum(case.accepted_count > 0 for case in counted)
        ),
        "return_rate": ratio(
            sum(case.returned_count for case in counted), sum(case.dispatched_count for case in counted)
        ),
        "void_rate": ratio(voided, len(admitted)),
        "ratings": len(ratings),
        "satisfaction_rate": ratio(sum(rating >= 4 for rating in ratings), len(ratings)),
        "demand_resolution_rate": ratio(len(settled), len(demands)),
        "open": len(still_open),
        "overdue": sum(due(case.due_at) for case in still_open),
        "unproven": sum(case.evidence_pending for case in counted),
        "illegal_events": sum(len(case.illegal) for case in admitted),
        "late_events": sum(case.late_count for case in admitted),
        "negative_durations": sum(
            start is not None and end is not None and end < start
            for case in counted
            for start, end in (
                (case.reported_at, case.first_response_at),
                (case.reported_at, case.first_dispatched_at),
                (case.first_dispatched_at, case.first_signed_at),
                (case.accepted_at, case.closed_at if case.is_closed else None),
            )
        ),
        "response_seconds": percentiles(
            whole_seconds(case.reported_at, case.first_response_at) for case in counted
        ),
        "dispatch_seconds": percentiles(
            whole_seconds(case.reported_at, case.first_dispatched_at) for case in counted
        ),
        "department_response_seconds": percentiles(
            whole_seconds(case.first_dispatched_at, case.first_signed_at) for case in counted
        ),
        "resolution_seconds": percentiles(whole_seconds(case.accepted_at, case.closed_at) for case in closed),
    }


def _flow(
    found: _Group, as_of: datetime, in_window: Callable[[datetime], bool], channel_kinds: Mapping[str, str]
) -> dict[str, Any]:
    def ended(start: datetime | None, end: datetime | None) -> int | None:
        return whole_seconds(start, end) if end is not None and in_window(end) else None

    happened = [
        (case, event) for case in found.cases for event in case.legal_events if in_window(event.occurred_at)
    ]
    counts = {
        kind: sum(event.event_type == kind for _, event in happened)
        for kind in ("REPORTED", "CLOSED", "VOIDED", "MERGED")
    }
    responded = sum(
        case.first_response_at is not None and in_window(case.first_response_at) for case in found.cases
    )
    figures = _report_figures(found, counts["MERGED"])
    figures.update(dict.fromkeys(RATES))
    figures.update(
        {
            "cases": counts["REPORTED"],
            "voided": counts["VOIDED"],
            "merged": counts["MERGED"],
            "closed": counts["CLOSED"],
            "closure_rate": ratio(counts["CLOSED"], counts["REPORTED"]),
            "responded": responded,
            "ratings": sum(
                event.event_type == "FEEDBACK" and event.rating is not None for _, event in happened
            ),
            "open": None,
            "overdue": None,
            **dict.fromkeys(("unproven", "illegal_events", "late_events", "negative_durations")),
            "response_seconds": percentiles(
                ended(case.reported_at, case.first_response_at) for case in found.cases
            ),
            "dispatch_seconds": percentiles(
                ended(case.reported_at, case.first_dispatched_at) for case in found.cases
            ),
            "department_response_seconds": percentiles(
                ended(case.first_dispatched_at, case.first_signed_at)
                if case.first_dispatched_at is not None
                else None
                for case in found.cases
            ),
            "resolution_seconds": percentiles(
                whole_seconds(case.accepted_at, event.occurred_at)
                for case, event in happened
                if event.event_type == "CLOSED"
            ),
        }
    )
    return figures
