"""Short words for tests: a case's events by type and hour, with positions in order of writing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.oracle.fold import ADMITTED_OUTCOME, TYPES_IN_TABLE_ORDER, Event
from tests.oracle.kpi import Report

MORNING = datetime(2026, 3, 2, 0, 0, tzinfo=UTC)


class Builder:
    """Writes events one after another; every event gets an id and a position of its own."""

    def __init__(self, *, response_hours: float = 2, resolution_hours: float = 24) -> None:
        self.response_limit_seconds = int(response_hours * 3600)
        self.resolution_limit_seconds = int(resolution_hours * 3600)
        self._offsets: Iterator[int] = itertools.count()

    def event(self, case_id: str, kind: str, hour: float, **fields: Any) -> Event:
        """`hour` counts from MORNING."""
        offset = next(self._offsets)
        at = MORNING + timedelta(hours=hour)
        values: dict[str, Any] = {
            "case_id": case_id,
            "occurred_at": at,
            "rank": TYPES_IN_TABLE_ORDER.index(kind) + 1,
            "event_id": f"e{offset:06d}",
            "source": "test",
            "inc": 1,
            "part": 0,
            "off": offset,
            "idx": 0,
            "ingested_at": at + timedelta(seconds=2),
            "channel": "hotline_12345",
            "matter_code": "SA-07",
            "grid_code": "440704001001003",
            "category": "SA",
            "lead_department": "urban_management",
        }
        if kind == "REPORTED":
            values |= {
                "outcome": ADMITTED_OUTCOME,
                "response_limit_seconds": self.response_limit_seconds,
                "resolution_limit_seconds": self.resolution_limit_seconds,
            }
        return Event(**(values | fields))

    def case(self, case_id: str, steps: str, **report_fields: Any) -> list[Event]:
        """`steps`: "REPORTED 0, ACCEPTED 0.5, …", each an event type and its hour."""
        events = []
        for step in steps.split(","):
            kind, hour = step.split()
            fields = report_fields if kind == "REPORTED" else {}
            events.append(self.event(case_id, kind, float(hour), **fields))
        return events


def report_of(event: Event, outcome: str | None = None) -> Report:
    """The report-level row of a REPORTED event; outcome by the event's own unless given (L1, L2)."""
    return Report(
        outcome=outcome or {1: "admitted", 2: "rejected", 3: "L2"}[event.outcome],
        source=event.source,
        event_id=event.event_id,
        position=event.position,
        occurred_at=event.occurred_at,
        channel=event.channel,
        matter_code=event.matter_code,
        grid_code=event.grid_code,
        category=event.category,
        lead_department=event.lead_department,
    )
