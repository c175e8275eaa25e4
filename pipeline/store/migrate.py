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
from clickhouse_connect.driver.exceptions import ClickHouseError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from pipeline.errors import ConfigurationError

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "head"
#: On a server a role alone may not change the schema.
MIGRATE = "run `gridpipe migrate` (on a server as gridpipe_admin) with this version"


#: Of a statement that the user's grants or profile do not allow.
_REFUSALS = ("(ACCESS_DENIED)", "(QUERY_IS_PROHIBITED)", "(READONLY)")


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

    client : connected; its default database is `database` when this returns. What a killed migration left is
    taken up: every revision can be repeated on what it makes.
    Raises ConfigurationError when the database is of a newer version than this one, and when the user may not
    change it.
    """
    if not _exists(client, database):  # a worker may not create one
        client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
    client.database = database
    before = current_revision(client)
    if is_newer(before):
        raise ConfigurationError(newer_database(database, before))
    if _stamps(client) > 1:
        # Alembic inserts the new revision before it deletes the old one, and reads two as two branches.
        client.command(
            "ALTER TABLE alembic_version DELETE WHERE version_num != {newest:String}",
            {"newest": before},
            settings={"mutations_sync": 2},
        )
    engine = sqlalchemy.create_engine(
        "clickhousedb://", creator=lambda: _ClientConnection(client), poolclass=StaticPool
    )
    script = _script()
    with engine.connect() as connection:

        def upgrade(current: object, context: MigrationContext) -> object:
            return script._upgrade_revs(revision, current)  # type: ignore[arg-type]

        environment = EnvironmentContext(Config(), script, fn=upgrade, as_sql=False)
        environment.configure(connection=connection, fn=upgrade, transactional_ddl=False)
        try:
            with Operations.context(environment.get_context()):
                environment.run_migrations()
        except (DBAPIError, ClickHouseError) as error:
            if any(refusal in str(error) for refusal in _REFUSALS):
                raise ConfigurationError(
                    f"this ClickHouse user may not change the schema of {database}: {MIGRATE}"
                ) from error
            raise
    return before, current_revision(client)


def check_schema(client: Client, database: str) -> str:
    """The revision of `database`, which is the one that this version needs; nothing is changed.

    client : connected; its default database is `database` when this returns.
    Raises ConfigurationError.
    """
    if not _exists(client, database):
        raise ConfigurationError(f"database {database} does not exist: {MIGRATE}")
    client.database = database
    found = current_revision(client)
    problem = schema_problem(database, found)
    if problem is not None:
        raise ConfigurationError(problem)
    assert found is not None
    return found


def schema_problem(database: str, revision: str | None) -> str | None:
    """What to do about a database at this revision, None where it is the one that this version needs."""
    if is_newer(revision):
        return newer_database(database, revision)
    if revision != head_revision():
        return (
            f"database {database} is at revision {revision or 'none'}, this version needs {head_revision()}: "
            f"{MIGRATE}"
        )
    return None


def newer_database(database: str, revision: str | None) -> str:
    return (
        f"database {database} is newer (revision {revision}) than this program (knows {head_revision()}): "
        "start the newer version (docs/upgrade.md)"
    )


def is_newer(revision: str | None) -> bool:
    """Whether a newer version of this program has migrated there: we do not know its revision."""
    return revision is not None and revision not in {known.revision for known in _script().walk_revisions()}


def current_revision(client: Client) -> str | None:
    """The revision of the client's database, None before the first migration. Of two the newer one: its
    statements were done when it was written down."""
    if not _stamps(client):
        return None
    newest = client.query("SELECT max(version_num) FROM alembic_version").result_rows[0][0]
    return str(newest)


def head_revision() -> str | None:
    """The newest revision this code knows."""
    return _script().get_current_head()


def _exists(client: Client, database: str) -> bool:
    there = "SELECT count() FROM system.databases WHERE name = {name:String}"
    return bool(client.query(there, {"name": database}).result_rows[0][0])


def _stamps(client: Client) -> int:
    """Revisions that are written down."""
    if not int(str(client.command("EXISTS TABLE alembic_version"))):
        return 0
    return int(client.query("SELECT count() FROM alembic_version").result_rows[0][0])
