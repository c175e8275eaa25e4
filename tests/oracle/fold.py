"""The case fold in plain Python: one loop over a case's sorted events, one function per kind of event.

Written from the domain description alone, to be compared with the ClickHouse fold. Where the documents leave
a choice, this is the reading:

- An identity (source, event_id) is looked for inside its case; of several copies the one with the smallest
  position (incarnation, partition, offset, index) counts, before anything is cut by time.
- Fold order is (occurred_at, rank, event_id); should two sources use one event_id for one type at one
  instant, the source decides.
- ADMITTED and REJECTED are what the opening report's outcome says; they follow it immediately.
- Every REPORTED after the opening one adds to `report_count`, is neither legal nor illegal, fixes nothing.
- A timestamp that the table calls "first" is the first legal one; every other is the last legal one.
- MERGED is terminal until UNMERGED, so VOIDED is illegal there. UNMERGED clears `primary_case_id` (the case
  has no primary any more) and leaves `merged_at`, which says when it was last merged.
- Extensions are counted over the whole life of the case: reopening does not grant new ones.
- A FEEDBACK without a rating is legal and leaves the rating as it is.
- An event of a case without REPORTED is an orphan whatever its type (DISCOVERED included), unless the case
  holds an L2 duplicate: then the case is a `duplicate_case`.
- Late beyond the horizon: received more than 7 days after it occurred, and not backfilled.
- Evidence stays pending for the record: no event type carries a later photo into the fold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

TYPES_IN_TABLE_ORDER: Final = (
    "DISCOVERED", "REPORTED", "ADMITTED", "REJECTED", "MERGED", "UNMERGED", "ACCEPTED", "DISPATCHED",
    "SIGNED", "RETURNED", "ARRIVED", "HANDLING", "EXTENDED", "ESCALATED", "RESOLVED", "REWORK", "CLOSED",
    "FEEDBACK", "REOPENED", "ARCHIVED", "VOIDED",
)  # fmt: skip

ADMITTED_OUTCOME: Final = 1
REJECTED_OUTCOME: Final = 2
RESEND_OUTCOME: Final = 3
HORIZON: Final = timedelta(days=7)
NO_STATE: Final = ""

#: Event type -> states in which it is legal; the cases that need more than the state are methods below.
ALLOWED_IN: Final[dict[str, frozenset[str]]] = {
    "DISCOVERED": frozenset({NO_STATE}),
    "MERGED": frozenset({"ADMITTED", "ACCEPTED", "DISPATCHED"}),
    "UNMERGED": frozenset({"MERGED"}),
    "ACCEPTED": frozenset({"ADMITTED", "REOPENED"}),
    "DISPATCHED": frozenset({"ACCEPTED", "RETURNED", "ESCALATED", "REWORK"}),
    "SIGNED": frozenset({"DISPATCHED"}),
    "RETURNED": frozenset({"DISPATCHED", "SIGNED"}),
    "ARRIVED": frozenset({"SIGNED"}),
    "HANDLING": frozenset({"SIGNED", "ARRIVED", "HANDLING", "REWORK"}),
    "EXTENDED": frozenset({"SIGNED", "ARRIVED", "HANDLING"}),
    "ESCALATED": frozenset({"ACCEPTED", "DISPATCHED", "SIGNED", "RETURNED", "ARRIVED", "HANDLING"}),
    "RESOLVED": frozenset({"HANDLING", "ARRIVED", "SIGNED"}),
    "REWORK": frozenset({"RESOLVED"}),
    "CLOSED": frozenset({"RESOLVED"}),
    "FEEDBACK": frozenset({"CLOSED", "FEEDBACK"}),
    "REOPENED": frozenset({"CLOSED", "FEEDBACK"}),
    "ARCHIVED": frozenset({"CLOSED", "FEEDBACK"}),
    "VOIDED": frozenset(
        {
            "ADMITTED", "ACCEPTED", "DISPATCHED", "SIGNED", "RETURNED", "ARRIVED", "HANDLING", "ESCALATED",
            "RESOLVED", "REWORK", "REOPENED",
        }
    ),
}  # fmt: skip
SELF_HANDLED_FROM_ACCEPTED: Final = frozenset({"HANDLING", "RESOLVED"})
RESPONSES: Final = frozenset({"SIGNED", "ARRIVED", "HANDLING", "RESOLVED"})
CLOSED_STATES: Final = frozenset({"CLOSED", "FEEDBACK", "ARCHIVED"})
MOST_EXTENSIONS: Final = 2


@dataclass(frozen=True)
class Event:
    """One event as the fold sees it; the fields are those of a case event plus the topic incarnation."""

    case_id: str
    occurred_at: datetime
    rank: int
    event_id: str
    source: str
    inc: int
    part: int
    off: int
    idx: int
    ingested_at: datetime
    outcome: int = 0
    response_limit_seconds: int | None = None
    resolution_limit_seconds: int | None = None
    due_at: datetime | None = None
    primary_case_id: str | None = None
    self_handled: bool | None = None
    rating: int | None = None
    department: str | None = None
    level: str | None = None
    evidence_pending: bool = False
    backfill: bool = False
    channel: str = ""
    matter_code: str | None = None
    grid_code: str = ""
    category: str | None = None
    lead_department: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Event:
        """From a row of `frames.CASE_EVENT` with `inc` beside it."""
        return cls(**{name.lstrip("_"): value for name, value in row.items()})

    @property
    def event_type(self) -> str:
        return TYPES_IN_TABLE_ORDER[self.rank - 1]

    @property
    def position(self) -> tuple[int, int, int, int]:
        return (self.inc, self.part, self.off, self.idx)


@dataclass
class Case:
    """The state of one case. Times are None until a legal event fixes them."""

    case_id: str
    state: str = NO_STATE
    orphan: bool = False
    duplicate_case: bool = False
    duplicate_of_case_id: str | None = None
    found_at: datetime | None = None
    reported_at: datetime | None = None
    admitted_at: datetime | None = None
    rejected_at: datetime | None = None
    merged_at: datetime | None = None
    primary_case_id: str | None = None
    accepted_at: datetime | None = None
    due_at: datetime | None = None
    response_due_at: datetime | None = None
    first_dispatched_at: datetime | None = None
    last_dispatched_at: datetime | None = None
    first_signed_at: datetime | None = None
    returned_at: datetime | None = None
    arrived_at: datetime | None = None
    first_action_at: datetime | None = None
    first_response_at: datetime | None = None
    escalated_at: datetime | None = None
    level: str | None = None
    resolved_at: datetime | None = None
    first_closed_at: datetime | None = None
    closed_at: datetime | None = None
    feedback_at: datetime | None = None
    rating: int | None = None
    reopened_at: datetime | None = None
    archived_at: datetime | None = None
    voided_at: datetime | None = None
    report_count: int = 0
    merged_count: int = 0
    accepted_count: int = 0
    dispatched_count: int = 0
    returned_count: int = 0
    extended_count: int = 0
    escalated_count: int = 0
    resolved_count: int = 0
    rework_count: int = 0
    reopened_count: int = 0
    closed_count: int = 0
    ratings: list[int] = field(default_factory=list)
    evidence_pending: bool = False
    resolved_without_evidence: bool = False
    late_count: int = 0
    illegal: list[tuple[str, str]] = field(default_factory=list)  # (source, event_id) in fold order
    legal_events: list[Event] = field(default_factory=list)  # in fold order, the opening report included
    orphan_events: list[Event] = field(default_factory=list)
    event_count: int = 0  # distinct events that are no L2 duplicates
    opening: Event | None = None
    department: str | None = None  # the last one that a legal DISPATCHED named, else the matter's lead
    state_before_merge: str | None = None

    @property
    def is_admitted(self) -> bool:
        return self.admitted_at is not None

    @property
    def is_counted(self) -> bool:
        return self.is_admitted and self.state not in {"MERGED", "VOIDED"}

    @property
    def is_closed(self) -> bool:
        return self.state in CLOSED_STATES


def distinct(events: Iterable[Event]) -> list[Event]:
    """One event per (case, source, event_id): the copy with the smallest position."""
    kept: dict[tuple[str, str, str], Event] = {}
    for event in events:
        identity = (event.case_id, event.source, event.event_id)
        known = kept.get(identity)
        if known is None or event.position < known.position:
            kept[identity] = event
    return list(kept.values())


def in_fold_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event.occurred_at, event.rank, event.event_id, event.source))


def fold_all(events: Iterable[Event], as_of: datetime) -> dict[str, Case]:
    """Every case that has at least one event up to `as_of`, by case id."""
    by_case: dict[str, list[Event]] = {}
    for event in distinct(events):
        if event.occurred_at <= as_of:
            by_case.setdefault(event.case_id, []).append(event)
    cases = {case_id: fold(case_id, its_events) for case_id, its_events in by_case.items()}
    for case in cases.values():
        if case.state == "MERGED" and case.primary_case_id in cases:
            cases[case.primary_case_id].merged_count += 1
    return cases


def fold(case_id: str, events: Sequence[Event]) -> Case:
    """Fold distinct events of one case, in any order."""
    case = Case(case_id)
    resends = in_fold_order(event for event in events if event.outcome == RESEND_OUTCOME)
    own = in_fold_order(event for event in events if event.outcome != RESEND_OUTCOME)
    case.event_count = len(own)
    for event in own:
        if event.ingested_at - event.occurred_at > HORIZON and not event.backfill:
            case.late_count += 1
        if event.event_type == "REPORTED":
            _report(case, event)
        elif _is_legal(case, event):
            _apply(case, event)
        else:
            case.illegal.append((event.source, event.event_id))
    if case.opening is None:
        case.duplicate_case = bool(resends)
        case.orphan = not resends and bool(own)
        case.orphan_events = own if case.orphan else []
        case.duplicate_of_case_id = resends[0].primary_case_id if resends else None
    return case


def _report(case: Case, event: Event) -> None:
    case.report_count += 1
    if case.opening is not None:
        return
    case.opening = event
    case.legal_events.append(event)
    case.reported_at = event.occurred_at
    case.department = event.lead_department
    case.evidence_pending = event.evidence_pending
    if event.response_limit_seconds is not None:
        case.response_due_at = event.occurred_at + timedelta(seconds=event.response_limit_seconds)
    case.due_at = _after_resolution_limit(case, event.occurred_at)  # provisional, until accepted
    if event.outcome == ADMITTED_OUTCOME:
        case.state = "ADMITTED"
        case.admitted_at = event.ingested_at
    else:
        case.state = "REJECTED"
        case.rejected_at = event.ingested_at


def _is_legal(case: Case, event: Event) -> bool:
    kind = event.event_type
    if kind in SELF_HANDLED_FROM_ACCEPTED and case.state == "ACCEPTED":
        return event.self_handled is True
    if case.state not in ALLOWED_IN.get(kind, frozenset()):
        return False
    if kind == "EXTENDED":
        later = event.due_at is not None and case.due_at is not None and event.due_at > case.due_at
        return later and case.extended_count < MOST_EXTENSIONS
    return True


def _after_resolution_limit(case: Case, start: datetime) -> datetime | None:
    limit = case.opening.resolution_limit_seconds if case.opening else None
    return None if limit is None else start + timedelta(seconds=limit)


def _apply(case: Case, event: Event) -> None:
    """Move the state, fix timestamps, move limits; only called for a legal event."""
    at, kind = event.occurred_at, event.event_type
    case.legal_events.append(event)
    if kind in RESPONSES and case.first_response_at is None:
        case.first_response_at = at
    if kind == "DISCOVERED":
        case.found_at = at
    elif kind == "MERGED":
        case.state_before_merge = case.state
        case.merged_at = at
        case.primary_case_id = event.primary_case_id
    elif kind == "UNMERGED":
        case.primary_case_id = None
    elif kind == "ACCEPTED":
        case.accepted_count += 1
        if case.accepted_at is None:
            case.accepted_at = at
            case.due_at = _after_resolution_limit(case, at)
    elif kind == "DISPATCHED":
        case.dispatched_count += 1
        case.first_dispatched_at = case.first_dispatched_at or at
        case.last_dispatched_at = at
        case.department = event.department or case.department
    elif kind == "SIGNED":
        case.first_signed_at = case.first_signed_at or at
    elif kind == "RETURNED":
        case.returned_count += 1
        case.returned_at = at
    elif kind == "ARRIVED":
        case.arrived_at = at
    elif kind == "HANDLING":
        case.first_action_at = case.first_action_at or at
    elif kind == "EXTENDED":
        case.extended_count += 1
        case.due_at = event.due_at
    elif kind == "ESCALATED":
        case.escalated_count += 1
        case.escalated_at = at
        case.level = event.level
    elif kind == "RESOLVED":
        case.resolved_count += 1
        case.resolved_at = at
        case.resolved_without_evidence = case.evidence_pending
    elif kind == "REWORK":
        case.rework_count += 1
    elif kind == "CLOSED":
        case.closed_count += 1
        case.first_closed_at = case.first_closed_at or at
        case.closed_at = at
    elif kind == "FEEDBACK":
        case.feedback_at = at
        if event.rating is not None:
            case.rating = event.rating
            case.ratings.append(event.rating)
    elif kind == "REOPENED":
        case.reopened_count += 1
        case.reopened_at = at
        case.due_at = _after_resolution_limit(case, at)
    elif kind == "ARCHIVED":
        case.archived_at = at
    elif kind == "VOIDED":
        case.voided_at = at
    if kind == "UNMERGED":
        assert case.state_before_merge is not None
        case.state = case.state_before_merge
    elif kind != "EXTENDED":
        case.state = kind
