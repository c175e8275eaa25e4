"""The gateway alone, as `gridpipe gateway` assembles it, against a broker; no store is asked for.

    python -m benchmarks.gateway_run DATA_DIR BOOTSTRAP HOST:PORT [count-calls]

Makes a key for source `bench`, prints it as one JSON line, serves until SIGTERM. With `count-calls` Python
counts its calls within requests (not of what writes blocks beside them, which goes by time):
DATA_DIR/calls.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import orjson
from clickhouse_connect.driver.client import Client

from benchmarks.calls import Calls
from benchmarks.workload import SOURCE
from pipeline import logs
from pipeline.contract.privacy import Privacy
from pipeline.errors import UnavailableError
from pipeline.ingest.durability import Replicated
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.routes import EventsCall
from pipeline.runtime import http
from pipeline.runtime.supervisor import bind
from pipeline.settings import load_settings


def _no_store() -> Client:
    raise UnavailableError("the gateway's benchmark has no store")


def main() -> None:
    data_dir, bootstrap, address, *more = sys.argv[1:]
    settings = load_settings(
        data_dir=Path(data_dir),
        kafka=bootstrap,
        clickhouse="http://127.0.0.1:9",
        http=address,
        log_level="error",
        canary_interval_seconds=0,
        # a key's quota is far above any client of the city, and below what this client sends
        quota_source_events_per_second=100_000_000,
        quota_source_bytes_per_second=0,
        quota_source_requests_per_second=1_000_000,
    )
    logs.configure(level="error", role="gateway", log_dir=settings.log_dir, console=True)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    key = KeyStore(settings.keys_path).create([SOURCE])
    Privacy.load(settings.pseudonym_key_path, create=True)
    parts = http.assemble(
        settings,
        bootstrap=bootstrap,
        client_factory=_no_store,
        control=None,
        durable=Replicated,
        read=False,
    )
    listener = bind(settings.http, "--http")
    sys.stdout.buffer.write(orjson.dumps({"key": key}) + b"\n")
    sys.stdout.flush()
    if more == ["count-calls"]:
        _count_calls(settings.data_dir / "calls.json")
    http.serve(parts, listener, None)


def _count_calls(into: Path) -> None:
    calls = Calls({EventsCall.__call__.__code__})
    calls.on = True
    leave = http.leave

    def told(code: int) -> NoReturn:
        into.write_bytes(orjson.dumps(calls.take()))
        leave(code)

    http.leave = told


if __name__ == "__main__":
    main()
