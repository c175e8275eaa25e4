"""What clickhouse-connect does when the answer of an insert is lost, and why ours have tokens."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import OperationalError

from pipeline.sink.tables import INSERT_SETTINGS
from pipeline.store.bridge import Bridge
from tests.conftest import embedded_only
from tests.fault.proxy import Proxy
from tests.integration.test_bridge import TOKEN, _SessionEngine
from tests.integration.worker_world import count

ROOT = Path(__file__).parents[2]
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.uint64())})


@pytest.fixture
def proxy(clickhouse: Client, engine_path: Path) -> Iterator[Proxy]:
    bridge = Bridge(_SessionEngine(engine_path), TOKEN).start()
    between = Proxy(bridge.port)
    yield between
    between.close()
    bridge.close()


def insert_twice(proxy: Proxy, client: Client, window: int) -> int:
    """Rows that one insert leaves whose answer is lost, and that is sent again by its caller."""
    client.command(
        "CREATE OR REPLACE TABLE retried (id UInt64) ENGINE = MergeTree ORDER BY id "
        f"SETTINGS non_replicated_deduplication_window = {window}"
    )
    far = clickhouse_connect.get_client(
        host="127.0.0.1", port=proxy.port, username="default", password=TOKEN, database=client.database,
        autogenerate_session_id=False,
    )  # fmt: skip
    settings = {**INSERT_SETTINGS, "insert_deduplication_token": "same"}
    assert far.query("SELECT 1").result_rows == [(1,)]  # the connection is kept
    proxy.drop_reply_to(b"async_insert")
    with pytest.raises(OperationalError):
        far.insert_arrow("retried", ROWS, settings=settings)
    assert count(client, "retried") == [3], "done once: this driver repeats no insert by itself"
    far.insert_arrow("retried", ROWS, settings=settings)
    far.close()
    return count(client, "retried")[0]


@embedded_only
def test_c13_an_insert_that_failed_may_be_done(clickhouse: Client, proxy: Proxy) -> None:
    """Earlier drivers repeated such an insert without a word; whoever does needs a token and a window."""
    assert insert_twice(proxy, clickhouse, window=0) == 6
    assert insert_twice(proxy, clickhouse, window=100) == 3


def names_of(tree: ast.Module, text: str) -> set[str]:
    """Variables and functions of a module that hold this text."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and text in ast.unparse(node.value):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef) and text in ast.unparse(node):
            found.add(node.name)
    return found


def inserts_in(source: str) -> list[tuple[str, bool]]:
    """Each call that inserts, whatever the way, and whether its settings hold a token of their own."""
    tree = ast.parse(source)
    statements, tokens = names_of(tree, "INSERT INTO"), names_of(tree, "insert_deduplication_token")

    def holds(node: ast.expr, text: str, names: set[str]) -> bool:
        return text in ast.unparse(node) or not names.isdisjoint(re.findall(r"\w+", ast.unparse(node)))

    # `insert_table` hands on what it is told: its own callers are looked at
    handed_on = {
        id(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "insert_table"
        for call in ast.walk(node)
    }
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or id(call) in handed_on:
            continue
        if isinstance(call.func, ast.Attribute):
            # an index of ours, `_index.insert(…)`, is no table
            plain = "insert" in call.func.attr and "client" in ast.unparse(call.func.value)
        elif isinstance(call.func, ast.Name):
            plain = call.func.id == "insert_table"
        else:
            continue
        if plain or any(holds(given, "INSERT INTO", statements) for given in call.args):
            settings = [word.value for word in call.keywords if word.arg == "settings"]
            told = any(holds(given, "insert_deduplication_token", tokens) for given in settings)
            found.append((ast.unparse(call)[:80], told))
    return found


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("client.insert('t', rows)", [False]),
        ("token = {'insert_deduplication_token': 'x'}\nclient.insert('t', rows)", [False]),
        ("token = {'insert_deduplication_token': 'x'}\nclient.insert('t', rows, settings=token)", [True]),
        ("self.client.insert_df('t', rows, settings={'insert_deduplication_token': 'x'})", [True]),
        ("client.command('INSERT INTO t SELECT 1', settings=SETTINGS)", [False]),
        ("sql = 'INSERT INTO t SELECT 1'\nclient.command(sql)\nclient.command('SELECT 1')", [False]),
        ("insert_table(client, 't', rows, settings=SETTINGS)", [False]),
        (
            "told = {'insert_deduplication_token': 'x'}\ninsert_table(client, 't', rows, settings=told)",
            [True],
        ),
        ("def insert_table(client, rows):\n    client.raw_insert(rows)\nclient.insert('t', rows)", [False]),
        ("self._index.insert(high, low)", []),
    ],
)
def test_c13_an_insert_without_a_token_is_seen(source: str, told: list[bool]) -> None:
    """What the next test goes by."""
    assert [of for _, of in inserts_in(source)] == told


def test_c13_every_insert_of_ours_has_a_token() -> None:
    """Each one, also those of reference data, erasures and incarnations, and those that are SQL."""
    found = {
        path.name: inserts
        for path in (ROOT / "pipeline").rglob("*.py")
        if (inserts := inserts_in(path.read_text()))
    }
    assert found.keys() >= {"tables.py", "load.py", "publish.py", "incarnations.py", "erase.py", "cases.py"}
    assert (len(found["load.py"]), len(found["erase.py"])) == (3, 3), "one of the loads' is SQL"
    assert [call for inserts in found.values() for call, told in inserts if not told] == []
