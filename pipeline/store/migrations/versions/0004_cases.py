"""Case events, folded case states, and the views that define every KPI.

Revision: 0004
"""

from __future__ import annotations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled by the step that brings these tables."""


def downgrade() -> None:
    """Filled by the step that brings these tables."""
