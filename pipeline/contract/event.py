"""The event as a feeding system sends it: the one definition of the contract.

`schemas/event.v1.json` is generated from these types (`python -m pipeline.contract.schema`); gateway and
worker decode JSON straight into them. What one field alone can tell is a constraint on its type; what
depends on another field is in `contract.faults`. A code that is well formed but unknown (matter, grid,
channel) passes here: admission judges it.

The form of a text (`Form`) is the one constraint that the plain decoder leaves out: a regular expression per
field costs three times the rest of the decoding. `contract.forms` checks it over many events at once, and
`contract.exact` makes the decoder that says which field of which event is at fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from pipeline.frames import EVENT_TYPES, PIPELINE_EVENT_TYPES

SCHEMA_VERSION: Final = 1

#: `$` alone would let a final newline pass in Python; the lookahead closes that and means nothing elsewhere.
END: Final = r"$(?!\n)"


@dataclass(frozen=True)
class Form:
    """What a text must look like as a whole: a regular expression that no line break matches."""

    expression: str

    @property
    def pattern(self) -> str:
        return f"^{self.expression}{END}"


ID: Final = Form(r"[A-Za-z0-9._:-]{1,64}")
KEY: Final = Form(r"[A-Za-z0-9._:@/+=-]{1,128}")
CODE: Final = Form(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
GRID: Final = Form(r"[0-9]{15}(-U[0-9]{3})?")
ORGANISATION_CODE: Final = Form(r"[A-Za-z0-9._-]{1,64}")
SHA256: Final = Form(r"[0-9A-Fa-f]{64}")

ID_PATTERN: Final = ID.pattern

MAX_ATTRIBUTES: Final = 32
MAX_INT64: Final = 2**63 - 1
#: `occurred_at` and every other time must lie in [EARLIEST, LATEST): what every store on the way can hold.
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)

LOWEST_RATING, HIGHEST_RATING = 1, 5

CLIENT_EVENT_TYPES: Final = tuple(name for name in EVENT_TYPES if name not in PIPELINE_EVENT_TYPES)

EventType = Literal[
    "DISCOVERED", "REPORTED", "MERGED", "UNMERGED", "ACCEPTED", "DISPATCHED", "SIGNED", "RETURNED", "ARRIVED",
    "HANDLING", "EXTENDED", "ESCALATED", "RESOLVED", "REWORK", "CLOSED", "FEEDBACK", "REOPENED", "ARCHIVED",
    "VOIDED",
]  # fmt: skip
ActorType = Literal[
    "full_time", "part_time", "professional", "unit_head", "leader", "police_deputy", "clerk", "department",
    "citizen", "firm", "volunteer", "device", "system",
]  # fmt: skip
PersonRole = Literal["subject", "party", "contact", "reporter"]
Crs = Literal["wgs84", "gcj02"]

Id = Annotated[str, Meta(max_length=64), ID]
Key = Annotated[str, Meta(max_length=128), KEY]
Code = Annotated[str, Meta(max_length=64), CODE]
Time = Annotated[datetime, Meta(tz=True)]
Text100 = Annotated[str, Meta(max_length=100)]
Text200 = Annotated[str, Meta(max_length=200)]
Text500 = Annotated[str, Meta(max_length=500)]
Scalar = (
    Annotated[str, Meta(max_length=1000)]
    | Annotated[int, Meta(ge=-(2**63), le=MAX_INT64)]
    | float
    | bool
    | None
)


class Actor(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """Reporter or handler. `id_number` and `phone` are pseudonymised, `name` is masked, at the gateway."""

    type: ActorType
    key: Key | None = None
    id_number: Annotated[str, Meta(min_length=6, max_length=40)] | None = None
    phone: Annotated[str, Meta(min_length=3, max_length=40)] | None = None
    name: Text100 | None = None


class Person(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A person concerned."""

    role: PersonRole
    key: Key | None = None
    id_number: Annotated[str, Meta(min_length=6, max_length=40)] | None = None


class Location(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A point in degrees and its coordinate system; Chinese phone maps give `gcj02`."""

    lon: Annotated[float, Meta(ge=-180, le=180)]
    lat: Annotated[float, Meta(ge=-90, le=90)]
    crs: Crs
    address: Text500 | None = None


class Photo(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """The hash of a photo; the photo itself stays with the feeding system."""

    sha256: Annotated[str, SHA256]
    taken_at: Time | None = None


class Organisation(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A firm or body concerned; at least one of the two is given."""

    code: Annotated[str, Meta(max_length=64), ORGANISATION_CODE] | None = None
    name: Text200 | None = None


class EventBody(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True, gc=False):
    """What a CloudEvent carries in `data`: the event without what its envelope says."""

    channel: Code
    grid_code: Annotated[str, GRID]
    actor: Actor
    matter_code: Code | None = None
    submission_id: Id | None = None
    persons: Annotated[list[Person], Meta(max_length=100)] | None = None
    location: Location | None = None
    photos: Annotated[list[Photo], Meta(max_length=50)] | None = None
    title: Text200 | None = None
    description: Annotated[str, Meta(max_length=4000)] | None = None
    organisation: Organisation | None = None
    attributes: (
        Annotated[
            dict[Annotated[str, Meta(min_length=1, max_length=64)], Scalar], Meta(max_length=MAX_ATTRIBUTES)
        ]
        | None
    ) = None


class Event(EventBody, forbid_unknown_fields=True, kw_only=True, frozen=True, gc=False):
    """One event; (`source`, `event_id`) is its identity. A field that is null counts as absent."""

    event_id: Id
    source: Id
    event_type: EventType
    case_id: Id
    occurred_at: Time


class Attributes(Struct, forbid_unknown_fields=False, frozen=True, gc=False):
    """The attributes that mean something to a case; other names are free.

    due_at, primary_case_id and reason are required on the event types of `REQUIRED_ATTRIBUTE`.
    """

    due_at: Time | None = None
    primary_case_id: Id | None = None
    reason: Annotated[str, Meta(max_length=500)] | None = None
    rating: Annotated[int, Meta(ge=LOWEST_RATING, le=HIGHEST_RATING)] | None = None
    department: Code | None = None
    level: str | int | None = None
    self_handled: bool | None = None


REQUIRED_ATTRIBUTE: Final = {"EXTENDED": "due_at", "MERGED": "primary_case_id", "VOIDED": "reason"}
RESERVED_ATTRIBUTES: Final = frozenset(Attributes.__struct_fields__)

#: Every code that an error can carry; a closed set, so that it can label a metric.
CODES: Final = {
    "malformed_json": "the text is not JSON, or the line is not one JSON document",
    "not_an_object": "an event must be a JSON object",
    "empty_body": "the body holds nothing",
    "empty_batch": "the batch holds no event",
    "too_deep": "the document is nested too deeply",
    "too_many_events": "the request holds more events than one request may",
    "bad_encoding": "the text is not UTF-8, or holds half a surrogate pair",
    "unknown_field": "the field is not part of the contract",
    "missing_field": "a required field is absent or null",
    "bad_type": "the value has another JSON type",
    "bad_pattern": "the text does not have the required form",
    "unknown_value": "the value is not one of the closed list",
    "out_of_range": "the number or time lies outside its range",
    "too_long": "the text or list is longer than allowed",
    "too_short": "the text is shorter than allowed",
    "bad_time": "not an RFC 3339 time with a zone",
    "bad_text": "the text holds control characters",
    "personal_data_in_id": "an id, key or code holds an identity or mobile number",
    "source_not_allowed": "the credential does not cover this source",
    "unsupported_version": "the event is of a schema version that is not known here",
    "not_written": "the partition of this event cannot be written at present",
    "not_confirmed": "the event was sent but not confirmed in time; send it again",
}
#: Sending the same event again can succeed.
RETRYABLE_CODES: Final = frozenset({"not_written", "not_confirmed"})
