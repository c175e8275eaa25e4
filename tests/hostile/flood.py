"""Hostile input 50: one key floods the gateway, and another source is served as if nothing had happened."""

from __future__ import annotations

import re
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx

from pipeline.ingest.keys import KeyStore
from tests.e2e.service import Service
from tests.e2e.test_up import report
from tests.hostile.world import World, open_world

#: A small quota, which callers of this machine have, too; none for their address, which all of them share.
SETTINGS: Final = {
    "GRIDPIPE_QUOTA_LOOPBACK": "true",
    "GRIDPIPE_QUOTA_ADDRESS_REQUESTS_PER_SECOND": "0",
}
REQUESTS_PER_SECOND: Final = "GRIDPIPE_QUOTA_SOURCE_REQUESTS_PER_SECOND"
#: Requests that one connection sends before it reads their answers.
_AT_ONCE: Final = 50
_CONNECTIONS: Final = 4


def one_key(_: World) -> None:
    """`tests/security/test_flood.py` with a fifth of its requests and quota, against a service of its own."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_world(Path(temporary) / "data", **SETTINGS, **{REQUESTS_PER_SECOND: "20"}) as own,
    ):
        own.still_well()
        flooding = costs_others_nothing(own.service, own.keys, 2_000, calm_posts=20)
        refused = own.post(b"", "application/x-ndjson", key=flooding)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests"), refused.text
        own.still_well()


def costs_others_nothing(service: Service, keys: KeyStore, requests: int, *, calm_posts: int) -> str:
    """Flood with at least `requests` of one key while another source posts; returns the key that flooded.

    The flood is turned away with Retry-After and counted; the other source's events are all taken, as quickly
    as without it: the median below three times its own, and nobody waits a second longer.
    """
    flooding, calm = keys.create("flood"), keys.create("calm")
    quiet = _times(service.url, calm, range(calm_posts))
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        calm_is_done = threading.Event()
        floods = [
            pool.submit(flood, service.url, flooding, requests // _CONNECTIONS, calm_is_done)
            for _ in range(_CONNECTIONS)
        ]
        try:
            loud = _times(service.url, calm, range(1_000, 1_000 + calm_posts))
        finally:
            calm_is_done.set()
        answers = sum((ended.result() for ended in floods), Counter[str]())
    assert set(answers) == {"400", "429 with Retry-After"}, answers
    assert answers.total() >= requests
    assert answers["429 with Retry-After"] > 0.8 * answers.total(), answers
    assert max(loud) < max(quiet) + 1.0 * service.busy, (quiet, loud)
    assert statistics.median(loud) < 3 * statistics.median(quiet) + 0.5 * service.busy, (quiet, loud)
    page = httpx.get(f"{service.url}/metrics", trust_env=False).text
    told = re.findall(r'gridpipe_gateway_quota_refusals_total\{source="flood"\} (\S+)', page)
    assert [float(count) for count in told] == [answers["429 with Retry-After"]]
    return flooding


def flood(url: str, key: str, least: int, until: threading.Event | None = None) -> Counter[str]:
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


def _times(url: str, key: str, numbers: range) -> list[float]:
    """Seconds of a post for each of these reports of another source, all of which are taken."""
    took = []
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        for number in numbers:
            began = time.monotonic()
            answer = client.post(
                "/v1/events",
                json=report(number) | {"source": "calm"},
                headers={"Authorization": f"Bearer {key}"},
            )
            assert answer.status_code == 202, answer.text
            took.append(time.monotonic() - began)
    return took
