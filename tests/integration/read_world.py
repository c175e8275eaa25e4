"""A block with every outcome in a real database, and the read calls over it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette

from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.read.routes import Reader, read_routes
from pipeline.settings import load_settings
from pipeline.sink.tables import Extent, Sink
from pipeline.store.cases import refresh_cases
from tests.integration.worker_world import NOON, catalogues, event, load_reference, record, rules_of

INC: Final = 1_777_600_000_000
PARTITION: Final = 2
#: Half an hour after everything happened.
NOW: Final = NOON + timedelta(minutes=30)
CITIZEN: Final = {"type": "citizen", "key": "ab" * 32, "name": "陈小明"}


def store_block(client: Client, directory: Path) -> None:
    """Admitted e1 (its case then accepted … signed) and e6 (a protected reporter), every other outcome."""
    load_reference(client, directory)
    rules = rules_of(client)
    first = event(1)
    citizen: dict[str, Any] = {"channel": "hotline_12345", "actor": CITIZEN}
    records = [
        record(0, first, event(2, matter_code="NO-SUCH", grid_code="440704001001999")),
        record(1, event(3, event_type="ACCEPTED", case_id="c1", minutes=5)),
        record(2, first),
        record(3, event(4, description=first["description"], minutes=1)),
        record(4, event(5))._replace(value=b"{broken"),
        record(5, event(1, description="changed")),
        record(6, event(6, matter_code="PO-01", **citizen)),
        record(7, event(7, event_type="FEEDBACK", case_id="c6", matter_code=None, minutes=6, **citizen)),
        record(9, event(8, event_type="DISPATCHED", case_id="c1", minutes=6)),
        record(10, event(9, event_type="SIGNED", case_id="c1", minutes=8)),
    ]
    block = Block(PARTITION, records)
    result = process_block(block, PartitionState.empty(rules.settings), rules)
    Sink(client, "grid.events").write(
        result, inc=INC, blocks=[Extent(PARTITION, block.lo, block.hi)], rules=rules.digest
    )
    refresh_cases(client, INC, [(PARTITION, block.lo, block.hi)])


def reader_over(client_factory: Callable[[], Client], *, now: datetime = NOW) -> Reader:
    return Reader(client_factory, catalogues=catalogues(), settings=load_settings(), clock=lambda: now)


def http_over(reader: Reader) -> httpx.AsyncClient:
    app = Starlette(routes=read_routes(reader))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
