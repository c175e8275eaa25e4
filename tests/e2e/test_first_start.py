"""A newcomer's first minute: an empty directory, the whole simulated city, the first event at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: The promise, on a machine that has nothing else to do; a busy one gets its share more.
READY_SECONDS = 15


class FirstReady(threading.Thread):
    """Notes how many grids the worker knew when `/health/ready` first said 200."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.url = f"http://{address}"
        self.grids: float | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 200
        with httpx.Client(base_url=self.url, trust_env=False, timeout=10) as client:
            while time.monotonic() < deadline:
                try:
                    if client.get("/health/ready").status_code == 200:
                        page = client.get("/metrics").text
                        rows = 'gridpipe_reference_rows{kind="grids"} '
                        found = [
                            line.removeprefix(rows) for line in page.splitlines() if line.startswith(rows)
                        ]
                        self.grids = float(found[0]) if found else 0.0
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.01)


@pytest.fixture
def address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def first(address: str) -> FirstReady:
    watch = FirstReady(address)
    watch.start()
    return watch


@pytest.fixture
def service(tmp_path: Path, address: str, first: FirstReady) -> Iterator[Service]:
    running = Service(tmp_path / "data", "--http", address)  # with as many residents as everybody gets
    yield running
    running.kill()


def test_a_report_sent_the_moment_it_is_ready_finds_its_grid(service: Service, first: FirstReady) -> None:
    """Readiness waits for the city's reference data: without them every report would be rejected."""
    service.send(
        {
            "event_id": "first-1",
            "source": "local",
            "event_type": "REPORTED",
            "case_id": "case-1",
            "occurred_at": datetime.now(UTC).isoformat(),
            "channel": "hotline_12345",
            "matter_code": "UE-08",
            "grid_code": "440704001001001",
            "actor": {"type": "citizen", "phone": "13800001234"},
            "location": {"lon": 113.104808, "lat": 22.503802, "crs": "wgs84"},
            "description": "路灯不亮，请回电13800001234",
        }
    )
    first.join(30)
    assert first.grids == 2_756
    assert service.get("/v1/events/local/first-1")["outcome"] == "admitted"
    assert service.stop() == 0
    assert service.ready_seconds / service.busy < READY_SECONDS


@pytest.mark.slow
def test_the_next_start_finds_the_city_made(service: Service, address: str) -> None:
    assert service.stop() == 0
    again = Service(service.data_dir, "--http", address)
    try:
        assert "feeding the simulated city" in "".join(again.output)
        assert again.ready_seconds / again.busy < READY_SECONDS
        assert again.stop() == 0
    finally:
        again.kill()
