"""The OWASP API Security Top 10 (2023), a test per item. docs/security.md names what has files of its own."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette
from starlette.routing import Route

from pipeline import metrics
from pipeline.audit import AuditLog
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.quota import AddressQuota, Quotas
from pipeline.ingest.signing import SigningAuth
from pipeline.read.reader import Reader
from pipeline.reference.load import load_directory
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.access import AuditReads, ReadKeys
from pipeline.runtime.http import Parts, build_app
from pipeline.settings import Settings
from tests.integration.read_world import http_over, reader_over, store_block
from tests.integration.worker_world import PRIVACY
from tests.integration.worker_world import event as report
from tests.unit.gateway_world import NOW, World, event, make_world

STRANGER = "203.0.113.9"


def client(app: Any, key: str | None = None, address: str = STRANGER) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(address, 40_000)),
        base_url="http://grid.example",
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


def public_app(world: World) -> tuple[Any, Any]:
    """The apps of a public listener with gateway and api, and of its admin listener that is public, too."""
    settings = Settings(
        data_dir=world.gateway.settings.data_dir, http="0.0.0.0:8080", admin_http="0.0.0.0:9090"
    )

    def nothing() -> Client:
        raise OSError("no store in this test")

    catalogues = load_catalogues(settings.catalogue_dir)
    reader = Reader(nothing, catalogues=catalogues, settings=settings)
    return build_app(Parts(settings, catalogues, world.keys, world.gateway, reader, None, {}))


async def test_api1_broken_object_level_authorisation(tmp_path: Path) -> None:
    """A source speaks for itself only, whatever the event says, and reads nobody's events."""
    world = make_world(tmp_path)
    async with client(world.app, world.key) as http:
        foreign = await http.post("/v1/events", json=event(1, source="other"))
        mixed = await http.post("/v1/events", json=[event(2), event(3, source="other")])
        twin = await http.post("/v1/events", json=event(2, source="12345 "))
    assert (foreign.status_code, foreign.json()["code"]) == (403, "source_not_allowed")
    assert (mixed.status_code, mixed.json()["accepted"]) == (202, 1)
    assert [error["code"] for error in mixed.json()["errors"]] == ["source_not_allowed"]
    assert twin.status_code == 422
    assert set(world.stored()["source"]) == {"12345"}
    public, _ = public_app(world)
    async with client(public, world.key) as http:
        for path in ("/v1/events/12345/e-2", "/v1/events/other/e-3", "/v1/cases/c-2", "/v1/rejections"):
            assert (await http.get(path)).status_code == 403, path


async def test_api2_broken_authentication(tmp_path: Path) -> None:
    """Wrong keys look alike, keys in addresses are refused, a hundred wrong ones lock out their sender."""
    world = make_world(tmp_path)
    revoked = world.keys.create("12345")
    world.keys.revoke(revoked.split("_")[1])
    wrong = ["", "x", revoked, world.key[:-1], world.key + "x", "gp_" + "0" * 12 + "_" + "A" * 43]
    answers = []
    for key in wrong:
        async with client(world.app) as http:
            answers.append(
                await http.post("/v1/events", json=event(1), headers={"Authorization": f"Bearer {key}"})
            )
    assert {(a.status_code, a.json()["code"], a.json()["message"]) for a in answers} == {
        (401, "unauthorised", answers[0].json()["message"])
    }
    async with client(world.app) as http:
        for name in ("key", "api_key", "token", "access_token"):
            answer = await http.post(f"/v1/events?{name}={world.key}", json=event(1))
            assert answer.status_code == 401
    guessed = "gp_" + world.key[3:15] + "_" + "B" * 43
    async with client(world.app, guessed) as http:
        statuses = [(await http.post("/v1/events", json=event(1))).status_code for _ in range(105)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    async with client(world.app, world.key) as http:  # same address, same key id, the right secret
        assert (await http.post("/v1/events", json=event(1))).status_code == 202


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events:validate"])
async def test_api2_a_hundred_wrong_signatures_lock_their_sender_out(tmp_path: Path, path: str) -> None:
    """Of whoever sends: not the source whose key id was named, and nobody at another address."""
    world = make_world(tmp_path)
    key = world.keys.create("12345", signed=True)
    guessed = "_".join([*key.split("_")[:2], "B" * 43])

    async def send(secret: str, times: int = 1, address: str = STRANGER) -> list[httpx.Response]:
        auth = SigningAuth(secret, clock=NOW.timestamp)
        async with client(world.app, address=address) as http:
            return [await http.post(path, json=event(1), auth=auth) for _ in range(times)]

    answers = await send(guessed, 105)
    assert [answer.status_code for answer in answers] == [401] * 100 + [429] * 5
    assert int(answers[-1].headers["Retry-After"]) >= 1
    for secret, address in ((key, STRANGER), (key, "198.51.100.4")):
        (answer,) = await send(secret, address=address)
        assert answer.status_code in {202, 503}, answer.text  # 503: no reference data to validate by here
    (answer,) = await send(guessed, address="198.51.100.4")
    assert answer.status_code == 401


async def test_api3_broken_object_property_level_authorisation(
    clickhouse: Client, open_client: Client, tmp_path: Path
) -> None:
    """Nobody writes the pipeline's own fields, and answers show no position column, pseudonym or name."""
    world = make_world(tmp_path)
    async with client(world.app, world.key) as http:
        for name in ("_off", "_inc", "ingested_at", "key_version", "outcome", "backfill", "district_code"):
            answer = await http.post("/v1/events", json=event(1) | {name: 1})
            assert [error["code"] for error in answer.json()["errors"]] == ["unknown_field"], name
        for kind in ("ADMITTED", "REJECTED"):
            assert (await http.post("/v1/events", json=event(1, event_type=kind))).status_code == 422
    store_block(clickhouse, tmp_path / "reference")
    async with http_over(reader_over(lambda: clickhouse)) as http:
        for path in ("/v1/events/handset/e1", "/v1/events/handset/e6", "/v1/cases/c6", "/v1/rejections"):
            text = (await http.get(path)).text
            assert not re.search(r"[0-9a-f]{64}", text.replace("0123456789abcdef" * 4, "")), path
            assert '"_' not in text, path
            assert "小明" not in text, path
            assert "l2_hi" not in text, path


async def test_api4_unrestricted_resource_consumption(tmp_path: Path) -> None:
    """Bytes, events, depth, keys of an object and requests are bounded; a refusal says when to come again."""
    world = make_world(
        tmp_path, max_body_bytes=20_000, max_decompressed_bytes=40_000, max_events_per_request=10
    )
    deep = b"[" * 200 + b"]" * 200
    import gzip

    async with client(world.app, world.key) as http:
        kind = {"Content-Type": "application/json"}
        assert (await http.post("/v1/events", content=b"x" * 20_001, headers=kind)).status_code == 413
        assert (await http.post("/v1/events", json=[event(n) for n in range(11)])).status_code == 413
        assert (await http.post("/v1/events", content=deep, headers=kind)).status_code == 400
        bomb = gzip.compress(b" " * 10_000_000)
        answer = await http.post("/v1/events", content=bomb, headers=kind | {"Content-Encoding": "gzip"})
        assert answer.status_code == 413
        many = event(1, attributes={f"k{n}": n for n in range(33)})
        assert (await http.post("/v1/events", json=many)).status_code == 422
    settings = Settings(data_dir=tmp_path, quota_address_requests_per_second=1, quota_window_seconds=5)
    async with client(AddressQuota(world.app, Quotas(settings)), world.key) as http:
        answers = [await http.post("/v1/events", json=event(1)) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [202] * 5 + [429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 5


async def test_api5_broken_function_level_authorisation(tmp_path: Path) -> None:
    """Every role does its own and nothing else; on public listeners nothing is open but liveness."""
    world = make_world(tmp_path)
    feeder, reader, admin = (
        world.key, world.keys.create(roles=["read"]), world.keys.create(roles=["admin"]),
    )  # fmt: skip
    public, metrics = public_app(world)
    expected = {
        # call: (nobody, ingest, read, admin)
        ("POST", "/v1/events"): (401, 202, 403, 403),
        ("POST", "/v1/events:validate"): (401, 503, 403, 403),
        ("GET", "/v1/kpi"): (401, 403, 503, 403),
        ("GET", "/v1/matters"): (401, 403, 200, 403),
        ("GET", "/v1/cases/c-1"): (401, 403, 503, 403),
    }
    for (method, path), statuses in expected.items():
        for key, status in zip((None, feeder, reader, admin), statuses, strict=True):
            async with client(public, key) as http:
                answer = await http.request(method, path, json=event(1) if method == "POST" else None)
            assert answer.status_code == status, (method, path, status, answer.text)
    for key, status in zip((None, feeder, reader, admin), (401, 403, 403, 200), strict=True):
        async with client(metrics, key) as http:
            assert (await http.get("/metrics")).status_code == status
            assert (await http.get("/health/live")).status_code == 200
    async with client(public, admin) as http:
        assert (await http.get("/metrics")).status_code == 404
        for method in ("DELETE", "PUT", "PATCH"):
            assert (await http.request(method, "/v1/cases/c-1")).status_code == 405


async def test_api6_unrestricted_access_to_sensitive_business_flows(tmp_path: Path) -> None:
    """A flood of urgent reports from one source is stopped at its quota; other sources alarm as before."""
    world = make_world(tmp_path, quota_source_events_per_second=10, quota_window_seconds=10)
    flood = [event(n, matter_code="ER-01") for n in range(60)]

    def refused() -> float:
        name = "gridpipe_gateway_quota_refusals_total"
        return metrics.REGISTRY.get_sample_value(name, {"source": "12345"}) or 0.0

    before = refused()
    async with client(world.app, world.key) as http:
        statuses = [(await http.post("/v1/events", json=flood)).status_code for _ in range(4)]
    assert statuses == [202, 202, 429, 429]
    # the flag: alert GridpipeSourceOverQuota reads it
    assert refused() == before + 2
    async with client(world.app, world.keys.create("119")) as http:
        answer = await http.post("/v1/events", json=event(1, source="119", matter_code="ER-01"))
    assert answer.status_code == 202


async def test_api7_server_side_request_forgery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses in fields are text: nothing is looked up, nothing is fetched."""
    called: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        called.append(arguments)
        raise OSError("no network in this test")

    world = make_world(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    url = "http://169.254.169.254/latest/meta-data"
    async with client(world.app, world.key) as http:
        answer = await http.post(
            "/v1/events",
            json=event(1, description=url, title=f"file:///etc/passwd {url}", attributes={"callback": url}),
        )
        assert answer.status_code == 202
        cloud = await http.post(
            "/v1/events",
            content=orjson.dumps({"specversion": "1.0", "dataschema": url, "source": url}),
            headers={"Content-Type": "application/cloudevents+json"},
        )
        assert cloud.status_code == 422
    public, _ = public_app(world)
    async with client(public, world.keys.create(roles=["read"])) as http:
        for query in ("by=url('http://x')", "by=grid&from=file('/etc/passwd')", "view=remote('x')"):
            assert (await http.get(f"/v1/kpi?{query}")).status_code == 400
    assert called == []


async def test_api8_security_misconfiguration(tmp_path: Path) -> None:
    """No CORS, no TRACE, no versions, no stack; Faust's web server and pickle are off."""
    world = make_world(tmp_path)
    public, _ = public_app(world)
    async with client(public, world.keys.create(roles=["read"])) as http:
        for method, path in (("OPTIONS", "/v1/events"), ("GET", "/v1/matters"), ("GET", "/nothing")):
            answer = await http.request(method, path, headers={"Origin": "https://evil.example"})
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "server" not in answer.headers
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert (await http.request("TRACE", "/v1/events")).status_code == 405
        failed = await http.get("/v1/kpi")  # the store is away
        assert failed.status_code == 503
        assert not re.search(r"Traceback|\.py|clickhouse_connect|SELECT", failed.text)


def test_api8_nothing_dangerous_is_switched_on() -> None:
    """Faust's web server, pickle and debug modes stay off."""
    sources = {path: path.read_text() for path in Path("pipeline").rglob("*.py")}
    assert not [
        path for path, text in sources.items() if re.search(r"\bimport pickle|serializer=.pickle", text)
    ]
    assert "web_enabled=False" in sources[Path("pipeline/process/membership.py")]
    assert not [path for path, text in sources.items() if "debug=True" in text]


async def test_api9_improper_inventory_management(tmp_path: Path) -> None:
    """What the API description lists is what is served, no more and no less."""
    world = make_world(tmp_path)
    for app in (public_app(world)[0],):
        inner: Any = app
        while not isinstance(inner, Starlette):
            inner = inner._app
        served = {
            (route.path, method)
            for route in inner.routes
            if isinstance(route, Route) and route.include_in_schema
            for method in (route.methods or set()) - {"HEAD"}
        }
        async with client(app) as http:
            document = (await http.get("/openapi.json")).json()
        described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
        assert served == described
        known = ("/v1/", "/openapi.json", "/docs", "/health/", "/metrics")
        assert [path for path, _ in served if path != "/" and not path.startswith(known)] == []
        assert not [path for path, _ in served if re.search(r"/v[02-9]|test|debug|internal", path)]


def test_api10_unsafe_consumption_of_apis(clickhouse: Client, tmp_path: Path) -> None:
    """Reference data of other systems are checked like any input; nothing of them is run or believed."""
    good = {
        "grid_code": "440704001001003", "version": 1, "valid_from": "2020-01-01T00:00:00+08:00",
        "grid_name": "'); DROP TABLE events; --", "grid_type": "residential", "status": "active",
    }  # fmt: skip
    bad = [
        good | {"grid_code": "440704001001004", "status": "'; DROP TABLE events; --"},
        good | {"grid_code": "../../etc/passwd"},
        good | {"grid_code": "440704001001005", "boundary": "POLYGON((0 0, 1 1"},
        good | {"grid_code": "440704001001006", "version": -1},
        good | {"grid_code": "440704001001007", "grid_name": "x" * 100_000},
        good | {"grid_code": "440704001001008", "valid_from": "file('/etc/passwd')"},
        good,  # the same key twice
    ]
    (tmp_path / "grids.ndjson").write_text("\n".join(json.dumps(row) for row in [good, *bad]) + "\n{\n")
    loaded = load_directory(clickhouse, tmp_path, PRIVACY)
    (file,) = loaded.files
    assert (file.stored, file.refused) == (1, len(bad) + 1)
    (stored,) = clickhouse.query("SELECT grid_code, grid_name FROM ref_grids FINAL").result_rows
    assert stored == ("440704001001003", "'); DROP TABLE events; --")
    assert clickhouse.query("SELECT count() FROM events").result_rows == [(0,)]
    assert report(1)["grid_code"] == stored[0]


async def test_reads_of_persons_are_audited_on_a_public_listener(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    app = ReadKeys(AuditReads(Starlette(), AuditLog(tmp_path / "audit", keep_days=1), keys), keys)
    async with client(app, keys.create(roles=["read"])) as http:
        await http.get("/v1/cases/c-1")
    assert len(next((tmp_path / "audit").glob("*.jsonl")).read_text().splitlines()) == 1
