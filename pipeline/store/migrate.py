"""Brings a ClickHouse database to the newest schema: the same Alembic revisions for a server and for the
embedded engine, through the client that is already open (the embedded engine allows one process only)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from clickhouse_connect.cc_sqlalchemy.alembic import impl as _impl  # noqa: F401  registers the dialect with Alembic
from clickhouse_connect.dbapi.connection import Connection
from clickhouse_connect.driver.client import Client
from sqlalchemy.pool import StaticPool

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "head"


class _ClientConnection(Connection):
    """A DB-API connection over an open client; closing it leaves the client open."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.timezone = client.server_tz

    def close(self) -> None:
        """The client belongs to the caller."""


def _script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def migrate(client: Client, database: str, revision: str = HEAD) -> tuple[str | None, str | None]:
    """Create `database` if need be and upgrade it. Returns the revisions before and after.

    client : connected; its default database is `database` when this returns.
    """
    there = "SELECT count() FROM system.databases WHERE name = {name:String}"
    if not client.query(there, {"name": database}).result_rows[0][0]:  # a worker may not create one
        client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
    client.database = database
    engine = sqlalchemy.create_engine(
        "clickhousedb://", creator=lambda: _ClientConnection(client), poolclass=StaticPool
    )
    script = _script()
    with engine.connect() as connection:
        before = MigrationContext.configure(connection).get_current_revision()

        def upgrade(current: object, context: MigrationContext) -> object:
            return script._upgrade_revs(revision, current)  # type: ignore[arg-type]

        environment = EnvironmentContext(Config(), script, fn=upgrade, as_sql=False)
        environment.configure(connection=connection, fn=upgrade, transactional_ddl=False)
        with Operations.context(environment.get_context()):
            environment.run_migrations()
        after = MigrationContext.configure(connection).get_current_revision()
    return before, after


def current_revision(client: Client) -> str | None:
    """The revision of the client's database, None before the first migration."""
    engine = sqlalchemy.create_engine(
        "clickhousedb://", creator=lambda: _ClientConnection(client), poolclass=StaticPool
    )
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    """The newest revision this code knows."""
    return _script().get_current_head()
