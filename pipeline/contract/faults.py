"""What is wrong with an event beyond the types of its fields: a code, the field's path, a sentence.

The value at fault is never repeated: it may be personal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from pipeline.contract.event import (
    EARLIEST,
    LATEST,
    REQUIRED_ATTRIBUTE,
    RESERVED_ATTRIBUTES,
    Attributes,
    Event,
)
from pipeline.contract.explain import Fault, explain
from pipeline.contract.privacy import MOBILE_IN_ID, holds_personal_number

#: Control characters but \n, \r, \t; and halves of surrogate pairs, which no store can encode.
_BAD_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
#: A quick look for ids that may hold a personal number, over many ids joined by line breaks. Dots and hyphens
#: between digits hide no identity number.
_DOUBTFUL_ID: Final = re.compile(
    r"(?<![0-9])[1-9](?:[.-]{0,2}[0-9]){16}[.-]{0,2}[0-9Xx](?![0-9])|" + MOBILE_IN_ID.pattern
)
_IDS: Final = ("event_id", "source", "case_id", "submission_id", "matter_code", "channel")


def fault(event: Event) -> Fault | None:
    """The first breach that the types alone do not tell, or None."""
    return relation_fault(event) or text_fault(event) or id_fault(event)


def relation_fault(event: Event) -> Fault | None:
    """A field that another one demands, a time outside its range, an attribute of the wrong form."""
    if event.event_type == "REPORTED" and event.matter_code is None:
        return Fault("missing_field", "matter_code", "matter_code is required on REPORTED")
    found = _time_fault("occurred_at", event.occurred_at)
    for at, photo in enumerate(event.photos or ()):
        found = found or _time_fault(f"photos[{at}].taken_at", photo.taken_at)
    if found:
        return found
    firm = event.organisation
    if firm is not None and not firm.code and not (firm.name and firm.name.strip()):
        return Fault("missing_field", "organisation", "organisation needs at least one of code and name")
    return _attribute_fault(event)


def _time_fault(field: str, value: datetime | None) -> Fault | None:
    if value is None or EARLIEST <= value < LATEST:
        return None
    return Fault("out_of_range", field, f"{field} must lie in 2000–2100")


def _attribute_fault(event: Event) -> Fault | None:
    given = event.attributes or {}
    required = REQUIRED_ATTRIBUTE.get(event.event_type)
    if required is not None:
        value = given.get(required)
        if value is None or (isinstance(value, str) and not value.strip()):
            field = f"attributes.{required}"
            return Fault("missing_field", field, f"{field} is required on {event.event_type}")
    if RESERVED_ATTRIBUTES.isdisjoint(given):
        return None
    try:
        reserved = msgspec.convert(given, Attributes)
    except msgspec.ValidationError as error:
        return explain(error, given, prefix="attributes")
    return _time_fault("attributes.due_at", reserved.due_at)


def _is_bad(text: str | None) -> bool:
    return text is not None and not text.isprintable() and _BAD_TEXT.search(text) is not None


def text_fault(event: Event) -> Fault | None:
    """The first text that holds a control character."""
    attributes = event.attributes or {}
    place, firm = event.location, event.organisation
    texts: list[tuple[str, str | None]] = [
        ("title", event.title),
        ("description", event.description),
        ("actor.name", event.actor.name),
        ("actor.phone", event.actor.phone),
        ("actor.id_number", event.actor.id_number),
        ("location.address", None if place is None else place.address),
        ("organisation.name", None if firm is None else firm.name),
        *((f"persons[{at}].id_number", person.id_number) for at, person in enumerate(event.persons or ())),
        *((f"attributes.{name}", value) for name, value in attributes.items() if isinstance(value, str)),
    ]
    if any(map(_is_bad, attributes)):
        return Fault("bad_text", "attributes", "a name in attributes holds a control character")
    for field, text in texts:
        if _is_bad(text):
            return Fault(
                "bad_text", field, f"{field} holds a control character; only line breaks and tabs may"
            )
    return None


def id_fault(event: Event) -> Fault | None:
    """The first id or code that holds an identity or mobile number: ids are kept in clear."""
    firm = event.organisation
    attributes = event.attributes or {}
    ids = [(name, getattr(event, name)) for name in _IDS]
    ids.append(("organisation.code", None if firm is None else firm.code))
    ids += [(f"attributes.{name}", attributes.get(name)) for name in ("primary_case_id", "department")]
    for name, value in ids:
        if isinstance(value, str) and holds_personal_number(value):
            return Fault("personal_data_in_id", name, f"{name} holds an identity or mobile number")
    return None


def suspects(events: Sequence[Event], body: bytes) -> Sequence[int]:
    """Positions of typed events that `fault` must look at; every other event is good.

    body : the text that the events came from. A control character or half a surrogate pair reaches a text
    only through a backslash, DEL or the lead byte of U+0080–U+00BF.
    """
    occurred = [event.occurred_at for event in events]
    ids = "\n".join(
        [f"{event.event_id}\n{event.case_id}\n{event.submission_id}\n{event.source}" for event in events]
    )
    codes = "\n".join({event.matter_code or "" for event in events} | {event.channel for event in events})
    taken = [
        photo.taken_at
        for event in events
        if event.photos
        for photo in event.photos
        if photo.taken_at is not None
    ]
    if (
        b"\\" in body
        or b"\x7f" in body
        or b"\xc2" in body
        or min(occurred) < EARLIEST
        or max(occurred) >= LATEST
        or (taken and (min(taken) < EARLIEST or max(taken) >= LATEST))
        or _DOUBTFUL_ID.search(codes)
    ):
        return range(len(events))
    doubtful: set[int] = set()
    if _DOUBTFUL_ID.search(ids):  # dates with counters look like identity numbers: only these events
        lines = ids.split("\n")
        doubtful = {at // 4 for at, line in enumerate(lines) if _DOUBTFUL_ID.search(line)}
    return [
        at
        for at, event in enumerate(events)
        if at in doubtful
        or event.attributes is not None
        or event.organisation is not None
        or event.event_type in REQUIRED_ATTRIBUTE
        or (event.matter_code is None and event.event_type == "REPORTED")
    ]
