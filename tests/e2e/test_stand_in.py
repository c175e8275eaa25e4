"""What callers of `gridpipe up` are told while it replaces a broker that died."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest

from pipeline.runtime import broker
from tests.e2e.service import Service
from tests.e2e.test_up import report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.slow
def test_without_its_broker_it_answers_503_within_a_second(tmp_path: Path) -> None:
    admin = f"127.0.0.1:{broker.free_port()}"
    service = Service(tmp_path, "--no-simulate", "--http", "127.0.0.1:0", "--admin-http", admin)
    refused, broken, slowest, probes = 0, 0, 0.0, []
    try:
        assert service.send(report(1))["accepted"] == 1
        service.children()["tansu"].kill()
        time.sleep(0.5)  # no longer on a busy machine: the restart must not be over before the first question
        deadline = time.monotonic() + 60 * service.busy
        with httpx.Client(base_url=service.url, timeout=40, trust_env=False) as caller:
            while True:
                assert time.monotonic() < deadline, service.log("up") + service.log("http")
                began = time.monotonic()
                try:
                    answer = caller.post(
                        "/v1/events",
                        json=[report(2)] * 200,
                        headers={"Authorization": f"Bearer {service.key}", "X-Request-Id": "again"},
                    )
                except httpx.TransportError:
                    # it came in the moment in which one of the two took over from the other
                    broken += 1
                    continue
                if answer.status_code == 202:
                    break
                took = time.monotonic() - began
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.headers["Content-Type"] == "application/problem+json"
                slowest = max(slowest, took)  # also from the next HTTP process, which waits for its worker
                if answer.json()["code"] == "restarting":
                    refused += 1
                    assert answer.json()["request_id"] == "again"
                    assert answer.headers["Connection"] == "close"
                    with contextlib.suppress(httpx.TransportError):
                        probes.append(httpx.get(f"http://{admin}/health/ready", trust_env=False).status_code)
                        live = httpx.get(f"http://{admin}/health/live", trust_env=False)
                        assert (live.status_code, live.json()) == (200, {"status": "live"})
                time.sleep(0.1)
        assert refused > 3
        assert broken <= 2
        assert set(probes) <= {503, 200} and 503 in probes
        assert slowest < 1.0 * service.busy
        assert service.send(report(3))["accepted"] == 1
        assert service.stop() == 0
    finally:
        service.kill()
