"""Tables of case events and folded states, and the views that read them."""

from __future__ import annotations

from typing import Final

from pipeline.store.fold import HISTORY, STATE, TUPLE_TYPES, prefix, states_of

AS_OF: Final = "{as_of:DateTime64(3, 'UTC')}"

_TUPLE = ", ".join(f"{name} {kind}" for name, kind in TUPLE_TYPES.items())
_COLUMNS = ",\n        ".join(f"{name} {kind}" for name, (kind, _) in (HISTORY | STATE).items())

CASE_TABLES: Final = {
    # Small granules: a refresh reads some hundreds of cases scattered over the key.
    "case_events": f"""
    CREATE TABLE case_events
    (
        case_id String,
        events SimpleAggregateFunction(groupUniqArrayArray, Array(Tuple({_TUPLE})))
    )
    ENGINE = AggregatingMergeTree ORDER BY case_id
    SETTINGS index_granularity = 256, non_replicated_deduplication_window = 100000""",
    "cases": f"""
    CREATE TABLE cases
    (
        {_COLUMNS},
        stored_at DateTime64(3, 'UTC') DEFAULT now64(3)
    )
    ENGINE = ReplacingMergeTree(version) ORDER BY case_id
    SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 1000""",
}

_NAMES = ", ".join((*HISTORY, *STATE))

CASE_VIEWS: Final = {
    # What is known today about every case at an instant: the stored state where nothing happened since,
    # else the state at the end of the history until then.
    "case_states": f"""
    CREATE VIEW case_states AS
    SELECT {_NAMES} FROM cases FINAL WHERE last_event_at <= {AS_OF}
    UNION ALL
    SELECT {_NAMES} FROM (
        {states_of(prefix(f"SELECT * FROM cases FINAL WHERE last_event_at > {AS_OF} AND first_event_at <= {AS_OF}", AS_OF))}
    )""",
    "case_as_of": f"""
    CREATE VIEW case_as_of AS
    SELECT states.*, toUInt32(merged.merged_count) AS merged_count
    FROM case_states(as_of = {AS_OF}) AS states
    LEFT JOIN (
        SELECT assumeNotNull(primary_case_id) AS primary, count() AS merged_count
        FROM case_states(as_of = {AS_OF}) WHERE state = 'MERGED' GROUP BY primary
    ) AS merged ON merged.primary = states.case_id""",
    "case_current": "CREATE VIEW case_current AS SELECT * FROM case_as_of(as_of = now64(3, 'UTC'))",
}
