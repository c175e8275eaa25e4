"""Where an event is and why: what the outcome tables say about one (source, event_id)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.process.hashes import id_hash
from pipeline.read.mask import reporter_is_protected, short_key
from pipeline.read.times import aware, instant
from pipeline.rules.admit import explain_rules
from pipeline.rules.catalogue import Catalogues

_POSITION: Final = "_inc, _part, _off, _idx, _blk_lo, _blk_hi, _rules"
#: Identity of a stored event. `id_lo` has an index; the strings decide.
_SAME_ID: Final = "id_lo = {id_lo:UInt64} AND source = {source:String} AND event_id = {event_id:String}"
_SAME_NAME: Final = "source = {source:String} AND event_id = {event_id:String}"

_STORED_COLUMNS: Final = f"""
    outcome, event_type, case_id, occurred_at, ingested_at, stored_at, channel, matter_code, grid_code,
    unit_code, actor_type, actor_key, actor_name, actor_phone, persons, backfill, request_id, reasons,
    missing_fields, rule_results, evidence_pending, life_safety, category, urgency, lead_department,
    response_limit_seconds, resolution_limit_seconds, mode, mode_level, catalogue_version,
    late_beyond_horizon, time_adjusted, district_code, town_code, village_code, grid_found, grid_active,
    grid_version, grid_name, grid_type, grid_risk_tags, unit_found, point_in_grid, point_distance_m,
    staff_found, staff_active, staff_kind, staff_department, staff_in_grid, staff_in_district,
    staff_channel_rights, organisation_code, organisation_found, route_department, person_facts,
    submission_id, title, description, photos, lon, lat, crs, address, organisation_name, due_at,
    primary_case_id, void_reason, rating, department, level, self_handled,
    {_POSITION}
"""


class PastRetentionError(Exception):
    """The event was stored, and its time to be kept is over."""


def explain(
    client: Client, source: str, event_id: str, *, catalogues: Catalogues, now: datetime, retention: timedelta
) -> dict[str, Any] | None:
    """Everything that is known about one event, personal data masked; None when nothing is written.

    The outcome is that of the first copy; later copies (redeliveries, same id with other content) are listed.
    Raises PastRetentionError when the event was received longer ago than `retention`.
    """
    _, id_lo = id_hash(pl.DataFrame({"source": [source], "event_id": [event_id]}))
    parameters = {"source": source, "event_id": event_id, "id_lo": id_lo.item()}
    stored = _rows(
        client,
        " UNION ALL ".join(
            f"SELECT {_STORED_COLUMNS} FROM {table} WHERE {_SAME_ID}" for table in ("events", "rejections")
        ),
        parameters,
    )
    copies = _rows(
        client,
        f"""SELECT level, event_type, case_id, occurred_at, ingested_at, stored_at, channel, matter_code,
            grid_code, original_source, original_event_id, original_case_id, {_POSITION}
            FROM duplicates WHERE {_SAME_NAME}""",
        parameters,
    )
    refused = _rows(
        client,
        f"""SELECT reason, detail, event_type, ingested_at, stored_at, {_POSITION}
            FROM quarantine WHERE {_SAME_NAME}""",
        parameters,
    )
    for found in (stored, copies, refused):
        found.sort(key=_place)
    resends = [copy for copy in copies if copy["level"] == "L2"]
    written = stored or resends or copies or refused
    if not written:
        return None
    first = written[0]
    if now - aware(first["ingested_at"]) > retention:
        raise PastRetentionError(f"{source}/{event_id}")
    answer: dict[str, Any] = {
        "source": source,
        "event_id": event_id,
        "received": True,
        "received_at": instant(first["ingested_at"]),
        "stored_at": instant(first["stored_at"]),
    }
    if stored:
        reported = _reported_matters(client, first["case_id"])
        matters = {first["matter_code"], *reported}
        # until its report is here a case may be about anything
        hidden = not reported or any(map(reporter_is_protected, matters))
        answer |= _stored(first, catalogues, hidden=hidden)
        withheld = hidden or not matters.isdisjoint(catalogues.about_people)
        answer["content"] = _content(first, withheld=withheld)
        answer["matter"] = _matter(first, catalogues)
    elif copies:
        answer |= _duplicate(first)
    else:
        answer |= _quarantined(first)
    answer["position"] = _position(first)
    answer["copies"] = [
        {
            "outcome": "duplicate",
            "level": copy["level"],
            "received_at": instant(copy["ingested_at"]),
            "position": _position(copy),
        }
        for copy in copies
        if copy is not first
    ] + [
        {
            "outcome": "duplicate",
            "level": "L1",
            "received_at": instant(row["ingested_at"]),
            "position": _position(row),
        }
        for row in stored[1:]
        if _place(row) != _place(first)
    ]
    answer["conflicts"] = [
        {"reason": row["reason"], "received_at": instant(row["ingested_at"]), "position": _position(row)}
        for row in refused
        if row is not first
    ]
    return answer


def _rows(client: Client, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict per stored position: a block that was inserted twice shows once."""
    distinct: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in client.query(sql, parameters=parameters).named_results():
        distinct.setdefault(_place(row), dict(row))
    return list(distinct.values())


def _reported_matters(client: Client, case_id: str) -> set[str]:
    """The matters that the case was reported under, for later events may name none: by its own reports, by
    those that these repeat and by those that repeat it. Empty while no report of it is stored."""
    originals = client.query(
        "SELECT DISTINCT original_case_id FROM duplicates WHERE case_id = {case_id:String}",
        parameters={"case_id": case_id},
    ).result_rows
    found = client.query(
        """SELECT DISTINCT assumeNotNull(matter_code) FROM
           (SELECT matter_code, event_type FROM events WHERE case_id IN {cases:Array(String)}
            UNION ALL
            SELECT matter_code, event_type FROM rejections WHERE case_id IN {cases:Array(String)}
            UNION ALL
            SELECT matter_code, event_type FROM duplicates
            WHERE case_id IN {cases:Array(String)} OR original_case_id IN {cases:Array(String)})
           WHERE event_type = 'REPORTED' AND matter_code IS NOT NULL""",
        parameters={"cases": sorted({case_id, *(original for (original,) in originals)})},
    )
    return {matter for (matter,) in found.result_rows}


def _place(row: dict[str, Any]) -> tuple[int, ...]:
    return (row["_inc"], row["_part"], row["_off"], row["_idx"])


def _position(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "incarnation": row["_inc"],
        "partition": row["_part"],
        "offset": row["_off"],
        "index": row["_idx"],
        "block": [row["_blk_lo"], row["_blk_hi"]],
        "rules": row["_rules"],
    }


def _stored(row: dict[str, Any], catalogues: Catalogues, *, hidden: bool) -> dict[str, Any]:
    return {
        "outcome": row["outcome"],
        "event_type": row["event_type"],
        "case_id": row["case_id"],
        "occurred_at": instant(row["occurred_at"]),
        "channel": row["channel"],
        "matter_code": row["matter_code"],
        "grid_code": row["grid_code"],
        "unit_code": row["unit_code"],
        "reasons": list(row["reasons"]),
        "missing_fields": list(row["missing_fields"]),
        "rules": explain_rules(row, catalogues),
        "decision": {
            "catalogue_version": row["catalogue_version"],
            "category": row["category"],
            "urgency": row["urgency"],
            "lead_department": row["lead_department"],
            "response_limit_seconds": row["response_limit_seconds"],
            "resolution_limit_seconds": row["resolution_limit_seconds"],
            "mode": row["mode"],
            "mode_level": row["mode_level"],
            "evidence_pending": row["evidence_pending"],
            "life_safety": row["life_safety"],
            "late_beyond_horizon": row["late_beyond_horizon"],
            "time_adjusted": row["time_adjusted"],
            "backfill": row["backfill"],
        },
        "enrichment": _enrichment(row, hidden=hidden),
        "actor": _actor(row, hidden=hidden),
        "request_id": row["request_id"],
    }


def _content(row: dict[str, Any], *, withheld: bool) -> dict[str, Any]:
    """What the sender wrote, redacted at the gateway. withheld : it may tell of a person's affairs."""
    photos = [dict(photo) for photo in row["photos"]]
    told = {
        "title": row["title"],
        "description": row["description"],
        "address": row["address"],
        "lon": _coarse(row["lon"]),
        "lat": _coarse(row["lat"]),
        "crs": row["crs"],
        "organisation_name": row["organisation_name"],
        "photo_hashes": [(photo["sha256"] or "")[:8] for photo in photos],
        "photo_taken_at": [instant(photo["taken_at"]) for photo in photos],
        "void_reason": row["void_reason"],
        "level": row["level"],
    }
    return {
        "withheld": withheld,
        **(dict.fromkeys(told) if withheld else told),
        "submission_id": row["submission_id"],
        "photos": len(photos),
        "due_at": instant(row["due_at"]),
        "primary_case_id": row["primary_case_id"],
        "rating": row["rating"],
        "department": row["department"],
        "self_handled": row["self_handled"],
    }


def _coarse(degrees: float | None) -> float | None:
    """About a hundred metres: enough to see which side of a border, not which door."""
    return None if degrees is None else round(degrees, 3)


def _matter(row: dict[str, Any], catalogues: Catalogues) -> dict[str, Any] | None:
    """What the list said of the matter when the event happened, in force or not; None where it has none."""
    matter = catalogues.version_at(aware(row["occurred_at"])).matters.get(row["matter_code"] or "")
    if matter is None:
        return None
    return {
        "effective_from": instant(matter.effective_from_instant),
        "effective_to": instant(matter.effective_to_instant),
        "temporary": matter.temporary,
        "allowed_channels": list(matter.allowed_channels),
        "required_fields": list(matter.required_fields),
        "needs_person": matter.needs_person,
        "active_only_in_modes": list(matter.active_only_in_modes),
        "emergency_modes": list(matter.prioritised_in),
    }


def _enrichment(row: dict[str, Any], *, hidden: bool) -> dict[str, Any]:
    staff = None
    if row["staff_found"] is not None and not hidden:
        staff = {
            "found": row["staff_found"],
            "active": row["staff_active"],
            "kind": row["staff_kind"],
            "department": row["staff_department"],
            "in_grid": row["staff_in_grid"],
            "in_district": row["staff_in_district"],
            "channel_rights": list(row["staff_channel_rights"]),
        }
    return {
        "district_code": row["district_code"],
        "town_code": row["town_code"],
        "village_code": row["village_code"],
        "grid": {
            "found": row["grid_found"],
            "active": row["grid_active"],
            "version": row["grid_version"],
            "name": row["grid_name"],
            "type": row["grid_type"],
            "risk_tags": list(row["grid_risk_tags"]),
            "unit_found": row["unit_found"],
            "point_in_grid": row["point_in_grid"],
            "point_distance_m": row["point_distance_m"],
        },
        "staff": staff,
        "persons": [
            {**fact, "key": short_key(fact["key"])}
            for fact in map(dict, row["person_facts"])
            if not (hidden and fact["role"] == "reporter")
        ],
        "organisation": {"code": row["organisation_code"], "found": row["organisation_found"]},
        "route_department": row["route_department"],
    }


def _actor(row: dict[str, Any], *, hidden: bool) -> dict[str, Any]:
    if hidden:
        return {"type": None, "key": None, "name": None, "phone": None, "protected": True}
    return {
        "type": row["actor_type"],
        "key": short_key(row["actor_key"]),
        "name": row["actor_name"],
        "phone": row["actor_phone"],
        "protected": False,
    }


def _duplicate(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "outcome": "duplicate",
        "level": row["level"],
        "event_type": row["event_type"],
        "case_id": row["case_id"],
        "occurred_at": instant(row["occurred_at"]),
        "channel": row["channel"],
        "matter_code": row["matter_code"],
        "grid_code": row["grid_code"],
        "duplicate_of": {
            "source": row["original_source"],
            "event_id": row["original_event_id"],
            "case_id": row["original_case_id"],
        },
        "rules": [],
        "reasons": [],
    }


def _quarantined(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "outcome": "quarantined",
        "event_type": row["event_type"],
        "reasons": [row["reason"]],
        "detail": row["detail"],
        "rules": [],
    }
