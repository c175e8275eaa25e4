"""Through the bridge and directly: the same calls give the same results, errors and side effects."""

from __future__ import annotations

import base64
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import clickhouse_connect
import httpx
import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, StreamFailureError

from pipeline.errors import UnavailableError
from pipeline.read.kpi import BY, VIEWS, kpi
from pipeline.settings import load_settings
from pipeline.store.bridge import Bridge
from pipeline.store.client import BridgeAddress, at_once, connect, connect_bridge
from pipeline.store.engine import EmbeddedEngine
from tests.conftest import embedded_only
from tests.integration.case_world import Event, KpiNames, World, at, chain

TOKEN = "a-token-of-this-test"
pytestmark = embedded_only


class _SessionEngine(EmbeddedEngine):
    """The test session's engine, already open in this process: handles on it, no lock of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """The session closes it."""


@pytest.fixture(scope="module")
def bridge(open_client: Client, engine_path: Path) -> Iterator[Bridge]:
    served = Bridge(_SessionEngine(engine_path), TOKEN, handles=3).start()
    yield served
    served.close()


@pytest.fixture(scope="module")
def database(open_client: Client) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    open_client.command(f"CREATE DATABASE {name}")
    yield name
    open_client.command(f"DROP DATABASE {name}")


@pytest.fixture(params=["direct", "bridge", "bridge compressed"])
def client(
    request: pytest.FixtureRequest, bridge: Bridge, engine_path: Path, database: str
) -> Iterator[Client]:
    """One suite, every way to the engine."""
    if request.param == "direct":
        opened = clickhouse_connect.get_client(interface="chdb", path=str(engine_path), database=database)
    elif request.param == "bridge":
        opened = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), database, timeout=30)
    else:
        opened = clickhouse_connect.get_client(
            host="127.0.0.1", port=bridge.port, password=TOKEN, database=database, compress="zstd"
        )
    yield opened
    opened.close()


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:8]}"
    client.command(
        f"CREATE TABLE {name} (id UInt64, word LowCardinality(Nullable(String)), at DateTime64(3, 'UTC'), "
        "people Array(Tuple(key String, flag Nullable(Bool)))) "
        "ENGINE = MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window = 100"
    )
    yield name
    client.command(f"DROP TABLE {name}")


def rows(low: int, high: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": pl.Series(range(low, high), dtype=pl.UInt64),
            "word": [None if n % 3 == 0 else f"词{n}" for n in range(low, high)],
            "at": pl.Series(
                [datetime(2026, 1, 1, tzinfo=UTC)] * (high - low), dtype=pl.Datetime("ms", "UTC")
            ),
            "people": [[{"key": f"k{n}", "flag": n % 2 == 0}] * (n % 3) for n in range(low, high)],
        }
    )


def test_the_client_learns_version_and_zone(client: Client) -> None:
    assert client.server_version.startswith("26.")
    assert str(client.server_tz) == "UTC"
    assert client.ping()


def test_query_gives_typed_rows(client: Client) -> None:
    result = client.query(
        "SELECT number, toString(number) AS s, [number, 1] AS a, (number, 'x') AS t, NULL AS n, "
        "toDateTime64('2026-03-01 01:02:03.004', 3, 'UTC') AS at FROM numbers(2) ORDER BY number"
    )
    at = datetime(2026, 3, 1, 1, 2, 3, 4000, tzinfo=UTC)
    assert result.column_names == ("number", "s", "a", "t", "n", "at")
    assert [(*row[:5], row[5].replace(tzinfo=UTC)) for row in result.result_rows] == [
        (0, "0", [0, 1], (0, "x"), None, at),
        (1, "1", [1, 1], (1, "x"), None, at),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "it's",
        'say "x"',
        "back\\slash",
        "tab\tand\nline",
        "'); DROP TABLE events; --",
        "{s:String}",
        "中文 🙂",
        "",
    ],
)
def test_parameters_arrive_verbatim(client: Client, text: str) -> None:
    found = client.query("SELECT {s:String}, {a:Array(String)}", parameters={"s": text, "a": [text, "b"]})
    assert found.result_rows == [(text, [text, "b"])]


def test_parameters_of_other_types(client: Client) -> None:
    given = {"n": 7, "at": datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC), "nothing": None, "ids": [1, 2, 3]}
    found = client.query(
        "SELECT {n:UInt32}, toString({at:DateTime}), {nothing:Nullable(String)}, {ids:Array(UInt64)}",
        parameters=given,
    )
    assert found.result_rows == [(7, "2026-05-06 07:08:09", None, [1, 2, 3])]


def test_parameters_too_long_for_an_address(client: Client) -> None:
    text = "长'\n" * 20_000
    assert client.query("SELECT {s:String}", parameters={"s": text}).result_rows == [(text,)]


def test_empty_result_keeps_its_columns(client: Client) -> None:
    assert client.query("SELECT 1 AS a, 'x' AS b LIMIT 0").column_names == ("a", "b")
    assert client.query("SELECT 1 AS a WHERE 0").result_rows == []


def test_commands_answer_values_or_nothing(client: Client) -> None:
    assert client.command("SELECT 41 + 1") == 42
    assert client.command("SELECT 'a', 'b'") == ["a", "b"]
    assert client.command("SELECT 1 WHERE 0") in ("", [])
    done = client.command("CREATE TABLE IF NOT EXISTS made (a Int8) ENGINE = Memory")
    assert not isinstance(done, (int, str, list))
    client.command("DROP TABLE made")


def test_arrow_insert_is_stored_once_under_one_token(client: Client, table: str) -> None:
    def insert(token: str | None) -> int:
        settings = {"async_insert": 0} | ({"insert_deduplication_token": token} if token else {})
        client.insert_arrow(table, rows(0, 50).to_arrow(), settings=settings)
        count = client.command(f"SELECT count() FROM {table}")
        assert isinstance(count, int)
        return count

    assert [insert("t:1:0:0-49") for _ in range(3)] == [50, 50, 50]
    assert insert("t:1:0:50-99") == 100
    assert insert(None) == 150  # a token must not stick to the connection
    assert insert(None) == 150  # without one, the content is the token


def test_what_was_inserted_is_read_back(client: Client, table: str) -> None:
    client.insert_arrow(table, rows(0, 20).to_arrow())
    found = pl.from_arrow(client.query_arrow(f"SELECT * FROM {table} ORDER BY id", use_strings=True))
    assert isinstance(found, pl.DataFrame)
    assert found["id"].to_list() == list(range(20))
    assert found["word"].cast(pl.String).to_list() == rows(0, 20)["word"].to_list()
    assert found["people"].to_list() == rows(0, 20)["people"].to_list()


def test_row_insert_in_native_format(client: Client, table: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    client.insert(
        table, [[1, "甲", at, [("k", True)]], [2, None, at, []]], column_names=["id", "word", "at", "people"]
    )
    assert client.query(f"SELECT id, word FROM {table} ORDER BY id").result_rows == [(1, "甲"), (2, None)]


def test_raw_insert_and_raw_query(client: Client, table: str) -> None:
    line = b'{"id": %d, "word": "a", "at": "2026-01-01 00:00:00.000", "people": []}\n'
    client.raw_insert(table, insert_block=line % 1, fmt="JSONEachRow")
    client.raw_insert(table, insert_block=line % 2, fmt="JSONEachRow", settings={"max_threads": 1})
    assert client.raw_query(f"SELECT id FROM {table} ORDER BY id", fmt="TabSeparated") == b"1\n2\n"


def test_insert_select_and_inline_values(client: Client, table: str) -> None:
    client.command(
        f"INSERT INTO {table} (id, at) VALUES (1, '2026-01-01 00:00:00'), (2, '2026-01-01 00:00:00')"
    )
    client.command(f"INSERT INTO {table} (id, at) SELECT number + 10, now64(3) FROM numbers(5)")
    assert client.command(f"SELECT count() FROM {table}") == 7


@pytest.mark.parametrize(
    ("sql", "code", "name"),
    [
        ("SELECT * FROM no_such_table", 60, "UNKNOWN_TABLE"),
        ("SELEC 1", 62, "SYNTAX_ERROR"),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT no_such_function(1)", 46, "UNKNOWN_FUNCTION"),
        ("SELECT * FROM no_such_database.t", 81, "UNKNOWN_DATABASE"),
        ("SELECT toUInt8('x')", 6, "CANNOT_PARSE_TEXT"),
    ],
)
def test_errors_have_the_engines_code_and_name(client: Client, sql: str, code: int, name: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.query(sql)
    assert (caught.value.code, caught.value.name) == (code, name)
    assert client.command("SELECT 1") == 1


def test_a_bad_block_is_refused_and_leaves_nothing(client: Client, table: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.raw_insert(table, insert_block=b"this is no arrow stream at all", fmt="ArrowStream")
    assert caught.value.code is not None
    assert client.command(f"SELECT count() FROM {table}") == 0


def test_an_insert_that_the_engine_refuses_at_its_end_is_refused(client: Client, table: str) -> None:
    """A full disk (243), too many parts (252), a constraint (469): told when a part is written."""
    client.command(f"ALTER TABLE {table} ADD CONSTRAINT large CHECK id > 100")
    with pytest.raises(DatabaseError) as caught:
        client.insert_arrow(table, rows(0, 50).to_arrow())
    assert caught.value.code == 469
    with pytest.raises(DatabaseError) as caught:
        client.insert_arrow(
            table, rows(200, 250).to_arrow(), settings={"min_free_disk_bytes_to_perform_insert": 2**62}
        )
    assert caught.value.code == 243
    assert client.command(f"SELECT count() FROM {table}") == 0
    client.insert_arrow(table, rows(200, 250).to_arrow())
    assert client.command(f"SELECT count() FROM {table}") == 50


def test_settings_of_one_call_do_not_reach_the_next(client: Client) -> None:
    read = "SELECT getSetting('max_block_size')"
    usual = client.command(read)
    assert client.query(read, settings={"max_block_size": 123}).result_rows == [(123,)]
    assert client.command(read) == usual


def test_a_million_rows(client: Client) -> None:
    found = client.query_arrow("SELECT number AS n, toString(number) AS s FROM numbers(1000000)")
    assert found.num_rows == 1_000_000
    assert pl.DataFrame(pl.from_arrow(found))["n"].sum() == 499_999_500_000


def test_streamed_blocks_and_a_failure_in_mid_stream(client: Client) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(block) for block in stream) == 300_000
    # Many rows before the fault: the status line is sent by then.
    late_fault = "SELECT throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_block_size = 1000"
    with (
        pytest.raises(StreamFailureError) as caught,
        client.query_row_block_stream(late_fault + ", max_threads = 1") as stream,
    ):
        for _ in stream:
            pass
    assert caught.value.code == 395
    assert client.command("SELECT 1") == 1


def test_an_abandoned_stream_gives_its_handle_back(bridge: Bridge) -> None:
    address = BridgeAddress(bridge.url, TOKEN, 0)
    for _ in range(6):  # twice as many as there are handles
        reader = connect_bridge(address, None, timeout=30)
        with reader.query_row_block_stream("SELECT number FROM numbers(3000000)") as stream:
            next(iter(stream))
        reader.close()
    fresh = connect_bridge(address, None, timeout=30)
    assert fresh.command("SELECT 1") == 1
    fresh.close()


@pytest.mark.parametrize("first", [True, False])
def test_who_hangs_up_while_a_block_is_made_gives_its_handle_back(
    engine_path: Path, open_client: Client, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """first : whether one block was read before; the next one is half a second in the making."""
    monkeypatch.setattr("pipeline.store.bridge.HANDLE_WAIT_SECONDS", 5.0)
    query = b"SELECT number, sleepEachRow(0.5) FROM numbers(4) SETTINGS max_block_size = 1"
    head = f"POST /?default_format=Native HTTP/1.1\r\nHost: x\r\nX-ClickHouse-Key: {TOKEN}\r\n"
    head += f"Content-Length: {len(query)}\r\n\r\n"
    served = Bridge(_SessionEngine(engine_path), TOKEN, handles=1).start()
    try:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as caller:
            caller.sendall(head.encode() + query)
            if first:
                assert caller.recv(1_000).startswith(b"HTTP/1.1 200")
            else:
                time.sleep(0.1)
        fresh = connect_bridge(BridgeAddress(served.url, TOKEN, 0), None, timeout=30)
        assert fresh.command("SELECT 1") == 1
        fresh.close()
    finally:
        served.close()


def test_a_handle_whose_stream_did_not_end_is_used_no_more(
    engine_path: Path, open_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next query on it would find nothing, and no error. Where no other can be had for a moment, who asks
    is told, and the one after is served."""
    engine = _SessionEngine(engine_path)
    served = Bridge(engine, TOKEN, handles=1).start()
    try:
        (first,) = served._open

        def close(_: object) -> None:
            raise RuntimeError("the stream cannot be ended")

        monkeypatch.setattr("pipeline.store.session.Chunks.close", close)
        reader = connect_bridge(BridgeAddress(served.url, TOKEN, 0), None, timeout=30)
        with reader.query_row_block_stream("SELECT number FROM numbers(3000000)") as stream:
            next(iter(stream))
        reader.close()
        deadline = time.monotonic() + 30
        while not first.broken:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.undo()
        make = engine.new_handle
        tries = iter([RuntimeError("no handle now")])

        def once_refused() -> object:
            for error in tries:
                raise error
            return make()

        monkeypatch.setattr(engine, "new_handle", once_refused)
        with httpx.Client(
            base_url=served.url, headers={"X-ClickHouse-Key": TOKEN}, trust_env=False
        ) as caller:
            answers = [caller.post("/", content="SELECT 1") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 200], answers[0].text
        assert served._open != [first]
        assert len(served._open) == 1
    finally:
        served.close()


def test_a_query_lasts_no_longer_than_its_client_would_wait(bridge: Bridge) -> None:
    """Its client may be gone, and nobody else ends it."""
    reader = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), None, timeout=2)
    slow = "SELECT sleepEachRow(0.5) FROM numbers(20) SETTINGS max_block_size = 1"
    with pytest.raises(StreamFailureError) as caught, reader.query_row_block_stream(slow) as stream:
        for _ in stream:
            pass
    assert caught.value.code == 159
    reader.close()


def test_many_threads_share_one_client(bridge: Bridge, database: str) -> None:
    shared = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), database, timeout=30)
    barrier = threading.Barrier(6)

    def ask(number: int) -> int:
        barrier.wait()
        total = 0
        for _ in range(10):
            total += shared.query(
                "SELECT {n:UInt32} + sum(number) FROM numbers(100)", {"n": number}
            ).first_row[0]
        return total

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == [10 * (n + 4950) for n in range(6)]
    shared.close()


def test_readers_keep_their_connections(bridge: Bridge, caplog: pytest.LogCaptureFixture) -> None:
    """The driver's own pool keeps eight for all clients together, and warns of each that it closes."""
    readers = [connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), None, timeout=30) for _ in range(12)]
    barrier = threading.Barrier(len(readers))

    def ask(reader: Client) -> None:
        barrier.wait()
        reader.command("SELECT sleep(0.05)")

    with caplog.at_level("WARNING", "urllib3"), ThreadPoolExecutor(len(readers)) as pool:
        list(pool.map(ask, readers))
    assert not caplog.records
    for reader in readers:
        reader.close()


def test_what_goes_to_the_store_process_passes_no_proxy(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token would go along."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    reader = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), None, timeout=30)
    assert reader.command("SELECT 1") == 1
    reader.close()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic " + base64.b64encode(b"default:wrong").decode()},
        {"Authorization": "Basic not-base64"},
        {"Authorization": "Bearer wrong"},
        {"X-ClickHouse-Key": TOKEN[:-1]},
    ],
)
def test_nobody_gets_in_without_the_token(bridge: Bridge, headers: dict[str, str]) -> None:
    answer = httpx.post(bridge.url, content="SELECT 1", headers=headers)
    assert answer.status_code == 403
    assert answer.headers["X-ClickHouse-Exception-Code"] == "516"
    assert httpx.get(bridge.url + "/ping").text == "Ok.\n"


@pytest.mark.parametrize(
    ("name", "value"), [("Authorization", f"Bearer {TOKEN}"), ("X-ClickHouse-Key", TOKEN)]
)
def test_the_token_opens_in_every_form(bridge: Bridge, name: str, value: str) -> None:
    answer = httpx.post(bridge.url, content="SELECT 1", headers={name: value})
    assert (answer.status_code, answer.text) == (200, "1\n")
    assert answer.headers["X-ClickHouse-Format"] == "TabSeparated"


def test_a_wrong_token_is_an_unreachable_store_in_one_line(bridge: Bridge) -> None:
    with pytest.raises(UnavailableError, match="cannot be used") as caught:
        connect_bridge(BridgeAddress(bridge.url, "wrong", 0), None, timeout=5)
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
def test_compressed_bodies(bridge: Bridge, encoding: str) -> None:
    import gzip
    import zlib

    import lz4.frame
    import zstandard

    pack = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "lz4": lz4.frame.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }[encoding]
    headers = {"X-ClickHouse-Key": TOKEN, "Content-Encoding": encoding}
    two_frames = pack(b"SELECT 1 ") + pack(b"+ 1")
    assert httpx.post(bridge.url, content=two_frames, headers=headers).text == "2\n"
    broken = httpx.post(bridge.url, content=pack(b"SELECT 1")[:-3], headers=headers)
    assert broken.status_code == 500
    assert broken.headers["X-ClickHouse-Exception-Code"] == "354"


def test_connect_finds_the_running_service(bridge: Bridge, tmp_path: Path, database: str) -> None:
    import os

    settings = load_settings(data_dir=tmp_path, database=database)
    settings.run_dir.mkdir()
    BridgeAddress(bridge.url, TOKEN, os.getpid()).write(settings.run_dir)
    assert BridgeAddress.path(settings.run_dir).stat().st_mode & 0o077 == 0
    found = connect(settings)
    assert found.command("SELECT currentDatabase()") == database
    found.close()


def test_connect_says_in_one_line_that_a_server_is_unreachable(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, clickhouse="http://user:hidden@127.0.0.1:9/")
    with pytest.raises(
        UnavailableError, match=r"ClickHouse at http://127\.0\.0\.1:9 cannot be used"
    ) as caught:
        connect(settings)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_error_is_no_success(bridge: Bridge) -> None:
    reader = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), None, timeout=5)
    with pytest.raises(ClickHouseError):
        reader.command("SELECT 1", settings={"no_such_setting": "1"})
    answer = httpx.post(
        bridge.url, params={"no_such_setting": "1"}, content="SELECT 1", headers={"X-ClickHouse-Key": TOKEN}
    )
    assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "115")
    assert reader.command("SELECT 1") == 1
    reader.close()


@pytest.fixture
def over_http(bridge: Bridge, clickhouse: Client) -> Iterator[Client]:
    """A client of the bridge on the database of `clickhouse`."""
    client = connect_bridge(BridgeAddress(bridge.url, TOKEN, 0), clickhouse.database, timeout=30)
    yield client
    client.close()


def test_a_kpi_call_whose_parts_run_at_once_gives_the_same(clickhouse: Client, over_http: Client) -> None:
    """On a handle its parts follow each other, over HTTP they run together."""
    world = World(clickhouse)
    world.write(*chain("a", [("REPORTED", 0), ("ACCEPTED", 1), ("DISPATCHED", 2), ("SIGNED", 3)]))
    world.write(Event("b", "REPORTED", at(1), outcome="rejected"), *chain("orphan", [("SIGNED", 1)]))
    for by in BY:
        for view in VIEWS:
            for as_of in (at(2.5), at(48)):
                asked = {"by": by, "view": view, "from_": at(0), "to": at(48), "as_of": as_of}
                answers = [kpi(client, names=KpiNames(), **asked) for client in (clickhouse, over_http)]
                assert answers[0] == answers[1]
    assert answers[0]["rows"]


def test_at_once_waits_for_every_call_before_it_raises(over_http: Client) -> None:
    ended = []

    def slow() -> int:
        over_http.query("SELECT sleep(0.5)")
        ended.append("slow")
        return 1

    def failing() -> int:
        return int(over_http.command("SELECT throwIf(1)"))

    assert at_once(over_http, slow, slow) == [1, 1]
    ended.clear()
    with pytest.raises(DatabaseError, match="throwIf"):
        at_once(over_http, failing, slow)
    assert ended == ["slow"]
