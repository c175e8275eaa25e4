"""Levels in `cases`: free words go, for they may name a person, and nothing of a case is erased.

Written since by `process/flow.py::case_events_of`, which keeps CASE_LEVELS only. Those in `case_events` go
with revision 0014.

Revision: 0012
"""

from __future__ import annotations

from alembic import op

from pipeline.store.case_views import LEVEL_WORDS

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    condition, update = LEVEL_WORDS
    op.execute(f"ALTER TABLE cases UPDATE {update} WHERE {condition}")


def downgrade() -> None:
    """The words are gone."""
