"""Hostile callers: wrong keys, replays, connections that dawdle or break off."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pipeline.ingest.signing import SigningAuth
from tests.hostile.world import EVENTS, OTHER, SOURCE, World, patience


def keys(world: World) -> None:
    revoked, foreign = world.keys.create(SOURCE), world.keys.create(OTHER)
    world.keys.revoke(revoked.split("_")[1])
    event = world.event()
    answers = []
    wrong = world.key[:-3] + ("abc" if not world.key.endswith("abc") else "xyz")
    for key in ("x", "nonsense", wrong, revoked, "gp_000000000000_" + "x" * 43, "a" * 5_000):
        answer = world.post(event, headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), key[:20]
        answers.append({name: value for name, value in answer.json().items() if name != "request_id"})
    assert all(answer == answers[0] for answer in answers), "an answer tells a known key from an unknown one"
    assert world.post(event, headers={"Authorization": "Basic YTpi"}).status_code == 401
    for name in ("key", "api_key", "access_token", "Authorization"):
        assert world.post(event, path=f"{EVENTS}?{name}={world.key}").status_code == 401
    refused = world.post(event, key=foreign)
    assert (refused.status_code, refused.json()["code"]) == (403, "source_not_allowed")
    assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404


def _signed(world: World, signed_body: bytes, *, key: str, **changes: Any) -> httpx.Response:
    """A signed POST of `signed_body`; `changes` replace parts of what was signed before it is sent."""
    headers = {"Content-Type": "application/json"}
    request = world.client.build_request("POST", EVENTS, content=signed_body, headers=headers)
    signed = next(SigningAuth(key, changes.pop("clock", time.time)).auth_flow(request))
    authorization = changes.pop("authorization", signed.headers["Authorization"])
    sent = world.client.build_request(
        changes.pop("method", "POST"),
        changes.pop("path", EVENTS),
        content=changes.pop("body", signed_body),
        headers=headers | changes.pop("headers", {}) | {"Authorization": authorization},
    )
    assert not changes
    answer = world.checked(lambda: world.client.send(sent))
    answer.extensions["authorization"] = signed.headers["Authorization"]
    return answer


def signatures(world: World) -> None:
    key = world.keys.create(SOURCE, signed=True)
    event = world.event()
    body = orjson.dumps(event)
    spoilt: tuple[dict[str, Any], ...] = (
        {"body": orjson.dumps(event | {"title": "other"})},
        {"path": f"{EVENTS}?x=1"},
        {"path": f"{EVENTS}:validate"},
        {"headers": {"Content-Type": "application/x-ndjson"}},
        {"authorization": f"Bearer {key}"},
        {"authorization": "GRIDPIPE-HMAC-SHA256 alg=none,key=" + key.split("_")[1]},
        {"authorization": "GRIDPIPE-HMAC-SHA1 key=x,time=1,nonce=x,signature=x"},
    )
    for change in spoilt:
        answer = _signed(world, body, key=key, **change)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), change
    for seconds in (-400, 400):
        answer = _signed(world, body, key=key, clock=lambda apart=seconds: time.time() + apart)
        assert (answer.status_code, answer.json()["code"]) == (401, "stale_signature"), seconds
    assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404
    assert _signed(world, body, key=key).status_code == 202
    world.keep(event)


def replays(world: World) -> None:
    key = world.keys.create(SOURCE, signed=True)
    event = world.event()
    body = orjson.dumps(event)
    first = _signed(world, body, key=key)
    assert first.status_code == 202
    world.keep(event)
    for _ in range(2):
        again = _signed(world, body, key=key, authorization=first.extensions["authorization"])
        assert again.status_code in {401, 409}, again.text


def client_gone(world: World) -> None:
    gone = [world.event() for _ in range(20)]
    for event in gone:
        body = orjson.dumps(event)
        with socket.create_connection(world.address, timeout=2) as connection:
            connection.sendall(world.head(f"Content-Length: {len(body)}") + body)
    world.take(*gone)  # whatever became of them: sending again is safe, and each is there once
    for event in gone[:3]:
        assert world.outcome(event["event_id"])["outcome"] == "rejected"
    assert world.http.num_threads() < 200


def half_open(world: World) -> None:
    connections = []
    try:
        for _ in range(1_000):
            connections.append(socket.create_connection(world.address, timeout=2))
        for _ in range(3):
            world.still_well()
        assert world.get("/health/live").status_code == 200
    finally:
        for connection in connections:
            connection.close()


def probes(world: World) -> None:
    attacks = [
        lambda: world.talk(world.head(*(f"X-{n}: v" for n in range(500)), path="/metrics", method="GET")),
        lambda: world.talk(
            world.head("Content-Length: 9", path="/health/live", method="POST") + b"{}", seconds=0.5
        ),
        lambda: world.talk(world.head("Transfer-Encoding: xchunked", path="/metrics")),
        lambda: world.talk(world.head(path="/metrics/../v1/events", method="GET") + b"", seconds=0.5),
        lambda: world.talk(b"GET /health/ready HTTP/1.1\r\n", seconds=0.5),
    ]
    threads = [threading.Thread(target=attack) for attack in attacks * 4]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert world.get(path).status_code == 200
    for thread in threads:
        thread.join()
    list(text_string_to_metric_families(world.get("/metrics").text))


def million_keys(world: World) -> None:
    many = ",".join(f'"k{n}":1' for n in range(1_000_000))
    plain = b'{"event_id":"m","attributes":{' + many.encode() + b"}}"
    assert world.post(plain).status_code == 413
    before = world.http.memory_info().rss
    for _ in range(3):
        answer = world.post(gzip.compress(plain, 1), headers={"Content-Encoding": "gzip"})
        assert answer.status_code in {413, 422}, answer.text[:200]
    assert world.http.memory_info().rss - before < 100_000_000


class SlowClients:
    """Connections that dawdle; opened early, looked at last."""

    def __init__(self, world: World) -> None:
        self.started = time.monotonic()
        self.heads = [socket.create_connection(world.address) for _ in range(50)]
        self.idle = [socket.create_connection(world.address) for _ in range(200)]
        self.bodies = [socket.create_connection(world.address) for _ in range(5)]
        for connection in self.heads:
            connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: 127")
        for connection in self.bodies:
            connection.sendall(world.head("Content-Length: 1000"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._thread.start()

    def _drip(self) -> None:
        while not self._stop.wait(0.5):
            for connection in [*self.heads, *self.bodies]:
                try:
                    connection.send(b".")
                except OSError:
                    continue

    def answers(self, connections: list[socket.socket], deadline: float) -> list[bytes]:
        """What each was told before it was closed; raises when one is still open after `deadline` seconds."""
        found = []
        for connection in connections:
            received = b""
            connection.settimeout(max(0.1, self.started + deadline - time.monotonic()))
            try:
                while chunk := connection.recv(65_536):
                    received += chunk
            except ConnectionResetError:
                pass
            found.append(received)
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for connection in [*self.heads, *self.idle, *self.bodies]:
            connection.close()


SLOW: list[SlowClients] = []


def slow_clients(world: World) -> None:
    (slow,) = SLOW
    allowance = patience()
    assert all(b" 408 " in answer for answer in slow.answers(slow.heads, 5 + allowance))
    slow.answers(slow.idle, 5 + allowance)
    world.still_well()
    for answer in slow.answers(slow.bodies, 30 + allowance):
        assert b" 408 " in answer, answer[:200]
        assert b"body_too_slow" in answer
