"""Small parts in one file each.

A part of `events` in its wide form is some 250 files, and one of `cases` 200: making and deleting them for
each block took half of an insert's time, most of it in the file system's search for a free inode. A part
stays compact until it holds more than a large block does; merges make wide ones of them, column by column.

Revision: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("events", "rejections", "duplicates", "quarantine", "case_events", "cases")
#: Uncompressed; a block of 50,000 events has 45 MB.
_BYTES = 64 * 1024 * 1024


def upgrade() -> None:
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} MODIFY SETTING min_bytes_for_wide_part = {_BYTES}")


def downgrade() -> None:
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} RESET SETTING min_bytes_for_wide_part")
