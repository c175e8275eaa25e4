"""A gateway on an in-memory log, and events to send to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
from starlette.applications import Starlette

from pipeline.contract.privacy import Privacy
from pipeline.ingest.blocks import decode_block
from pipeline.ingest.durability import Durability, Replicated
from pipeline.ingest.gateway import Gateway, Validator
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.memory import MemoryLog
from pipeline.ingest.producer import BlockProducer
from pipeline.ingest.routes import gateway_routes
from pipeline.settings import Settings

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
SECRET = bytes(range(1, 33))


def event(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A valid report; `changes` replace fields, a value of `...` drops one."""
    given: dict[str, Any] = {
        "event_id": f"e-{number}",
        "source": "12345",
        "event_type": "REPORTED",
        "case_id": f"c-{number}",
        "occurred_at": "2026-03-01T15:59:00.123+08:00",
        "channel": "hotline_12345",
        "matter_code": "UE-01",
        "grid_code": f"440704001{number % 20 + 1:03d}003",
        "actor": {"type": "citizen"},
        **changes,
    }
    return {name: value for name, value in given.items() if value is not ...}


def cloudevent(number: int = 1, **changes: Any) -> dict[str, Any]:
    plain = event(number)
    data = {name: plain[name] for name in ("channel", "matter_code", "grid_code", "actor")}
    return {
        "specversion": "1.0",
        "id": plain["event_id"],
        "source": plain["source"],
        "type": "cn.jiangmen.grid.reported.v1",
        "time": plain["occurred_at"],
        "subject": plain["case_id"],
        "data": data,
        **changes,
    }


class WhereKeysAreMade(Privacy):
    """Remembers on which threads events were encoded."""

    def __init__(self) -> None:
        super().__init__(SECRET)
        self.threads: set[int] = set()

    def clean_keys(self, keys: Sequence[str | None]) -> Sequence[str | None]:
        self.threads.add(threading.get_ident())
        return super().clean_keys(keys)


@dataclass
class World:
    gateway: Gateway
    log: MemoryLog
    keys: KeyStore
    key: str
    app: Starlette

    def connect(self, *, producer: BlockProducer | None = None, durability: Durability | None = None) -> None:
        """Put the gateway on another log."""
        if producer is not None:
            self.gateway.producer = self.gateway.writer.producer = producer
        if durability is not None:
            self.gateway.durability = self.gateway.writer.durability = durability

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key == "" else {"Authorization": f"Bearer {key or self.key}"}
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)

    async def post(self, body: Any, content_type: str = "application/json", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.client() as client:
            return await client.post(
                "/v1/events",
                content=content,
                headers={
                    "Content-Type": content_type,
                    **{name.replace("_", "-"): value for name, value in headers.items()},
                },
            )

    def stored(self) -> pl.DataFrame:
        """Every event of the log, in order of partition and offset."""
        frames = [decode_block(payload) for records in self.log.records for payload in records]
        return pl.concat(frames) if frames else pl.DataFrame()


def make_world(
    directory: Path,
    *,
    durability: Durability | None = None,
    validator: Validator | None = None,
    **settings: Any,
) -> World:
    chosen = Settings(data_dir=directory, **settings)
    keys = KeyStore(chosen.keys_path)
    log = MemoryLog()
    gateway = Gateway(
        chosen,
        keys=keys,
        privacy=Privacy(SECRET),
        producer=log,
        durability=durability or Replicated(),
        validator=validator,
        clock=lambda: NOW,
    )
    return World(gateway, log, keys, keys.create("12345"), Starlette(routes=gateway_routes(gateway)))
