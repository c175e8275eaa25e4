"""The pseudonym key of a resent report, beside the hash of its content.

Pseudonyms are part of that content: redeliveries across the activation of a key are told by it.

Revision: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        "ALTER TABLE duplicates ADD COLUMN IF NOT EXISTS key_version UInt16 DEFAULT 0 "
        "COMMENT '0: not known' AFTER content_hash"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE duplicates DROP COLUMN key_version")
