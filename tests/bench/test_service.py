"""The store that several workers of a benchmark share, and the service that others run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import service
from benchmarks.store_server import store_server
from pipeline.settings import Settings, load_settings
from pipeline.store.client import connect


def test_store_answers_at_its_address_until_it_is_left(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with store_server(tmp_path / "data") as address:
        client = connect(load_settings(data_dir=tmp_path / "workers", clickhouse=address), database="")
        assert client.command("SELECT 1") == 1
        client.close()
    assert "GRIDPIPE_CLICKHOUSE" not in os.environ
    # and the engine's directory is free again
    with store_server(tmp_path / "data"):
        pass


def test_service_uses_the_copied_store_whatever_the_caller_s_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Settings, str | None]] = []

    class Ready:
        def wait_ready(self, _: float) -> None: ...

    @contextlib.contextmanager
    def supervisor(settings: Settings, **_: Any) -> Iterator[Ready]:
        seen.append((settings, os.environ.get("GRIDPIPE_CLICKHOUSE")))
        yield Ready()

    monkeypatch.setenv("GRIDPIPE_CLICKHOUSE", "http://default:x@127.0.0.1:9")
    monkeypatch.setattr(service, "Supervisor", supervisor)
    with service.service(tmp_path / "data", None):
        pass
    ((settings, left),) = seen
    assert settings.clickhouse is None
    assert left is None
