"""Case events, folded case states, and the views that define every KPI.

Revision: 0004
"""

from __future__ import annotations

from alembic import op

from pipeline.store.case_views import CASE_TABLES, CASE_VIEWS
from pipeline.store.ddl import MERGE_SETTINGS, repeatable
from pipeline.store.entries import TUPLE
from pipeline.store.kpi_views import KPI_VIEWS

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: Until revision 0014.
_CASE_EVENTS = f"""
    CREATE TABLE case_events
    (
        case_id String,
        events SimpleAggregateFunction(groupUniqArrayArray, Array({TUPLE}))
    )
    ENGINE = AggregatingMergeTree ORDER BY case_id
    SETTINGS index_granularity = 256, non_replicated_deduplication_window = 100000, {MERGE_SETTINGS}"""
_TABLES = CASE_TABLES | {"case_events": _CASE_EVENTS}


def upgrade() -> None:
    for statement in (*_TABLES.values(), *CASE_VIEWS.values(), *KPI_VIEWS.values()):
        op.execute(repeatable(statement).replace(":", "\\:"))


def downgrade() -> None:
    for view in (*reversed(KPI_VIEWS), *reversed(CASE_VIEWS)):
        op.execute(f"DROP VIEW {view}")
    for table in reversed(CASE_TABLES):
        op.execute(f"DROP TABLE {table}")
