"""CloudEvents 1.0, structured and batch mode: the same event in an envelope.

`id` is event_id, `source` and `subject` (case_id) keep their pattern, `type` is
`cn.jiangmen.grid.<event type in lower case>.v1`, `time` is occurred_at, `data` holds the rest. Extension
attributes are allowed and not kept.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.contract.event import CLIENT_EVENT_TYPES, CODES, Event, EventBody, Id, Time
from pipeline.contract.exact import ExactDecoder
from pipeline.contract.explain import Fault, explain, safe_name
from pipeline.contract.faults import fault
from pipeline.contract.parse import (
    LARGE_EVENT_BYTES,
    MAX_DEPTH,
    MAX_EVENTS,
    DocumentError,
    EventError,
    Ids,
    Parsed,
    crowded,
    cut_fine_times,
    ids_beside,
    malformed,
    shown_ids,
    split_document,
    untyped,
)
from pipeline.frames import PIPELINE_EVENT_TYPES

_JSON: Final = "application/json"
TYPE_PREFIX: Final = "cn.jiangmen.grid."
_TYPE: Final = re.compile(r"cn\.jiangmen\.grid\.([a-z]+)\.v([0-9]{1,4})")
#: Extension attributes: names of lower-case letters and digits (CloudEvents 1.0, naming conventions).
_EXTENSION: Final = re.compile(r"[a-z0-9]{1,64}")


class Envelope(Struct, frozen=True, kw_only=True):
    """The attributes that we read; `dataschema` and extensions are allowed and ignored."""

    specversion: str
    id: Id
    source: Id
    type: str
    time: Time
    subject: Id
    data: msgspec.Raw
    datacontenttype: str | None = None


_KNOWN: Final = frozenset({*Envelope.__struct_fields__, "dataschema"})
_FIELDS: Final = {
    "event_id": "id",
    "event_type": "type",
    "occurred_at": "time",
    "case_id": "subject",
    "source": "source",
}
_DATA: Final = ExactDecoder(EventBody)
_ENVELOPE: Final = ExactDecoder(Envelope)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)


def parse_cloudevents(
    body: bytes, *, batch: bool, max_depth: int = MAX_DEPTH, max_events: int = MAX_EVENTS
) -> Parsed:
    """One structured CloudEvent, or a batch of them. Field paths in errors are those of the envelope.

    Raises DocumentError as `parse_document` does.
    """
    body = cut_fine_times(body)
    listed = body.lstrip(b" \t\r\n").startswith(b"[")
    if body.strip() and listed != batch:
        wanted = (
            "a list of events" if batch else "one event; use application/cloudevents-batch+json for a list"
        )
        raise DocumentError("not_an_object", f"this content type carries {wanted}")
    parsed = Parsed()
    for index, raw in enumerate(split_document(body, max_depth, max_events)):
        outcome = _open(raw)
        if isinstance(outcome, Event):
            parsed.events.append(outcome)
            parsed.indexes.append(index)
        else:
            ids, found = outcome
            assert found.code in CODES, found.code
            parsed.errors.append(EventError.of(index, ids, found))
            parsed.raw.append(raw)
    return parsed


def _open(raw: bytes) -> Event | tuple[Ids, Fault]:
    """The event in one envelope, or its ids (where they may be shown) and what is wrong."""
    if (crowd := crowded(raw)) is not None:
        return Ids(), crowd
    document, malformed_by = untyped(raw) if len(raw) <= LARGE_EVENT_BYTES else _members(raw)
    if malformed_by is not None:
        return Ids(), Fault("malformed_json", "", malformed(raw, malformed_by))
    document = document if isinstance(document, dict) else {}
    ids = shown_ids({"event_id": document.get("id"), "case_id": document.get("subject")})
    try:
        envelope = _ENVELOPE.decode(raw)
    except msgspec.ValidationError as error:
        return ids, explain(error, document)
    found = _envelope_fault(envelope, document)
    if found is not None:
        return ids, found
    try:
        rest = _DATA.decode(envelope.data)
    except msgspec.ValidationError as error:
        return ids, explain(error, document.get("data"), prefix="data")
    event = Event(
        event_id=envelope.id,
        source=envelope.source,
        event_type=envelope.type.split(".")[3].upper(),  # type: ignore[arg-type] # checked just above
        case_id=envelope.subject,
        occurred_at=envelope.time,
        **{name: getattr(rest, name) for name in rest.__struct_fields__},
    )
    found = fault(event)
    if found is not None:
        name = _FIELDS.get(found.field, f"data.{found.field}")
        return ids_beside(event, found), found._replace(
            field=name, message=found.message.replace(found.field, name, 1)
        )
    return event


def split_media_type(given: str) -> tuple[str, bool]:
    """The type in lower case without its parameters, and whether the charset is UTF-8 or not said.

    >>> split_media_type('Application/JSON; charset="utf-8"')
    ('application/json', True)
    """
    kind, _, parameters = given.partition(";")
    pairs = [parameter.strip().partition("=") for parameter in parameters.split(";")]
    charsets = {value.strip('" ').lower() for name, _, value in pairs if name.lower() == "charset"}
    return kind.strip().lower(), charsets <= {"utf-8", "utf8"}


def _members(raw: bytes) -> tuple[Any, Exception | None]:
    """`untyped` of a large envelope, but its names and id only: millions of lists would take a gigabyte."""
    try:
        members = _MEMBERS.decode(raw)
    except msgspec.ValidationError:
        return None, None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, error
    document: dict[str, Any] = dict.fromkeys(members)
    try:
        document["id"] = _TEXT.decode(members["id"])
    except (KeyError, msgspec.MsgspecError):
        document["id"] = None
    return document, None


def _envelope_fault(envelope: Envelope, document: dict[str, Any]) -> Fault | None:
    if envelope.specversion != "1.0":
        return Fault("unsupported_version", "specversion", "specversion must be 1.0")
    if envelope.datacontenttype not in (None, _JSON):
        kind, utf8 = split_media_type(envelope.datacontenttype)
        if kind != _JSON or not utf8:
            what = "datacontenttype must be application/json, in UTF-8"
            return Fault("unknown_value", "datacontenttype", what)
    match = _TYPE.fullmatch(envelope.type)
    if match is None or match[1].upper() not in CLIENT_EVENT_TYPES:
        if match is not None and match[1].upper() in PIPELINE_EVENT_TYPES:
            return Fault(
                "unknown_value", "type", "ADMITTED and REJECTED are decided by the pipeline, not sent"
            )
        return Fault("unknown_value", "type", f"type must be {TYPE_PREFIX}<event type in lower case>.v1")
    if match[2] != "1":
        return Fault("unsupported_version", "type", "only version v1 of the event is known here")
    for name in document:
        if name not in _KNOWN and (name == "data_base64" or not _EXTENSION.fullmatch(name)):
            shown = safe_name(name)
            return Fault(
                "unknown_field", shown, f"{shown} is not an attribute of a CloudEvent that is read here"
            )
    return None
