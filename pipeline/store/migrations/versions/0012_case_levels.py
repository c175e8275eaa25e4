"""Levels in the cases' tables: free words go, for they may name a person, and nothing of a case is erased.

Written since by `process/flow.py::case_events_of`, which keeps CASE_LEVELS only.

Revision: 0012
"""

from __future__ import annotations

from alembic import op

from pipeline.frames import CASE_LEVELS
from pipeline.store.fold import TUPLE_TYPES

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_WORDS = ", ".join(f"'{level}'" for level in CASE_LEVELS)


def upgrade() -> None:
    kept = ", ".join(
        f"if(e.level IN ({_WORDS}), e.level, NULL)" if name == "level" else f"e.{name}"
        for name in TUPLE_TYPES
    )
    kind = ", ".join(f"{name} {kind}" for name, kind in TUPLE_TYPES.items()).replace("'", "''")
    op.execute(
        f"ALTER TABLE case_events UPDATE events = arrayMap(e -> CAST(({kept}), 'Tuple({kind})'), events) "
        f"WHERE arrayExists(e -> e.level IS NOT NULL AND e.level NOT IN ({_WORDS}), events)"
    )
    op.execute(
        f"ALTER TABLE cases UPDATE level = if(level IN ({_WORDS}), level, NULL), "
        f"legal_levels = arrayMap(x -> if(x IN ({_WORDS}), x, ''), legal_levels) "
        f"WHERE arrayExists(x -> x NOT IN ('', {_WORDS}), legal_levels)"
    )


def downgrade() -> None:
    """The words are gone."""
