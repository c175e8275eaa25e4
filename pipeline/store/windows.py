"""Deduplication windows: a table without one, or with a short one, would count a repeated insert twice."""

from __future__ import annotations

import re
from typing import Final

from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError

#: What an outcome table must remember: the last tokens, for a block may come again after the longest outage;
#: Replicated ones forget by age as well: not before the log forgets the block.
_ENOUGH: Final = {
    "non_replicated_deduplication_window": 100_000,
    "replicated_deduplication_window": 100_000,
    "replicated_deduplication_window_seconds": 7 * 86_400,
}
#: What the worker writes under the tokens of its blocks. Those of other tables come again within seconds.
_OUTCOME_TABLES: Final = frozenset({"events", "rejections", "duplicates", "quarantine", "case_events"})
_SETTING: Final = re.compile(r"\b((?:non_)?replicated_deduplication_window(?:_seconds)?)\s*=\s*(\d+)")
#: Engines that deduplicate unless they are told not to.
_REPLICATED: Final = ("Replicated", "Shared")
#: The engine's own.
_DEFAULTS: Final = {"non_replicated_deduplication_window": 0}
_REPLICATED_DEFAULTS: Final = {
    "replicated_deduplication_window": 10_000,
    "replicated_deduplication_window_seconds": 3_600,
}
#: Written by Alembic, once per revision.
_EXEMPT: Final = frozenset({"alembic_version"})


def short_windows(client: Client, database: str) -> tuple[dict[str, str], int]:
    """The database's tables that would take a repeated insert twice, each with what to set, and how many
    tables were looked at."""
    rows = client.query(
        "SELECT name, engine, create_table_query FROM system.tables "
        "WHERE database = {database:String} AND engine LIKE '%MergeTree' ORDER BY name",
        {"database": database},
    ).result_rows
    looked_at = [row for row in rows if row[0] not in _EXEMPT]
    found = {name: shortfall(name, engine, statement) for name, engine, statement in looked_at}
    return {name: wanted for name, wanted in found.items() if wanted}, len(looked_at)


def check_windows(client: Client, database: str) -> None:
    """Raises ConfigurationError, one line per table without a window or with too short a one."""
    short, _ = short_windows(client, database)
    if short:
        raise ConfigurationError(
            [
                f"table {name} has no deduplication window, or too short a one: a repeated insert would "
                f"count twice; run: ALTER TABLE {database}.{name} MODIFY SETTING {wanted}"
                for name, wanted in short.items()
            ]
        )


def shortfall(table: str, engine: str, statement: str) -> str:
    """The settings that a table lacks, in ClickHouse's words; "" if it lacks none. statement : that made it.

    >>> shortfall("events", "MergeTree", "CREATE … SETTINGS non_replicated_deduplication_window = 1")
    'non_replicated_deduplication_window = 100000'
    """
    held = dict(_REPLICATED_DEFAULTS if engine.startswith(_REPLICATED) else _DEFAULTS)
    held |= {setting: int(value) for setting, value in _SETTING.findall(statement) if setting in held}
    return ", ".join(
        f"{setting} = {_ENOUGH[setting]}"
        for setting, value in held.items()
        if value < (_ENOUGH[setting] if table in _OUTCOME_TABLES else 1)
    )
