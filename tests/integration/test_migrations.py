"""The schema of the outcome tables matches the frames that are inserted into them."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from pipeline import frames
from pipeline.cli.serve import _serve_http
from pipeline.clock import utc_now
from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError
from pipeline.runtime import store
from pipeline.runtime.doctor import _schema
from pipeline.settings import Settings
from pipeline.store.migrate import _script, check_schema, current_revision, head_revision, migrate
from pipeline.store.retention import forget_ended
from tests.integration.case_world import World, chain

REVISIONS = [revision.revision for revision in reversed(list(_script().walk_revisions()))]


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


def created(client: Client) -> dict[str, str]:
    rows = client.query(
        "SELECT name, create_table_query FROM system.tables WHERE database = {name:String}",
        {"name": client.database},
    ).result_rows
    return {str(name): str(text) for name, text in rows}


@pytest.mark.parametrize(
    "written", ["before the migration", pytest.param("by an older worker after it", marks=pytest.mark.slow)]
)
def test_words_in_the_levels_of_stored_cases_go(open_client: Client, database: str, written: str) -> None:
    """Of `cases`; those of `case_events`: tests/integration/test_entries.py."""
    migrate(open_client, database)
    world = World(open_client)
    given: list[str | None] = ["报陈主任", "district", None, "陈小明", "市级"]
    steps = [("REPORTED", 0.0), ("ACCEPTED", 1.0), ("DISPATCHED", 2.0), ("SIGNED", 3.0)]
    for number, level in enumerate(given):
        raised = ("ESCALATED", 4.0 + number, {"level": level})
        world.write(*chain(f"c{number}", [*steps, raised]))
        world.write(*chain("c", [*(steps if not number else ()), raised, ("DISPATCHED", 4.5 + number)]))
    states = [world.case(name) for name in ("c", *(f"c{number}" for number in range(5)))]
    if written == "before the migration":
        open_client.command("TRUNCATE TABLE alembic_version")
        open_client.command("INSERT INTO alembic_version VALUES ('0011')")
        migrate(open_client, database)
    else:
        assert forget_ended(open_client, utc_now()) == ["cases"]
    pending = "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND NOT is_done"
    while open_client.query(pending).result_rows[0][0]:
        time.sleep(0.1)
    assert forget_ended(open_client, utc_now()) == []
    (row,) = open_client.query("SELECT legal_levels FROM cases FINAL WHERE case_id = 'c'").result_rows
    assert [word for word in row[0] if word] == ["district", "市级"]
    stored = open_client.query("SELECT case_id, level FROM cases FINAL ORDER BY case_id").result_rows
    levels = [None, "district", None, None, "市级"]
    assert stored == [("c", "市级"), *((f"c{number}", level) for number, level in enumerate(levels))]
    for was in states:  # nothing else changed
        now = world.case(was["case_id"])
        assert {**now, "level": 0, "legal_levels": 0} == {**was, "level": 0, "legal_levels": 0}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_migration_killed_before_its_revision_was_written_down_is_done_again(
    open_client: Client, database: str, revision: str
) -> None:
    migrate(open_client, database, revision)
    made = created(open_client)
    open_client.command("TRUNCATE TABLE alembic_version")
    if revision != REVISIONS[0]:
        before = REVISIONS[REVISIONS.index(revision) - 1]
        open_client.command("INSERT INTO alembic_version VALUES ({before:String})", {"before": before})
    migrate(open_client, database, revision)
    assert created(open_client) == made
    assert migrate(open_client, database) == (revision, head_revision())


def test_two_revisions_that_a_kill_left_written_down_are_the_newer_one(clickhouse: Client) -> None:
    """Alembic inserts the new one before it deletes the old one."""
    clickhouse.command("INSERT INTO alembic_version VALUES ('0009')")
    assert check_schema(clickhouse, str(clickhouse.database)) == head_revision()
    assert migrate(clickhouse, str(clickhouse.database)) == (head_revision(), head_revision())
    assert clickhouse.query("SELECT * FROM alembic_version").result_rows == [(head_revision(),)]


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(clickhouse: Client) -> None:
    name, before = str(clickhouse.database), created(clickhouse)
    clickhouse.command("TRUNCATE TABLE alembic_version")
    clickhouse.command("INSERT INTO alembic_version VALUES ('9999')")
    for refuses in (migrate, check_schema):
        with pytest.raises(ConfigurationError) as refused:
            refuses(clickhouse, name)
        assert str(refused.value) == (
            f"database {name} is newer (revision 9999) than this program (knows {head_revision()}): "
            "start the newer version (docs/upgrade.md)"
        )
    assert created(clickhouse) == before
    found = next(iter(_schema(clickhouse, Settings(database=name))))
    assert (found.level, found.do) == ("failed", "start the newer version (docs/upgrade.md)")


def test_a_check_changes_nothing_and_names_the_command(open_client: Client, database: str) -> None:
    with pytest.raises(ConfigurationError, match="does not exist: run `gridpipe migrate`"):
        check_schema(open_client, database)
    migrate(open_client, database, "0008")
    before = created(open_client)
    with pytest.raises(ConfigurationError, match=r"is at revision 0008, .* run `gridpipe migrate` .*admin"):
        check_schema(open_client, database)
    assert (created(open_client), current_revision(open_client)) == (before, "0008")


def test_a_user_that_may_not_change_the_schema_is_told_who_may(
    open_client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(open_client, database, "0008")
    text = "Code: 392. DB::Exception: Cannot execute query. DDL queries are prohibited. (QUERY_IS_PROHIBITED)"

    def refuse(*_: object) -> None:
        raise DatabaseError(text)

    monkeypatch.setattr("alembic.runtime.environment.EnvironmentContext.run_migrations", refuse)
    with pytest.raises(ConfigurationError, match=r"may not change the schema .* as gridpipe_admin"):
        migrate(open_client, database)
    text = "Code: 243. DB::Exception: Cannot reserve 1 MiB, not enough space. (NOT_ENOUGH_SPACE)"
    with pytest.raises(DatabaseError):
        migrate(open_client, database)


@pytest.mark.parametrize("role", ["worker", "api"])
def test_a_role_alone_changes_no_schema(
    open_client: Client, database: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user may not: it dies of a refused statement, after some of them were done."""
    settings = Settings(
        data_dir=tmp_path, database=database, clickhouse="http://127.0.0.1:1", kafka="127.0.0.1:1"
    )
    Privacy.load(settings.pseudonym_key_path, create=True)
    monkeypatch.setattr(store, "connect_server", lambda *_: open_client)
    monkeypatch.setattr(store, "wait_for_topic", lambda *_, **__: pytest.fail("it went on"))
    monkeypatch.setattr("pipeline.store.client.connect_server", lambda *_: open_client)
    monkeypatch.setattr("pipeline.runtime.http.assemble", lambda *_, **__: pytest.fail("it went on"))
    monkeypatch.setattr("pipeline.runtime.process.harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda **_: None)
    for before in (None, "0008"):
        if before is not None:
            migrate(open_client, database, before)
        with pytest.raises(ConfigurationError, match="run `gridpipe migrate`"):
            if role == "api":
                _serve_http(settings, role)
            else:
                store.run_alone(settings, bootstrap="127.0.0.1:1", listener=None)
    assert current_revision(open_client) == "0008"


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
