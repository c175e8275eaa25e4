"""Entries of cases' sets as texts: what is written is what is read, in polars and in SQL, and the tuples of
older releases become the same texts."""

from __future__ import annotations

import random
from typing import Any, Final

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.errors import ContractError
from pipeline.frames import CASE_EVENT, CASE_SET
from pipeline.sink.retry import Failure, classify
from pipeline.store.cases import case_sets, pack_case_events, read_sets
from pipeline.store.client import insert_table
from pipeline.store.entries import unpack_entries
from pipeline.store.fold import TUPLE_TYPES
from pipeline.store.migrate import migrate
from tests.property.stored import case_event
from tests.property.strategies import event_set

INC: Final = 1_700_000_000_000
_OLD: Final = "case_events_of_tuples"


def some_events(seed: int, number: int = 40) -> pl.DataFrame:
    """CASE_EVENT of so many random cases; of many, each element is null somewhere that may be, and set."""
    rows = [row for row in event_set(random.Random(seed), number) if row.is_case_event]
    events = pl.DataFrame([case_event(row.event) for row in rows], CASE_EVENT).with_columns(
        level=pl.Series(random.Random(seed).choices([None, "市级", "district"], k=len(rows))),
        rating=pl.Series(random.Random(seed).choices([None, -128, 0, 5, 127], k=len(rows)), dtype=pl.Int8),
        due_at=pl.Series(
            random.Random(seed).choices([None, 0, 1, -1, 253_402_300_799_999], k=len(rows)), dtype=pl.Int64
        ).cast(CASE_EVENT["due_at"]),
        _off=pl.Series(
            random.Random(seed).choices([0, 1, 2**63 - 1, 2**64 - 1], k=len(rows)), dtype=pl.UInt64
        ),
        response_limit_seconds=pl.Series(
            random.Random(seed).choices([None, 0, 2**32 - 1], k=len(rows)), dtype=pl.UInt32
        ),
    )
    for name, column in events.to_dict().items():
        if number > 30 and TUPLE_TYPES.get(name, "").startswith("Nullable"):
            assert 0 < column.null_count() < column.len(), f"{name} tells nothing"
    return events


def in_order(sets: pl.DataFrame) -> pl.DataFrame:
    return sets.select(list(CASE_SET)).sort(pl.all(), nulls_last=True)


def insert(client: Client, events: pl.DataFrame) -> None:
    packed = pack_case_events(events, INC).to_arrow(compat_level=pl.CompatLevel.oldest())
    insert_table(client, "case_events", packed, settings={})


def insert_tuples(client: Client, events: pl.DataFrame) -> None:
    """As releases before revision 0014 write them."""
    sets = events.with_columns(_inc=pl.lit(INC, pl.UInt64))
    packed = sets.group_by("case_id").agg(events=pl.struct(list(TUPLE_TYPES)))
    insert_table(client, "case_events", packed.to_arrow(compat_level=pl.CompatLevel.oldest()), settings={})


def tuples(client: Client) -> pl.DataFrame:
    """CASE_SET of all that `events` holds, by SQL alone."""
    columns = ", ".join(f"e.{name} AS {name}" for name in TUPLE_TYPES)
    table = client.query_arrow(
        f"SELECT DISTINCT case_id, {columns} FROM case_events ARRAY JOIN events AS e", use_strings=True
    )
    rows = pl.DataFrame(pl.from_arrow(table))
    return in_order(rows.select(pl.col(name).cast(dtype) for name, dtype in CASE_SET.items()))


def read(client: Client, events: pl.DataFrame) -> pl.DataFrame:
    return in_order(read_sets(client, events.select(pl.col("case_id").unique())).unique())


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_as_it_was_by_polars_and_in_sql(clickhouse: Client, seed: int) -> None:
    events = some_events(seed)
    insert(clickhouse, events[: events.height // 2])
    insert(clickhouse, events[events.height // 3 :])
    clickhouse.command("OPTIMIZE TABLE case_events FINAL")
    wanted = in_order(case_sets(events, INC))
    assert read(clickhouse, events).equals(wanted)
    assert tuples(clickhouse).equals(wanted)


def test_a_word_of_a_catalogue_or_a_route_breaks_no_entry(clickhouse: Client) -> None:
    events = some_events(1, 3).with_columns(
        category=pl.lit("安\t全"), lead_department=pl.lit("\\N\n住\x00建局\\")
    )
    insert(clickhouse, events)
    wanted = in_order(case_sets(events, INC))
    assert read(clickhouse, events).equals(wanted)
    assert tuples(clickhouse).equals(wanted)
    assert set(wanted["category"]) == {"安 全"}
    assert set(wanted["lead_department"]) == {" N 住 建局 "}


def test_an_event_without_what_every_event_has_is_no_entry() -> None:
    events = some_events(1, 2).with_columns(grid_code=pl.lit(None, pl.String))
    with pytest.raises(ContractError, match="lacks an element"):
        pack_case_events(events, INC)


@pytest.mark.parametrize(
    "text", ["", "a\tb", "s\te" + "\t1" * 22, "x\t" * 24], ids=["blank", "short", "one less", "words"]
)
def test_a_text_that_is_no_entry_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ContractError, match="not one that this version writes"):
        unpack_entries(pl.DataFrame({"case_id": ["c"], "entries": [text]}))


def test_tuples_of_older_releases_become_texts_though_a_migration_is_killed(
    open_client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(open_client, database, "0013")
    # a grid's routes name departments as they like
    dirty = {"category": pl.lit("安\t全"), "lead_department": pl.lit("\\N\n住\x00建局\\")}
    first = some_events(7)
    events, later = pl.concat([first, some_events(9, 2).with_columns(**dirty)]), some_events(8)
    insert_tuples(open_client, first)
    insert_tuples(open_client, events[first.height :])
    insert_tuples(open_client, first[::3])
    wanted = in_order(case_sets(events, INC))
    assert not tuples(open_client).equals(wanted)

    command, query, allowed = type(open_client).command, type(open_client).query, 2

    def dies(self: Client, statement: str, *arguments: Any, **named: Any) -> Any:
        nonlocal allowed
        if statement.startswith("INSERT INTO case_events"):
            if not allowed:
                raise KeyboardInterrupt
            allowed -= 1
        return command(self, statement, *arguments, **named)

    def few(self: Client, statement: str, *arguments: Any, **named: Any) -> Any:
        return query(self, statement.replace("LIMIT 100000", "LIMIT 9"), *arguments, **named)

    monkeypatch.setattr(type(open_client), "command", dies)
    monkeypatch.setattr(type(open_client), "query", few)
    with pytest.raises(KeyboardInterrupt):
        migrate(open_client, database)
    copied = open_client.query("SELECT uniqExact(case_id) FROM case_events").result_rows[0][0]
    assert 0 < copied < wanted["case_id"].n_unique()
    allowed = 1_000
    migrate(open_client, database)
    assert tuples(open_client).equals(wanted)
    assert read(open_client, events).equals(wanted)
    assert _OLD not in {row[0] for row in open_client.query("SHOW TABLES").result_rows}
    insert(open_client, later)
    assert tuples(open_client).equals(
        in_order(pl.concat([wanted, case_sets(later, INC)[list(CASE_SET)]]).unique())
    )


def test_words_in_the_levels_of_older_releases_go_with_their_tuples(
    open_client: Client, database: str
) -> None:
    migrate(open_client, database, "0013")
    given = ["报陈主任", "district", "陈小明", "市级"]
    events = some_events(3, 3)[:4].with_columns(level=pl.Series(given))
    insert_tuples(open_client, events)
    migrate(open_client, database)
    assert sorted(read(open_client, events)["level"].drop_nulls()) == ["district", "市级"]
    assert sorted(tuples(open_client)["level"].drop_nulls()) == ["district", "市级"]


def test_a_worker_of_an_older_release_stops_and_writes_nothing(clickhouse: Client) -> None:
    with pytest.raises(ClickHouseError) as refused:
        insert_tuples(clickhouse, some_events(2, 2))
    assert classify(refused.value) is Failure.UNKNOWN
    assert clickhouse.query("SELECT count() FROM case_events").result_rows == [(0,)]
