"""Hostile input 50 against the running service: 10,000 requests of one key, many keys of one address."""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pipeline.ingest.keys import KeyStore
from pipeline.settings import Settings
from tests.e2e.service import Service
from tests.e2e.test_up import report

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

_REQUESTS = 10_000
#: Requests that one connection sends before it reads their answers.
_AT_ONCE = 50


def test_50_flood_of_one_key_costs_other_sources_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDPIPE_QUOTA_LOOPBACK", "true")
    monkeypatch.setenv("GRIDPIPE_QUOTA_SOURCE_REQUESTS_PER_SECOND", "100")
    monkeypatch.setenv("GRIDPIPE_QUOTA_ADDRESS_REQUESTS_PER_SECOND", "0")
    service = Service(tmp_path, "--no-simulate", "--http", "127.0.0.1:0")
    try:
        keys = KeyStore(Settings(data_dir=tmp_path).keys_path)
        flooding, calm = keys.create("flood"), keys.create("calm")
        quiet = _times(service.url, calm, 1)
        with ThreadPoolExecutor(4) as pool:
            calm_is_done = threading.Event()
            floods = [
                pool.submit(_flood, service.url, flooding, _REQUESTS // 4, calm_is_done) for _ in range(4)
            ]
            try:
                loud = _times(service.url, calm, 1_000)
            finally:
                calm_is_done.set()
            answers = sum((flood.result() for flood in floods), Counter[str]())
        assert set(answers) == {"400", "429 with Retry-After"}, answers
        assert answers.total() >= _REQUESTS
        assert answers["429 with Retry-After"] > 0.8 * answers.total(), answers
        assert max(loud) < max(quiet) + 1.0 * service.busy, (quiet, loud)
        assert statistics.median(loud) < 3 * statistics.median(quiet) + 0.5 * service.busy, (quiet, loud)
        page = httpx.get(f"{service.url}/metrics", trust_env=False).text
        told = re.findall(r'gridpipe_gateway_quota_refusals_total\{source="flood"\} (\S+)', page)
        assert [float(count) for count in told] == [answers["429 with Retry-After"]]
    finally:
        service.kill()


def test_50_many_keys_of_one_address_share_its_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDPIPE_QUOTA_LOOPBACK", "true")
    monkeypatch.setenv("GRIDPIPE_QUOTA_ADDRESS_REQUESTS_PER_SECOND", "40")
    service = Service(tmp_path, "--no-simulate", "--http", "127.0.0.1:0")
    try:
        keys = KeyStore(Settings(data_dir=tmp_path).keys_path)
        answers = Counter[str]()
        for number in range(20):
            answers += _flood(service.url, keys.create(f"source-{number}"), 100)
        assert set(answers) <= {"400", "429 with Retry-After"}, answers
        assert answers["429 with Retry-After"] > 1_000, answers
        assert service.stop() == 0
    finally:
        service.kill()


def _flood(url: str, key: str, least: int, until: threading.Event | None = None) -> Counter[str]:
    """Status codes of posts of nothing (400), many at once, and whether Retry-After came too."""
    where = httpx.URL(url)
    ask = (
        f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/x-ndjson\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    found = Counter[str]()
    while found.total() < least or not (until is None or until.is_set()):
        with socket.create_connection((where.host, where.port or 80), 30) as connection:
            connection.sendall(ask * _AT_ONCE)
            received = b""
            while received.count(b"HTTP/1.1 ") < _AT_ONCE or not received.endswith(b"}"):
                chunk = connection.recv(1_048_576)
                assert chunk, "closed without all answers"
                received += chunk
        for head in received.split(b"HTTP/1.1 ")[1:]:
            told = b"retry-after:" in head.lower()
            found[head[:3].decode() + (" with Retry-After" if told else "")] += 1
    return found


def _times(url: str, key: str, first: int) -> list[float]:
    """Seconds of forty posts of another source, all of which are taken."""
    took = []
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        for number in range(40):
            began = time.monotonic()
            answer = client.post(
                "/v1/events",
                json=report(first + number) | {"source": "calm"},
                headers={"Authorization": f"Bearer {key}"},
            )
            assert answer.status_code == 202, answer.text
            took.append(time.monotonic() - began)
    return took
