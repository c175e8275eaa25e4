"""Blocks into a real ClickHouse: tokens, faulty rows, passing failures."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, OperationalError
from urllib3.exceptions import ProtocolError

from pipeline.errors import ContractError, UnavailableError
from pipeline.process.flow import Block, BlockResult, PartitionState, Rules, case_events_of, process_block
from pipeline.process.partition import recover
from pipeline.process.records import Record
from pipeline.settings import Settings
from pipeline.sink import retry
from pipeline.sink.retry import Failure, Stopping, classify, persist
from pipeline.sink.tables import Extent, Sink
from pipeline.store.incarnations import newest, resolve
from tests.conftest import embedded_only
from tests.integration.worker_world import NOON, column, count, event, load_reference, record, rules_of

TABLES = ("events", "rejections", "duplicates", "quarantine", "case_events")
PLACE: dict[str, Any] = {"inc": 5, "blocks": [Extent(0, 0, 9)], "rules": "r1"}


@pytest.fixture
def rules(clickhouse: Client, tmp_path: Path) -> Rules:
    load_reference(clickhouse, tmp_path / "reference")
    return rules_of(clickhouse)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.002)


def block(rules: Rules) -> BlockResult:
    """Every outcome: admitted, rejected, recorded, L1, L2, malformed, id conflict."""
    records = [
        record(0, event(1), event(2, matter_code="NO-SUCH")),
        record(1, event(3, event_type="ACCEPTED", case_id="c1", minutes=5)),
        record(2, event(1)),
        record(3, event(4, description=event(1)["description"], minutes=1)),
        record(4, event(5))._replace(value=b"{broken"),
        record(9, event(2, description="changed")),
    ]
    return process_block(Block(0, records), PartitionState.empty(Settings()), rules)


def test_every_event_has_one_row_in_the_table_of_its_outcome(clickhouse: Client, rules: Rules) -> None:
    result = block(rules)
    Sink(clickhouse, "t").write(result, **PLACE)
    assert column(clickhouse, "SELECT event_id FROM events ORDER BY event_id") == ["e1", "e3"]
    assert column(clickhouse, "SELECT outcome FROM events ORDER BY event_id") == ["admitted", "recorded"]
    assert column(clickhouse, "SELECT event_id FROM rejections") == ["e2"]
    assert column(clickhouse, "SELECT primary_reason FROM rejections") == ["UNKNOWN_MATTER"]
    assert column(clickhouse, "SELECT level || original_event_id FROM duplicates ORDER BY _off") == [
        "L1e1", "L2e1",
    ]  # fmt: skip
    assert column(clickhouse, "SELECT reason FROM quarantine ORDER BY _off") == ["MALFORMED", "ID_CONFLICT"]
    assert result.received == 7
    blocks = clickhouse.query("SELECT DISTINCT _inc, _part, _blk_lo, _blk_hi, _rules FROM events").result_rows
    assert blocks == [(5, 0, 0, 9, "r1")]


def test_what_is_stored_is_what_was_judged(clickhouse: Client, rules: Rules) -> None:
    result = block(rules)
    Sink(clickhouse, "t").write(result, **PLACE)
    row = clickhouse.query(
        "SELECT occurred_at, ingested_at, lon, lat, photos, persons, grid_found, reasons, rule_results, "
        "backfill, id_hi, id_lo, content_hash, l2_hi, district_code, response_limit_seconds "
        "FROM events WHERE event_id = 'e1'"
    ).first_item
    expected = result.events.row(0, named=True)
    for name in ("lon", "lat", "grid_found", "reasons", "rule_results", "backfill", "id_hi", "id_lo"):
        assert row[name] == expected[name], name
    for name in ("content_hash", "l2_hi", "district_code", "response_limit_seconds"):
        assert row[name] == expected[name], name
    for name in ("occurred_at", "ingested_at"):
        assert row[name].timestamp() == expected[name].timestamp()
    assert [photo["sha256"] for photo in row["photos"]] == ["0123456789abcdef" * 4]


def test_the_same_block_three_times_adds_nothing(clickhouse: Client, rules: Rules) -> None:
    result = block(rules)
    once = None
    for _ in range(3):
        Sink(clickhouse, "t").write(result, **PLACE)
        counts = count(clickhouse, *TABLES)
        once = once or counts
        assert counts == once


def test_another_incarnation_is_another_block(clickhouse: Client, rules: Rules) -> None:
    result = block(rules)
    Sink(clickhouse, "t").write(result, **PLACE)
    Sink(clickhouse, "t").write(result, **{**PLACE, "inc": 6})
    assert count(clickhouse, "events", "duplicates") == [4, 4]


def test_one_faulty_row_among_many_is_quarantined_and_the_others_are_stored(
    clickhouse: Client, rules: Rules
) -> None:
    documents = [event(number) for number in range(300)]
    result = process_block(
        Block(0, [record(offset, *documents[offset * 30 : offset * 30 + 30]) for offset in range(10)]),
        PartitionState.empty(Settings()),
        rules,
    )
    # 137 has a time that Arrow would wrap silently
    spoilt = result.events.with_columns(
        ingested_at=pl.when(pl.col("event_id") == "e137")
        .then(pl.lit(10_000_000_000_000_000).cast(pl.Datetime("ms", "UTC")))
        .otherwise("ingested_at")
    )
    result = replace(result, events=spoilt, case_events=case_events_of(spoilt, result.duplicates.clear()))
    for _ in range(2):  # a replay sends the same sub-blocks
        stored = Sink(clickhouse, "t").write(result, **PLACE)
        assert (stored.events.height, stored.quarantined.height) == (299, 1)
        assert stored.received == 300
        assert count(clickhouse, "events", "quarantine") == [299, 1]
    assert column(clickhouse, "SELECT event_id FROM quarantine") == ["e137"]
    assert column(clickhouse, "SELECT reason FROM quarantine") == ["UNSTORABLE"]
    assert column(clickhouse, "SELECT count() FROM case_events WHERE case_id = 'c137'") == [0]


@pytest.mark.parametrize(("seen_by", "most_asked"), [("us", 18), ("the store", 34)])
def test_one_faulty_row_of_fifty_thousand_costs_few_inserts(
    clickhouse: Client, rules: Rules, monkeypatch: pytest.MonkeyPatch, seen_by: str, most_asked: int
) -> None:
    """Halving stores all others in eighteen further inserts at most. Where the store refuses the row, not we,
    each half that holds it is asked for in vain, too."""
    documents = [event(number) for number in range(500)]
    few = process_block(
        Block(0, [record(offset, *documents[offset * 50 : offset * 50 + 50]) for offset in range(10)]),
        PartitionState.empty(Settings()),
        rules,
    )
    number, types = pl.int_range(pl.len()), few.events.schema
    many = pl.concat([few.events] * 100).with_columns(
        event_id=pl.format("e{}", number), case_id=pl.format("c{}", number),
        id_lo=number.cast(types["id_lo"]),
        _off=(number // 5_000).cast(types["_off"]), _idx=(number % 5_000).cast(types["_idx"]),
    )  # fmt: skip
    faulty, no_time = "e31415", pl.lit(10_000_000_000_000_000).cast(pl.Datetime("ms", "UTC"))
    if seen_by == "us":
        many = many.with_columns(
            ingested_at=pl.when(pl.col("event_id") == faulty).then(no_time).otherwise("ingested_at")
        )
    result = replace(
        few, events=many, received=50_000, case_events=case_events_of(many, few.duplicates.clear())
    )
    send, asked, done = Sink._send, [], []

    def counted(self: Sink, table: str, rows: pl.DataFrame, token: str, client: Client) -> None:
        asked.append(table)
        if seen_by == "the store" and table == "events" and faulty in rows["event_id"]:
            raise DataError("a value of one row")
        send(self, table, rows, token, client)
        done.append(table)

    monkeypatch.setattr(Sink, "_send", counted)
    stored = Sink(clickhouse, "t").write(result, **PLACE)
    assert (stored.events.height, stored.quarantined.height) == (49_999, 1)
    assert count(clickhouse, "events", "quarantine") == [49_999, 1]
    assert column(clickhouse, "SELECT event_id FROM quarantine") == [faulty]
    assert column(clickhouse, "SELECT uniqExact(case_id) FROM case_events") == [49_999]
    # without the row there are two: the events, and their cases
    assert len(done) - 2 <= 18
    assert len(asked) - 2 <= most_asked


def test_a_fault_that_refuses_every_row_stops_instead_of_quarantining_them_all(
    clickhouse: Client, rules: Rules
) -> None:
    documents = [event(number) for number in range(200)]
    result = process_block(Block(0, [record(0, *documents)]), PartitionState.empty(Settings()), rules)
    flaky = Flaky(clickhouse, [DataError("the table has another type")] * 1_000)
    with pytest.raises(RuntimeError, match="51 rows"):
        Sink(flaky, "t").write(result, **PLACE)  # type: ignore[arg-type]
    assert count(clickhouse, "events", "quarantine") == [0, 0]


class Flaky:
    """A client whose inserts fail as told, then work: after the insert when `late`."""

    def __init__(self, client: Client, errors: list[Exception], *, late: bool = False) -> None:
        self._client, self._errors, self._late = client, errors, late
        self.tokens: list[str] = []

    def raw_insert(self, table: str, *what: Any) -> None:
        _, _, settings, _ = what
        self.tokens.append(settings["insert_deduplication_token"])
        if self._errors:
            error = self._errors.pop(0)
            if self._late:
                self._client.raw_insert(table, *what)
            raise error
        self._client.raw_insert(table, *what)


@pytest.mark.parametrize("late", [False, True])
def test_passing_failures_repeat_the_same_insert_until_it_works(
    clickhouse: Client, rules: Rules, late: bool
) -> None:
    errors: list[Exception] = [
        DatabaseError("Code: 252. DB::Exception: Too many parts", code=252),
        OperationalError("connection reset"),
        ProtocolError("broken"),
    ]
    flaky = Flaky(clickhouse, errors, late=late)
    Sink(flaky, "t").write(block(rules), **PLACE)  # type: ignore[arg-type]
    assert re.fullmatch("t:5:0:0-9:[0-9a-f]{16}:events", flaky.tokens[0])
    assert flaky.tokens[:4] == flaky.tokens[:1] * 4
    assert count(clickhouse, "events", "rejections", "duplicates", "quarantine") == [2, 1, 2, 2]


def test_an_unknown_failure_is_raised_at_once(clickhouse: Client, rules: Rules) -> None:
    flaky = Flaky(clickhouse, [DatabaseError("Code: 60. DB::Exception: no such table", code=60)])
    with pytest.raises(DatabaseError):
        Sink(flaky, "t").write(block(rules), **PLACE)  # type: ignore[arg-type]
    assert len(flaky.tokens) == 1


def test_a_stop_ends_the_waiting() -> None:
    stopping = threading.Event()
    stopping.set()

    def call() -> None:
        raise UnavailableError("down")

    with pytest.raises(Stopping):
        persist(call, stopping=stopping, what="block")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (DatabaseError("x", code=241), Failure.TRANSIENT),
        (DatabaseError("x", code=159), Failure.TRANSIENT),
        (DatabaseError("x", code=319), Failure.TRANSIENT),
        (OperationalError("no answer"), Failure.TRANSIENT),
        (ConnectionResetError(), Failure.TRANSIENT),
        (OSError(28, "no space left"), Failure.TRANSIENT),
        (DatabaseError("x", code=321), Failure.DATA),
        (DataError("cannot convert"), Failure.DATA),
        (ContractError("wrong dtype"), Failure.DATA),
        (DatabaseError("x", code=60), Failure.UNKNOWN),
        (DatabaseError("x", code=None), Failure.UNKNOWN),
        (ValueError("a bug"), Failure.UNKNOWN),
    ],
)
def test_failures_are_told_apart(error: Exception, failure: Failure) -> None:
    assert classify(error) is failure


def test_tokens_hide_other_data_under_the_same_name(clickhouse: Client, rules: Rules) -> None:
    """What the incarnation in the token protects from; if the engine ever changes this, we want to know."""
    sink, result = Sink(clickhouse, "t"), block(rules)
    sink.write(result, **PLACE)
    other = result.events.with_columns(event_id=pl.lit("e99"))
    sink.write(replace(result, events=other), **PLACE)
    assert "e99" not in column(clickhouse, "SELECT event_id FROM events")


def resolved(client: Client, topic_id: str, cluster: str, end: int, topic: str = "t") -> int:
    return resolve(client, newest(client, topic), topic_id, cluster, {0: end})


def test_incarnation_is_kept_while_the_log_is_the_same(clickhouse: Client, rules: Rules) -> None:
    first = resolved(clickhouse, "id-1", "cluster", 0)
    Sink(clickhouse, "t").write(block(rules), **{**PLACE, "inc": first})
    assert resolved(clickhouse, "id-1", "cluster", 10) == first
    assert resolved(clickhouse, "id-1", "cluster", 10, topic="other") != first


def test_what_others_store_while_the_broker_is_asked_is_not_held_against_its_log(
    clickhouse: Client, rules: Rules
) -> None:
    first = resolved(clickhouse, "id-1", "cluster", 0)
    known = newest(clickhouse, "t")
    Sink(clickhouse, "t").write(block(rules), **{**PLACE, "inc": first})
    assert resolve(clickhouse, known, "id-1", "cluster", {0: 0}) == first
    assert newest(clickhouse, "t").stored[0] >= 0


@pytest.mark.parametrize(
    ("topic_id", "cluster", "end"),
    [("id-2", "cluster", 10), ("id-1", "other", 10), ("id-1", "cluster", 9), ("id-1", "cluster", 0)],
)
def test_a_new_log_is_a_new_and_larger_incarnation(
    clickhouse: Client, rules: Rules, topic_id: str, cluster: str, end: int
) -> None:
    first = resolved(clickhouse, "id-1", "cluster", 0)
    Sink(clickhouse, "t").write(block(rules), **{**PLACE, "inc": first})
    second = resolved(clickhouse, topic_id, cluster, end)
    assert second > first
    # the same records again are new positions: stored again, and one event to everything that counts ids
    Sink(clickhouse, "t").write(block(rules), **{**PLACE, "inc": second})
    assert count(clickhouse, "events") == [4]


@embedded_only
def test_an_insert_whose_file_went_away_is_sent_again(clickhouse: Client, tmp_path: Path) -> None:
    """The driver writes an insert to a file and the engine opens it: moved in between, the process ended."""
    clickhouse.command("CREATE TABLE t (n UInt8) ENGINE = Memory")
    with pytest.raises(DatabaseError) as caught:
        clickhouse.command(f"INSERT INTO t FROM INFILE '{tmp_path}/gone.raw' FORMAT Arrow")
    assert "FILE_DOESNT_EXIST" in str(caught.value)
    assert classify(caught.value) is Failure.TRANSIENT


def test_recovery_counts_what_is_stored_of_each_block(clickhouse: Client, rules: Rules) -> None:
    """A position that is stored twice is one; where two owners cut differently nothing is claimed."""

    def write(lo: int, hi: int, offsets: list[int], **more: str) -> None:
        """A block of two events a record, of which only these records arrive."""
        records = [record(at, event(2 * at), event(2 * at + 1)) for at in offsets]
        result = process_block(Block(0, records), PartitionState.empty(Settings()), rules)
        Sink(clickhouse, "t").write(result, inc=5, blocks=[Extent(0, lo, hi)], rules="r1", **more)

    def spans(committed: int) -> list[tuple[int, int, int]]:
        found = recover(clickhouse, inc=5, partition=0, committed=committed, settings=Settings())
        return [(span.lo, span.hi, span.rows) for span in found.spans]

    clickhouse.command("SYSTEM STOP MERGES")
    write(0, 1, [0, 1])
    write(2, 3, [2])
    write(4, 5, [4, 5])
    write(4, 5, [4, 5], suffix=":again")
    assert count(clickhouse, "events") == [14]
    assert spans(1) == [(1, 1, -1), (2, 3, 2), (4, 5, 4)]
    write(5, 6, [5, 6])
    assert spans(2) == [(2, 3, 2), (4, 5, 4), (6, 6, -1)]


def test_ids_of_the_whole_window_are_known_after_a_recovery(clickhouse: Client, rules: Rules) -> None:
    """What was received up to seven days before the copy is known, what is older is an event of its own."""

    def at(offset: int, number: int, *, days: float) -> Record:
        return record(offset, event(number), received=NOON + timedelta(days=days))

    first = [at(0, 1, days=1.0), at(1, 2, days=1.2), at(2, 3, days=8.0)]
    stored = process_block(Block(0, first), PartitionState.empty(Settings()), rules)
    Sink(clickhouse, "t").write(stored, inc=5, blocks=[Extent(0, 0, 2)], rules="r1")
    assert count(clickhouse, "events") == [3]
    recovered = recover(clickhouse, inc=5, partition=0, committed=3, settings=Settings())
    copies = process_block(Block(0, [at(3, 1, days=8.1), at(4, 2, days=8.1)]), recovered.state, rules)
    assert [(row["level"], row["event_id"]) for row in copies.duplicates.to_dicts()] == [("L1", "e2")]
    assert copies.events["event_id"].to_list() == ["e1"]


@pytest.mark.parametrize(
    ("log_start", "spans"),
    [
        (0, [(0, 1), (2, 3), (4, 5), (8, 9)]),
        (2, [(0, 1), (2, 3), (4, 5), (8, 9)]),
        (4, [(0, 1), (2, 3), (4, 5), (8, 9)]),
        (5, [(2, 3), (4, 5), (8, 9)]),
        (7, [(2, 3), (4, 5), (8, 9)]),
        (20, [(4, 5), (8, 9)]),
    ],
)
def test_a_group_without_offsets_begins_where_the_log_does(
    clickhouse: Client, rules: Rules, log_start: int, spans: list[tuple[int, int]]
) -> None:
    """Of the blocks before it only the last two may not be folded; all others were handed to their cases."""
    for lo in (0, 2, 4, 8):
        result = process_block(
            Block(0, [record(lo, event(lo)), record(lo + 1, event(lo + 1))]),
            PartitionState.empty(Settings()),
            rules,
        )
        Sink(clickhouse, "t").write(result, inc=5, blocks=[Extent(0, lo, lo + 1)], rules="r1")
    found = recover(clickhouse, inc=5, partition=0, committed=None, settings=Settings(), log_start=log_start)
    assert found.committed is None
    assert [(span.lo, span.hi) for span in found.spans] == spans


@pytest.mark.parametrize("rest", [False, True])
def test_a_late_insert_that_was_judged_alike_is_refused(clickhouse: Client, rules: Rules, rest: bool) -> None:
    """rest : whether who came afterwards found a part of the blocks, and stored the rest alone."""
    result, sink = block(rules), Sink(clickhouse, "t")
    assert result.events.height > 1
    left = replace(result, events=result.events[1:], received=result.received - 1) if rest else result
    sink.write(left, **PLACE, whole=result)
    before = count(clickhouse, *TABLES)
    assert before[0] == left.events.height
    sink.write(result, **PLACE)
    assert count(clickhouse, *TABLES) == before
