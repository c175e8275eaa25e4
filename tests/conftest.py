"""Fixtures that several folders share. A test database lives in the embedded engine of this process
(one engine path per process), or on the server that GRIDPIPE_TEST_CLICKHOUSE names."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from pipeline.store.migrate import head_revision, migrate

pytest_plugins = ["tests.fault.summary", "tests.kafka"]

os.environ["TZ"] = "UTC"
#: Under another name for our processes: the services that tests start refuse a setting that they do not know.
if _server := os.environ.pop("GRIDPIPE_TEST_CLICKHOUSE", None):
    os.environ["TEST_CLICKHOUSE"] = _server


#: For tests that open the engine of this process itself, beside the client.
embedded_only = pytest.mark.skipif(
    "TEST_CLICKHOUSE" in os.environ, reason="opens the embedded engine of this process, not a server"
)


def new_client(engine_path: Path, database: str | None = None) -> Client:
    """A further client on the server that is tested, or else on the session's engine."""
    if url := os.environ.get("TEST_CLICKHOUSE"):
        # without a session, as our own clients are: a session runs one query at a time
        return clickhouse_connect.get_client(dsn=url, database=database, autogenerate_session_id=False)
    return clickhouse_connect.get_client(interface="chdb", path=str(engine_path), database=database)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `fault` or `slow` take minutes, in sum hours: skipped by name unless asked for."""
    for mark, asked, target in (("fault", "FAULT", "test-fault"), ("slow", "SLOW", "test-slow")):
        if os.environ.get(asked) == "1":
            continue
        for item in items:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"takes long: make {target} runs it"))


@pytest.fixture(scope="session")
def engine_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clickhouse")


@pytest.fixture(scope="session")
def open_client(engine_path: Path) -> Iterator[Client]:
    """The session's client, no database chosen."""
    client = new_client(engine_path)
    yield client
    client.close()


@pytest.fixture
def database(open_client: Client) -> Iterator[str]:
    """A name that no other database has, for a test that migrates one step by step."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    open_client.command(f"DROP DATABASE IF EXISTS {name}")
    open_client.database = "default"


def made_of(client: Client, database: str) -> dict[str, str]:
    """Table or view → the statement that makes it, the database's name left out."""
    found = client.query(
        "SELECT name, create_table_query FROM system.tables WHERE database = {database:String} ORDER BY name",
        {"database": database},
    ).result_rows
    return {name: statement.replace(f"{database}.", "") for name, statement in found}


@pytest.fixture(scope="session")
def migrated(open_client: Client) -> dict[str, str]:
    """What a migration makes, by `made_of`; and that it leaves rows nowhere but in its own table."""
    name = f"migrated_{uuid.uuid4().hex[:12]}"
    migrate(open_client, name)
    statements = made_of(open_client, name)
    filled = open_client.query(
        "SELECT name FROM system.tables WHERE database = {name:String} AND total_rows > 0", {"name": name}
    ).result_rows
    assert filled == [("alembic_version",)], filled
    open_client.command(f"DROP DATABASE {name}")
    open_client.database = "default"
    return statements


@pytest.fixture
def clickhouse(open_client: Client, migrated: dict[str, str]) -> Iterator[Client]:
    """A client on a fresh database of its own, as a migration makes it: the statements are those of one, for
    a migration waits two seconds for its own table's mutations."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    open_client.command(f"CREATE DATABASE {name}")
    open_client.database = name
    for statement in migrated.values():
        open_client.command(statement)
    open_client.command(f"INSERT INTO alembic_version VALUES ('{head_revision()}')")
    yield open_client
    open_client.command(f"DROP DATABASE {name}")
    open_client.database = "default"
