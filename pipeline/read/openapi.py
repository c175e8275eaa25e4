"""The read calls' part of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from pipeline.read.kpi import VIEWS
from pipeline.store.kpi_views import BY, DURATIONS, RATES

_TIME: Final = {"type": "string", "format": "date-time"}
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": ["integer", "null"], "minimum": 0}
_RATE: Final = {
    "type": ["number", "null"],
    "minimum": 0,
    "description": "0 to 1; null when the denominator is 0",
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "message", "request_id"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": _TEXT,
        "message": _TEXT,
        "request_id": _TEXT,
    },
}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _query(name: str, description: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example}


def _path(name: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _get(
    summary: str, parameters: list[Any], schema: dict[str, Any], example: Any, problems: dict[int, str]
) -> dict[str, Any]:
    """One GET operation with its answer, an example of it, and what can go wrong."""
    refusals = {
        400: "a parameter is not as it must be",
        401: "no valid key, where the listener is not loopback",
        403: "the key has not the role read",
        429: "too many requests from this address; see Retry-After and RateLimit-*",
        **problems,
        503: "ClickHouse does not answer; Retry-After",
    }
    return {
        "get": {
            "summary": summary,
            "tags": ["read"],
            "parameters": parameters,
            "responses": {
                "200": {
                    "description": "found",
                    "content": {"application/json": {"schema": schema, "example": example}},
                },
                **{
                    str(status): {
                        "description": description,
                        "content": {"application/problem+json": {"schema": _PROBLEM}},
                    }
                    for status, description in sorted(refusals.items())
                },
            },
        }
    }


_POSITION: Final = _object(
    incarnation={"type": "integer"},
    partition={"type": "integer"},
    offset={"type": "integer"},
    index={"type": "integer"},
    block=_array({"type": "integer"}),
    rules=_TEXT,
)
_RULE: Final = _object(
    number={"type": "integer", "minimum": 1, "maximum": 13},
    name_zh=_TEXT,
    name_en=_TEXT,
    result={"type": "string", "enum": ["true", "false", "unknown"]},
    reasons=_array(_TEXT),
)
_EXPLAINED: Final = _object(
    ("source", "event_id", "received", "received_at", "outcome", "position"),
    source=_TEXT,
    event_id=_TEXT,
    received={"type": "boolean"},
    received_at=_TIME,
    stored_at=_TIME,
    outcome={
        "type": "string",
        "enum": ["admitted", "rejected", "recorded", "duplicate", "quarantined"],
    },
    reasons=_array(_TEXT),
    rules={
        **_array(_RULE),
        "description": "empty where none are kept: of what is no report, was quarantined, or resends a "
        "report (L2), whose own rules are those of `duplicate_of`",
    },
    enrichment={"type": "object"},
    position=_POSITION,
    copies=_array({"type": "object"}),
)
_PERCENTILES: Final = _object(p50=_COUNT, p90=_COUNT, p99=_COUNT)
_KPI_COUNTS: Final = (
    "reports", "admitted_reports", "rejected_reports", "cases", "voided", "merged", "orphans", "closed",
    "responded", "ratings", "open", "overdue",
)  # fmt: skip
_KPI_ROW: Final = _object(
    ("key", "name_zh", *_KPI_COUNTS, *RATES, *DURATIONS),
    key=_TEXT,
    name_zh={"type": ["string", "null"]},
    duplicates=_object(L1=_COUNT, L2=_COUNT, L3=_COUNT),
    suppressed={
        "type": "boolean",
        "description": "true: few reports below the town; for readers every figure of the row is null",
    },
    **dict.fromkeys(_KPI_COUNTS, _COUNT),
    **dict.fromkeys(RATES, _RATE),
    **dict.fromkeys(DURATIONS, _PERCENTILES),
)
_REJECTION: Final = _object(
    source=_TEXT,
    event_id=_TEXT,
    case_id=_TEXT,
    occurred_at=_TIME,
    ingested_at=_TIME,
    channel=_TEXT,
    matter_code={"type": ["string", "null"]},
    grid_code=_TEXT,
    reasons=_array(_TEXT),
    primary_reason=_TEXT,
    missing_fields=_array(_TEXT),
    life_safety={"type": "boolean"},
)
_INSTANT: Final = "2026-03-02T08:00:00.000Z"

OPENAPI_PATHS: Final[dict[str, Any]] = {
    "/v1/events/{source}/{event_id}": _get(
        "Where an event is and why",
        [_path("source", "local"), _path("event_id", "e-1001")],
        _EXPLAINED,
        {
            "source": "local",
            "event_id": "e-1001",
            "received": True,
            "received_at": _INSTANT,
            "outcome": "rejected",
            "reasons": ["GRID_UNKNOWN"],
            "position": {"incarnation": 1772438400000, "partition": 3, "offset": 17, "index": 0},
        },
        {404: "not written (yet)", 410: "past its retention"},
    ),
    "/v1/cases/{case_id}": _get(
        "One case: its events in fold order, state, times, limits and links",
        [_path("case_id", "c-1001")],
        {"type": "object"},
        {"case_id": "c-1001", "state": "CLOSED"},
        {404: "no event of this case (yet)"},
    ),
    "/v1/kpi": _get(
        "Every metric by a dimension",
        [
            _query("by", "dimension", {"type": "string", "enum": list(BY), "default": "city"}, "district"),
            _query(
                "from",
                "start of the window; default: 30 days before `to`",
                _TIME,
                "2026-02-01T00:00:00+08:00",
            ),
            _query(
                "to", "end of the window, exclusive; default: `as_of`", _TIME, "2026-03-01T00:00:00+08:00"
            ),
            _query("as_of", "instant of the states; default: now", _TIME, "2026-03-01T00:00:00+08:00"),
            _query(
                "view",
                "cohort: cases reported in the window; flow: events in it",
                {"type": "string", "enum": list(VIEWS), "default": "cohort"},
                "cohort",
            ),
        ],
        _object(
            ("from", "to", "as_of", "view", "rows"),
            **{"from": _TIME, "to": _TIME, "as_of": _TIME, "view": _TEXT, "rows": _array(_KPI_ROW)},
        ),
        {
            "from": "2026-01-31T00:00:00.000Z",
            "to": "2026-03-02T00:00:00.000Z",
            "as_of": "2026-03-02T00:00:00.000Z",
            "view": "cohort",
            "rows": [
                {"key": "440704", "name_zh": "江海区", "cases": 200, "closed": 199, "closure_rate": 0.995}
            ],
        },
        {},
    ),
    "/v1/matters": _get(
        "The catalogue in force",
        [_query("at", "instant; default: now", _TIME, "2026-03-02T08:00:00+08:00")],
        _object(
            ("at", "version", "status", "matters"),
            at=_TIME,
            version=_TEXT,
            status=_TEXT,
            matters=_array({"type": "object"}),
        ),
        {"at": _INSTANT, "version": "0.1", "status": "reference_not_official", "matters": []},
        {},
    ),
    "/v1/rejections": _get(
        "Rejected reports, newest receipt first",
        [
            _query("reason", "only reports with this reason code", _TEXT, "GRID_UNKNOWN"),
            _query(
                "life_safety",
                "true: only reports that may concern life and limb",
                {"type": "string", "enum": ["true"]},
                "true",
            ),
            _query("from", "only reports received since", _TIME, "2026-03-02T08:00:00+08:00"),
            _query(
                "limit", "most rows", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, 100
            ),
        ],
        _object(("rows",), rows=_array(_REJECTION)),
        {"rows": []},
        {},
    ),
}
