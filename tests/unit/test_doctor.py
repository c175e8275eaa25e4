"""What `gridpipe doctor` says of a service and its keys."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from pipeline.clock import utc_now
from pipeline.errors import UnavailableError
from pipeline.ingest.keys import KeyStore
from pipeline.runtime.doctor import Finding, examine
from pipeline.runtime.health import Check, Health
from pipeline.runtime.http import EXCEPTION_HANDLERS
from pipeline.settings import Settings
from tests.security import certificates


async def _fine() -> str:
    return "answers"


async def _away() -> str:
    raise UnavailableError("ClickHouse does not answer")


@contextmanager
def listening(check: Check | None, **options: Any) -> Iterator[str]:
    """host:port of a listener of the service; without `check` it has no health, as beside `--admin-http`."""
    routes = Health({"store": check}).routes() if check else []
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def told(settings: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(settings)}


def test_a_service_with_an_admin_listener_is_found_there(stack: ExitStack, tmp_path: Path) -> None:
    http, admin = (stack.enter_context(listening(check)) for check in (None, _fine))
    found = told(Settings(data_dir=tmp_path, http=http, admin_http=admin))
    assert (found["service"].level, found["service"].what) == ("ok", f"http://{admin} is ready")
    assert found["listeners"].what == f"{http} in use by the service"
    found = told(Settings(data_dir=tmp_path, http=http))
    assert (found["service"].level, found["service"].do) == ("warning", "name its --admin-http too")
    assert found["listeners"].level == "ok"


def test_a_service_with_tls_is_found(stack: ExitStack, tmp_path: Path) -> None:
    made = certificates.make(tmp_path / "tls")
    http = stack.enter_context(listening(_fine, ssl_certfile=str(made.cert), ssl_keyfile=str(made.key)))
    data, own = tmp_path / "data", {"tls_cert": made.cert, "tls_key": made.key}
    found = told(Settings(data_dir=data, http=http, tls_ca=made.ca, **own))
    assert (found["service"].level, found["service"].what) == ("ok", f"https://{http} is ready")
    found = told(Settings(data_dir=data, http=http, **own))
    assert found["service"].level == "failed"
    assert "GRIDPIPE_TLS_CA" in found["service"].do


def test_the_port_of_a_service_that_is_not_ready_is_its_own(stack: ExitStack, tmp_path: Path) -> None:
    http = stack.enter_context(listening(_away))
    found = told(Settings(data_dir=tmp_path, http=http))
    assert (found["service"].level, "ClickHouse does not answer" in found["service"].what) == ("failed", True)
    assert found["listeners"].level == "ok"


def test_expired_keys_are_not_in_force(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, http="127.0.0.1:0")
    now = utc_now()
    last_week = KeyStore(settings.keys_path, clock=lambda: now - timedelta(days=7))
    last_week.create(["gone"], expires_at=now - timedelta(days=1))
    last_week.create(["stays"], expires_at=now + timedelta(days=1))
    assert told(settings)["keys"].what == "1 in force, for stays"
