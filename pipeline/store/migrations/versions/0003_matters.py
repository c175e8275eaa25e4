"""The catalogue of matters as published to ClickHouse.

Revision: 0003
"""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled by the step that brings these tables."""


def downgrade() -> None:
    """Filled by the step that brings these tables."""
