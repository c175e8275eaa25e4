"""The schema of the outcome tables matches the frames that are inserted into them."""

from __future__ import annotations

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client

from pipeline import frames
from pipeline.store.migrate import current_revision, head_revision, migrate


def columns(client: Client, table: str) -> list[str]:
    return [row[0] for row in client.query(f"DESCRIBE TABLE {table}").result_rows]


def test_a_second_migration_changes_nothing(clickhouse: Client) -> None:
    assert current_revision(clickhouse) == head_revision()
    before, after = migrate(clickhouse, str(clickhouse.database))
    assert before == after == head_revision()


@pytest.mark.parametrize(
    ("table", "schema"),
    [
        ("events", frames.STORED),
        ("rejections", frames.STORED),
        ("duplicates", frames.DUPLICATE),
        ("quarantine", frames.QUARANTINED),
    ],
)
def test_a_frame_has_the_columns_of_its_table(clickhouse: Client, table: str, schema: frames.Schema) -> None:
    added_by_the_sink = {"_inc", "_blk_lo", "_blk_hi", "_rules"}
    computed = {"stored_at", "primary_reason"}
    assert set(columns(clickhouse, table)) - added_by_the_sink - computed == set(schema)


@pytest.mark.parametrize("table", ["events", "rejections", "duplicates", "quarantine"])
def test_an_empty_frame_inserts_without_a_type_error(clickhouse: Client, table: str) -> None:
    schema = {
        "events": frames.STORED, "rejections": frames.STORED,
        "duplicates": frames.DUPLICATE, "quarantine": frames.QUARANTINED,
    }[table]  # fmt: skip
    frame = pl.DataFrame(schema=schema).with_columns(
        pl.lit(1, pl.UInt64).alias("_inc"), pl.lit(0, pl.UInt64).alias("_blk_lo"),
        pl.lit(0, pl.UInt64).alias("_blk_hi"), pl.lit("r").alias("_rules"),
    )  # fmt: skip
    clickhouse.insert_arrow(table, frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
    assert clickhouse.command(f"SELECT count() FROM {table}") == 0


def test_a_column_that_a_part_lacks_reads_as_its_default(clickhouse: Client) -> None:
    """Parts without a column and parts with it are read together, merged and found again (migration 0007)."""

    def insert(name: str, title: str | None, rating: int | None, offset: int) -> None:
        clickhouse.command(
            "INSERT INTO events (_inc, _part, _off, _idx, event_id, title, rating, ingested_at) "
            "SELECT 1, 0, {off:UInt64}, 0, {name:String}, {title:Nullable(String)}, "
            "{rating:Nullable(Int8)}, now64(3)",
            parameters={"off": offset, "name": name, "title": title, "rating": rating},
        )

    clickhouse.command("SYSTEM STOP MERGES events")
    insert("without", None, None, 1)
    insert("with", "窗框松动", 5, 2)
    lacking = clickhouse.query(
        "SELECT count() FROM system.parts WHERE table = 'events' AND active AND database = currentDatabase() "
        "AND name NOT IN (SELECT name FROM system.parts_columns WHERE table = 'events' AND column = 'title' "
        "AND database = currentDatabase())"
    ).result_rows[0][0]
    assert lacking == 1, "the part of the first insert holds no title"
    wanted = [("with", "窗框松动", 5, 0), ("without", None, None, 0)]
    read = "SELECT event_id, title, rating, time_adjusted FROM events FINAL ORDER BY event_id"
    assert clickhouse.query(read).result_rows == wanted
    clickhouse.command("SYSTEM START MERGES events")
    clickhouse.command("OPTIMIZE TABLE events FINAL")
    assert clickhouse.query(read).result_rows == wanted
