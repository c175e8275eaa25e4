"""Persons erased on request: pseudonyms that no load and no replay may bring back.

Revision: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS ref_erasures
        (
            person_key String COMMENT 'pseudonym of an identity number or a mobile number',
            key_version UInt16,
            erased_at DateTime64(3, 'UTC') COMMENT 'what was received until then is gone',
            request_id String COMMENT 'of the request, as in the evidence'
        )
        ENGINE = ReplacingMergeTree(erased_at) ORDER BY person_key
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE ref_erasures")
