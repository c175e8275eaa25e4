"""What is wrong with an event beyond the types of its fields: a code, the field's path, a sentence.

The value at fault is never repeated: it may be personal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from pipeline.contract.columns import Columns, given
from pipeline.contract.event import (
    EARLIEST,
    LATEST,
    REQUIRED_ATTRIBUTE,
    RESERVED_ATTRIBUTES,
    Attributes,
    Event,
    Photo,
)
from pipeline.contract.exact import exact
from pipeline.contract.explain import Fault, explain, safe_name
from pipeline.contract.privacy import MOBILE_IN_ID, holds_personal_number, may_hold_number

#: Control characters but \n, \r, \t; and halves of surrogate pairs, which no store can encode.
_BAD_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
#: A quick look for ids that may hold a personal number, over many ids joined by line breaks. Dots, hyphens,
#: underscores and slashes between digits hide no number.
_DOUBTFUL_ID: Final = re.compile(
    r"(?<![0-9])[1-9](?:[._/:-]{0,4}[0-9]){16}[._/:-]{0,4}(?:[Xx]|[0-9](?![0-9]))|" + MOBILE_IN_ID.pattern
)
#: Eleven digits in a row, once the signs between them are left out: no id without them is doubtful.
_MANY_DIGITS: Final = b"0" * 11
_AS_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
#: Escapes of JSON that can stand for a control character or half a surrogate pair.
_BAD_ESCAPE: Final = re.compile(rb"\\[ubf]")
_BAD_C1: Final = re.compile(rb"\xc2[\x80-\x9f]")
#: A zone moves a time by a day at most: within these years none is out of range.
_SAFE_YEARS: Final = frozenset(range(EARLIEST.year + 1, LATEST.year - 1))
_ATTRIBUTES: Final = exact(Attributes)
_IDS: Final = ("event_id", "source", "case_id", "submission_id", "matter_code", "channel")
_ID_ATTRIBUTES: Final = ("primary_case_id", "department")


def fault(event: Event, body: bytes | None = None) -> Fault | None:
    """The first breach that the types alone do not tell, or None.

    body : the text that the event came from; it may show at once that no text of it can be bad.
    """
    return (
        relation_fault(event)
        or (text_fault(event) if body is None or _may_hold_bad(body) else None)
        or id_fault(event)
    )


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
    if value is None or value.year in _SAFE_YEARS or EARLIEST <= value < LATEST:
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
        reserved = msgspec.convert(given, _ATTRIBUTES)
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
            inner = field.removeprefix("attributes.")  # a name of the sender's
            shown = field if inner == field else f"attributes.{safe_name(inner)}"
            return Fault(
                "bad_text", shown, f"{shown} holds a control character; only line breaks and tabs may"
            )
    return None


def id_fault(event: Event) -> Fault | None:
    """The first id or code that holds an identity or mobile number: ids are kept in clear."""
    ids = (event.event_id, event.source, event.case_id, event.submission_id, event.matter_code, event.channel)
    code = None if event.organisation is None else event.organisation.code
    attributes = event.attributes or {}
    others = [value for name in _ID_ATTRIBUTES if isinstance(value := attributes.get(name), str)]
    # one look at all of them together
    if not may_hold_number("\n".join(filter(None, (*ids, code, *others)))):
        return None
    named: list[tuple[str, object]] = [*zip(_IDS, ids, strict=True), ("organisation.code", code)]
    named += [(f"attributes.{name}", attributes.get(name)) for name in _ID_ATTRIBUTES]
    for name, held in named:
        if isinstance(held, str) and holds_personal_number(held):
            return Fault("personal_data_in_id", name, f"{name} holds an identity or mobile number")
    return None


def suspects(columns: Columns, body: bytes) -> Sequence[int]:
    """Positions of typed events that `fault` must look at; every other event is good.

    columns : of `Event`; body : the text that the events came from.
    """
    everyone = range(len(columns["event_id"]))
    times = [*columns["occurred_at"], *_taken(columns["photos"])]
    if not {time.year for time in times} <= _SAFE_YEARS or (_may_hold_bad(body) and _holds_bad(columns)):
        return everyone
    found = _doubtful_ids(columns)
    for at, firm in enumerate(columns["organisation"]):
        if firm is not None and ((not firm.code and not (firm.name or "").strip()) or _doubtful(firm.code)):
            found.add(at)
    types = columns["event_type"]
    for at, attributes in enumerate(columns["attributes"]):
        if attributes and not RESERVED_ATTRIBUTES.isdisjoint(attributes):
            found.add(at)
    if not REQUIRED_ATTRIBUTE.keys().isdisjoint(types):
        found.update(at for at, name in enumerate(types) if name in REQUIRED_ATTRIBUTE)
    if not all(columns["matter_code"]):
        matters = zip(types, columns["matter_code"], strict=True)
        found.update(at for at, (name, matter) in enumerate(matters) if matter is None and name == "REPORTED")
    return sorted(found)


def _taken(photos: Sequence[Sequence[Photo] | None]) -> list[datetime]:
    return [photo.taken_at for several in photos if several for photo in several if photo.taken_at]


def _may_hold_bad(body: bytes) -> bool:
    """Whether JSON text can give a text of `_BAD_TEXT`: by an escape, as DEL or as one of U+0080–U+009F."""
    return (
        (b"\\" in body and _BAD_ESCAPE.search(body) is not None)
        or b"\x7f" in body
        or (b"\xc2" in body and _BAD_C1.search(body) is not None)
    )


def _holds_bad(columns: Columns) -> bool:
    """Whether one of the texts that `text_fault` looks at is bad."""
    texts = given(columns["title"]) + given(columns["description"])
    for actor in columns["actor"]:
        texts += (actor.name or "", actor.phone or "", actor.id_number or "")
    texts += [place.address for place in given(columns["location"]) if place.address]
    texts += [firm.name for firm in given(columns["organisation"]) if firm.name]
    for several in given(columns["persons"]):
        texts += [person.id_number for person in several if person.id_number]
    for attributes in given(columns["attributes"]):
        texts += [text for pair in attributes.items() for text in pair if isinstance(text, str)]
    return _BAD_TEXT.search(" ".join(texts)) is not None


def _doubtful(text: str | None) -> bool:
    """Whether an id or code may hold a personal number; a look at its bytes, which is cheap, comes first.

    text : ASCII, or several of it joined by line breaks.
    """
    if not text or _MANY_DIGITS not in text.encode().translate(_AS_DIGITS, b"._/:-"):
        return False
    return _DOUBTFUL_ID.search(text) is not None


def _doubtful_ids(columns: Columns) -> set[int]:
    """Positions of events with an id or code that may hold a personal number."""
    found: set[int] = set()
    for name in _IDS:
        texts = columns[name]
        # joined as they are: telling equal ones apart takes longer than looking at them again
        if _doubtful("\n".join(filter(None, texts))):
            # dates with counters look like identity numbers: only these events
            found.update(at for at, text in enumerate(texts) if _doubtful(text))
    return found
