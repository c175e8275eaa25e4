"""Rule sets that were in force, so that a block that was begun can be finished by the same rules.

Written by pipeline/rules/archive.py whenever rules come into force.

Revision: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS rule_sets
        (
            digest String COMMENT 'as in _rules',
            files Map(String, String) COMMENT 'path in the catalogue directory -> text',
            kept_at DateTime64(3, 'UTC') DEFAULT now64(3)
        )
        ENGINE = ReplacingMergeTree ORDER BY digest
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE rule_sets")
