"""The sets of cases as texts: `case_events` is made anew.

A worker of an older release cannot write into the new table: it ends at its next round, nothing is committed,
and the newer version reads that round again. What readers ask for, `events`, is there under its name; until
all is copied, cases lack some of theirs.

Revision: 0014
"""

from __future__ import annotations

from typing import Any

import structlog
from alembic import op

from pipeline.store.case_views import CASE_TABLES
from pipeline.store.ddl import repeatable
from pipeline.store.entries import ENTRIES_OF_TUPLES

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_OLD = "case_events_of_tuples"
#: Copied by one statement: some seconds, less than any bound on a statement.
_ROWS = 100_000
log = structlog.get_logger(__name__)


def upgrade() -> None:
    # The old table is renamed first: nothing can be written into it while it is copied, and what a killed
    # migration has copied is copied again, for a set holds an entry once.
    if _exists("case_events") and "entries" not in {row[0] for row in _rows("DESCRIBE TABLE case_events")}:
        _run(f"RENAME TABLE case_events TO {_OLD}")
    _run(repeatable(CASE_TABLES["case_events"]))
    if not _exists(_OLD):
        return
    ((rows,),), done, last = _rows(f"SELECT count() FROM {_OLD}"), 0, ""
    while True:
        ahead = f"SELECT case_id FROM {_OLD} WHERE case_id > '{last}' ORDER BY case_id LIMIT {_ROWS}"
        ((upto,),) = _rows(f"SELECT max(case_id) FROM ({ahead})")
        if not upto:
            break
        _run(
            f"INSERT INTO case_events (case_id, entries) SELECT case_id, {ENTRIES_OF_TUPLES} FROM {_OLD} "
            f"WHERE case_id > '{last}' AND case_id <= '{upto}'"
        )
        last, done = upto, done + _ROWS
        log.info("case_events_copied", rows=min(done, rows), of=rows)
    _run(f"DROP TABLE {_OLD}")


def downgrade() -> None:
    """The tuples are gone; `events` gives them."""


def _run(statement: str) -> None:
    op.get_bind().exec_driver_sql(statement)


def _rows(query: str) -> list[Any]:
    return list(op.get_bind().exec_driver_sql(query).all())


def _exists(table: str) -> bool:
    return bool(_rows(f"EXISTS TABLE {table}")[0][0])
