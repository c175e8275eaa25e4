"""Deduplication windows: a table without one would count a repeated insert twice."""

from __future__ import annotations

import re
from typing import Final

from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError

_WINDOW: Final = re.compile(r"\b(?:non_)?replicated_deduplication_window\s*=\s*(\d+)")
#: Engines that deduplicate unless they are told not to.
_REPLICATED: Final = ("Replicated", "Shared")
#: Written by Alembic, once per revision.
_EXEMPT: Final = frozenset({"alembic_version"})


def tables_without_window(client: Client, database: str) -> tuple[list[str], int]:
    """Names of the database's tables whose inserts would not be deduplicated, and how many were looked at."""
    rows = client.query(
        "SELECT name, engine, create_table_query FROM system.tables "
        "WHERE database = {database:String} AND engine LIKE '%MergeTree'",
        {"database": database},
    ).result_rows
    looked_at = [(name, engine, statement) for name, engine, statement in rows if name not in _EXEMPT]
    return sorted(n for n, engine, statement in looked_at if not _has_window(engine, statement)), len(
        looked_at
    )


def check_windows(client: Client, database: str) -> None:
    """Raises ConfigurationError, one line per table without a window."""
    missing, _ = tables_without_window(client, database)
    if missing:
        raise ConfigurationError(
            [
                f"table {name} has no deduplication window: a repeated insert would count twice; run: "
                f"ALTER TABLE {database}.{name} MODIFY SETTING non_replicated_deduplication_window = 100000"
                for name in missing
            ]
        )


def _has_window(engine: str, statement: str) -> bool:
    replicated = engine.startswith(_REPLICATED)
    sizes = [
        int(found[1])
        for found in _WINDOW.finditer(statement)
        if found[0].startswith("non_") is not replicated
    ]
    return all(size > 0 for size in sizes) if sizes else replicated
