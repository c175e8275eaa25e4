"""Quotas: who is charged what, what a refusal says, and that memory stays bounded."""

from __future__ import annotations

from pathlib import Path

import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp

from pipeline.ingest.problem import ProblemError
from pipeline.ingest.quota import AddressQuota, BoundedCounters, Quotas, caller
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
    assert int(answers[-1].headers["retry-after"]) in {1, 2, 3}
    async with from_address(app, THERE, world.key) as client:
        assert (await client.post("/v1/events", content=orjson.dumps(event()))).status_code == 202


def test_bytes_of_an_address() -> None:
    quotas = Quotas(Settings(quota_address_bytes_per_second=100, quota_window_seconds=1), Clock())
    quotas.admit_address(HERE)
    quotas.charge_bytes(HERE, 101)
    with pytest.raises(ProblemError, match="too much data"):
        quotas.admit_address(HERE)
    quotas.admit_address(THERE)


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
    from pipeline.ingest.keys import KeyStore
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.runtime.http import Parts, build_app

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

    import asyncio

    assert asyncio.run(ask()) == [200, 429, 429]
