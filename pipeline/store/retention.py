"""Retention as the tables' TTL, by receipt (`ingested_at`): details go early, facts stay longer, then all.

Source: domain 9 (raw events 90 days, person links one year, case facts three years), design 9.14 (never by
`occurred_at`, so that a backfilled year is not deleted at once). What was not readable goes by when it was
stored: its time may be as wrong as the rest of it, and its row may be the only trace of it.
"""

from __future__ import annotations

import re
from typing import Final

from clickhouse_connect.driver.client import Client

from pipeline.settings import Settings

#: What a clerk reads of a single event; `GET /v1/events/…` answers 410 after the same time.
DETAILS: Final = (
    "actor_name", "actor_phone", "address", "attributes", "description", "lat", "level", "lon",
    "organisation_name", "photos", "request_id", "title", "unit_code", "void_reason",
)  # fmt: skip
#: What links an event to a person, or to what else the person sent.
LINKS: Final = ("actor_key", "l2_hi", "l2_lo", "person_facts", "persons", "submission_id")
_EVENT_TABLES: Final = ("events", "rejections")
_TTL: Final = "toDateTime({}) + toIntervalDay({})"


def apply_retention(client: Client, settings: Settings) -> list[str]:
    """Set the TTLs that the settings ask for; returns the tables that were changed. Reads before it writes,
    so that a worker without the right to alter tables starts on tables that are in order."""
    changed = []
    for table, wanted in _wanted(settings).items():
        statement = client.query(
            "SELECT create_table_query FROM system.tables "
            "WHERE database = currentDatabase() AND name = {name:String}",
            {"name": table},
        ).result_rows[0][0]
        parts = [part for marker, part in wanted if marker not in _plain(statement)]
        if parts:
            # what is there expires with the next merges: rewriting everything at once would stall inserts
            client.command(
                f"ALTER TABLE {table} {', '.join(parts)}", settings={"materialize_ttl_after_modify": 0}
            )
            changed.append(table)
    return changed


def _wanted(settings: Settings) -> dict[str, list[tuple[str, str]]]:
    """By table: what its statement must contain, and the part of an ALTER that puts it there."""
    details, links = settings.event_retention_days, settings.person_link_days
    facts = settings.fact_retention_days

    def rows(days: int, since: str = "ingested_at") -> tuple[str, str]:
        expression = _TTL.format(since, days)
        return f"TTL {expression} SETTINGS", f"MODIFY TTL {expression}"

    def column(name: str, days: int) -> tuple[str, str]:
        expression = _TTL.format("ingested_at", days)
        return f"{name} TTL {expression}", f"MODIFY COLUMN {name} TTL {expression}"

    # the rows' own TTL is written last: its expression may be a list, and takes what follows for a part of it
    found = {
        table: [
            *(column(name, details) for name in DETAILS),
            *(column(name, links) for name in LINKS),
            rows(facts),
        ]
        for table in _EVENT_TABLES
    }
    return found | {"duplicates": [rows(facts)], "quarantine": [rows(details, "stored_at")]}


def _plain(statement: str) -> str:
    """A table's statement in one line, each column of it as its name and its TTL only."""
    columns, _, rest = statement.partition(") ENGINE")
    short = (
        re.sub(r"^(\w+)` .*?(TTL|$)", r"\1 \2", column, flags=re.DOTALL)
        for column in columns.split("`", 1)[1].split(", `")
    )
    return ", ".join(short) + ") ENGINE" + rest
