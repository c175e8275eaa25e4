"""ClickHouse alone: JSONEachRow pushed from the topic through a view, or read from a file; dictionaries.

    python -m benchmarks.peers.clickhouse_sql TASK push|file [NDJSON]

push : records are joined and inserted as JSONEachRow into a Null table; a view looks up matter, grid and
       person in dictionaries and feeds the table. file : the same SELECT over `file()`: this engine's limit.
Repeated ids are dropped only when a query asks for it (`LIMIT 1 BY` in the check, not timed), so this does a
little less than the common work.
"""

from __future__ import annotations

import sys
from pathlib import Path

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from benchmarks.peers.common import COLUMNS, TABLE, Clock, Task, finish

_RAW = (
    "event_id String, source String, event_type String, case_id String, occurred_at DateTime64(3, 'UTC'), "
    "channel String, matter_code String, grid_code String, actor Tuple(type String, key String), "
    "persons Array(Tuple(id_number String, role String)), description String"
)
_DICTIONARIES = {
    "matters": ("category String, lead_department String", "HASHED"),
    "grids": ("grid_name String, grid_type String, village_kind String", "HASHED"),
    "persons": ("gender String, residence_kind String", "HASHED"),
}
_SELECT = """
SELECT event_id, source, event_type, case_id, occurred_at, channel, matter_code, grid_code,
    actor.1 AS actor_type, actor.2 AS actor_key, description,
    dictGet('matters', 'category', matter_code) AS category,
    dictGet('matters', 'lead_department', matter_code) AS lead_department,
    dictGet('grids', 'grid_name', grid_code) AS grid_name,
    dictGet('grids', 'grid_type', grid_code) AS grid_type,
    dictGet('grids', 'village_kind', grid_code) AS village_kind,
    dictGet('persons', 'gender', persons[1].1) AS gender,
    dictGet('persons', 'residence_kind', persons[1].1) AS residence_kind
FROM {source}
WHERE dictHas('matters', matter_code) AND dictHas('grids', grid_code)
"""


def prepare(client: Client, reference: Path) -> None:
    """Table and loaded dictionaries."""
    client.command(TABLE)
    for name, (columns, _) in _DICTIONARIES.items():
        # key and attributes, as the Parquet file orders them
        client.command(f"CREATE TABLE t_{name} (key String, {columns}) ENGINE = MergeTree ORDER BY key")
        client.command(f"INSERT INTO t_{name} SELECT * FROM file('{reference / name}.parquet', Parquet)")
        # a string key needs a complex layout
        client.command(
            f"CREATE DICTIONARY {name} (key String, {columns}) PRIMARY KEY key "
            f"SOURCE(CLICKHOUSE(TABLE 't_{name}')) LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)"
        )
        client.command(f"SYSTEM RELOAD DICTIONARY {name}")


def push(client: Client, task: Task, clock: Clock) -> None:
    from benchmarks.peers.consume_only import WAIT_SECONDS, consumer_of

    client.command(f"CREATE TABLE raw ({_RAW}) ENGINE = Null")
    client.command(f"CREATE MATERIALIZED VIEW feed TO peer_events AS {_SELECT.format(source='raw')}")
    consumer = consumer_of(task)
    waiting: list[bytes] = []
    events = taken = 0
    while taken < task.events:
        for record in consumer.consume(10_000 if task.form == "each" else 200, WAIT_SECONDS):
            clock.start()
            waiting.append(record.value())
            events += waiting[-1].count(b"\n") + 1
        if events >= task.insert_rows or taken + events >= task.events:
            client.raw_insert(
                "raw",
                insert_block=b"\n".join(waiting),
                fmt="JSONEachRow",
                settings={"input_format_skip_unknown_fields": 1, "date_time_input_format": "best_effort"},
            )
            taken, events = taken + events, 0
            waiting.clear()


def read_file(client: Client, ndjson: str, clock: Clock) -> None:
    source = f"file('{ndjson}', JSONEachRow, '{_RAW}')".replace("'UTC'", "\\'UTC\\'")
    clock.start()
    client.command(
        f"INSERT INTO peer_events {_SELECT.format(source=source)} "
        "SETTINGS input_format_skip_unknown_fields = 1, date_time_input_format = 'best_effort'"
    )


def main() -> None:
    task, clock = Task.read(), Clock()
    client = clickhouse_connect.get_client(interface="chdb", path=str(task.path))
    prepare(client, task.reference)
    if sys.argv[2] == "push":
        push(client, task, clock)
    else:
        read_file(client, sys.argv[3], clock)
    took = clock.stop()
    stored, checksum, rows = client.query(
        "SELECT count(), sum(toUInt64(right(event_id, 7))), (SELECT count() FROM peer_events) "
        "FROM (SELECT event_id FROM peer_events LIMIT 1 BY event_id)"
    ).result_rows[0]
    finish(took, {"stored": int(stored), "stored_checksum": int(checksum)}, rows_with_copies=int(rows))


assert len(COLUMNS) == 18, "the SELECT lists the table's columns by position"

if __name__ == "__main__":
    main()
