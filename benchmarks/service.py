"""The whole service as processes, over a data directory, for benchmarks that come in by HTTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.workload import SOURCE
from pipeline.ingest.keys import KeyStore
from pipeline.runtime.supervisor import Supervisor
from pipeline.settings import load_settings

READY_SECONDS: Final = 300


@contextlib.contextmanager
def service(data_dir: Path, bootstrap: str | None, **more: Any) -> Iterator[tuple[Supervisor, str]]:
    """The service, ready, without quotas, and a key for the workload's source.

    bootstrap : of a broker apart; None: the embedded one. more : further settings.
    """
    for name in ("GRIDPIPE_CLICKHOUSE", "GRIDPIPE_DATABASE"):
        os.environ.pop(name, None)  # of who calls us: the reference data are in the copy of the store
    settings = load_settings(
        data_dir=data_dir,
        http="127.0.0.1:0",
        kafka=bootstrap,
        topic_replication=1,  # one node
        log_level="warning",
        quota_source_events_per_second=0,
        quota_source_bytes_per_second=0,
        quota_source_requests_per_second=0,
        **more,
    )
    key = KeyStore(settings.keys_path).create([SOURCE])
    with Supervisor(settings, simulate=False, quiet=True) as running:
        running.wait_ready(READY_SECONDS)
        yield running, key
