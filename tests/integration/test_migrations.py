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
