"""Reference data: slowly changing tables of grids, units, staff, organisations, persons, modes.

Revision: 0002
"""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled by the step that brings these tables."""


def downgrade() -> None:
    """Filled by the step that brings these tables."""
