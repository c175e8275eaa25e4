"""Events to the frame that travels: one row each, personal data replaced, exactly `frames.EVENT`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Final

import msgspec
import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from pipeline.contract.event import Attributes, Event
from pipeline.contract.privacy import Privacy, cut_address, mask_name, mask_phone, redact, redact_column
from pipeline.frames import EVENT, PERSON, PHOTO, TIMESTAMP

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_NONE: Final = Attributes()
_TEXTS: Final = ("title", "description", "address", "organisation_name")


def to_frame(
    events: Sequence[Event],
    *,
    ingested_at: Sequence[datetime] | datetime,
    request_id: Sequence[str] | str | None,
    backfill: Sequence[bool] | bool,
    privacy: Privacy,
) -> pl.DataFrame:
    """Rows of `frames.EVENT`, same height and order as `events`.

    ingested_at : receipt, one for all or one each; with a zone. request_id, backfill : likewise.
    Times are cut to milliseconds, texts put in NFC and redacted, identity numbers and phones pseudonymised,
    names masked. `persons` and `photos` are empty lists where the event gives none.
    """
    count = len(events)
    actors = [event.actor for event in events]
    places = [event.location for event in events]
    firms = [event.organisation for event in events]
    grids = [event.grid_code for event in events]
    given = [_attributes(event) for event in events]
    received = [ingested_at] * count if isinstance(ingested_at, datetime) else ingested_at
    exempt = [backfill] * count if isinstance(backfill, bool) else backfill
    requests = [request_id] * count if request_id is None or isinstance(request_id, str) else request_id
    columns: dict[str, Iterable[Any] | pl.Series] = {
        "event_id": [event.event_id for event in events],
        "source": [event.source for event in events],
        "event_type": [event.event_type for event in events],
        "case_id": [event.case_id for event in events],
        "submission_id": [event.submission_id for event in events],
        "occurred_at": _times(event.occurred_at for event in events),
        "ingested_at": _times(received),
        "channel": [event.channel for event in events],
        "matter_code": [event.matter_code for event in events],
        "grid_code": [code[:15] for code in grids],
        "unit_code": [code if len(code) > 15 else None for code in grids],
        "actor_type": [actor.type for actor in actors],
        "actor_key": [_actor_key(actor.key, actor.id_number, actor.phone, privacy) for actor in actors],
        "actor_name": [None if actor.name is None else mask_name(actor.name) for actor in actors],
        "actor_phone": [None if actor.phone is None else mask_phone(actor.phone) for actor in actors],
        "persons": _persons(events, privacy),
        "lon": [None if place is None else place.lon for place in places],
        "lat": [None if place is None else place.lat for place in places],
        "crs": [None if place is None else place.crs for place in places],
        "address": [
            None if place is None or not place.address else cut_address(place.address) for place in places
        ],
        "photos": _photos(events),
        "title": [event.title for event in events],
        "description": [event.description for event in events],
        "organisation_code": [None if firm is None else firm.code for firm in firms],
        "organisation_name": [None if firm is None else firm.name for firm in firms],
        "due_at": _times(item.due_at for item in given),
        "primary_case_id": [item.primary_case_id for item in given],
        "void_reason": [None if item.reason is None else redact(item.reason) for item in given],
        "rating": [item.rating for item in given],
        "department": [item.department for item in given],
        "level": [None if item.level is None else redact(str(item.level)) for item in given],
        "self_handled": [item.self_handled for item in given],
        "attributes": [_canonical(event.attributes) for event in events],
        "backfill": exempt,
        "key_version": pl.repeat(privacy.key_version, count, dtype=pl.UInt16, eager=True),
        "request_id": requests,
    }
    frame = pl.DataFrame(
        [
            column.rename(name)
            if isinstance(column, pl.Series)
            else pl.Series(name, column, dtype=EVENT[name])
            for name, column in columns.items()
        ]
    )
    texts = [redact_column(frame[name].str.normalize("NFC")) for name in _TEXTS]
    return frame.with_columns(texts)


def _times(values: Iterable[datetime | None]) -> pl.Series:
    """Milliseconds since the epoch, cut, not rounded."""
    return pl.Series(
        [None if value is None else (value - _EPOCH) // _MILLISECOND for value in values], dtype=pl.Int64
    ).cast(TIMESTAMP)


def _attributes(event: Event) -> Attributes:
    return _NONE if event.attributes is None else msgspec.convert(event.attributes, Attributes)


def _actor_key(key: str | None, id_number: str | None, phone: str | None, privacy: Privacy) -> str | None:
    if key is not None:
        return privacy.clean_key(key)
    if id_number is not None:
        return privacy.person_key(id_number)
    return None if phone is None else privacy.phone_key(phone)


def _canonical(attributes: dict[str, Any] | None) -> str | None:
    """Sorted JSON of the attributes without personal numbers; null where there is none."""
    if not attributes:
        return None
    clean: dict[str, Any] = {}
    for name, value in attributes.items():
        # A phone number sent as a JSON number is as personal as one sent as text.
        if isinstance(value, str):
            clean[redact(name)] = redact(value)
        elif (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (text := str(value)) != (shown := redact(text))
        ):
            clean[redact(name)] = shown
        else:
            clean[redact(name)] = value
    return orjson.dumps(clean, option=orjson.OPT_SORT_KEYS).decode()


def _lists(lengths: Iterable[int], fields: dict[str, pl.Series], dtype: pl.Struct) -> pl.Series:
    """A list column: `lengths` says how many items of the flat `fields` belong to each row."""
    offsets = np.fromiter(accumulate(lengths, initial=0), np.int64)
    items = pl.DataFrame(fields).to_struct().cast(dtype).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), items), dtype=pl.List(dtype))


def _persons(events: Sequence[Event], privacy: Privacy) -> pl.Series:
    """The pseudonym of the identity number where one is given, for it finds the person; else the key."""
    persons = [person for event in events for person in event.persons or ()]
    keys = [
        privacy.person_key(person.id_number)
        if person.id_number is not None
        else (None if person.key is None else privacy.clean_key(person.key))
        for person in persons
    ]
    fields = {
        "key": pl.Series(keys, dtype=pl.String),
        "role": pl.Series([person.role for person in persons], dtype=pl.String),
    }
    return _lists((len(event.persons or ()) for event in events), fields, PERSON)


def _photos(events: Sequence[Event]) -> pl.Series:
    photos = [photo for event in events for photo in event.photos or ()]
    fields = {
        "sha256": pl.Series([photo.sha256 for photo in photos], dtype=pl.String).str.to_lowercase(),
        "taken_at": _times(photo.taken_at for photo in photos),
    }
    return _lists((len(event.photos or ()) for event in events), fields, PHOTO)
