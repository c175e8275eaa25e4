"""Case events, folded case states, and the views that define every KPI.

Revision: 0004
"""

from __future__ import annotations

from alembic import op

from pipeline.store.case_views import CASE_TABLES, CASE_VIEWS
from pipeline.store.ddl import repeatable
from pipeline.store.kpi_views import KPI_VIEWS

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in (*CASE_TABLES.values(), *CASE_VIEWS.values(), *KPI_VIEWS.values()):
        op.execute(repeatable(statement).replace(":", "\\:"))


def downgrade() -> None:
    for view in (*reversed(KPI_VIEWS), *reversed(CASE_VIEWS)):
        op.execute(f"DROP VIEW {view}")
    for table in reversed(CASE_TABLES):
        op.execute(f"DROP TABLE {table}")
