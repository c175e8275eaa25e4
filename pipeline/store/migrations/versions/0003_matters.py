"""The catalogue of matters as published to ClickHouse.

One row per matter and catalogue version. A publication writes every row anew under the next number; readers
take the rows of the last one: `WHERE publication = (SELECT max(publication) FROM ref_matters)`, with FINAL.
Written by pipeline/rules/publish.py at every start of a worker.

Revision: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS ref_matters
        (
            code LowCardinality(String),
            catalogue_version LowCardinality(String),
            catalogue_from DateTime64(3, 'UTC') COMMENT 'judges what happened from here on',
            catalogue_to Nullable(DateTime64(3, 'UTC')) COMMENT 'exclusive; null: the newest version',
            effective_from DateTime64(3, 'UTC'),
            effective_to Nullable(DateTime64(3, 'UTC')) COMMENT 'exclusive; null: in force',
            name_zh String,
            name_en String,
            category LowCardinality(String),
            category_name_zh String,
            category_name_en String,
            lead_department LowCardinality(String),
            lead_department_name_zh String,
            lead_department_name_en String,
            supporting_departments Array(LowCardinality(String)),
            urgency LowCardinality(String),
            response_limit_seconds UInt32 COMMENT 'without an emergency mode',
            resolution_limit_seconds UInt32,
            allowed_channels Array(LowCardinality(String)),
            required_fields Array(LowCardinality(String)),
            needs_person Bool,
            incident_window_seconds UInt32,
            incident_radius_m UInt32,
            emergency_modes Array(LowCardinality(String)) COMMENT 'modes that prioritise the matter',
            active_only_in_modes Array(LowCardinality(String)),
            temporary Bool,
            base_matter LowCardinality(Nullable(String)),
            approval_reference Nullable(String),
            batch Nullable(UInt8),
            approved_on Date,
            rules LowCardinality(String) COMMENT 'digest of the rule set, as in _rules',
            publication UInt64,
            published_at DateTime64(3, 'UTC') DEFAULT now64(3)
        )
        ENGINE = ReplacingMergeTree(publication) ORDER BY (catalogue_version, code)
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE ref_matters")
