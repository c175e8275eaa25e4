"""Fingerprints of the pseudonym keys that the rows were made with, so that another key is noticed at start.

Written and read by pipeline/store/key_ring.py.

Revision: 0011
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE IF NOT EXISTS pseudonym_keys
        (
            version UInt16,
            fingerprint String COMMENT 'keyed digest of a constant: tells keys apart and gives none away',
            retired Bool DEFAULT false COMMENT 'the key is destroyed, or about to be',
            noted_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'a version is what was noted first'
        )
        ENGINE = MergeTree ORDER BY (version, noted_at)
        SETTINGS non_replicated_deduplication_window = 1000
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE pseudonym_keys")
