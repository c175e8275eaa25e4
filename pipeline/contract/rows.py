"""Events to the columns that travel: one row each, personal data replaced, exactly `frames.EVENT`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import accumulate, chain
from typing import Any, Final

import msgspec
import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from pipeline.contract.columns import Columns, columns_of, is_empty
from pipeline.contract.event import Actor, Attributes, Event, Location, Organisation, Person, Photo
from pipeline.contract.privacy import (
    Privacy,
    Tries,
    clean_texts,
    cut_address,
    mask_name,
    mask_phone,
    redact,
)
from pipeline.frames import EVENT

#: What a block's columns are in Arrow: what polars' oldest level of compatibility makes of `frames.EVENT`.
EVENT_ARROW: Final[pa.Schema] = (
    pl.DataFrame(schema=EVENT).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
)

#: Types of actors that rule 7 looks up by their key, the worker key: the kinds of staff.
_STAFF: Final = frozenset(
    {
        "full_time", "part_time", "professional", "unit_head", "leader", "police_deputy", "clerk",
        "volunteer",
    }
)  # fmt: skip
_TEXT: Final = pa.large_string()
_MILLISECONDS: Final = pa.timestamp("ms", "UTC")


def to_frame(
    events: Sequence[Event],
    *,
    ingested_at: Sequence[datetime] | datetime,
    request_id: Sequence[str] | str | None,
    backfill: Sequence[bool] | bool,
    privacy: Privacy,
) -> pl.DataFrame:
    """`to_batch` as a frame: rows of `frames.EVENT`."""
    batch = to_batch(
        events, ingested_at=ingested_at, request_id=request_id, backfill=backfill, privacy=privacy
    )
    return pl.DataFrame(pl.from_arrow(batch))


def to_batch(
    events: Sequence[Event],
    *,
    ingested_at: Sequence[datetime] | datetime,
    request_id: Sequence[str] | str | None,
    backfill: Sequence[bool] | bool,
    privacy: Privacy,
    which: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """Rows of `EVENT_ARROW`, same height and order as `events`.

    ingested_at : receipt, one for all or one each; with a zone. request_id, backfill : likewise.
    which : where these are one per request, the request of each event.
    Times are cut to milliseconds, texts put in NFC and redacted, identity numbers and phones pseudonymised,
    names masked. `persons` and `photos` are empty lists where the event gives none.
    """
    event = columns_of(Event, events)
    actor = columns_of(Actor, event["actor"])
    place = columns_of(Location, event["location"])
    firm = columns_of(Organisation, event["organisation"])
    special = columns_of(Attributes, list(map(_attributes, event["attributes"])))
    grids = event["grid_code"]
    units = None if max(map(len, grids), default=0) <= 15 else [c if len(c) > 15 else None for c in grids]

    def each(value: Any, kind: pa.DataType) -> pa.Array:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return pa.repeat(pa.scalar(value, kind), len(events))
        if which is None:
            return pa.array(value, kind)
        if kind is _MILLISECONDS:  # a time takes longer to convert than to copy
            return pa.array(value, kind).take(pa.array(which))
        return pa.array([value[at] for at in which], kind)

    tries = _tries(len(events), request_id, which)
    attributes = event["attributes"]
    if tries is not None and not is_empty(attributes):
        attributes = [
            None if given is None else canonical_attributes(given, own)
            for given, own in zip(attributes, tries, strict=True)
        ]
    else:
        attributes = _mapped(canonical_attributes, attributes)

    columns = {
        "event_id": _texts(event["event_id"]),
        "source": _texts(event["source"]),
        "event_type": _texts(event["event_type"]),
        "case_id": _texts(event["case_id"]),
        "submission_id": _texts(event["submission_id"]),
        "occurred_at": _times(event["occurred_at"]),
        "ingested_at": each(ingested_at, _MILLISECONDS),
        "channel": _texts(event["channel"]),
        "matter_code": _texts(event["matter_code"]),
        "grid_code": _texts(grids if units is None else [code[:15] for code in grids]),
        "unit_code": _nothing(len(events), _TEXT) if units is None else _texts(units),
        "actor_type": _texts(actor["type"]),
        "actor_key": _texts(_actor_keys(actor, privacy)),
        "actor_name": _texts(_mapped(mask_name, actor["name"])),
        "actor_phone": _texts(_mapped(mask_phone, actor["phone"])),
        "persons": _persons(event["persons"], privacy),
        "lon": pa.array(place["lon"], pa.float64()),
        "lat": pa.array(place["lat"], pa.float64()),
        "crs": _texts(place["crs"]),
        "address": _free_texts(_mapped(shown_address, place["address"]), tries),
        "photos": _photos(event["photos"]),
        "title": _free_texts(event["title"], tries),
        "description": _free_texts(event["description"], tries),
        "organisation_code": _texts(firm["code"]),
        "organisation_name": _free_texts(firm["name"], tries),
        "due_at": _times(special["due_at"]),
        "primary_case_id": _texts(special["primary_case_id"]),
        "void_reason": _free_texts(special["reason"], tries),
        "rating": pa.array(special["rating"], pa.int8()),
        "department": _texts(special["department"]),
        "level": _free_texts(_mapped(str, special["level"]), tries),
        "self_handled": pa.array(special["self_handled"], pa.bool_()),
        "attributes": _texts(attributes),
        "backfill": each(backfill, pa.bool_()),
        "key_version": each(privacy.key_version, pa.uint16()),
        "request_id": each(request_id, _TEXT),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in EVENT], schema=EVENT_ARROW)


def _tries(
    count: int, request_id: Sequence[str] | str | None, which: Sequence[int] | None
) -> Sequence[Tries] | None:
    """Those of each event's request. None where events are of no one request, as the records of a topic: each
    may be of another source."""
    if which is not None:
        own = [Tries() for _ in range(max(which, default=-1) + 1)]
        return [own[at] for at in which]
    return [Tries()] * count if isinstance(request_id, str) else None


# --- columns


def warm_up() -> None:
    """Let pyarrow import what it imports with its first array (pandas: 0.2 to 0.4 s, much more on a busy
    machine): on the event loop that would be everybody's time."""
    pa.array([""], _TEXT)


def _nothing(count: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(count, kind)


def _texts(values: Sequence[str | None]) -> pa.Array:
    return _nothing(len(values), _TEXT) if is_empty(values) else pa.array(values, _TEXT)


def _times(values: Sequence[datetime | None]) -> pa.Array:
    """Cut to milliseconds, not rounded."""
    if is_empty(values):
        return _nothing(len(values), _MILLISECONDS)
    return pa.array(values, _MILLISECONDS)


def _mapped(function: Callable[[Any], str | None], values: Sequence[Any]) -> Sequence[str | None]:
    """`function` of each value that is given."""
    if is_empty(values):
        return values
    return [None if value is None else function(value) for value in values]


def _free_texts(values: Sequence[str | None], tries: Sequence[Tries] | None) -> pa.Array:
    """What people wrote: in NFC and redacted."""
    if is_empty(values):
        return _nothing(len(values), _TEXT)
    clean = clean_texts([text or "" for text in values], tries)
    if all(values):
        return pa.array(clean, _TEXT)
    pairs = zip(values, clean, strict=True)
    return pa.array([None if given is None else text for given, text in pairs], _TEXT)


def shown_address(address: str) -> str | None:
    """The address down to its building; None where nothing is left."""
    return cut_address(address) or None


def _actor_keys(actor: Columns, privacy: Privacy) -> Sequence[str | None]:
    """The pseudonym of the identity number, else that of the phone, for they find the person who asks to be
    erased; else the actor's own key. Of staff the key comes first: admission must find them by it."""
    keys, id_numbers, phones = privacy.clean_keys(actor["key"]), actor["id_number"], actor["phone"]
    if is_empty(id_numbers) and is_empty(phones):
        return keys
    return [
        key
        if key is not None and (kind in _STAFF or (id_number is None and phone is None))
        else (
            privacy.person_key(id_number)
            if id_number is not None
            else (None if phone is None else privacy.phone_key(phone))
        )
        for kind, key, id_number, phone in zip(actor["type"], keys, id_numbers, phones, strict=True)
    ]


# --- attributes


def _attributes(attributes: dict[str, Any] | None) -> Attributes | None:
    return msgspec.convert(attributes, Attributes) if attributes else None


def canonical_attributes(attributes: dict[str, Any], tries: Tries | None = None) -> str | None:
    """Sorted JSON of the attributes in NFC and without personal numbers; null where there is none."""
    if not attributes:
        return None
    clean: dict[str, Any] = {}
    for given, value in attributes.items():
        name = unicodedata.normalize("NFC", given)
        # A phone number sent as a JSON number is as personal as one sent as text.
        if isinstance(value, str):
            clean[redact(name, tries)] = redact(unicodedata.normalize("NFC", value), tries)
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (text := str(value)) != (shown := redact(text, tries))
        ):
            clean[redact(name, tries)] = shown
        else:
            clean[redact(name, tries)] = value
    return orjson.dumps(clean, option=orjson.OPT_SORT_KEYS).decode()


# --- lists


def _flat(lists: Sequence[Sequence[Any] | None]) -> list[Any]:
    return list(chain.from_iterable(filter(None, lists)))


def _lists(lists: Sequence[Sequence[Any] | None], name: str, fields: Sequence[pa.Array]) -> pa.Array:
    """A list column of `EVENT_ARROW`: fields : of the items of `lists`, one after another."""
    kind = EVENT_ARROW.field(name).type
    offsets = np.fromiter(accumulate([len(items) if items else 0 for items in lists], initial=0), np.int64)
    items = pa.StructArray.from_arrays(fields, fields=list(kind.value_type))
    return pa.LargeListArray.from_arrays(pa.array(offsets), items)


def _persons(lists: Sequence[Sequence[Person] | None], privacy: Privacy) -> pa.Array:
    """The pseudonym of the identity number where one is given, for it finds the person; else the key."""
    person = columns_of(Person, _flat(lists))
    keys: Sequence[str | None] = privacy.person_keys(person["id_number"])
    if not all(keys):
        own = privacy.clean_keys(person["key"])
        keys = [key if pseudonym is None else pseudonym for key, pseudonym in zip(own, keys, strict=True)]
    return _lists(lists, "persons", [_texts(keys), _texts(person["role"])])


def _photos(lists: Sequence[Sequence[Photo] | None]) -> pa.Array:
    photo = columns_of(Photo, _flat(lists))
    hashes = [sha256.lower() for sha256 in photo["sha256"]]
    return _lists(lists, "photos", [_texts(hashes), _times(photo["taken_at"])])
