"""Hostile callers: wrong keys, replays, connections that dawdle or break off."""

from __future__ import annotations

import gzip
import socket
import tempfile
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import orjson
import zstandard
from prometheus_client.parser import text_string_to_metric_families

from pipeline.ingest.signing import Signed, SigningAuth, signature
from pipeline.runtime.broker import free_port
from pipeline.runtime.protocol import HEAD_SECONDS
from tests.hostile.world import EVENTS, OTHER, PROBLEM, SOURCE, World, open_world, patience


def keys(world: World) -> None:
    revoked, foreign = world.keys.create(SOURCE), world.keys.create(OTHER)
    world.keys.revoke(revoked.split("_")[1])
    event, last = world.event(), world.event()
    expires_at = datetime.now(UTC) + timedelta(seconds=1 + patience())
    expired = world.keys.create(SOURCE, expires_at=expires_at)
    assert world.post(last, key=expired).status_code == 202  # in its time it is as good as any
    world.keep(last)
    while datetime.now(UTC) < expires_at:
        time.sleep(0.05)
    answers = []
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}):
        request = partial(world.client.post, EVENTS, json=event, headers=headers)
        answer = world.checked(request)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), headers
        answers.append({name: value for name, value in answer.json().items() if name != "request_id"})
    wrong = world.key[:-3] + ("abc" if not world.key.endswith("abc") else "xyz")
    for key in ("x", "nonsense", wrong, revoked, expired, "gp_000000000000_" + "x" * 43, "a" * 5_000):
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
    for method in ("PUT", "PATCH", "DELETE"):  # no call here has two methods: the path refuses it first
        answer = _signed(world, body, key=key, method=method)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), method
    for seconds in (-400, 400):
        answer = _signed(world, body, key=key, clock=lambda apart=seconds: time.time() + apart)
        assert (answer.status_code, answer.json()["code"]) == (401, "stale_signature"), seconds
    _, key_id, secret = key.split("_", 2)
    moment, nonce = str(int(time.time())), "n" * 24
    whole = Signed("POST", EVENTS, "application/json", "", body)

    def claim(secret_: bytes, signed: Signed, key_id_: str = key_id) -> dict[str, str]:
        made = signature(secret_, moment, nonce, signed)
        return {"key": key_id_, "time": moment, "nonce": nonce, "signature": made}

    good = claim(secret.encode(), whole)
    forged = [
        *({name: good[name] for name in good if name != left_out} for left_out in good),
        *(good | {name: ""} for name in good),
        claim(b"", whole),
        claim(b"", whole, "0" * 12),  # nobody's key has no secret that could be guessed
        claim(b"None", whole, "0" * 12),
        # a part of the request left out of what is signed
        *(
            claim(secret.encode(), less)
            for less in (
                replace(whole, method=""),
                replace(whole, method="PUT"),  # signed for another one than it is sent with
                replace(whole, target=""),
                replace(whole, content_type=""),
                replace(whole, body=b""),
            )
        ),
    ]
    for parts in forged:
        text = ",".join(f"{name}={value}" for name, value in parts.items())
        answer = _signed(world, body, key=key, authorization=f"GRIDPIPE-HMAC-SHA256 {text}")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), text
    assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404
    # nothing but what was spoilt was wrong with them, and a refused nonce is not used up
    text = ",".join(f"{name}={value}" for name, value in good.items())
    assert _signed(world, body, key=key, authorization=f"GRIDPIPE-HMAC-SHA256 {text}").status_code == 202
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


def _held_bytes(world: World) -> float:
    """Bytes of requests that the gateway says it is handling."""
    families = text_string_to_metric_families(world.get("/metrics").text)
    (family,) = [family for family in families if family.name == "gridpipe_gateway_in_flight_bytes"]
    return float(family.samples[0].value)


def client_gone(world: World) -> None:
    world.still_well()
    threads, descriptors, held = world.http.num_threads(), world.http.num_fds(), _held_bytes(world)
    gone = [world.event() for _ in range(20)]
    for event in gone:
        body = orjson.dumps(event)
        with socket.create_connection(world.address, timeout=2) as connection:
            connection.sendall(world.head(f"Content-Length: {len(body)}") + body)
    world.take(*gone)  # whatever became of them: sending again is safe, and each is there once
    for event in gone[:3]:
        assert world.outcome(event["event_id"])["outcome"] == "rejected"
    deadline = time.monotonic() + 5 * patience()
    while (
        world.http.num_fds() > descriptors + 5  # of twenty; idle connections of others come and go
        or world.http.num_threads() > threads + 5
        or _held_bytes(world) > held
    ):
        now = (world.http.num_fds(), world.http.num_threads(), _held_bytes(world))
        assert time.monotonic() < deadline, f"{now}, were {(descriptors, threads, held)}"
        time.sleep(0.1)


def length_in_characters(world: World) -> None:
    """What fits into the length is a request with its answer; only the rest of it is refused."""
    sent = [world.event(description="路灯不亮，请派人来看一看") for _ in range(20)]
    lines = [orjson.dumps(event) + b"\n" for event in sent]
    body = b"".join(lines)
    length = len(body.decode())
    whole = sum(end <= length for end in accumulate(map(len, lines)))
    assert 0 < whole < len(sent)
    head = world.head(f"Content-Length: {length}").replace(b"application/json", b"application/x-ndjson")
    reply = world.talk(head + body, seconds=10)
    assert (reply.statuses, reply.closed) == ([202, 400], True), reply.raw[:600]
    told = orjson.loads(reply.raw.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 ")[0])
    assert told["accepted"] == whole, told
    world.is_problem(PROBLEM, reply.problem)
    world.keep(*sent[:whole])
    for event in sent[whole:]:
        assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404


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


def _attacked(world: World, to: tuple[str, int]) -> list[threading.Thread]:
    """Heads without end, bodies cut off, odd framings, a path that climbs and half a request, all at once."""
    attacks = [
        lambda: world.talk(
            world.head(*(f"X-{n}: v" for n in range(500)), path="/metrics", method="GET"), to=to
        ),
        lambda: world.talk(
            world.head("Content-Length: 9", path="/health/live", method="POST") + b"{}", seconds=0.5, to=to
        ),
        lambda: world.talk(world.head("Transfer-Encoding: xchunked", path="/metrics"), to=to),
        lambda: world.talk(world.head(path="/metrics/../v1/events", method="GET") + b"", seconds=0.5, to=to),
        lambda: world.talk(b"GET /health/ready HTTP/1.1\r\n", seconds=0.5, to=to),
    ]
    threads = [threading.Thread(target=attack) for attack in attacks * 4]
    for thread in threads:
        thread.start()
    return threads


def probes(world: World) -> None:
    threads = _attacked(world, world.address)
    for _ in range(5):
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert world.get(path).status_code == 200
    for thread in threads:
        thread.join()
    list(text_string_to_metric_families(world.get("/metrics").text))


def separate_listener(_: World) -> None:
    """A service of its own, with `--admin-http` and room for few connections. One listener is full and turns
    everybody away, both are attacked: the other one answers to probes, and the first makes room again."""
    most, port = 40, free_port()
    with (
        tempfile.TemporaryDirectory() as temporary,
        open_world(
            Path(temporary) / "data", "--admin-http", f"127.0.0.1:{port}", GRIDPIPE_MAX_CONNECTIONS=str(most)
        ) as own,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as admin,
    ):
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert own.get(path).status_code == 404, path
        own.still_well()
        silent: list[socket.socket] = []
        try:
            silent += [socket.create_connection(own.address, timeout=2) for _ in range(most)]
            above = own.talk(own.head("Content-Length: 2") + b"{}")
            assert (above.statuses, above.closed) == ([503], True), above.raw[:300]
            assert above.problem["code"] == "too_many_connections"
            own.is_problem(PROBLEM, above.problem)
            threads = _attacked(own, own.address) + _attacked(own, ("127.0.0.1", port))
            for _ in range(5):
                for path in ("/health/live", "/health/ready", "/metrics"):
                    answer = own.checked(partial(admin.get, path))
                    assert answer.status_code == 200, (path, answer.text[:300])
            for thread in threads:
                thread.join()
            list(text_string_to_metric_families(admin.get("/metrics").text))
            for connection in silent:  # those that say nothing are ended, not only told so
                connection.settimeout(HEAD_SECONDS + patience())
                while connection.recv(65_536):
                    pass
            own.still_well()
        finally:
            for connection in silent:
                connection.close()


def million_keys(world: World) -> None:
    many = ",".join(f'"k{n}":1' for n in range(1_000_000))
    plain = b'{"event_id":"m","attributes":{' + many.encode() + b"}}"
    assert world.post(plain).status_code == 413
    # keys whose hashes collide cannot be made from outside: each process draws the seed of its hashes
    assert world.http.environ().get("PYTHONHASHSEED", "random") == "random"
    before = world.http.memory_info().rss
    for _ in range(3):
        answer = world.post(gzip.compress(plain, 1), headers={"Content-Encoding": "gzip"})
        assert answer.status_code in {413, 422}, answer.text[:200]
    assert world.http.memory_info().rss - before < 100_000_000


def elements_without_end(world: World) -> None:
    """A kilobyte that unpacks to millions of elements, each an object of many times its size if built; just
    below what a body of any size may unpack to."""
    cloud = {
        "specversion": "1.0", "id": "m", "source": SOURCE, "type": "cn.jiangmen.grid.reported.v1",
        "time": "2026-01-01T00:00:00Z", "subject": "m", "data": {"channel": "<here>"},
    }  # fmt: skip
    lists = b"[" + b"[]," * 1_600_000 + b"[]]"
    forms = (
        ("application/json", b"[" + b"{}," * 1_600_000 + b"{}]", 413),
        ("application/json", lists, 413),
        ("application/x-ndjson", b"\n" * 4_900_000, 413),
        ("application/x-ndjson", b"{}\n" * 1_600_000, 413),
        ("application/cloudevents-batch+json", lists, 413),
        ("application/cloudevents+json", orjson.dumps(cloud).replace(b'"<here>"', lists), 422),
    )
    for kind, body, status in forms:
        packed = zstandard.compress(body)
        assert len(packed) < 4_000
        answer = world.post(packed, kind, headers={"Content-Encoding": "zstd"})
        assert answer.status_code == status, (kind, answer.text[:200])


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


def _seconds_of(world: World, body: bytes, count: int) -> list[float]:
    """Seconds that each of `count` sound requests took."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        answer = world.post(body, path=f"{EVENTS}:validate")
        took.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text[:300]
    return took


def idle_crowd(world: World) -> None:
    """A thousand connections that say nothing, half of the room there is: whoever has something to say waits
    no longer than without them. In turns, for the machine has other things to do, now more and now less."""
    body = orjson.dumps(world.event())
    calm, crowded, most = [], [], 0
    for _ in range(4):
        calm += _seconds_of(world, body, 25)
        crowd: list[socket.socket] = []
        try:
            crowd += [socket.create_connection(world.address, timeout=5) for _ in range(1_000)]
            crowded += _seconds_of(world, body, 1)  # by now they are let in
            most = max(most, world.http.num_fds())
            crowded += _seconds_of(world, body, 24)
        finally:
            for connection in crowd:
                connection.close()
    assert most > 1_000, "the crowd was never there"
    before, beside = (sorted(took)[int(0.99 * len(took))] for took in (calm, crowded))
    assert beside < 2 * before + 0.05, f"p99 {beside * 1000:.0f} ms beside them, {before * 1000:.0f} without"


def slow_clients(world: World) -> None:
    (slow,) = SLOW
    allowance = patience()
    assert all(b" 408 " in answer for answer in slow.answers(slow.heads, 5 + allowance))
    slow.answers(slow.idle, 5 + allowance)
    world.still_well()
    for answer in slow.answers(slow.bodies, 30 + allowance):
        assert b" 408 " in answer, answer[:200]
        assert b"body_too_slow" in answer
