"""What the engine and its driver do when asked plainly, and that our own path does not fall for it.

Each test says the behaviour of the bare library first: an upgrade that changes it is noticed here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import httpx
import polars as pl
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, ProgrammingError

from pipeline.errors import ContractError
from pipeline.frames import STORED
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.settings import Settings
from pipeline.sink.tables import INSERT_SETTINGS, Sink, _checked
from pipeline.store.bridge import Bridge
from pipeline.store.engine import MIN_FREE_BYTES
from tests.conftest import embedded_only
from tests.integration.test_bridge import TOKEN, _SessionEngine
from tests.integration.worker_world import count, event, load_reference, record, rules_of
from tests.security.access_file import Access, statements, write_configuration

ROWS = pa.table({"id": pa.array(range(1000), pa.uint64()), "part": pa.array([0] * 1000, pa.uint8())})
OTHER = pa.table({"id": pa.array(range(5000, 5100), pa.uint64()), "part": pa.array([0] * 100, pa.uint8())})
WINDOW = "SETTINGS non_replicated_deduplication_window = 1000"


@pytest.fixture
def plain(clickhouse: Client) -> Iterator[Client]:
    """Two source tables, with and without a window, and two targets of views."""
    for name, settings in (("bare", ""), ("windowed", WINDOW)):
        clickhouse.command(
            f"CREATE TABLE {name} (id UInt64, part UInt8) ENGINE = MergeTree PARTITION BY part "
            f"ORDER BY id {settings}"
        )
        clickhouse.command(
            f"CREATE TABLE seen_by_{name} (id UInt64) ENGINE = MergeTree ORDER BY id {settings}"
        )
    for name in ("bare", "windowed"):
        clickhouse.command(
            f"CREATE MATERIALIZED VIEW view_of_{name} TO seen_by_{name} AS SELECT id FROM windowed"
        )
    yield clickhouse
    for name in ("bare", "windowed"):
        clickhouse.command(f"DROP VIEW view_of_{name}")


def send(client: Client, table: str, rows: pa.Table, token: str) -> None:
    client.insert_arrow(table, rows, settings={**INSERT_SETTINGS, "insert_deduplication_token": token})


def test_c1_a_table_without_a_window_takes_the_same_insert_twice(plain: Client) -> None:
    for _ in range(2):
        send(plain, "bare", ROWS, "a")
        send(plain, "windowed", ROWS, "a")
    assert count(plain, "bare", "windowed") == [2000, 1000]


def test_c1_every_table_of_ours_has_a_window(clickhouse: Client) -> None:
    """Whatever migrations made, cases and reference data as well; only Alembic's note is its own affair."""
    made = dict(
        clickhouse.query(
            "SELECT name, create_table_query FROM system.tables "
            "WHERE database = {of:String} AND engine LIKE '%MergeTree%' AND name != 'alembic_version'",
            {"of": clickhouse.database},
        ).result_rows
    )
    assert made.keys() >= {
        "events", "rejections", "duplicates", "quarantine", "case_events", "cases", "incarnations",
        "ref_grids", "ref_staff", "ref_matters", "ref_loads", "ref_erasures",
    }  # fmt: skip
    windows = {
        name: re.search(r"non_replicated_deduplication_window = (\d+)", query) for name, query in made.items()
    }
    assert [name for name, found in windows.items() if found is None or int(found[1]) == 0] == []


def test_finding_3_a_token_hides_other_rows(plain: Client) -> None:
    send(plain, "windowed", ROWS, "same")
    send(plain, "windowed", OTHER, "same")
    assert count(plain, "windowed") == [1000], "the engine dropped other rows without a word"


def test_finding_3_our_tokens_name_the_incarnation(clickhouse: Client, tmp_path: Path) -> None:
    """A new log that begins at offset 0 again: the same partition and offsets, other rows, all stored."""
    load_reference(clickhouse, tmp_path)
    rules = rules_of(clickhouse)
    for inc, number in ((1, 1), (2, 2)):
        block = Block(0, [record(0, event(number))])
        result = process_block(block, PartitionState.empty(Settings()), rules)
        _write(Sink(clickhouse, "t"), result, inc, block)
    assert count(clickhouse, "events") == [2]


def _write(sink: Sink, result: object, inc: int, block: Block) -> None:
    from pipeline.sink.tables import Extent

    sink.write(result, inc=inc, blocks=[Extent(block.partition, block.lo, block.hi)], rules="r")  # type: ignore[arg-type]


def test_c2_a_token_counts_per_partition_of_the_table(plain: Client) -> None:
    both = pa.table({"id": pa.array(range(2000), pa.uint64()), "part": pa.array([0, 1] * 1000, pa.uint8())})
    send(plain, "windowed", ROWS, "same")
    send(plain, "windowed", both, "same")
    assert plain.query("SELECT part, count() FROM windowed GROUP BY part ORDER BY part").result_rows == [
        (0, 1000), (1, 1000),
    ]  # fmt: skip


def test_finding_5_the_target_of_a_view_needs_a_window_of_its_own(plain: Client) -> None:
    seen = []
    for _ in range(3):
        send(plain, "windowed", ROWS, "same")
        seen.append(count(plain, "windowed", "seen_by_windowed", "seen_by_bare"))
    assert seen == [[1000, 1000, 1000], [1000, 1000, 2000], [1000, 1000, 3000]]


def test_finding_5_no_view_of_ours_feeds_a_table(clickhouse: Client) -> None:
    views = clickhouse.query(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'MaterializedView'"
    ).result_rows
    assert views == [], "a materialised view needs a window on its target, and a test of three equal inserts"


@pytest.mark.parametrize(("told", "seen"), [(0, [1000, 2000, 3000]), (1, [1000, 1000, 1000])])
def test_c6_the_window_of_a_views_target_counts_only_if_a_setting_says_so(
    clickhouse: Client, told: int, seen: list[int]
) -> None:
    for name in ("source", "target"):
        clickhouse.command(f"CREATE TABLE {name} (id UInt64) ENGINE = MergeTree ORDER BY id {WINDOW}")
    clickhouse.command("CREATE MATERIALIZED VIEW between TO target AS SELECT id FROM source")
    settings = {
        **INSERT_SETTINGS,
        "deduplicate_blocks_in_dependent_materialized_views": told,
        "insert_deduplication_token": "same",
    }
    found = []
    for _ in range(3):
        clickhouse.insert_arrow("source", ROWS.select(["id"]), settings=settings)
        found.append(count(clickhouse, "source", "target"))
    clickhouse.command("DROP VIEW between")
    assert found == [[1000, rows] for rows in seen]


def test_finding_6_defaults_that_moved(open_client: Client) -> None:
    names = "('async_insert', 'deduplicate_blocks_in_dependent_materialized_views')"
    found = dict(
        open_client.query(f"SELECT name, default FROM system.settings WHERE name IN {names}").result_rows
    )
    assert found == {"async_insert": "1", "deduplicate_blocks_in_dependent_materialized_views": "1"}
    assert INSERT_SETTINGS["async_insert"] == 0
    assert INSERT_SETTINGS["insert_deduplicate"] == 1
    assert INSERT_SETTINGS["deduplicate_blocks_in_dependent_materialized_views"] == 1
    names = (
        "('non_replicated_deduplication_window', 'replicated_deduplication_window', "
        "'replicated_deduplication_window_seconds', 'fsync_after_insert')"
    )
    of_tables = open_client.query(
        f"SELECT name, value FROM system.merge_tree_settings WHERE name IN {names}"
    ).result_rows
    assert dict(of_tables) == {
        "non_replicated_deduplication_window": "0",
        "replicated_deduplication_window": "10000",
        "replicated_deduplication_window_seconds": "3600",  # it was a week
        "fsync_after_insert": "0",
    }


def forced(client: Client, insert: Callable[[], object]) -> set[str]:
    """What an insert forces to disk: "FileSync" for its files, "DirectorySync" for their names."""
    asked = "SELECT event, value FROM system.events WHERE event IN ('FileSync', 'DirectorySync')"
    before = set(client.query(asked).result_rows)
    insert()
    return {event for event, _ in set(client.query(asked).result_rows) - before}


@embedded_only
def test_c12_an_insert_is_not_forced_to_disk_unless_told(plain: Client) -> None:
    """A kill costs nothing, for the system has the pages; a loss of power does. Of a server that others use
    meanwhile the counters tell nothing."""
    assert forced(plain, lambda: send(plain, "windowed", ROWS, "a")) == set()
    plain.command("ALTER TABLE windowed MODIFY SETTING fsync_after_insert = 1")
    assert forced(plain, lambda: send(plain, "windowed", ROWS, "b")) == {"FileSync"}
    plain.command("ALTER TABLE windowed MODIFY SETTING fsync_part_directory = 1")
    assert forced(plain, lambda: send(plain, "windowed", ROWS, "c")) == {"FileSync", "DirectorySync"}


@embedded_only
def test_c12_what_a_loss_of_power_takes_is_said_and_the_settings_named_force_our_inserts(
    clickhouse: Client, tmp_path: Path
) -> None:
    """No table of ours forces anything as it comes: whoever needs it has replicas, or these settings."""
    for readme in ("README.md", "README.zh-CN.md"):
        text = (Path(__file__).parents[2] / readme).read_text()
        (line,) = [line for line in text.splitlines() if "fsync_after_insert=1" in line]
        assert "fsync_part_directory=1" in line
    load_reference(clickhouse, tmp_path)
    rules = rules_of(clickhouse)

    def insert(number: int) -> None:
        block = Block(0, [record(number, event(number))])
        _write(Sink(clickhouse, "t"), process_block(block, PartitionState.empty(Settings()), rules), 1, block)

    assert forced(clickhouse, lambda: insert(1)) == set()
    for name in ("events", "case_events"):
        clickhouse.command(
            f"ALTER TABLE {name} MODIFY SETTING fsync_after_insert = 1, fsync_part_directory = 1"
        )
    assert forced(clickhouse, lambda: insert(2)) == {"FileSync", "DirectorySync"}
    assert count(clickhouse, "events") == [2]


def test_finding_7_arrow_inserts_wrap_and_clamp(clickhouse: Client) -> None:
    clickhouse.command("CREATE TABLE narrow (n UInt16, at DateTime('UTC')) ENGINE = MergeTree ORDER BY n")
    at = pa.array([datetime(2300, 1, 1, tzinfo=UTC)], pa.timestamp("s", "UTC"))
    clickhouse.insert_arrow("narrow", pa.table({"n": pa.array([70000], pa.uint32()), "at": at}))
    [(number, moment)] = clickhouse.query("SELECT n, toString(at) FROM narrow").result_rows
    assert number == 4464
    assert not moment.startswith("2300")
    with pytest.raises(DataError):
        clickhouse.insert("narrow", [[70000, datetime(2026, 1, 1, tzinfo=UTC)]], column_names=["n", "at"])


def test_finding_7_our_sink_refuses_what_would_wrap(clickhouse: Client, tmp_path: Path) -> None:
    load_reference(clickhouse, tmp_path)
    block = Block(0, [record(0, event(1))])
    rows = process_block(block, PartitionState.empty(Settings()), rules_of(clickhouse)).events
    late = rows.with_columns(occurred_at=pl.lit(datetime(2300, 1, 1, tzinfo=UTC)).cast(STORED["occurred_at"]))
    with pytest.raises(ContractError, match="occurred_at"):
        _checked("events", late)
    wide = rows.with_columns(pl.col("key_version").cast(pl.UInt32) + 70_000)
    with pytest.raises(ContractError):
        _checked("events", wide)
    _checked("events", rows)


def test_finding_7_a_number_that_an_enum_does_not_have_is_taken(clickhouse: Client) -> None:
    """The row is there, and every query that reads the word fails."""
    clickhouse.command("CREATE TABLE worded (word Enum8('a' = 1, 'b' = 2)) ENGINE = MergeTree ORDER BY word")
    clickhouse.insert_arrow("worded", pa.table({"word": pa.array([77], pa.int8())}))
    assert count(clickhouse, "worded") == [1]
    with pytest.raises(DatabaseError, match="UNKNOWN_ELEMENT_OF_ENUM"):
        clickhouse.query("SELECT toString(word) FROM worded")


def test_finding_7_a_word_that_an_enum_does_not_have_is_stored_as_0_and_read_as_none(
    clickhouse: Client,
) -> None:
    """By rows, not by Arrow: nothing is refused, and of a read by the driver nothing is either."""
    clickhouse.command(
        "CREATE TABLE worded (n UInt8, word Enum8('a' = 1, 'b' = 2)) ENGINE = MergeTree ORDER BY n"
    )
    clickhouse.insert("worded", [[1, "a"], [2, "unknown"]], column_names=["n", "word"])
    numbers = clickhouse.query("SELECT CAST(word AS Int8) FROM worded ORDER BY n").result_rows
    assert numbers == [(1,), (0,)]
    assert clickhouse.query("SELECT word FROM worded ORDER BY n").result_rows == [("a",), (None,)]


def test_finding_7_no_column_of_ours_is_an_enum(clickhouse: Client) -> None:
    columns = clickhouse.query(
        "SELECT table, name, type FROM system.columns WHERE database = {of:String}",
        {"of": clickhouse.database},
    ).result_rows
    assert len(columns) > 100
    assert [column for column in columns if "Enum" in column[2]] == []


def test_c3_a_window_is_finite(clickhouse: Client) -> None:
    """In a window of one block the token of the block before it is forgotten."""
    clickhouse.command(
        "CREATE TABLE narrow (id UInt64, part UInt8) ENGINE = MergeTree ORDER BY id "
        "SETTINGS non_replicated_deduplication_window = 1"
    )
    for token in ("a", "b", "b"):
        send(clickhouse, "narrow", ROWS, token)
    assert count(clickhouse, "narrow") == [2000]
    send(clickhouse, "narrow", ROWS, "a")
    assert count(clickhouse, "narrow") == [3000]


def test_c7_a_sum_counts_a_copy_again_and_a_set_does_not(clickhouse: Client) -> None:
    clickhouse.command(
        "CREATE TABLE totals (k UInt8, n SimpleAggregateFunction(sum, UInt64), "
        "ids AggregateFunction(uniqExact, UInt64)) ENGINE = AggregatingMergeTree ORDER BY k"
    )
    for _ in range(2):
        clickhouse.command(
            "INSERT INTO totals SELECT 1, toUInt64(count()), uniqExactState(number) FROM numbers(10)"
        )
    totals = clickhouse.query("SELECT sum(n), uniqExactMerge(ids) FROM totals").result_rows
    assert totals == [(20, 10)]


def test_c7_no_table_of_ours_keeps_sums(clickhouse: Client) -> None:
    of = {"of": clickhouse.database}
    engines = clickhouse.query(
        "SELECT engine FROM system.tables WHERE database = {of:String}", of
    ).result_rows
    types = clickhouse.query("SELECT type FROM system.columns WHERE database = {of:String}", of).result_rows
    assert "Summing" not in str(engines)
    assert re.findall(r"AggregateFunction\((?:sum|count|avg)\w*", str(types)) == []


def test_c9_more_parts_than_a_table_may_have_refuse_the_insert(clickhouse: Client) -> None:
    """252 at 3,000 parts as it comes."""
    limits = "('parts_to_delay_insert', 'parts_to_throw_insert')"
    found = clickhouse.query(f"SELECT name, value FROM system.merge_tree_settings WHERE name IN {limits}")
    assert dict(found.result_rows) == {"parts_to_delay_insert": "1000", "parts_to_throw_insert": "3000"}
    clickhouse.command(
        "CREATE TABLE crowded (id UInt64, part UInt8) ENGINE = MergeTree ORDER BY id "
        "SETTINGS parts_to_delay_insert = 1, parts_to_throw_insert = 2"
    )
    clickhouse.command("SYSTEM STOP MERGES crowded")
    for token in ("a", "b"):
        send(clickhouse, "crowded", ROWS, token)
    with pytest.raises(DatabaseError, match="TOO_MANY_PARTS"):
        send(clickhouse, "crowded", ROWS, "c")


def test_a_count_of_no_row_ends_with_an_error_where_a_column_is_named_as_the_engines_own(
    clickhouse: Client,
) -> None:
    """So it is for a user without a row policy, whose condition is 0; our tables have a `_part`."""
    columns = {"named": "_part", "other": "_piece"}
    for table, name in columns.items():
        clickhouse.command(f"CREATE TABLE {table} ({name} UInt16, id UInt64) ENGINE = MergeTree ORDER BY id")
        clickhouse.command(f"INSERT INTO {table} VALUES (1, 2)")
        assert clickhouse.query(f"SELECT id FROM {table} WHERE 0").result_rows == []
    assert clickhouse.query("SELECT count() FROM other WHERE 0").result_rows == [(0,)]
    with pytest.raises(DatabaseError, match="NOT_FOUND_COLUMN_IN_BLOCK"):
        clickhouse.query("SELECT count() FROM named WHERE 0")


def test_c11_a_block_of_ours_is_one_block_of_the_engine(open_client: Client) -> None:
    """What is larger than this is cut, at places that a second try need not find again."""
    asked = "SELECT value FROM system.settings WHERE name = 'max_insert_block_size'"
    [[largest]] = open_client.query(asked).result_rows
    assert int(largest) == 1_048_449
    assert Settings().block_max_rows <= int(largest)


def test_c4_after_a_delete_the_same_insert_is_swallowed(plain: Client) -> None:
    send(plain, "windowed", ROWS, "same")
    plain.command("ALTER TABLE windowed DELETE WHERE 1 SETTINGS mutations_sync = 2")
    assert count(plain, "windowed") == [0]
    send(plain, "windowed", ROWS, "same")
    assert count(plain, "windowed") == [0], "a restore needs new tokens"
    send(plain, "windowed", ROWS, "restored")
    assert count(plain, "windowed") == [1000]


def test_c8_replacing_tables_show_copies_until_they_merge(clickhouse: Client) -> None:
    clickhouse.command("CREATE TABLE r (id UInt64) ENGINE = ReplacingMergeTree ORDER BY id")
    clickhouse.command("SYSTEM STOP MERGES r")
    for _ in range(2):
        clickhouse.insert_arrow("r", pa.table({"id": pa.array([1], pa.uint64())}))
    assert count(clickhouse, "r", "r FINAL") == [2, 1]


_RAW_OPEN = """
import sys, chdb
try:
    handle = chdb.connect(sys.argv[1])
except RuntimeError as error:
    sys.exit(f"refused: {error}")
print("open", flush=True)
sys.stdin.readline()
handle.close()
"""


def test_d2_the_bare_engine_refuses_a_second_process_without_saying_why(tmp_path: Path) -> None:
    """What is raised has an empty message and no pid; that a file is locked goes to the engine's own log."""
    arguments = [sys.executable, "-c", _RAW_OPEN, str(tmp_path / "ch")]
    first = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        second = subprocess.run(arguments, input="", capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 1
        [raised] = [line for line in second.stderr.splitlines() if line.startswith("refused: ")]
        assert raised.endswith("Error initializing EmbeddedServer: . (BAD_ARGUMENTS)")
        assert str(first.pid) not in second.stderr
        assert first.poll() is None
    finally:
        first.communicate("\n", timeout=30)
    assert first.returncode == 0


def test_d2_a_second_process_on_the_path_gets_a_clear_message(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.store.engine import EmbeddedEngine\n"
        "engine = EmbeddedEngine(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print('open', flush=True); sys.stdin.readline()"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "ch"), str(tmp_path / "tmp")]
    first = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        second = subprocess.run(arguments, input="", capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode != 0
        assert "ConfigurationError" in second.stderr
        assert str(first.pid) in second.stderr, second.stderr
        assert first.poll() is None
    finally:
        first.communicate("\n", timeout=30)
    assert first.returncode == 0


@embedded_only
def test_d1_the_embedded_engine_takes_any_credentials(clickhouse: Client) -> None:
    clickhouse.set_access_token("of nobody")
    assert clickhouse.query("SELECT 1").result_rows == [(1,)]


@embedded_only
def test_d4_the_embedded_driver_writes_what_it_inserts_into_a_temporary_file(
    plain: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clickhouse_connect.driver._backend import chdb_backend

    written: list[str] = []
    block = chdb_backend._write_block_to_file

    def write(rows: object, file: IO[bytes]) -> None:
        written.append(str(file.name))
        block(rows, file)

    monkeypatch.setattr(chdb_backend, "_write_block_to_file", write)
    send(plain, "windowed", ROWS, "a")
    [name] = written
    assert Path(name).is_relative_to(tempfile.gettempdir())
    assert not Path(name).exists()


def test_d5_the_embedded_engine_takes_the_hosts_time_zone(tmp_path: Path) -> None:
    script = "import sys, chdb; print(chdb.connect(sys.argv[1]).query('SELECT timezone()', 'TSV'))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ch")],
        env=os.environ | {"TZ": "Asia/Shanghai"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "Asia/Shanghai"


_ASKED = """
import sys, chdb
handle = chdb.connect(sys.argv[1])
for statement in sys.argv[2:]:
    try:
        print(handle.query(statement, "TSV").bytes().decode().strip() or "done")
    except RuntimeError as error:
        print(str(error).replace("\\n", " "))
"""


def told(path: Path, config: Path | None, *statements: str) -> list[str]:
    """What the engine on `path` answers to each statement, a line each; under a server's configuration."""
    at = f"{path}?config-file={config}" if config else str(path)
    asking = [sys.executable, "-c", _ASKED, at, *statements]
    done = subprocess.run(asking, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_c14_a_row_policy_binds_no_insert(tmp_path: Path) -> None:
    """Who sees one row of two has written both."""
    access = Access(
        roles={"both": None}, grants={"both": ["GRANT SELECT, INSERT, CREATE ON d.*"]},
        policies={"d.t": [("district = 1", ["both"])]},
    )  # fmt: skip
    config = write_configuration(tmp_path, access, "both")
    found = told(
        tmp_path / "ch", config, "CREATE DATABASE d",
        "CREATE TABLE d.t (district UInt8) ENGINE = MergeTree ORDER BY district",
        "INSERT INTO d.t VALUES (1), (2)", "SELECT district FROM d.t",
        "SELECT total_rows FROM system.tables WHERE database = 'd'",
    )  # fmt: skip
    assert found == ["done", "done", "done", "1", "2"]


def test_c14_who_sees_a_part_of_the_rows_writes_none(tmp_path: Path) -> None:
    access = Access.read(statements())
    bound = {
        role
        for of in access.policies.values()
        for condition, roles in of
        if condition != "1"
        for role in roles
    }
    assert len(bound) >= 7
    for name in bound:
        held = " ".join(
            grant for role in (name, *access.roles_of(name)) for grant in access.grants.get(role, [])
        )
        assert "SELECT" in held
        assert not re.search("INSERT|ALTER|CREATE|DROP|TRUNCATE|ALL", held), (name, held)
    made = told(
        tmp_path / "ch", None, "CREATE DATABASE grid",
        "CREATE TABLE grid.events (district_code String) ENGINE = MergeTree ORDER BY district_code",
    )  # fmt: skip
    assert made == ["done", "done"]
    config = write_configuration(tmp_path, access, "grid_analyst_440703")
    inserts = [f"INSERT INTO grid.events VALUES ('{district}')" for district in ("440703", "440704")]
    answers = told(tmp_path / "ch", config, *inserts)
    assert ["Not enough privileges" in answer for answer in answers] == [True, True], answers


_CRASHING = """
import ctypes, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def of_nothing(_): ...
def of_the_engine(path):
    import chdb
    return chdb.connect(path)
def of_ours(path):
    from pipeline.runtime.process import harden
    from pipeline.store.engine import EmbeddedEngine
    harden()
    return EmbeddedEngine(Path(path), Path(path + "-tmp"))
def crash():
    ctypes.string_at(0)
keep = globals()[sys.argv[1]](sys.argv[2])
crash()
"""


def crashing(tmp_path: Path, whose: str, *options: str) -> subprocess.Popen[str]:
    """A Python whose native code reads where nothing is."""
    arguments = [sys.executable, *options, "-c", _CRASHING, whose, str(tmp_path / "ch")]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def handles(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Whether its main thread is inside a handler of this signal, which is blocked there."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (blocked,) = re.findall(r"^SigBlk:\s+(\w+)$", status, re.MULTILINE)
    return bool(int(blocked, 16) >> (number - 1) & 1)


def test_d6_a_native_crash_ends_python_without_a_word(tmp_path: Path) -> None:
    bare = crashing(tmp_path, "of_nothing")
    assert bare.communicate(timeout=60) == (None, "")
    assert bare.returncode == -signal.SIGSEGV


def test_d6_beside_the_engine_a_native_crash_stands_still_without_a_word(tmp_path: Path) -> None:
    """Up to five minutes, in a handler that the engine puts before `faulthandler`."""
    bare = crashing(tmp_path, "of_the_engine", "-X", "faulthandler")
    try:
        deadline = time.monotonic() + 60
        while not handles(bare, signal.SIGSEGV):
            assert bare.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            bare.wait(2)
    finally:
        bare.kill()
    assert bare.communicate(timeout=60) == (None, "")


def test_d6_ours_ends_at_once_and_tells_the_frame(tmp_path: Path) -> None:
    ours = crashing(tmp_path, "of_ours")
    try:
        _, said = ours.communicate(timeout=60)
    finally:
        ours.kill()
    assert ours.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in said
    assert " in crash\n" in said


_MANY = 3_000_000


@embedded_only
def test_d3_another_query_on_a_handle_ends_the_stream_that_is_open_there(engine_path: Path) -> None:
    """The driver's authors and our review saw the other query come out empty, without a word. In chDB 4.4
    that one is answered, and the stream breaks off with an error, however much of it was read."""
    import chdb

    handle = chdb.connect(str(engine_path))
    for read in (0, 1):
        stream = handle.send_query(f"SELECT number FROM numbers({_MANY})", "Native")
        rows = sum(next(stream).rows_read() for _ in range(read))
        assert handle.query("SELECT 42", "CSV").bytes() == b"42\n", "the trap as it was is back"
        with pytest.raises(RuntimeError, match="No active streaming query"):
            next(stream)
        assert rows < _MANY
        stream.close()
    handle.close()


@embedded_only
def test_d3_a_stream_of_ours_has_its_handle_to_itself(clickhouse: Client, engine_path: Path) -> None:
    """One handle for all: who asks meanwhile waits for the stream's end, and nothing of either is missing.
    The driver's own client refuses it."""
    bridge = Bridge(_SessionEngine(engine_path), TOKEN, handles=1).start()
    with contextlib.closing(bridge):
        headers = {"X-ClickHouse-Key": TOKEN}
        asked = {"url": bridge.url, "headers": headers, "timeout": 30, "trust_env": False}
        with ThreadPoolExecutor(1) as beside:
            sql = f"SELECT number FROM numbers({_MANY}) FORMAT RowBinary"
            with httpx.stream("POST", content=sql, **asked) as stream:
                blocks = stream.iter_raw()
                size = len(next(blocks))
                other = beside.submit(httpx.post, content="SELECT 42", **asked)
                with pytest.raises(TimeoutError):
                    other.result(0.5)
                size += sum(map(len, blocks))
            assert other.result(30).text == "42\n"
        assert size == 8 * _MANY
    with clickhouse.query_row_block_stream(f"SELECT number FROM numbers({_MANY})") as blocks_of_rows:
        rows = len(next(iter(blocks_of_rows)))
        with pytest.raises(ProgrammingError, match="streaming"):
            clickhouse.query("SELECT 42")
        assert rows + sum(map(len, blocks_of_rows)) == _MANY


_TORN = """
import resource, sys
from pathlib import Path
from pipeline.store.engine import EmbeddedEngine
engine = EmbeddedEngine(Path(sys.argv[1]) / "clickhouse", Path(sys.argv[1]) / "tmp")
client = engine.new_client()
asked = "SELECT getSetting('min_free_disk_bytes_to_perform_insert')"
print(client.query(asked).result_rows[0][0], engine.new_handle().query(asked).bytes().decode().strip())
client.command("CREATE TABLE t (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))
client.command("INSERT INTO t SELECT number, randomPrintableASCII(100) FROM numbers(300)")
print("stored, it says")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    client.query("SELECT sum(length(s)) FROM t")
except Exception as error:
    print(str(error)[:200])
"""


def test_a_part_that_was_cut_off_counts_as_stored(tmp_path: Path) -> None:
    """Ours: `guard.check_start` refuses such a limit, `EmbeddedEngine` inserts on disks with room only."""
    done = subprocess.run(
        [sys.executable, "-c", _TORN, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    said = done.stdout.splitlines()
    assert said[0].split() == [str(MIN_FREE_BYTES)] * 2, "every client and handle of ours"
    assert said[1] == "stored, it says"
    assert "Cannot read all data" in said[2]


@embedded_only
def test_a_streamed_insert_that_is_refused_counts_as_done(clickhouse: Client, engine_path: Path) -> None:
    """Ours: the bridge hands the data over as a file in memory (`tests/integration/test_bridge.py`)."""
    import chdb

    clickhouse.command("CREATE TABLE strict (a UInt64, CONSTRAINT large CHECK a > 100) ENGINE = Memory")
    handle = chdb.connect(str(engine_path))
    with handle.send_insert(f"INSERT INTO {clickhouse.database}.strict", "TSV") as inserter:
        inserter.append(b"1\n")
        assert inserter.finish().rows_written == 1
    handle.close()
    assert count(clickhouse, "strict") == [0]
