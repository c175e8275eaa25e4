"""Tables of case events and folded states, and the views that read them."""

from __future__ import annotations

from typing import Final

from pipeline.frames import CASE_LEVELS, RANK
from pipeline.store.ddl import MERGE_SETTINGS
from pipeline.store.entries import TUPLE, TUPLES_OF_ENTRIES
from pipeline.store.fold import HISTORY, STATE, states_at

AS_OF: Final = "{as_of:DateTime64(3, 'UTC')}"

_COLUMNS = ",\n        ".join(f"{name} {kind}" for name, (kind, _) in (HISTORY | STATE).items())

CASE_TABLES: Final = {
    # A round reads the sets of some hundreds of cases scattered over the key: small granules, each compressed
    # by itself, beside its key in one file. A worker writes and reads `entries`; `events` is the same in SQL.
    "case_events": f"""
    CREATE TABLE case_events
    (
        case_id String,
        entries SimpleAggregateFunction(groupUniqArrayArray, Array(String)),
        events Array({TUPLE}) ALIAS {TUPLES_OF_ENTRIES}
    )
    ENGINE = AggregatingMergeTree ORDER BY case_id
    SETTINGS index_granularity = 32, max_compress_block_size = 8192, min_compress_block_size = 4096,
        min_bytes_for_wide_part = 1000000000000, non_replicated_deduplication_window = 100000,
        {MERGE_SETTINGS}""",
    "cases": f"""
    CREATE TABLE cases
    (
        {_COLUMNS},
        stored_at DateTime64(3, 'UTC') DEFAULT now64(3)
    )
    ENGINE = ReplacingMergeTree(version) ORDER BY case_id
    SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 1000""",
}

_LEVELS = ", ".join(f"'{level}'" for level in CASE_LEVELS)
#: Which rows of `cases` hold something else than CASE_LEVELS, and the update that takes it away.
LEVEL_WORDS: Final = (
    f"arrayExists(level -> level NOT IN ('', {_LEVELS}), legal_levels)",
    (
        f"level = if(level IN ({_LEVELS}), level, NULL), "
        f"legal_levels = arrayMap(x -> if(x IN ({_LEVELS}), x, ''), legal_levels)"
    ),
)


def _case_view(as_of: str) -> str:
    """One row per case as of an instant, with the number of cases merged into it."""
    merges = states_at(as_of, ("case_id", "state", "primary_case_id"), f"has(legal_ranks, {RANK['MERGED']})")
    return f"""
    SELECT states.*, toUInt32(merged.merged_count) AS merged_count
    FROM ({states_at(as_of)}) AS states
    LEFT JOIN (
        SELECT assumeNotNull(primary_case_id) AS primary, count() AS merged_count
        FROM ({merges}) WHERE state = 'MERGED' GROUP BY primary
    ) AS merged ON merged.primary = states.case_id"""


# The views repeat their text instead of reading each other: a parameterised view is analysed anew at each
# level of nesting.
CASE_VIEWS: Final = {
    "case_as_of": f"CREATE VIEW case_as_of AS {_case_view(AS_OF)}",
    "case_current": "CREATE VIEW case_current AS " + _case_view("now64(3, 'UTC')"),
}
