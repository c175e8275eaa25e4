"""Outcome tables: what became of every event received.

Each table holds one outcome; together they hold every position of the log exactly once.
Rows are ordered by position, so that a block's rows lie together, recovery reads a contiguous range, and
ReplacingMergeTree absorbs a block that was inserted again after the deduplication window.

Revision: 0001
"""

from __future__ import annotations

from alembic import op

from pipeline.store.ddl import OUTCOME_SETTINGS, POSITION, STORED_COLUMNS

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS incarnations
        (
            inc UInt64 COMMENT 'unix milliseconds of its creation; grows, so it orders positions',
            topic String,
            topic_id String COMMENT 'the broker''s id of the topic',
            cluster_id String,
            created_at DateTime64(3, 'UTC') DEFAULT now64(3)
        )
        ENGINE = ReplacingMergeTree ORDER BY (topic, inc)
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS events
        (
            {POSITION},
            {STORED_COLUMNS},
            stored_at DateTime64(3, 'UTC') DEFAULT now64(3),
            INDEX id_filter id_lo TYPE bloom_filter(0.001) GRANULARITY 1,
            INDEX case_id_filter case_id TYPE bloom_filter(0.001) GRANULARITY 1,
            INDEX occurred_at_range occurred_at TYPE minmax GRANULARITY 4
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY toYYYYMM(ingested_at)
        ORDER BY (_inc, _part, _off, _idx)
        {OUTCOME_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS rejections
        (
            {POSITION},
            {STORED_COLUMNS},
            primary_reason LowCardinality(String) MATERIALIZED reasons[1],
            stored_at DateTime64(3, 'UTC') DEFAULT now64(3),
            INDEX id_filter id_lo TYPE bloom_filter(0.001) GRANULARITY 1,
            INDEX occurred_at_range occurred_at TYPE minmax GRANULARITY 4
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY toYYYYMM(ingested_at)
        ORDER BY (_inc, _part, _off, _idx)
        {OUTCOME_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS duplicates
        (
            {POSITION},
            level LowCardinality(String),
            event_id String,
            source LowCardinality(String),
            event_type LowCardinality(String),
            case_id String,
            occurred_at DateTime64(3, 'UTC'),
            ingested_at DateTime64(3, 'UTC'),
            channel LowCardinality(String),
            matter_code LowCardinality(Nullable(String)),
            grid_code String,
            category LowCardinality(Nullable(String)),
            lead_department LowCardinality(Nullable(String)),
            original_source LowCardinality(String),
            original_event_id String,
            original_case_id String,
            content_hash UInt64 DEFAULT 0,
            stored_at DateTime64(3, 'UTC') DEFAULT now64(3),
            INDEX event_id_filter event_id TYPE bloom_filter(0.001) GRANULARITY 1,
            INDEX case_id_filter case_id TYPE bloom_filter(0.001) GRANULARITY 1
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY toYYYYMM(ingested_at)
        ORDER BY (_inc, _part, _off, _idx)
        {OUTCOME_SETTINGS}
        """
    )
    op.execute(
        f"""
        CREATE TABLE IF NOT EXISTS quarantine
        (
            {POSITION},
            reason LowCardinality(String),
            detail String,
            source Nullable(String),
            event_id Nullable(String),
            event_type LowCardinality(Nullable(String)),
            content_type LowCardinality(Nullable(String)),
            payload String COMMENT 'redacted, cut to 16 KiB',
            payload_bytes UInt32,
            ingested_at DateTime64(3, 'UTC'),
            stored_at DateTime64(3, 'UTC') DEFAULT now64(3)
        )
        ENGINE = ReplacingMergeTree
        PARTITION BY toYYYYMM(ingested_at)
        ORDER BY (_inc, _part, _off, _idx)
        {OUTCOME_SETTINGS}
        """
    )


def downgrade() -> None:
    for table in ("quarantine", "duplicates", "rejections", "events", "incarnations"):
        op.execute(f"DROP TABLE {table}")
