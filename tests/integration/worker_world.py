"""A small world for worker tests: one grid, one grid worker, events as JSON, the shipped catalogue."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.contract.privacy import Privacy
from pipeline.frames import EVENT
from pipeline.ingest.blocks import ARROW, encode_frame
from pipeline.process.case_memory import CaseMemory
from pipeline.process.decode import decode
from pipeline.process.flow import Rules
from pipeline.process.records import Record
from pipeline.process.rounds import Finished, Work, fold_round, store_round
from pipeline.reference.load import load_directory
from pipeline.reference.snapshot import Reference
from pipeline.rules.catalogue import Catalogues, load_catalogues
from pipeline.settings import Settings

GRID = "440704001001003"
WORKER = "w-0001"
#: Noon in Jiangmen; the shipped catalogue is in force.
NOON = datetime(2026, 5, 1, 4, tzinfo=UTC)
PRIVACY = Privacy(b"k" * 32)
_SQUARE = "POLYGON((113.09 22.56, 113.11 22.56, 113.11 22.58, 113.09 22.58, 113.09 22.56))"


@cache
def catalogues() -> Catalogues:
    return load_catalogues(Settings().catalogue_dir)


def load_reference(client: Client, directory: Path) -> None:
    """Store the grid and its worker."""
    start = "2020-01-01T00:00:00+08:00"
    grid = {
        "grid_code": GRID, "version": 1, "valid_from": start, "grid_name": "江南一格",
        "grid_type": "residential", "boundary": _SQUARE, "status": "active",
    }  # fmt: skip
    worker = {
        "worker_key": WORKER, "kind": "full_time", "grid_code": GRID, "district_code": "440704",
        "active_from": start, "channel_rights": ["grid_patrol", "yuepingan"],
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "grids.ndjson").write_text(json.dumps(grid) + "\n")
    (directory / "staff.ndjson").write_text(json.dumps(worker) + "\n")
    load_directory(client, directory, PRIVACY)


def rules_of(client: Client, settings: Settings | None = None) -> Rules:
    settings = settings or Settings()
    reference = Reference.load(client, tolerance_m=settings.grid_tolerance_m)
    return Rules(reference, catalogues(), PRIVACY, settings)


def run_round(
    works: Sequence[Work],
    client: Client,
    *,
    inc: int,
    stopping: threading.Event,
    memory: CaseMemory,
    **more: Any,
) -> Finished:
    """Both parts of a round, as the worker runs them where no other is under way."""
    finished = store_round(works, client, inc=inc, stopping=stopping, **more)
    fold_round(finished.stored, client, inc=inc, stopping=stopping, memory=memory)
    return finished


def event(number: int | str, *, minutes: float = 0, **changes: Any) -> dict[str, Any]:
    """A report that is admitted where the reference data are loaded; each number has a text of its own."""
    occurred = NOON + timedelta(minutes=minutes)
    document: dict[str, Any] = {
        "event_id": f"e{number}",
        "source": "handset",
        "event_type": "REPORTED",
        "case_id": f"c{number}",
        "occurred_at": occurred.isoformat(),
        "channel": "grid_patrol",
        "matter_code": "SA-07",
        "grid_code": GRID,
        "actor": {"type": "full_time", "key": WORKER},
        "location": {"lon": 113.1, "lat": 22.57, "crs": "wgs84"},
        "photos": [{"sha256": "0123456789abcdef" * 4}],
        "description": f"阳台铁皮松动 {number}",
    }
    document |= changes
    return {name: value for name, value in document.items() if value is not None}


def body(*documents: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(document).encode() for document in documents)


def record(offset: int, *documents: dict[str, Any], received: datetime | None = None) -> Record:
    """A direct record; received three minutes after the first event happened unless told."""
    at = received or datetime.fromisoformat(documents[0]["occurred_at"]) + timedelta(minutes=3)
    return Record(offset, round(at.timestamp() * 1000), "application/x-ndjson", body(*documents))


def arrow(
    offset: int, *documents: dict[str, Any], received: datetime | None = None, privacy: Privacy = PRIVACY
) -> Record:
    """The same events as the gateway sends them."""
    rows = decode([(0, [record(0, *documents, received=received)])], privacy=privacy)
    assert rows.quarantined.is_empty(), rows.quarantined.to_dicts()
    return Record(offset, 0, ARROW, encode_frame(rows.events.select(list(EVENT))), "1")


def ids(frame: pl.DataFrame) -> list[str]:
    return frame["event_id"].to_list()


def count(client: Client, *tables: str) -> list[int]:
    """Rows of each table, duplicates of a position included."""
    return [int(client.query(f"SELECT count() FROM {table}").result_rows[0][0]) for table in tables]


def column(client: Client, query: str) -> Sequence[Any]:
    return [row[0] for row in client.query(query).result_rows]
