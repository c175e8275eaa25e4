"""The schema of the outcome tables matches the frames that are inserted into them."""

from __future__ import annotations

import uuid

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


def test_views_of_an_older_release_are_made_anew(open_client: Client) -> None:
    """A view keeps the text that it was created with: up to revision 0008 a wrong one."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    migrate(open_client, name, "0008")
    try:
        for view in ("kpi_cohort", "kpi_flow"):
            open_client.command(f"DROP VIEW {view}")
            open_client.command(f"CREATE VIEW {view} AS SELECT 1 AS old")
        assert migrate(open_client, name) == ("0008", head_revision())
        for view in ("kpi_cohort", "kpi_flow"):
            (text,) = open_client.query(f"SHOW CREATE TABLE {view}").result_rows[0]
            assert "{by:String} = 'department', ifNull(toString(lead_department), '')" in text
    finally:
        open_client.command(f"DROP DATABASE {name}")
        open_client.database = "default"


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
