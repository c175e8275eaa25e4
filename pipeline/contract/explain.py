"""From a decoder's error to a code of the contract, the field's JSON path and a sentence for the sender.

The value at fault is never repeated: it may be personal.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.contract.event import (
    CLIENT_EVENT_TYPES,
    CODE,
    END,
    GRID,
    ID,
    KEY,
    ORGANISATION_CODE,
    SHA256,
)
from pipeline.contract.privacy import holds_personal_number
from pipeline.frames import PIPELINE_EVENT_TYPES


class Fault(NamedTuple):
    """One breach of the contract: code of `CODES`, JSON path, a sentence without the offending value."""

    code: str
    field: str
    message: str


_AT: Final = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_SAFE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

_FORMS: Final = {
    ID.pattern: "1–64 characters from A–Z a–z 0–9 . _ : -",
    KEY.pattern: "1–128 characters from A–Z a–z 0–9 . _ : @ / + = -",
    CODE.pattern: "a code: a letter or digit, then letters, digits, _ or -",
    GRID.pattern: "15 digits, optionally followed by -U and 3 digits",
    ORGANISATION_CODE.pattern: "1–64 characters from A–Z a–z 0–9 . _ -",
    SHA256.pattern: "64 hexadecimal digits",
}
_JSON_TYPE: Final = {
    "str": "text", "int": "an integer", "float": "a number", "bool": "true or false", "null": "null",
    "object": "an object", "array": "a list", "datetime": "an RFC 3339 time",
}  # fmt: skip


def safe_name(name: str) -> str:
    """`name` if it can be shown, else a placeholder: a client's field name may hold anything."""
    return name if _SAFE_NAME.fullmatch(name) and not holds_personal_number(name) else "(name withheld)"


def _describe(types: str) -> str:
    """`bool | int | null` in a sender's words."""
    return " or ".join(
        _JSON_TYPE.get(word.strip(), word.strip()) for word in types.split("|") if word.strip() != "null"
    )


def _value_at(document: Any, path: str) -> Any:
    """What stands at `path` of the parsed document; None where it cannot be followed."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        try:
            document = document[int(index)] if index else document[name]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def explain(error: msgspec.ValidationError, document: Any = None, *, prefix: str = "") -> Fault:
    """The fault that `error` means.

    document : what was decoded, untyped; it tells a null and a pipeline event type from other wrong values.
    prefix : path of the decoded value inside the event.
    """
    text = str(error)
    match = _AT.search(text)
    path = match["path"] if match else ""
    head = text[: match.start()] if match else text
    field = (prefix + path).removeprefix(".").removesuffix("[...]")
    return _fault(head, field, path, document)


def _fault(head: str, field: str, path: str, document: Any) -> Fault:
    def child(name: str) -> str:
        return f"{field}.{name}" if field else name

    what = field or "the event"
    if found := re.fullmatch(r"Object missing required field `(.*)`", head):
        name = child(found[1])
        return Fault("missing_field", name, f"{name} is required")
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", head, re.DOTALL):
        name = child(safe_name(found[1]))
        return Fault("unknown_field", name, f"{name} is not a field of the contract")
    if found := re.fullmatch(r"Expected `([^`]*)` matching regex (.*)", head, re.DOTALL):
        form = next((words for pattern, words in _FORMS.items() if repr(pattern) == found[2]), None)
        shown = form or "the form " + found[2].replace(END, "$")
        return Fault("bad_pattern", field, f"{field} must be {shown}")
    if found := re.fullmatch(r"Expected `(\w+)` of length (<=|>=) (\d+)", head):
        unit = {"str": "characters", "array": "entries"}.get(found[1], "names")
        if found[2] == "<=":
            return Fault("too_long", field, f"{what} may have at most {found[3]} {unit}")
        return Fault("too_short", field, f"{what} must have at least {found[3]} {unit}")
    if found := re.fullmatch(r"Expected `(\w+)` (<=|>=) (\S+)", head):
        bound = "at most" if found[2] == "<=" else "at least"
        return Fault("out_of_range", field, f"{field} must be {bound} {found[3]}")
    if "out of range" in head:
        return Fault("out_of_range", field, f"{what}: the number is out of range")
    if head.startswith("Invalid enum value"):
        if field == "event_type" and _value_at(document, path) in PIPELINE_EVENT_TYPES:
            return Fault(
                "unknown_value", field, "ADMITTED and REJECTED are decided by the pipeline, not sent"
            )
        known = f"; known are {', '.join(CLIENT_EVENT_TYPES)}" if field == "event_type" else ""
        return Fault("unknown_value", field, f"{field} is not one of the allowed values{known}")
    if "timezone component" in head or "RFC3339" in head:
        return Fault(
            "bad_time", field, f"{field} must be an RFC 3339 time with a zone, e.g. 2026-01-31T08:00:00+08:00"
        )
    if found := re.fullmatch(r"Expected `([^`]*)`, got `(\w+)`", head):
        if not field and found[1] == "object":
            return Fault("not_an_object", "", "an event must be a JSON object")
        if found[2] == "null":
            return Fault("missing_field", field, f"{what} is required and must not be null")
        if "datetime" in found[1]:
            return Fault("bad_time", field, f"{field} must be an RFC 3339 time with a zone, as text")
        return Fault("bad_type", field, f"{what} must be {_describe(found[1])}")
    return Fault("bad_type", field, f"{what} does not have the required form")
