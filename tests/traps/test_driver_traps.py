"""What clickhouse-connect does when the answer of an insert is lost, and why ours have tokens."""

from __future__ import annotations

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


def test_c13_an_insert_that_failed_may_be_done(clickhouse: Client, proxy: Proxy) -> None:
    """Earlier drivers repeated such an insert without a word; whoever does needs a token and a window."""
    assert insert_twice(proxy, clickhouse, window=0) == 6
    assert insert_twice(proxy, clickhouse, window=100) == 3


def test_c13_every_insert_of_ours_has_a_token() -> None:
    """Also those of reference data, erasures and incarnations."""
    found = {}
    for path in (ROOT / "pipeline").rglob("*.py"):
        text = path.read_text()
        inserts = len(re.findall(r"client\.insert(?:_arrow|_df)?\(", text))
        if inserts:
            found[path.name] = (inserts, text.count("insert_deduplication_token"))
    assert found, "no insert was found"
    assert not {name: counts for name, counts in found.items() if not counts[1]}
