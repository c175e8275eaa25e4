"""Schemas of the polars frames that travel between stages. Every stage takes and gives exactly these.

Times are `Datetime("ms", "UTC")`. A frame is named for its rows. The tables of
`store/migrations` have the same columns, so that a frame can be inserted as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from pipeline.errors import ContractError

Schema = dict[str, pl.DataType]

TIMESTAMP: Final = pl.Datetime("ms", "UTC")
PERSON: Final = pl.Struct({"key": pl.String(), "role": pl.String()})
PHOTO: Final = pl.Struct({"sha256": pl.String(), "taken_at": TIMESTAMP})

#: The columns of an Arrow block on the topic: one accepted event per row, personal data already replaced.
#: `actor_key` is the plain worker key of staff, else the pseudonym of the actor's id number, else of the
#: phone, else the source's own key. `attributes` is canonical JSON of the whole attributes object; the
#: attributes that the fold needs have columns of their own.
EVENT: Final[Schema] = {
    "event_id": pl.String(),
    "source": pl.String(),
    "event_type": pl.String(),
    "case_id": pl.String(),
    "submission_id": pl.String(),
    "occurred_at": TIMESTAMP,
    "ingested_at": TIMESTAMP,
    "channel": pl.String(),
    "matter_code": pl.String(),
    "grid_code": pl.String(),  # 15 digits
    "unit_code": pl.String(),  # grid code + "-Unnn", or null
    "actor_type": pl.String(),
    "actor_key": pl.String(),
    "actor_name": pl.String(),  # masked
    "actor_phone": pl.String(),  # masked
    "persons": pl.List(PERSON),
    "lon": pl.Float64(),
    "lat": pl.Float64(),
    "crs": pl.String(),
    "address": pl.String(),
    "photos": pl.List(PHOTO),
    "title": pl.String(),
    "description": pl.String(),
    "organisation_code": pl.String(),
    "organisation_name": pl.String(),
    "due_at": TIMESTAMP,
    "primary_case_id": pl.String(),
    "void_reason": pl.String(),
    "rating": pl.Int8(),
    "department": pl.String(),
    "level": pl.String(),
    "self_handled": pl.Boolean(),
    "attributes": pl.String(),
    "backfill": pl.Boolean(),  # the caller's credential exempts it from TOO_OLD and the late flags
    "key_version": pl.UInt16(),  # pseudonym key version
    "request_id": pl.String(),  # gateway request, null for direct records
}

#: Where a row came from: partition, record offset, index in the record. With the topic incarnation
#: (constant per block, added by the sink) this is the row's identity and the order of arrival.
POSITION: Final[Schema] = {"_part": pl.UInt16(), "_off": pl.UInt64(), "_idx": pl.UInt32()}

#: What `decode` gives: the event, its position, and the hashes that deduplication needs.
#: id_hi, id_lo: 128 bit of (source, event_id); content_hash: of everything the client sent.
DECODED: Final[Schema] = {
    **EVENT,
    **POSITION,
    "id_hi": pl.UInt64(),
    "id_lo": pl.UInt64(),
    "content_hash": pl.UInt64(),
}

#: What `decode` (malformed) and `deduplicate` (ID_CONFLICT) refuse. `payload` is redacted and cut.
QUARANTINED: Final[Schema] = {
    **POSITION,
    "reason": pl.String(),  # MALFORMED, UNSUPPORTED_VERSION, ID_CONFLICT, UNSTORABLE
    "detail": pl.String(),
    "source": pl.String(),
    "event_id": pl.String(),
    "event_type": pl.String(),
    "content_type": pl.String(),
    "payload": pl.String(),
    "payload_bytes": pl.UInt32(),
    "ingested_at": TIMESTAMP,
}

PERSON_FACT: Final = pl.Struct(
    {
        "key": pl.String(),
        "role": pl.String(),
        "found": pl.Boolean(),
        "age_band": pl.String(),
        "gender": pl.String(),
        "residence_kind": pl.String(),
        "home_grid_code": pl.String(),
        "flags": pl.List(pl.String()),  # only those that the matter may see (base data, section 3)
    }
)

#: What the reference data says about a row, before any rule is evaluated. Same height and order as the
#: rows looked up. Null where the question makes no sense (no location: point_in_grid is null).
FEATURES: Final[Schema] = {
    "grid_found": pl.Boolean(),  # any version of this code exists
    "grid_active": pl.Boolean(),  # a version is valid at occurred_at and its status is active
    "grid_version": pl.UInt32(),
    "grid_name": pl.String(),
    "grid_type": pl.String(),
    "grid_risk_tags": pl.List(pl.String()),
    "unit_found": pl.Boolean(),  # null without a unit code
    "point_in_grid": pl.Boolean(),  # inside the polygon plus tolerance; null without point or grid version
    "point_distance_m": pl.Float32(),  # 0 inside
    "staff_found": pl.Boolean(),
    "staff_active": pl.Boolean(),  # employed at occurred_at
    "staff_kind": pl.String(),
    "staff_department": pl.String(),
    "staff_in_grid": pl.Boolean(),  # own or lent grid at occurred_at
    "staff_in_district": pl.Boolean(),
    "staff_channel_rights": pl.List(pl.String()),
    "persons_given": pl.UInt16(),
    "persons_found": pl.UInt16(),
    "organisation_found": pl.Boolean(),  # null without an organisation code
    "route_department": pl.String(),  # the grid's department for this matter's category, if it names one
}

#: What `admit` decides. `rule_results`: 13 entries in rule order, 1 true, 0 false, 2 unknown
#: (rule 1 is always 1 here; empty for rows that are not REPORTED).
DECISION: Final[Schema] = {
    "outcome": pl.String(),  # admitted | rejected | recorded
    "reasons": pl.List(pl.String()),  # rule order, the first is the primary one
    "missing_fields": pl.List(pl.String()),
    "rule_results": pl.List(pl.UInt8()),
    "evidence_pending": pl.Boolean(),
    "life_safety": pl.Boolean(),
    "category": pl.String(),
    "urgency": pl.String(),
    "lead_department": pl.String(),
    "response_limit_seconds": pl.UInt32(),
    "resolution_limit_seconds": pl.UInt32(),
    "mode": pl.String(),  # strongest active mode that acted on this report, null if none
    "mode_level": pl.String(),  # I, II, III, IV
    "catalogue_version": pl.String(),  # in force at occurred_at
    "late_beyond_horizon": pl.Boolean(),  # more than 7 days after occurred_at, not backfilled
    "time_adjusted": pl.Boolean(),  # lay in the future (not REPORTED): ingested_at stands in for occurred_at
}

#: What `enrich` adds beside the features and the decision.
ENRICHMENT: Final[Schema] = {
    "district_code": pl.String(),
    "town_code": pl.String(),
    "village_code": pl.String(),
    "person_facts": pl.List(PERSON_FACT),
}

#: l2_hi, l2_lo: 128 bit of a report's content for resend detection, null where L2 does not apply.
#: A row of `events` (outcome admitted or recorded) and of `rejections` (outcome rejected).
STORED: Final[Schema] = {
    **DECODED,
    **FEATURES,
    **DECISION,
    **ENRICHMENT,
    "l2_hi": pl.UInt64(),
    "l2_lo": pl.UInt64(),
}

#: A row of `duplicates`: L1 redelivery of an id, L2 resend of a report's content.
DUPLICATE: Final[Schema] = {
    **POSITION,
    "level": pl.String(),  # L1 | L2
    "event_id": pl.String(),
    "source": pl.String(),
    "event_type": pl.String(),
    "case_id": pl.String(),
    "occurred_at": TIMESTAMP,
    "ingested_at": TIMESTAMP,
    "channel": pl.String(),
    "matter_code": pl.String(),
    "grid_code": pl.String(),
    "category": pl.String(),
    "lead_department": pl.String(),
    "original_source": pl.String(),
    "original_event_id": pl.String(),
    "original_case_id": pl.String(),
    "content_hash": pl.UInt64(),  # of an L2 duplicate, so that its own redeliveries are recognised
    "key_version": pl.UInt16(),  # of the pseudonyms in that content
}

#: One event as the case fold sees it; `sink` packs it into the tuple of `case_events`.
CASE_EVENT: Final[Schema] = {
    "case_id": pl.String(),
    "occurred_at": TIMESTAMP,  # fold time: ingested_at where time_adjusted
    "rank": pl.UInt8(),  # RANK[event_type]; unique per type
    "event_id": pl.String(),
    "source": pl.String(),
    **POSITION,
    "ingested_at": TIMESTAMP,
    "outcome": pl.UInt8(),  # 0 recorded, 1 admitted, 2 rejected, 3 an L2 duplicate of another report
    "response_limit_seconds": pl.UInt32(),
    "resolution_limit_seconds": pl.UInt32(),
    "due_at": TIMESTAMP,
    "primary_case_id": pl.String(),  # MERGED: the primary; outcome 3: the case it duplicates
    "self_handled": pl.Boolean(),
    "rating": pl.Int8(),
    "department": pl.String(),  # named by DISPATCHED
    "level": pl.String(),  # named by ESCALATED; one of CASE_LEVELS
    "evidence_pending": pl.Boolean(),
    "backfill": pl.Boolean(),
    "channel": pl.String(),
    "matter_code": pl.String(),
    "grid_code": pl.String(),
    "category": pl.String(),
    "lead_department": pl.String(),
}

_LEVELS_ZH: Final = (
    "最小单元", "网格", "村", "社区", "村居", "镇", "街道", "镇街", "区", "县", "区县", "市", "省",
)  # fmt: skip
#: What a case keeps of the level that a case is raised to (提级办理). The attribute is free text, and a case,
#: which no erasure and no retention reaches, must not hold words that may name a person.
CASE_LEVELS: Final = (
    "unit", "grid", "village", "community", "town", "street", "county", "district", "city", "province",
    *"123456789",
    *_LEVELS_ZH,
    *(f"{level}级" for level in _LEVELS_ZH),
)  # fmt: skip

#: An entry of a case's set: the event as the fold sees it, and the topic incarnation of its position.
CASE_SET: Final[Schema] = {**CASE_EVENT, "_inc": pl.UInt64()}

#: Emergency modes in force (`ref_modes`).
MODE: Final[Schema] = {
    "mode": pl.String(),  # flood | typhoon | epidemic | heat
    "level": pl.String(),  # IV (lowest) … I
    "area_code": pl.String(),  # 4407 the city, 6 digits a district, 9 a town
    "valid_from": TIMESTAMP,
    "valid_to": TIMESTAMP,  # null: open
    "authority": pl.String(),
    "version": pl.UInt32(),
}

#: Lifecycle event types in the row order of the domain's table; the rank orders events of one instant.
EVENT_TYPES: Final = (
    "DISCOVERED", "REPORTED", "ADMITTED", "REJECTED", "MERGED", "UNMERGED", "ACCEPTED", "DISPATCHED",
    "SIGNED", "RETURNED", "ARRIVED", "HANDLING", "EXTENDED", "ESCALATED", "RESOLVED", "REWORK", "CLOSED",
    "FEEDBACK", "REOPENED", "ARCHIVED", "VOIDED",
)  # fmt: skip
RANK: Final = {event_type: number for number, event_type in enumerate(EVENT_TYPES, start=1)}
#: Clients send all but these, which the pipeline itself decides.
PIPELINE_EVENT_TYPES: Final = ("ADMITTED", "REJECTED")


NO_DUPLICATES: Final = pl.DataFrame(schema=DUPLICATE)
NO_QUARANTINED: Final = pl.DataFrame(schema=QUARANTINED)


def beside(columns: Sequence[pl.Series]) -> pl.DataFrame:
    """A frame of these columns. The constructor takes 50 to 160 µs for twenty of them, this 7."""
    first, *others = columns
    return first.to_frame().hstack(others)


def with_own_texts(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows in one piece, with texts of their own: a slice, a filter or a selection of rows holds on
    to the texts of all that it came from, for as long as it lives."""
    rows = rows.rechunk()
    for at, column in enumerate(rows.get_columns()):
        # in two buffers: texts so short that they lie in the column itself, half of all columns of texts
        if (
            column.dtype == pl.String()
            and len(column.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()) > 2
        ):
            own = pl.Series(column.name, column.to_arrow(compat_level=pl.CompatLevel.oldest()))
            rows.replace_column(at, own)
    return rows


def null_counts(frame: pl.DataFrame) -> dict[str, int]:
    """How many nulls each column holds."""
    return dict(zip(frame.columns, frame.null_count().row(0), strict=True))


def expect(frame: pl.DataFrame, schema: Schema, name: str) -> pl.DataFrame:
    """Return `frame` with exactly the columns of `schema`, in its order.

    Raises ContractError naming every column that is missing or has another dtype.
    """
    if frame.columns == list(schema) and frame.dtypes == list(schema.values()):
        return frame
    found = frame.schema
    wrong = [
        f"{column} is {found.get(column, 'missing')}, must be {dtype}"
        for column, dtype in schema.items()
        if found.get(column) != dtype
    ]
    if wrong:
        raise ContractError(f"{name}: " + "; ".join(wrong))
    return frame[list(schema)]
