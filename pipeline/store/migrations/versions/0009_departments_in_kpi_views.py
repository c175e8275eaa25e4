"""KPI views that find a report's department.

By department they compared the parameter with a name that it never has, and told no report, duplicate or
orphan. A view keeps the text that it was created with.

Revision: 0009
"""

from __future__ import annotations

from alembic import op

from pipeline.store.ddl import repeatable
from pipeline.store.kpi_views import KPI_VIEWS

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in KPI_VIEWS.values():  # in one step: an api may be reading
        op.execute(repeatable(statement).replace(":", "\\:"))


def downgrade() -> None:
    """The views stay as they are: the former text gives wrong figures."""
