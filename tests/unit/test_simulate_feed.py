"""The live feed: a backlog that is young enough, then new cases, against a server that takes everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.simulate.city import read_manifest
from pipeline.simulate.feed import run_city_feed
from pipeline.simulate.sender import wait_for_reference
from tests.unit.simulate_world import CATALOGUE, small_city


class Service(BaseHTTPRequestHandler):
    """Answers the three calls that the feed makes; keeps what was posted and how it was credentialed.

    metrics_key : the key that `/metrics` asks for.
    """

    events: list[dict[str, Any]]
    keys: set[str | None]
    reference: dict[str, int]
    cases: int
    metrics_key: str | None = None

    def do_GET(self) -> None:
        if self.path == "/elsewhere/metrics":
            self._answer(404, b"{}")
        elif self.path == "/metrics" and self.metrics_key not in {None, self._key()}:
            self._answer(401, b"{}")
        elif self.path == "/metrics":
            rows = (
                f'gridpipe_reference_rows{{kind="{kind}"}} {float(n)}' for kind, n in self.reference.items()
            )
            self._answer(200, "\n".join(rows).encode())
        else:
            self._answer(200, orjson.dumps({"rows": [{"key": "4407", "cases": self.cases}]}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.add(self.headers["Authorization"])
        self.events.extend(orjson.loads(line) for line in body.splitlines())
        self._answer(202, orjson.dumps({"errors": []}))

    def _key(self) -> str:
        return (self.headers["Authorization"] or "").removeprefix("Bearer ")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def service() -> Iterator[tuple[type[Service], str]]:
    rows = (read_manifest(small_city()) or {})["rows"]
    handler = type("Handler", (Service,), {"events": [], "keys": set(), "reference": dict(rows), "cases": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def feed(url: str, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(
        target=run_city_feed,
        args=(url, "secret", small_city(), 3, 50.0, stop),
        kwargs={"catalogue_dir": CATALOGUE},
    )
    thread.start()
    return thread


def until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def test_feed_sends_a_backlog_and_then_new_cases(service: tuple[type[Service], str]) -> None:
    handler, url = service
    stop, started = threading.Event(), datetime.now(UTC)
    thread = feed(url, stop)
    try:
        until(lambda: any("-b-" not in event["case_id"] for event in handler.events))
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()
    assert handler.keys == {"Bearer secret"}
    assert {event["source"] for event in handler.events} == {"local"}
    backlog = [event for event in handler.events if "-b-" in event["case_id"]]
    fresh = [event for event in handler.events if "-b-" not in event["case_id"]]
    assert len(backlog) > 1_000
    times = [datetime.fromisoformat(event["occurred_at"]) for event in handler.events]
    assert max(times) <= datetime.now(UTC)
    assert min(times) > started - timedelta(days=7)
    assert all(datetime.fromisoformat(event["occurred_at"]) > started - timedelta(hours=1) for event in fresh)
    assert any(event["event_type"] == "CLOSED" for event in backlog)


def test_a_table_that_has_cases_gets_no_second_backlog(service: tuple[type[Service], str]) -> None:
    handler, url = service
    handler.cases = 5_000
    stop = threading.Event()
    thread = feed(url, stop)
    try:
        until(lambda: handler.events)
    finally:
        stop.set()
        thread.join(20)
    assert not [event for event in handler.events if "-b-" in event["case_id"]]


def test_feed_waits_until_the_worker_holds_the_reference_data(
    service: tuple[type[Service], str],
) -> None:
    handler, url = service
    rows = dict(handler.reference)
    handler.reference["units"] = 0
    with pytest.raises(UnavailableError, match=r"did not pick up reference data in 0\.3 s: units"):
        wait_for_reference(url, rows, seconds=0.3)
    handler.reference = rows
    wait_for_reference(url, rows, seconds=5)


def test_feed_does_not_wait_for_metrics_that_are_elsewhere_or_need_a_key(
    service: tuple[type[Service], str],
) -> None:
    handler, url = service
    handler.metrics_key = "admin"
    began = time.monotonic()
    for key in (None, "another"):
        with pytest.raises(ConfigurationError, match="/metrics answers 401"):
            wait_for_reference(url, handler.reference, seconds=60, key=key)
    with pytest.raises(ConfigurationError, match="/metrics answers 404"):
        wait_for_reference(f"{url}/elsewhere", handler.reference, seconds=60, key="admin")
    assert time.monotonic() - began < 30
    wait_for_reference(url, handler.reference, seconds=5, key="admin")
