"""Cases of erased persons, whose events no replay may give their texts back.

Written by pipeline/store/erase.py, read with `ref_erasures`.

Revision: 0013
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS ref_erased_cases
        (
            case_id String,
            erased_at DateTime64(3, 'UTC') COMMENT 'what was received until then has no texts and places',
            request_id String COMMENT 'of the request, as in the evidence'
        )
        ENGINE = ReplacingMergeTree(erased_at) ORDER BY case_id
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE ref_erased_cases")
