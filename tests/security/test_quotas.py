"""Quotas: who is charged what, what a refusal says, and that memory stays bounded."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.ingest.keys import KeyStore
from pipeline.ingest.problem import ProblemError
from pipeline.ingest.quota import AddressQuota, BoundedCounters, Quotas, caller
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.access import guard_metrics
from pipeline.runtime.control import Status, StatusBoard, control_routes
from pipeline.runtime.http import Parts, build_app
from pipeline.runtime.store import admin_listener as listener_of_a_worker
from pipeline.runtime.store import guarded
from pipeline.settings import Settings
from tests.unit.gateway_world import World, event, make_world

HERE, THERE = "192.0.2.7", "198.51.100.9"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def from_address(app: ASGIApp, address: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(address, 40_000)),
        base_url="http://gateway",
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )


async def post(world: World, count: int, *, address: str = HERE, key: str | None = None) -> httpx.Response:
    body = orjson.dumps([event(number) for number in range(count)])
    async with from_address(world.app, address, key or world.key) as client:
        return await client.post("/v1/events", content=body)


async def test_source_with_too_many_events_waits_and_others_go_on(tmp_path: Path) -> None:
    world = make_world(tmp_path, quota_source_events_per_second=10, quota_window_seconds=10)
    clock = Clock()
    world.gateway.quotas = Quotas(world.gateway.settings, clock)
    first = await post(world, 60)
    assert (first.status_code, first.headers["ratelimit-limit"]) == (202, "100")
    assert first.headers["ratelimit-remaining"] == "40"
    assert first.headers["ratelimit-policy"] == '"events";q=100;w=10'
    assert (await post(world, 60)).status_code == 202  # crosses the end of the window, and is served
    clock.now += 3
    refused = await post(world, 1, address=THERE)  # the source, not the address
    assert refused.status_code == 429
    assert refused.json()["code"] == "too_many_requests"
    assert refused.headers["retry-after"] == "7"
    assert refused.headers["ratelimit-remaining"] == "0"
    body = orjson.dumps([event(1, source="other")])
    async with from_address(world.app, HERE, world.keys.create("other")) as client:
        assert (await client.post("/v1/events", content=body)).status_code == 202
    assert (await post(world, 1, key=world.keys.create("12345"))).status_code == 429  # a second key is no way
    clock.now += 7
    assert (await post(world, 1)).status_code == 202
    assert world.stored().height == 122


async def test_refused_and_unreadable_events_are_charged_too(tmp_path: Path) -> None:
    world = make_world(tmp_path, quota_source_events_per_second=1, quota_window_seconds=10)
    body = orjson.dumps([{"event_id": "x"}] * 10)
    async with from_address(world.app, HERE, world.key) as client:
        assert (await client.post("/v1/events", content=body)).status_code == 422
        assert (await client.post("/v1/events", content=body)).status_code == 429


async def test_key_for_several_sources_is_refused_when_none_has_anything_left(tmp_path: Path) -> None:
    world = make_world(tmp_path, quota_source_events_per_second=1, quota_window_seconds=10)
    key = world.keys.create(["12345", "other"])
    assert (await post(world, 12, key=key)).status_code == 202
    body = orjson.dumps([event(number, source="other") for number in range(12)])
    async with from_address(world.app, HERE, key) as client:
        assert (await client.post("/v1/events", content=body)).status_code == 202
        assert (await client.post("/v1/events", content=body)).status_code == 429


async def test_key_for_several_sources_gives_none_what_another_has_left(tmp_path: Path) -> None:
    """All events under one source, with another one untouched: they were all taken."""
    world = make_world(tmp_path, quota_source_events_per_second=1, quota_window_seconds=10)
    key = world.keys.create(["12345", "other"])
    assert (await post(world, 12, key=key)).status_code == 202
    refused = await post(world, 12, key=key)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert "12345" in refused.json()["message"]
    assert int(refused.headers["Retry-After"]) >= 1
    mixed = [event(1, source="other"), event(2)]
    sound = [event(1, source="other")]
    unreadable = [{}] * 12  # counted as the first source's
    async with from_address(world.app, HERE, key) as client:
        assert (await client.post("/v1/events", content=orjson.dumps(mixed))).status_code == 429
        assert (await client.post("/v1/events", content=orjson.dumps(unreadable))).status_code == 429
        assert (await client.post("/v1/events", content=orjson.dumps(sound))).status_code == 202
    assert world.stored().height == 13


async def test_many_small_requests_of_one_source(tmp_path: Path) -> None:
    world = make_world(tmp_path, quota_source_requests_per_second=1, quota_window_seconds=5)
    answers = [(await post(world, 1)).status_code for _ in range(7)]
    assert answers == [202] * 5 + [429] * 2


async def test_address_is_charged_before_its_key_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path, quota_address_requests_per_second=1, quota_window_seconds=3, quota_loopback=True
    )
    world = make_world(tmp_path, quota_loopback=True)
    app = AddressQuota(world.app, Quotas(settings))
    looked_at: list[str] = []
    verify = world.keys.verify
    monkeypatch.setattr(world.keys, "verify", lambda bearer: looked_at.append(bearer) or verify(bearer))
    answers = []
    for _ in range(5):
        async with from_address(app, "127.0.0.1", "gp_wrong") as client:
            answers.append(await client.post("/v1/events", content=b"[]"))
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert len(looked_at) == 3
    assert answers[-1].headers["content-type"] == "application/problem+json"
    told = answers[-1].headers
    assert int(told["retry-after"]) in {1, 2, 3}
    # of the address, and not of some source: the refusal comes before anybody knows one
    assert (told["ratelimit-limit"], told["ratelimit-remaining"]) == ("3", "0")
    assert told["ratelimit-reset"] in {"0", told["retry-after"]}
    assert told["ratelimit-policy"] == '"requests";q=3;w=3'
    async with from_address(app, THERE, world.key) as client:
        assert (await client.post("/v1/events", content=orjson.dumps(event()))).status_code == 202


def test_bytes_of_an_address() -> None:
    quotas = Quotas(Settings(quota_address_bytes_per_second=100, quota_window_seconds=1), Clock())
    quotas.admit_address(HERE)
    quotas.charge_bytes(HERE, frozenset(), 101)
    with pytest.raises(ProblemError, match="too much data") as refused:
        quotas.admit_address(HERE)
    assert refused.value.headers["RateLimit-Policy"] == '"bytes";q=100;w=1'
    quotas.admit_address(THERE)


async def test_bytes_of_a_source_whatever_the_address(tmp_path: Path) -> None:
    body = orjson.dumps(event())
    world = make_world(tmp_path, quota_source_bytes_per_second=len(body), quota_window_seconds=2)
    other = world.keys.create("handset")
    answers = []
    for address in (HERE, THERE, HERE, THERE):
        async with from_address(world.app, address, world.key) as client:
            answers.append(await client.post("/v1/events", content=body))
    assert [answer.status_code for answer in answers] == [202, 202, 429, 429]
    assert "too much data of this source" in answers[-1].json()["message"]
    assert answers[-1].headers["ratelimit-policy"] == f'"bytes";q={2 * len(body)};w=2'
    async with from_address(world.app, HERE, other) as client:
        answer = await client.post("/v1/events", content=orjson.dumps(event(source="handset")))
        assert answer.status_code == 202, "another source has its own"


def test_this_machine_is_exempt_unless_asked_for() -> None:
    for address, exempt in (("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), (HERE, False)):
        quotas = Quotas(Settings(quota_address_requests_per_second=1, quota_window_seconds=1), Clock())
        refusals = 0
        for _ in range(3):
            try:
                quotas.admit_address(address)
            except ProblemError:
                refusals += 1
        assert refusals == (0 if exempt else 2), address


def test_one_network_is_one_caller() -> None:
    assert caller("2001:db8:1:2:3::4") == caller("2001:db8:1:2:ffff::9%eth0") == "2001:db8:1:2::/64"
    assert caller("2001:db8:1:3::1") != caller("2001:db8:1:2::1")
    assert caller("::ffff:192.0.2.7") == caller("192.0.2.7") == "192.0.2.7"


def test_wrong_credentials_lock_out_their_address_and_key_only(tmp_path: Path) -> None:
    quotas = Quotas(Settings(data_dir=tmp_path), Clock())
    for _ in range(100):
        quotas.wrong_credential(HERE, "gp_000000000001")
    with pytest.raises(ProblemError, match="refused credentials"):
        quotas.wrong_credential(HERE, "gp_000000000001")
    quotas.wrong_credential(HERE, "gp_000000000002")
    quotas.wrong_credential(THERE, "gp_000000000001")
    quotas.admit_sources(HERE, frozenset({"12345"}))


def test_counters_are_bounded_and_end() -> None:
    clock = Clock()
    counters = BoundedCounters(clock, most=100)
    for number in range(10_000):
        counters.incr(f"address {number}", 10)
    assert len(counters) == 100
    assert counters.incr("address 9999", 10) == 2
    clock.now += 10
    assert counters.get("address 9999") == 0
    assert counters.incr("address 9999", 10) == 1


def test_app_of_the_http_process_is_wrapped(tmp_path: Path) -> None:
    """The wrapper is worth nothing if the process does not use it."""
    settings = Settings(data_dir=tmp_path, quota_address_requests_per_second=1, quota_window_seconds=1)
    parts = Parts(
        settings, load_catalogues(settings.catalogue_dir), KeyStore(settings.keys_path), None, None, None, {}
    )
    public, _ = build_app(parts)
    assert not isinstance(public, Starlette)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(public, client=(HERE, 1)), base_url="http://127.0.0.1"
        ) as client:
            return [(await client.get("/health/live")).status_code for _ in range(3)]

    assert asyncio.run(ask()) == [200, 429, 429]


# --- the listeners for metrics


def admin_listener(tmp_path: Path, role: str, **options: Any) -> tuple[ASGIApp, KeyStore]:
    """What answers at `--admin-http 0.0.0.0:9090`. role : `http`, or `worker` for a worker alone."""
    settings = Settings(data_dir=tmp_path, admin_http="0.0.0.0:9090", **options)
    keys = KeyStore(settings.keys_path)
    if role == "worker":
        board = StatusBoard(Status(catalogue="", revision=""))
        return Starlette(routes=guarded(settings, control_routes(board))), keys
    parts = Parts(settings, load_catalogues(settings.catalogue_dir), keys, None, None, None, {})
    _, admin = build_app(parts)
    assert admin is not None
    return admin, keys


ROLES = pytest.mark.parametrize("role", ["http", "worker"])


@ROLES
async def test_wrong_keys_of_ever_other_ids_lock_their_address_out_of_metrics(
    tmp_path: Path, role: str
) -> None:
    """And nothing else: the scrape from behind the same address, other addresses, and probes go on."""
    app, keys = admin_listener(tmp_path, role)
    right = keys.create(roles=["admin"])
    statuses = Counter[int]()
    for number in range(300):
        async with from_address(app, HERE, f"gp_{number:012x}_{'B' * 43}") as guesser:
            answer = await guesser.get("/metrics")
        statuses[answer.status_code] += 1
        if number % 50 == 0 or number == 299:
            async with from_address(app, HERE, right) as scraper:
                assert (await scraper.get("/metrics")).status_code == 200, f"after {number} wrong keys"
    assert statuses == {401: 100, 429: 200}
    assert answer.headers["content-type"] == "application/problem+json"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    signed = "GRIDPIPE-HMAC-SHA256 key=0123456789ab,time=1,nonce=" + "n" * 16 + ",signature=" + "0" * 64
    async with from_address(app, HERE, "") as guesser:  # the other scheme is no way round
        answer = await guesser.get("/metrics", headers={"Authorization": signed})
        assert answer.status_code == 429
        assert (await guesser.get("/health/live")).status_code == 200
    async with from_address(app, THERE, "gp_wrong") as stranger:
        assert (await stranger.get("/metrics")).status_code == 401


async def test_the_listener_of_a_worker_alone_counts_who_really_calls(tmp_path: Path) -> None:
    """Over a socket: the caller's address reaches the quota."""
    settings = Settings(data_dir=tmp_path, admin_http="0.0.0.0:9090", quota_loopback=True)
    right = KeyStore(settings.keys_path).create(roles=["admin"])
    board = StatusBoard(Status(catalogue="", revision=""))
    listener = socket.create_server(("127.0.0.1", 0))
    bridge = listener_of_a_worker(settings, control_routes(board), listener).start()
    try:
        async with httpx.AsyncClient(base_url=bridge.url, trust_env=False, timeout=30) as http:

            async def ask(path: str, key: str) -> int:
                headers = {"Authorization": f"Bearer {key}"}
                return (await http.get(path, headers=headers)).status_code

            wrong = Counter([await ask("/metrics", f"gp_{n:012x}_{'B' * 43}") for n in range(110)])
            assert wrong == {401: 100, 429: 10}
            assert await ask("/metrics", right) == await ask("/health/live", "gp_wrong") == 200
    finally:
        bridge.close()


async def test_probes_and_scrapes_are_never_refused_and_floods_are(tmp_path: Path) -> None:
    """Ten minutes, however low the senders' quota is: two scrapes a second by two who ask at once, probes and
    wrong keys from the same address. Then what nobody needs: 404s, and scrapes by the hundred."""
    settings = Settings(
        data_dir=tmp_path,
        admin_http="0.0.0.0:9090",
        quota_address_requests_per_second=1,
        quota_window_seconds=1,
    )
    clock, keys = Clock(), KeyStore(settings.keys_path)
    page = Starlette(routes=[Route(path, _page) for path in ("/metrics", "/health/ready")])
    app = guard_metrics(page, settings, keys, ("/metrics",), clock=clock)
    refused = Counter[int]()
    async with (
        from_address(app, HERE, keys.create(roles=["admin"])) as scraper,
        from_address(app, HERE, "gp_wrong") as guesser,
    ):
        for second in range(600):
            for _ in range(2):
                assert (await scraper.get("/metrics")).status_code == 200, second
                assert (await guesser.get("/health/ready")).status_code == 200, second
            for _ in range(5):
                refused[(await guesser.get("/metrics")).status_code] += 1
            clock.now += 1
        assert refused == {401: 10 * 100, 429: 10 * 200}
        strays = Counter([(await guesser.get("/nothing")).status_code for _ in range(300)])
        assert strays == {404: 100, 429: 200}
        assert (await guesser.get("/health/ready")).status_code == 200
        clock.now += 1
        scrapes = Counter([(await scraper.get("/metrics")).status_code for _ in range(150)])
        assert scrapes == {200: 100, 429: 50}


@pytest.mark.parametrize("exempt", [True, False])
async def test_metrics_on_loopback_are_charged_like_everything_else_there(
    tmp_path: Path, exempt: bool
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        admin_http="127.0.0.1:9090",
        quota_loopback=not exempt,
        quota_window_seconds=1,
    )
    page = Starlette(routes=[Route("/metrics", _page)])
    app = guard_metrics(page, settings, KeyStore(settings.keys_path), ("/metrics",), clock=Clock())
    async with from_address(app, "127.0.0.1", "") as http:
        answers = Counter([(await http.get("/metrics")).status_code for _ in range(150)])
    assert answers == ({200: 150} if exempt else {200: 100, 429: 50})


def test_the_counters_of_an_admin_listener_are_its_own(tmp_path: Path) -> None:
    """A sender at the end of its quota takes nothing from the scraper on the same machine."""
    settings = Settings(
        data_dir=tmp_path,
        admin_http="0.0.0.0:9090",
        quota_address_requests_per_second=1,
        quota_window_seconds=60,
    )
    keys = KeyStore(settings.keys_path)
    parts = Parts(settings, load_catalogues(settings.catalogue_dir), keys, None, None, None, {})
    public, admin = build_app(parts)
    assert admin is not None
    right = keys.create(roles=["admin"])

    async def ask() -> tuple[Counter[int], Counter[int]]:
        async with from_address(public, HERE, right) as http:
            sent = Counter(
                [(await http.get("/docs", headers={"Host": "localhost"})).status_code for _ in range(80)]
            )
        async with from_address(admin, HERE, right) as http:
            return sent, Counter([(await http.get("/metrics")).status_code for _ in range(5)])

    sent, scraped = asyncio.run(ask())
    assert sent[429] == 20
    assert scraped == {200: 5}


async def _page(_: Request) -> Response:
    return PlainTextResponse("page")
