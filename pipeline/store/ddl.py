"""Column lists that several tables share, in ClickHouse's words. The polars side is `pipeline.frames`."""

from __future__ import annotations

#: Identity of a row: topic incarnation, partition, record offset, index in the record; then the block that
#: it was inserted with, and the digest of the rules that judged it. Constant or monotone per part.
POSITION = """_inc UInt64 CODEC(Delta, ZSTD),
            _part UInt16 CODEC(ZSTD),
            _off UInt64 CODEC(Delta, ZSTD),
            _idx UInt32 CODEC(Delta, ZSTD),
            _blk_lo UInt64 CODEC(Delta, ZSTD),
            _blk_hi UInt64 CODEC(Delta, ZSTD),
            _rules LowCardinality(String)"""

#: Fewer, column-wise merges. The engine's own eagerness merged a block's eighty columns several times within
#: seconds: more processor time than the insert itself (measured: 150 → 74 ms of it per 8,000-row block).
MERGE_SETTINGS = """merge_selector_base = 20, vertical_merge_algorithm_min_rows_to_activate = 1,
            vertical_merge_algorithm_min_columns_to_activate = 1"""

#: Deduplication of inserts by token, pinned: the engine's defaults have moved before.
OUTCOME_SETTINGS = f"SETTINGS non_replicated_deduplication_window = 100000, {MERGE_SETTINGS}"

_TIME = "DateTime64(3, 'UTC')"
_WORD = "LowCardinality(String)"
_MAYBE_WORD = "LowCardinality(Nullable(String))"

#: ClickHouse type of every column of `frames.STORED` but the position.
STORED_TYPES: dict[str, str] = {
    "event_id": "String",
    "source": _WORD,
    "event_type": _WORD,
    "case_id": "String",
    "submission_id": "Nullable(String)",
    "occurred_at": _TIME,
    "ingested_at": _TIME,
    "channel": _WORD,
    "matter_code": _MAYBE_WORD,
    "grid_code": "LowCardinality(String)",
    "unit_code": "Nullable(String)",
    "actor_type": _WORD,
    "actor_key": "Nullable(String)",
    "actor_name": "Nullable(String)",
    "actor_phone": "Nullable(String)",
    "persons": "Array(Tuple(key Nullable(String), role Nullable(String)))",
    "lon": "Nullable(Float64)",
    "lat": "Nullable(Float64)",
    "crs": _MAYBE_WORD,
    "address": "Nullable(String)",
    "photos": f"Array(Tuple(sha256 Nullable(String), taken_at Nullable({_TIME})))",
    "title": "Nullable(String)",
    "description": "Nullable(String)",
    "organisation_code": "Nullable(String)",
    "organisation_name": "Nullable(String)",
    "due_at": f"Nullable({_TIME})",
    "primary_case_id": "Nullable(String)",
    "void_reason": "Nullable(String)",
    "rating": "Nullable(Int8)",
    "department": _MAYBE_WORD,
    "level": _MAYBE_WORD,
    "self_handled": "Nullable(Bool)",
    "attributes": "Nullable(String)",
    "backfill": "Bool",
    "key_version": "UInt16",
    "request_id": "Nullable(String)",
    "id_hi": "UInt64",
    "id_lo": "UInt64",
    "content_hash": "UInt64",
    "grid_found": "Nullable(Bool)",
    "grid_active": "Nullable(Bool)",
    "grid_version": "Nullable(UInt32)",
    "grid_name": "LowCardinality(Nullable(String))",
    "grid_type": _MAYBE_WORD,
    "grid_risk_tags": "Array(LowCardinality(String))",
    "unit_found": "Nullable(Bool)",
    "point_in_grid": "Nullable(Bool)",
    "point_distance_m": "Nullable(Float32)",
    "staff_found": "Nullable(Bool)",
    "staff_active": "Nullable(Bool)",
    "staff_kind": _MAYBE_WORD,
    "staff_department": _MAYBE_WORD,
    "staff_in_grid": "Nullable(Bool)",
    "staff_in_district": "Nullable(Bool)",
    "staff_channel_rights": "Array(LowCardinality(String))",
    "persons_given": "Nullable(UInt16)",
    "persons_found": "Nullable(UInt16)",
    "organisation_found": "Nullable(Bool)",
    "route_department": _MAYBE_WORD,
    "outcome": _WORD,
    "reasons": "Array(LowCardinality(String))",
    "missing_fields": "Array(LowCardinality(String))",
    "rule_results": "Array(UInt8)",
    "evidence_pending": "Bool",
    "life_safety": "Bool",
    "category": _MAYBE_WORD,
    "urgency": _MAYBE_WORD,
    "lead_department": _MAYBE_WORD,
    "response_limit_seconds": "Nullable(UInt32)",
    "resolution_limit_seconds": "Nullable(UInt32)",
    "mode": _MAYBE_WORD,
    "mode_level": _MAYBE_WORD,
    "catalogue_version": _MAYBE_WORD,
    "late_beyond_horizon": "Bool",
    "time_adjusted": "Bool",
    "district_code": "LowCardinality(String)",
    "town_code": "LowCardinality(String)",
    "village_code": "LowCardinality(String)",
    "person_facts": (
        "Array(Tuple(key Nullable(String), role Nullable(String), found Nullable(Bool), "
        "age_band Nullable(String), gender Nullable(String), residence_kind Nullable(String), "
        "home_grid_code Nullable(String), flags Array(String)))"
    ),
    "l2_hi": "Nullable(UInt64)",
    "l2_lo": "Nullable(UInt64)",
}

STORED_COLUMNS = ",\n            ".join(f"{name} {kind}" for name, kind in STORED_TYPES.items())


def repeatable(statement: str) -> str:
    """The statement, which creates a table or a view, so that it may be run again: nothing is undone, and
    a migration that was killed before its revision was written down begins anew.

    >>> repeatable("CREATE VIEW v AS SELECT 1")
    'CREATE OR REPLACE VIEW v AS SELECT 1'
    """
    for plain, again in (
        ("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS "),
        ("CREATE VIEW ", "CREATE OR REPLACE VIEW "),
    ):
        if statement.lstrip().startswith(plain):
            return statement.replace(plain, again, 1)
    raise ValueError(f"creates neither table nor view: {statement.strip()[:60]}")
