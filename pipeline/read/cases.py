"""One case as the API shows it: events in fold order, the verdict on each, state, times, limits, links."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now
from pipeline.frames import EVENT_TYPES
from pipeline.read.times import aware, instant
from pipeline.store.cases import FOLD_SETTINGS
from pipeline.store.fold import (
    ILLEGAL,
    OF_ANOTHER_CASE,
    REJECTED,
    REPEATED_REPORT,
    STATES,
    fold,
    states_at,
    walked_sets,
)

_TIMES: Final = (
    "found_at", "reported_at", "admitted_at", "rejected_at", "merged_at", "accepted_at",
    "first_dispatched_at", "last_dispatched_at", "first_signed_at", "returned_at", "arrived_at",
    "first_action_at",
    "first_response_at", "escalated_at", "resolved_at", "first_closed_at", "closed_at", "feedback_at",
    "reopened_at", "archived_at", "voided_at",
)  # fmt: skip
_COUNTS: Final = (
    "report_count", "event_count", "accepted_count", "dispatched_count", "returned_count",
    "extended_count", "escalated_count", "resolved_count", "rework_count", "closed_count", "reopened_count",
    "illegal_count", "late_count",
)  # fmt: skip
_ATTRIBUTES: Final = ("grid_code", "channel", "matter_code", "category", "department")
_OTHERS: Final = (
    "state", "is_counted", "orphan", "duplicate_case", "primary_case_id", "response_limit_seconds",
    "response_due_at", "resolution_limit_seconds", "due_at", "rating", "level",
    "evidence_pending", "resolved_without_evidence",
)  # fmt: skip
_AS_OF: Final = "fromUnixTimestamp64Milli({as_of:Int64}, 'UTC')"
_SET: Final = (
    "SELECT case_id, groupUniqArrayArray(events) AS tuples FROM case_events "
    "WHERE case_id = {case_id:String} GROUP BY case_id"
)
_MOST_MERGED: Final = 1_000
_STATE_NAMES: Final = {number: name for name, number in STATES.items()}
_VERDICTS: Final = {ILLEGAL: "illegal", REPEATED_REPORT: "repeated_report", OF_ANOTHER_CASE: "resend"}


def case(client: Client, case_id: str, *, now: datetime | None = None) -> dict[str, Any] | None:
    """The case as of `now`, or None if no event of it is known.

    `events` holds every distinct event in fold order, also those after `now`; `transition_ok` is False where
    the event was illegal in the state it met. `state` is None while the case has no report. `report` tells of
    the one that opens the case also where it is dated `ahead` of `now`, as one that is rejected for that may
    be: until its time the case is an orphan.
    """
    events = _events(client, case_id)
    if not events:
        return None
    as_of = max(now or utc_now(), min(aware(event["occurred_at"]) for event in events))
    at = {"case_id": case_id, "as_of": round(as_of.timestamp() * 1000)}
    # folded here: the stored state comes after the events, and late while the store refuses it
    folded = fold(_SET, _AS_OF, (*_TIMES, *_COUNTS, *_ATTRIBUTES, *_OTHERS))
    found = list(client.query(folded, parameters=at, settings=FOLD_SETTINGS).named_results())
    if not found:  # erased between the two reads
        return None
    (state,) = found
    merged = _merged(client, at)
    grid = state["grid_code"]
    return {
        "case_id": case_id,
        "state": state["state"] or None,
        "is_counted": state["is_counted"],
        "orphan": state["orphan"],
        "duplicate_case": state["duplicate_case"],
        "primary_case_id": state["primary_case_id"],
        "merged_case_ids": merged[:_MOST_MERGED],
        "report": _report(client, events, as_of),
        "district_code": grid[:6] or None,
        "town_code": grid[:9] or None,
        "village_code": grid[:12] or None,
        **{name: state[name] or None for name in _ATTRIBUTES},
        "timestamps": {name: instant(state[name]) for name in _TIMES},
        "limits": {
            "response_limit_seconds": state["response_limit_seconds"],
            "response_due_at": instant(state["response_due_at"]),
            "resolution_limit_seconds": state["resolution_limit_seconds"],
            "due_at": instant(state["due_at"]),
        },
        "counts": {**{name: state[name] for name in _COUNTS}, "merged_count": len(merged)},
        "rating": state["rating"],
        "level": state["level"],
        "evidence_pending": state["evidence_pending"],
        "resolved_without_evidence": state["resolved_without_evidence"],
        "events": [
            {name: instant(value) if isinstance(value, datetime) else value for name, value in event.items()}
            for event in events
        ],
    }


def _events(client: Client, case_id: str) -> list[dict[str, Any]]:
    found = client.query(
        f"""
        SELECT source, event_id, rank, occurred_at, ingested_at, outcome, verdict, state, event_due_at,
            grid_code, channel, matter_code, primary, department, level, rating
        FROM ({walked_sets(_SET)})
        ARRAY JOIN sources AS source, event_ids AS event_id, ranks AS rank, times AS occurred_at,
            ingested AS ingested_at, outcomes AS outcome, verdicts AS verdict, states AS state,
            dues AS event_due_at, grids AS grid_code, channels AS channel, matters AS matter_code,
            primaries AS primary, departments AS department, levels AS level, ratings AS rating
        """,
        parameters={"case_id": case_id},
        settings=FOLD_SETTINGS,
    )
    return [
        {
            "source": row["source"],
            "event_id": row["event_id"],
            "event_type": EVENT_TYPES[row["rank"] - 1],
            "occurred_at": row["occurred_at"],
            "ingested_at": row["ingested_at"],
            "transition_ok": row["verdict"] != ILLEGAL,
            "verdict": _VERDICTS.get(
                row["verdict"], "rejected" if row["outcome"] == REJECTED else "legal"
            ),
            "state_after": _STATE_NAMES[row["state"]] or None,
            "grid_code": row["grid_code"],
            "channel": row["channel"],
            "matter_code": row["matter_code"],
            "due_at": row["event_due_at"],
            "primary_case_id": row["primary"],
            "department": row["department"],
            "level": row["level"],
            "rating": row["rating"],
        }
        for row in found.named_results()
    ]  # fmt: skip


def _merged(client: Client, at: dict[str, Any]) -> list[str]:
    """Ids of the cases that are merged into this one as of an instant."""
    stored = states_at(
        _AS_OF, ("case_id", "state", "primary_case_id"), "has(legal_primaries, {case_id:String})"
    )
    found = client.query(
        f"SELECT case_id FROM ({stored}) WHERE state = 'MERGED' AND primary_case_id = {{case_id:String}} "
        "ORDER BY case_id",
        parameters=at,
    )
    return [case_id for (case_id,) in found.result_rows]


def _report(client: Client, events: list[dict[str, Any]], as_of: datetime) -> dict[str, Any] | None:
    """The report that opens the case, and why it was rejected if it was."""
    opening = (e for e in events if e["event_type"] == "REPORTED" and e["verdict"] in {"legal", "rejected"})
    report = next(opening, None)
    if report is None:
        return None
    rejected = report["verdict"] == "rejected"
    identity = {"source": report["source"], "event_id": report["event_id"]}
    return {
        **identity,
        "occurred_at": instant(report["occurred_at"]),
        "outcome": "rejected" if rejected else "admitted",
        "reasons": _reasons(client, identity) if rejected else [],
        "ahead": aware(report["occurred_at"]) > as_of,
    }


def _reasons(client: Client, identity: dict[str, str]) -> list[str]:
    found = client.query(
        "SELECT reasons FROM rejections WHERE source = {source:String} AND event_id = {event_id:String} "
        "ORDER BY _inc, _part, _off, _idx LIMIT 1",
        parameters=identity,
    ).result_rows
    return list(found[0][0]) if found else []
