"""The database that tests are given is the one that a migration makes."""

from __future__ import annotations

import uuid

from clickhouse_connect.driver.client import Client

from pipeline.store.migrate import check_schema, migrate
from tests.conftest import made_of


def test_it_is_what_a_migration_makes(clickhouse: Client) -> None:
    given = str(clickhouse.database)
    name = f"test_{uuid.uuid4().hex[:12]}"
    try:
        _, after = migrate(clickhouse, name)
        assert made_of(clickhouse, given) == made_of(clickhouse, name)
        assert check_schema(clickhouse, given) == after
        assert migrate(clickhouse, given) == (after, after)
    finally:
        clickhouse.command(f"DROP DATABASE IF EXISTS {name}")
        clickhouse.database = given
