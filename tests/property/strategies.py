"""Random but realistic event sets: lifecycles that mostly follow the rules, with everything that goes wrong.

Written over `random.Random`, so that one generator serves both hypothesis (`st.randoms()`, which shrinks) and
big seeded runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.oracle.fold import (
    ADMITTED_OUTCOME,
    ALLOWED_IN,
    REJECTED_OUTCOME,
    RESEND_OUTCOME,
    TYPES_IN_TABLE_ORDER,
    Event,
)

START: Final = datetime(2026, 3, 2, tzinfo=UTC)
SPAN: Final = timedelta(days=12)
INCARNATIONS: Final = (1_700_000_000_000, 1_700_000_500_000)
PARTITIONS: Final = 3
SOURCES: Final = ("12345", "yuepingan", "handset")
#: Two grids of one village, two villages of one town, two towns of one district, and two more districts.
GRIDS: Final = (
    "440704001001001", "440704001001002", "440704001002001", "440704004001001", "440703002001001",
    "440785001201005",
)  # fmt: skip
#: matter → (category, lead department)
MATTERS: Final = {
    "SA-07": ("SA", "urban_management"),
    "SA-01": ("SA", "fire_rescue"),
    "DM-06": ("DM", "hr_social_security"),
    "PS-02": ("PS", "civil_affairs"),
    "UE-03": ("UE", "urban_management"),
}
DEPARTMENTS: Final = ("urban_management", "fire_rescue", "health", "town_street")
CHANNELS: Final = (
    "grid_patrol",
    "yueshengshi",
    "hotline_12345",
    "pingantong",
    "petition_market",
    "iot_sensor",
)
RESPONSE_LIMITS: Final = (600, 3_600, 86_400)
RESOLUTION_LIMITS: Final = (3_600, 86_400, 259_200)
SENT_BY_CLIENTS: Final = tuple(kind for kind in TYPES_IN_TABLE_ORDER if kind not in {"ADMITTED", "REJECTED"})
#: The usual next steps, so that most lifecycles reach their end: state → types, likelier ones repeated.
USUAL_NEXT: Final[dict[str, tuple[str, ...]]] = {
    "": ("ACCEPTED",),
    "REPORTED": (*["ACCEPTED"] * 10, "MERGED", "VOIDED"),
    "ACCEPTED": (*["DISPATCHED"] * 6, "HANDLING", "RESOLVED", "ESCALATED"),
    "DISPATCHED": (*["SIGNED"] * 8, "RETURNED", "MERGED"),
    "SIGNED": ("HANDLING", "HANDLING", "ARRIVED", "EXTENDED", "EXTENDED", "RESOLVED", "RETURNED"),
    "RETURNED": ("DISPATCHED",),
    "ARRIVED": ("HANDLING", "RESOLVED", "EXTENDED"),
    "HANDLING": (*["RESOLVED"] * 4, "EXTENDED", "EXTENDED", "HANDLING", "ESCALATED"),
    "EXTENDED": ("HANDLING", "RESOLVED", "EXTENDED"),
    "ESCALATED": ("DISPATCHED", "DISPATCHED", "VOIDED"),
    "RESOLVED": ("CLOSED", "CLOSED", "CLOSED", "REWORK"),
    "REWORK": ("HANDLING", "DISPATCHED"),
    "CLOSED": ("FEEDBACK", "FEEDBACK", "ARCHIVED", "REOPENED"),
    "FEEDBACK": ("REOPENED", "ARCHIVED", "FEEDBACK"),
    "REOPENED": ("ACCEPTED", "ACCEPTED", "VOIDED"),
    "MERGED": ("UNMERGED", "UNMERGED", "SIGNED"),
    "UNMERGED": ("ACCEPTED", "DISPATCHED", "SIGNED", "MERGED"),
    "ARCHIVED": ("REOPENED",),
    "VOIDED": ("CLOSED",),
}
GAPS: Final = (
    timedelta(0), timedelta(milliseconds=1), timedelta(milliseconds=999), timedelta(seconds=1),
    timedelta(minutes=10), timedelta(minutes=45), timedelta(hours=1), timedelta(hours=7, milliseconds=250),
    timedelta(hours=24), timedelta(days=3),
)  # fmt: skip
#: From occurrence to receipt; more than 7 days is late, a little below zero a handset's fast clock.
DELAYS: Final = (
    timedelta(seconds=1), timedelta(seconds=30), timedelta(hours=3), timedelta(days=7), timedelta(days=8),
    timedelta(minutes=-4),
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What a case is about; its events may stray from it."""

    case_id: str
    matter: str
    grid: str
    channel: str


@dataclass(frozen=True)
class Row:
    """A stored row: the event and where the worker put it.

    table : events, rejections or duplicates; level : L1 or L2 for duplicates. An L1 copy is no case event.
    """

    event: Event
    table: str
    level: str | None = None

    @property
    def is_case_event(self) -> bool:
        return self.level != "L1"


def event_set(rng: random.Random, cases: int) -> list[Row]:
    """The rows of `cases` cases in order of position, redeliveries included."""
    names = [f"case-{number}" for number in range(cases)]
    written = [event for name in names for event in _lifecycle(rng, name, names)]
    rows = [_row(event) for event in written]
    for event in written:
        if rng.random() < 0.06:  # redelivered within the window: the worker writes it to `duplicates`
            rows.append(Row(_received_again(rng, event), "duplicates", "L1"))
        if rng.random() < 0.06:  # redelivered after the window: stored again, the fold takes the first
            rows.append(_row(_received_again(rng, event)))
    return _placed(rng, rows)


def _row(event: Event) -> Row:
    table = {RESEND_OUTCOME: "duplicates", REJECTED_OUTCOME: "rejections"}.get(event.outcome, "events")
    return Row(event, table, "L2" if event.outcome == RESEND_OUTCOME else None)


def _received_again(rng: random.Random, event: Event) -> Event:
    later = event.ingested_at + timedelta(seconds=rng.randint(1, 9 * 86_400))
    if event.event_type != "REPORTED" and rng.random() < 0.1:
        # its clock ran ahead: the time of receipt stands in for it, so that the copy has another time
        return replace(event, ingested_at=later, occurred_at=later)
    return replace(event, ingested_at=later)


def _placed(rng: random.Random, rows: list[Row]) -> list[Row]:
    """Give every row a position of its own, in random order of arrival."""
    order = list(rows)
    rng.shuffle(order)
    next_offset: dict[tuple[int, int], int] = {}
    placed = []
    for row in order:
        inc, part = rng.choice(INCARNATIONS), rng.randrange(PARTITIONS)
        offset = next_offset.get((inc, part), 0)
        next_offset[(inc, part)] = offset + rng.randint(1, 3)
        placed.append(
            replace(row, event=replace(row.event, inc=inc, part=part, off=offset, idx=rng.randrange(2)))
        )
    return placed


def _lifecycle(rng: random.Random, case_id: str, names: Sequence[str]) -> list[Event]:
    kind = rng.choices(("admitted", "rejected", "orphan", "resent"), (80, 7, 7, 6))[0]
    at = START + timedelta(seconds=rng.randrange(int(SPAN.total_seconds()) // 600) * 600)
    subject = Subject(case_id, rng.choice(tuple(MATTERS)), rng.choice(GRIDS), rng.choice(CHANNELS))
    events: list[Event] = []

    def add(event_type: str, **fields: Any) -> None:
        events.append(_event(rng, subject, f"{case_id}.{len(events)}", event_type, at, **fields))

    if rng.random() < 0.15:
        add("DISCOVERED")
        at += rng.choice(GAPS[:7])
    if kind == "resent":
        add("REPORTED", outcome=RESEND_OUTCOME, primary_case_id=rng.choice(names))
    elif kind != "orphan":
        outcome = ADMITTED_OUTCOME if kind == "admitted" else REJECTED_OUTCOME
        add("REPORTED", outcome=outcome, **_limits(rng, outcome))
    state = "REPORTED"
    for _ in range(rng.choice((0, 1, 3, 6, 9, 12, 15, 20))):
        at += rng.choice(GAPS)
        usual = rng.random() < 0.9
        event_type = rng.choice(USUAL_NEXT[state] if usual else SENT_BY_CLIENTS)
        if event_type == "REPORTED":
            outcome = rng.choice((ADMITTED_OUTCOME, ADMITTED_OUTCOME, REJECTED_OUTCOME))
            add("REPORTED", outcome=outcome, **_limits(rng, outcome))
            continue
        add(event_type, **_details(rng, event_type, at, names))
        if usual or state in ALLOWED_IN[event_type]:
            state = event_type
    if rng.random() < 0.1:  # a clock that lags: one event stands far too early
        number = rng.randrange(len(events)) if events else None
        if number is not None:
            early = events[number]
            events[number] = replace(early, occurred_at=early.occurred_at - rng.choice(GAPS[3:]))
    return events


def _limits(rng: random.Random, outcome: int) -> dict[str, Any]:
    if outcome == REJECTED_OUTCOME and rng.random() < 0.5:
        return {}  # unknown matter: no limits
    return {
        "response_limit_seconds": rng.choice(RESPONSE_LIMITS),
        "resolution_limit_seconds": rng.choice(RESOLUTION_LIMITS),
        "evidence_pending": rng.random() < 0.2,
    }


def _details(rng: random.Random, event_type: str, at: datetime, names: Sequence[str]) -> dict[str, Any]:
    if event_type == "EXTENDED":
        return {"due_at": at + timedelta(hours=rng.choice((-30, 0, 1, 24, 25, 72, 100)))}
    if event_type == "MERGED":
        return {"primary_case_id": rng.choice((*names, "case-elsewhere"))}
    if event_type in {"HANDLING", "RESOLVED"}:
        return {"self_handled": rng.choice((None, False, True, True))}
    if event_type == "FEEDBACK":
        return {"rating": rng.choice((None, 1, 2, 3, 4, 5))}
    if event_type == "DISPATCHED":
        return {"department": rng.choice((None, *DEPARTMENTS))}
    if event_type == "ESCALATED":
        return {"level": rng.choice((None, "town", "district", "city"))}
    return {}


def _event(
    rng: random.Random, subject: Subject, serial: str, event_type: str, at: datetime, **fields: Any
) -> Event:
    # later events may name no matter, and now and then another grid or channel than their report
    named = subject.matter if event_type == "REPORTED" or rng.random() < 0.3 else None
    grid, channel = subject.grid, subject.channel
    if rng.random() < 0.1:
        grid, channel = rng.choice(GRIDS), rng.choice(CHANNELS)
    category, department = MATTERS[named] if named else (None, None)
    delay = rng.choice(DELAYS)
    return Event(
        case_id=subject.case_id,
        occurred_at=at,
        rank=TYPES_IN_TABLE_ORDER.index(event_type) + 1,
        event_id=f"{rng.randrange(10_000):04d}.{serial}",  # unique, and not in order of time
        source=rng.choice(SOURCES),
        inc=0,
        part=0,
        off=0,
        idx=0,
        ingested_at=at + delay,
        backfill=rng.random() < 0.2,
        channel=channel,
        matter_code=named,
        grid_code=grid,
        category=category,
        lead_department=department,
        **fields,
    )
