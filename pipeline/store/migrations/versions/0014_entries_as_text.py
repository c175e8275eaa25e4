"""The sets of cases as texts: `case_events` is made anew.

A worker of an older release cannot write into the new table: it ends at its next round, nothing is committed,
and the newer version reads that round again. What readers ask for, `events`, is there under its name; until
all is copied, cases lack some of theirs.

Revision: 0014
"""

from __future__ import annotations

import uuid
from typing import Any, cast

import structlog
from alembic import op
from clickhouse_connect.driver.client import Client

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
    # of the client, for an insert needs a token, and SQLAlchemy hands on no settings
    client: Client = cast("Any", op.get_bind().connection.dbapi_connection).client
    # The old table is renamed first: nothing can be written into it while it is copied, and what a killed
    # migration has copied is copied again, for a set holds an entry once.
    if _exists(client, "case_events") and "entries" not in {
        row[0] for row in client.query("DESCRIBE TABLE case_events").result_rows
    }:
        client.command(f"RENAME TABLE case_events TO {_OLD}")
    client.command(repeatable(CASE_TABLES["case_events"]))
    if not _exists(client, _OLD):
        return
    rows, done, last = client.query(f"SELECT count() FROM {_OLD}").result_rows[0][0], 0, ""
    while True:
        ahead = f"SELECT case_id FROM {_OLD} WHERE case_id > '{last}' ORDER BY case_id LIMIT {_ROWS}"
        upto = client.query(f"SELECT max(case_id) FROM ({ahead})").result_rows[0][0]
        if not upto:
            break
        # A token of its own: one of the range would take what a killed statement wrote in part for the whole.
        client.command(
            f"INSERT INTO case_events (case_id, entries) SELECT case_id, {ENTRIES_OF_TUPLES} FROM {_OLD} "
            f"WHERE case_id > '{last}' AND case_id <= '{upto}'",
            settings={"insert_deduplication_token": f"copy-{uuid.uuid4()}"},
        )
        last, done = upto, done + _ROWS
        log.info("case_events_copied", rows=min(done, rows), of=rows)
    client.command(f"DROP TABLE {_OLD}")


def downgrade() -> None:
    """The tuples are gone; `events` gives them."""


def _exists(client: Client, table: str) -> bool:
    return bool(client.query(f"EXISTS TABLE {table}").result_rows[0][0])
