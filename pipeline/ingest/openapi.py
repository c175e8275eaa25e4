"""The gateway's part of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from pipeline.contract.event import CODES
from pipeline.contract.schema import event_schema

_ERROR: Final = {
    "type": "object",
    "required": ["index", "event_id", "code", "field", "message", "retryable"],
    "properties": {
        "index": {"type": "integer", "minimum": 0, "description": "position of the event in the request"},
        "event_id": {"type": ["string", "null"]},
        "code": {"type": "string", "enum": list(CODES)},
        "field": {"type": "string", "description": "JSON path inside the event"},
        "message": {"type": "string"},
        "retryable": {"type": "boolean", "description": "sending the same event again can succeed"},
    },
}
_REPORT: Final = {
    "type": "object",
    "required": ["accepted", "rejected", "durability", "errors", "request_id"],
    "properties": {
        "accepted": {"type": "integer", "minimum": 0},
        "rejected": {"type": "integer", "minimum": 0},
        "durability": {"type": ["string", "null"], "enum": ["replicated", "stored", None]},
        "errors": {"type": "array", "items": _ERROR},
        "request_id": {"type": "string"},
    },
}
_DECISION: Final = {
    "type": "object",
    "required": ["index", "event_id", "outcome", "reasons", "missing_fields", "rules"],
    "properties": {
        "index": {"type": "integer", "minimum": 0},
        "event_id": {"type": "string"},
        "outcome": {"type": "string", "enum": ["admitted", "rejected", "recorded"]},
        "reasons": {"type": "array", "items": {"type": "string"}},
        "missing_fields": {"type": "array", "items": {"type": "string"}},
        "rules": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "number": {"type": "integer"},
                    "name_zh": {"type": "string"},
                    "name_en": {"type": "string"},
                    "result": {"type": "string", "enum": ["true", "false", "unknown"]},
                    "reasons": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "message", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "message": {"type": "string"},
        "request_id": {"type": "string"},
        "accepted": {"type": "integer"},
        "rejected": {"type": "integer"},
        "durability": {"type": ["string", "null"]},
        "errors": {"type": "array", "items": _ERROR},
    },
}
_REFUSALS: Final = {
    400: "unreadable document or damaged compression",
    401: "no valid key",
    403: "the key may not send, or does not cover the source of any event",
    408: "the body came too slowly",
    409: "this signed request was received before, which says nothing about what became of it then; "
    "sign it anew, with the same event ids, and send it again",
    413: "larger than a request may be, packed too tightly, or too many events; nothing was taken",
    415: "content type, encoding or charset not known",
    422: "every event breaks the contract; the members are those of the 202",
    429: "over a quota, or too much under way with this key; see Retry-After and RateLimit-*",
    500: "an error of the service; sending again is safe",
    503: "nothing could be made durable now; see Retry-After",
}


def _responses(status: int, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    refusals = {
        str(code): {"description": why, "content": {"application/problem+json": {"schema": _PROBLEM}}}
        for code, why in _REFUSALS.items()
    }
    return {
        str(status): {"description": text, "content": {"application/json": {"schema": schema}}},
        **refusals,
    }


def _operation(summary: str, description: str, responses: dict[str, Any]) -> dict[str, Any]:
    event = event_schema(inline=True)
    cloudevent = {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "time", "subject", "data"],
    }
    return {
        "summary": summary,
        "description": description,
        "security": [{"key": []}],
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
            },
            {
                "name": "Content-Encoding",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "enum": ["identity", "gzip", "zstd"]},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"oneOf": [event, {"type": "array", "items": event}]}},
                "application/x-ndjson": {"schema": {"type": "string"}},
                "application/cloudevents+json": {"schema": cloudevent},
                "application/cloudevents-batch+json": {"schema": {"type": "array", "items": cloudevent}},
            },
        },
        "responses": responses,
    }


#: Paths of the document; `security` names the scheme "key" (HTTP bearer), declared by the HTTP process.
OPENAPI_PATHS: Final[dict[str, Any]] = {
    "/v1/events": {
        "post": _operation(
            "Send events",
            "Takes good events and lists the others; answers when what it took is durable.",
            _responses(202, "taken and durable, at least in part", _REPORT),
        )
    },
    "/v1/events:validate": {
        "post": _operation(
            "Check events",
            "The report that sending would give and, per event, what admission would decide. Writes nothing.",
            _responses(
                200,
                "checked",
                {
                    **_REPORT,
                    "required": [*_REPORT["required"], "decisions"],
                    "properties": {
                        **_REPORT["properties"],  # type: ignore[dict-item]
                        "decisions": {"type": "array", "items": _DECISION},
                    },
                },
            ),
        )
    },
}
