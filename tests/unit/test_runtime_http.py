"""The HTTP app around gateway and api: headers, access, health, one metrics page, API description."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import pipeline
from pipeline import metrics
from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.ingest.durability import Replicated
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.memory import MemoryLog
from pipeline.ingest.signing import auth_for
from pipeline.pool import BoundedPool
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime import health
from pipeline.runtime.access import ReadKeys, check_listeners, still_reads
from pipeline.runtime.control import ControlClient, Status, StatusBoard, control_routes
from pipeline.runtime.exposition import counted_by_http, http_part, worker_part
from pipeline.runtime.headers import SecurityHeaders
from pipeline.runtime.health import Health, broker_check
from pipeline.runtime.http import Parts, _keys_check, _lifespan, _log_check, assemble, build_app
from pipeline.runtime.pages import page_routes
from pipeline.settings import Settings, load_settings
from tests.unit.gateway_world import event, make_world


async def _hello(_: Request) -> Response:
    return PlainTextResponse("hello")


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8080", follow_redirects=True
    )


ROUTES = [Route("/v1/kpi", _hello, methods=["GET"]), Route("/v1/events", _hello, methods=["POST"])]


def test_the_page_of_all_roles_holds_each_family_once() -> None:
    metrics.events.labels("admitted").inc()
    metrics.gateway_events.labels("accepted").inc()
    page = (http_part() + worker_part()).decode()
    names = [family.name for family in text_string_to_metric_families(page)]
    assert len(names) == len(set(names))
    assert set(names) == {family.name for family in metrics.REGISTRY.collect()}
    assert not any(name.endswith("_created") for name in names)
    assert 'gridpipe_events_total{outcome="admitted"}' in worker_part().decode()
    assert 'gridpipe_gateway_events_total{answer="accepted"}' in http_part().decode()


def test_a_gateway_alone_tells_no_business_figures() -> None:
    """Nobody sets them there: the instant they hold for would be zero, which is 1970, for ever."""
    metrics.business_as_of_timestamp_seconds.set(1.0)
    page = http_part(reads=False).decode()
    assert "gridpipe_gateway_events_total" in page
    assert "gridpipe_business_as_of" not in page
    assert "gridpipe_closure_ratio" not in page
    assert "gridpipe_held_" not in page
    assert "gridpipe_business_as_of_timestamp_seconds 1.0" in http_part(reads=True).decode()


def test_outcomes_are_the_workers_and_business_figures_the_apis() -> None:
    assert not counted_by_http("gridpipe_events")
    assert not counted_by_http("gridpipe_events_received")
    assert counted_by_http("gridpipe_closure_ratio")
    assert counted_by_http("gridpipe_http_requests")


def test_a_family_comes_from_the_process_whose_packages_set_it() -> None:
    """The other one's page would tell the zero it begins with, for ever."""
    of_http, of_worker = _families_set_in("ingest", "read", "page"), _families_set_in("process", "sink")
    assert "gridpipe_held_cases" in of_http
    assert "gridpipe_events" in of_worker
    assert [family for family in of_http if not counted_by_http(family)] == []
    assert [family for family in of_worker if counted_by_http(family)] == []


def _families_set_in(*packages: str) -> set[str]:
    named = {
        node.attr
        for package in packages
        for path in (Path(pipeline.__file__).parent / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "metrics"
    }
    found = (getattr(metrics, name) for name in named)
    return {metric.describe()[0].name for metric in found if isinstance(metric, MetricWrapperBase)}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.5:8080", 421),
        ("", 421),
    ],
)
async def test_a_loopback_listener_answers_to_loopback_names_only(host: str, status: int) -> None:
    client = client_of(SecurityHeaders(Starlette(routes=ROUTES), loopback_only=True))
    answer = await client.get("/v1/kpi", headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


async def test_a_public_listener_answers_to_any_name() -> None:
    client = client_of(SecurityHeaders(Starlette(routes=ROUTES), loopback_only=False))
    assert (await client.get("/v1/kpi", headers={"Host": "grid.jiangmen.example"})).status_code == 200


async def test_reading_on_a_public_listener_needs_a_read_key(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    reader, feeder = keys.create("read"), keys.create("12345")
    client = client_of(ReadKeys(Starlette(routes=ROUTES), keys))
    assert (await client.get("/v1/kpi")).status_code == 401
    assert (await client.get("/v1/kpi", headers={"Authorization": "Bearer nonsense"})).status_code == 401
    refused = await client.get("/v1/kpi", headers={"Authorization": f"Bearer {feeder}"})
    assert (refused.status_code, refused.json()["code"]) == (403, "not_a_read_key")
    assert (await client.get("/v1/kpi", headers={"Authorization": f"Bearer {reader}"})).text == "hello"
    assert (await client.post("/v1/events")).status_code == 200  # the gateway asks for its own key


@pytest.mark.parametrize(
    "spoil", [lambda path: path.chmod(0o644), lambda path: path.write_bytes(b"{"), Path.unlink]
)
async def test_keys_that_cannot_be_read_are_503_everywhere_and_readiness_says_so(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    world = make_world(tmp_path)
    path, keys = world.gateway.settings.keys_path, world.keys
    reader, signer = keys.create("read"), keys.create("12345", signed=True)
    guarded = client_of(ReadKeys(Starlette(routes=ROUTES), keys, signatures=world.gateway.signatures))
    ready = client_of(Starlette(routes=Health({"keys": _keys_check(keys)}).routes()))
    bearer = {"Authorization": f"Bearer {reader}"}
    assert (await guarded.get("/v1/kpi", headers=bearer)).status_code == 200
    assert (await world.post(event())).status_code == 202
    assert (await ready.get("/health/ready")).status_code == 200
    scope = {"gridpipe.key_id": reader.split("_")[1]}
    assert still_reads(scope, keys)
    saved = path.read_bytes()
    spoil(path)
    if path.exists():
        os.utime(path, ns=(1, 1))  # permissions alone are seen at the next change
    signing = auth_for(signer)
    answers = [
        await guarded.get("/v1/kpi", headers=bearer),
        await guarded.get("/v1/kpi", auth=signing),
        await world.post(event(2)),
        await client_of(world.app).post(
            "/v1/events", content=b"{}", headers={"Content-Type": "application/json"}, auth=signing
        ),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert str(tmp_path) not in answer.text
    assert not still_reads(scope, keys)
    await asyncio.sleep(0.3)  # an answer is kept for a moment
    told = await ready.get("/health/ready")
    assert told.status_code == 503
    assert "the log says why" in told.json()["checks"]["keys"]["detail"]
    assert str(tmp_path) not in told.text
    path.write_bytes(saved)
    path.chmod(0o600)
    assert (await world.post(event(3))).status_code == 202


def test_a_public_listener_is_refused_without_read_keys_and_a_place_for_metrics(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, http="0.0.0.0:8080")
    with pytest.raises(ConfigurationError) as caught:
        check_listeners(settings)
    assert len(caught.value.problems) == 2
    KeyStore(settings.keys_path).create(["local", "read"])
    with pytest.raises(ConfigurationError, match="needs a read key"):
        check_listeners(load_settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="127.0.0.1:9090"))
    KeyStore(settings.keys_path).create("read")
    check_listeners(load_settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="127.0.0.1:9090"))


def parts_of(settings: Settings) -> Parts:
    catalogues = load_catalogues(settings.catalogue_dir)
    return Parts(settings, catalogues, KeyStore(settings.keys_path), None, None, None, {})


async def test_unknown_paths_and_methods_are_problem_documents(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:0", admin_http="127.0.0.1:0")
    public, admin = build_app(parts_of(settings))
    assert admin is not None
    for app in (public, admin):
        for method, path, status, code in (
            ("GET", "/v1/nothing", 404, "not_found"),
            ("POST", "/docs" if app is public else "/metrics", 405, "method_not_allowed"),
        ):
            answer = await client_of(app).request(method, path, headers={"X-Request-Id": "r-1"})
            assert answer.status_code == status
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert (answer.json()["code"], answer.json()["request_id"]) == (code, "r-1")
    refused = await client_of(public).post("/docs")
    assert "GET" in refused.headers["Allow"]


async def test_nobody_is_sent_elsewhere_for_a_slash_too_many(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="0.0.0.0:9090")
    world = make_world(tmp_path)
    public, admin = build_app(replace(parts_of(settings), keys=world.keys, gateway=world.gateway))
    assert admin is not None
    for app, method, path in (
        (public, "POST", "/v1/events/"),
        (public, "GET", "/docs/"),
        (admin, "GET", "/health/live/"),
    ):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as client:
            answer = await client.request(method, path, content=b"{}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "location" not in answer.headers


async def test_a_check_that_fails_in_another_way_is_named_and_tells_nothing() -> None:
    async def refused() -> str:
        raise RuntimeError("Code: 516. user: Authentication failed")

    answer = await client_of(Starlette(routes=Health({"store": refused}).routes())).get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["store"]["ok"] is False
    assert "RuntimeError" in answer.json()["checks"]["store"]["detail"]
    assert "516" not in answer.text


async def test_readiness_does_not_wait_behind_reads(tmp_path: Path) -> None:
    reading, may, begun = True, threading.Event(), threading.Semaphore(0)

    def connect() -> Client:
        if reading:
            begun.release()
            may.wait(60)
        raise UnavailableError("ClickHouse at 127.0.0.1:9 does not answer")

    settings = load_settings(data_dir=tmp_path)
    parts = assemble(settings, bootstrap=None, client_factory=connect, control=None, durable=None, read=True)
    assert parts.reader is not None
    reads = [asyncio.create_task(parts.reader.run(lambda client: None)) for _ in range(10)]
    try:
        for _ in range(4):
            assert await asyncio.to_thread(begun.acquire, timeout=20)
        reading = False
        with pytest.raises(UnavailableError, match="does not answer"):
            async with asyncio.timeout(10):
                await parts.checks["store"]()
    finally:
        may.set()
        await asyncio.gather(*reads, return_exceptions=True)
        for reader in (parts.reader, parts.watch, parts.show):
            assert reader is not None
            reader.close()


async def test_page_and_gauges_do_not_wait_behind_reads_nor_searches_with_them(tmp_path: Path) -> None:
    """However many ask: more than may wait are refused, and the page is not among those."""
    may = threading.Event()

    def connect() -> Client:
        if threading.current_thread().name.startswith("blocked"):
            may.wait(60)
        raise UnavailableError("ClickHouse at 127.0.0.1:9 does not answer")

    settings = load_settings(data_dir=tmp_path)
    parts = assemble(settings, bootstrap=None, client_factory=connect, control=None, durable=None, read=True)
    assert parts.reader is not None
    assert parts.live is not None
    assert parts.show is not None
    parts.reader._pool = BoundedPool("blocked", threads=1, queue=1)
    reads = [asyncio.create_task(parts.reader.run(lambda client: None)) for _ in range(2)]
    await asyncio.sleep(0)
    try:
        for asked in (parts.live.board.mark(), parts.show.run(lambda client: None)):
            with pytest.raises(UnavailableError, match="does not answer"):
                async with asyncio.timeout(10):
                    await asked
        async with client_of(build_app(parts)[0]) as client:
            found = await client.get("/v1/live/search", params={"q": "e-1"})
        assert (found.status_code, found.json()["detail"]) == (
            503,
            "too many calls wait already; try again in a moment",
        )
    finally:
        may.set()
        await asyncio.gather(*reads, return_exceptions=True)
        for reader in (parts.reader, parts.watch, parts.show):
            assert reader is not None
            reader.close()


async def test_a_gateway_that_answers_503_to_every_event_is_not_ready(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    client = client_of(Starlette(routes=Health({"broker": _log_check(world.gateway, _answers)}).routes()))
    assert (await client.get("/health/ready")).status_code == 200
    world.log.down = True  # it answers questions and takes nothing: the circuit is open
    await asyncio.sleep(0.3)  # an answer is kept for a moment
    assert (await client.get("/health/ready")).status_code == 503
    world.log.down = False
    await world.gateway.close()
    await asyncio.sleep(0.3)
    assert (await client.get("/health/ready")).status_code == 503


async def test_before_there_is_a_worker_events_are_refused_at_once(tmp_path: Path) -> None:
    """On the embedded broker only a worker makes answers: nobody waits for one that still starts."""

    def connect() -> Client:
        raise UnavailableError("no store here")

    board = StatusBoard(Status())
    control = ControlClient("http://store", "token")
    control._client = httpx.AsyncClient(
        transport=httpx.ASGITransport(Starlette(routes=control_routes(board))), base_url="http://store"
    )
    settings = load_settings(data_dir=tmp_path, canary_interval_seconds=0)
    Privacy.load(settings.pseudonym_key_path, create=True)
    parts = assemble(
        settings,
        bootstrap="127.0.0.1:9",
        client_factory=connect,
        control=control,
        durable=Replicated,
        read=False,
    )
    gateway = parts.gateway
    assert gateway is not None
    await gateway.producer.close()
    log = gateway.producer = gateway.writer.producer = MemoryLog()
    key = gateway.keys.create("12345")
    async with _lifespan(parts)(Starlette()), client_of(build_app(parts)[0]) as client:

        async def post() -> httpx.Response:
            return await client.post("/v1/events", json=event(1), headers={"Authorization": f"Bearer {key}"})

        async def log_is_ready() -> None:
            await _log_check(gateway, _answers)()

        refused = await post()
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        with pytest.raises(UnavailableError):
            await log_is_ready()
        assert log.records == MemoryLog().records
        board.worker_is("assigned")
        for _ in range(200):
            if (answer := await post()).status_code != 503:
                break
            await asyncio.sleep(0.05)
        assert answer.status_code == 202
        await log_is_ready()
        board.worker_is("starting")  # the next one takes over where this one ended: callers wait for it
        assert (await post()).status_code == 202


async def _answers() -> str:
    return "12 partitions"


async def test_the_broker_is_asked_beside_whatever_fills_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Admin:
        def __init__(self, _: object) -> None: ...

        def list_topics(self, topic: str, timeout: float) -> Any:
            return SimpleNamespace(topics={topic: SimpleNamespace(partitions=[0, 1])})

    monkeypatch.setattr(health, "AdminClient", Admin)
    busy = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    body = asyncio.ensure_future(asyncio.to_thread(busy.wait, 30))
    try:
        ready = Starlette(routes=Health({"broker": broker_check("127.0.0.1:9", "grid.events")}).routes())
        answer = await client_of(ready).get("/health/ready")
        assert (answer.status_code, answer.json()["checks"]["broker"]["detail"]) == (
            200,
            "grid.events: 2 partitions",
        )
    finally:
        busy.set()
        await body


async def test_readiness_does_not_tell_where_the_broker_is(capsys: pytest.CaptureFixture[str]) -> None:
    ready = Starlette(routes=Health({"broker": broker_check("127.0.0.1:9", "grid.events")}).routes())
    answer = await client_of(ready).get("/health/ready")
    assert answer.json()["checks"]["broker"] == {"ok": False, "detail": "Kafka does not answer"}
    assert "127.0.0.1" not in answer.text
    assert "127.0.0.1:9" in capsys.readouterr().out  # the log says it


@pytest.mark.parametrize("admin", [None, "127.0.0.1:0"])
async def test_the_description_names_every_route_of_its_listener(tmp_path: Path, admin: str | None) -> None:
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:0", admin_http=admin)
    public, _ = build_app(parts_of(settings))
    described = (await client_of(public).get("/openapi.json")).json()["paths"]
    app: Any = public
    while not isinstance(app, Starlette):
        app = app._app
    routes = app.routes
    assert set(described) == {r.path for r in routes if isinstance(r, Route) and r.include_in_schema}
    assert ("/metrics" in described) == (admin is None)


async def test_readiness_is_honest_about_each_check() -> None:
    async def well() -> str:
        return "all well"

    async def away() -> str:
        raise UnavailableError("Kafka at 127.0.0.1:9 does not answer")

    ready = await client_of(Starlette(routes=Health({"store": well}).routes())).get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    client = client_of(Starlette(routes=Health({"store": well, "broker": away}).routes()))
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["checks"] == {
        "store": {"ok": True, "detail": "all well"},
        "broker": {"ok": False, "detail": "Kafka at 127.0.0.1:9 does not answer"},
    }
    assert (await client.get("/health/live")).json() == {"status": "live"}


async def test_the_api_page_loads_nothing_from_elsewhere() -> None:
    client = client_of(Starlette(routes=page_routes({"/v1/kpi": {"get": {"responses": {}}}})))
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert list(document["paths"]) == ["/docs", "/openapi.json", "/v1/kpi"]
    page = (await client.get("/docs")).text
    assert "swagger-ui" in page
    assert "https://" not in page
    assert "http://" not in page
    for asset in ("/docs/assets/swagger-ui.css", "/docs/assets/swagger-ui-bundle.js", "/docs/start.js"):
        assert asset in page
        assert (await client.get(asset)).status_code == 200


async def test_posts_of_events_pass_the_same_checks_as_every_other_request(tmp_path: Path) -> None:
    world = make_world(tmp_path, quota_loopback=True, quota_address_requests_per_second=1)
    parts = parts_of(world.gateway.settings)
    app, _ = build_app(replace(parts, keys=world.keys, gateway=world.gateway))
    routed = httpx.AsyncClient(transport=httpx.ASGITransport(world.app), base_url="http://127.0.0.1:8080")
    known = {"Authorization": f"Bearer {world.key}", "X-Request-Id": "r-1"}
    async with client_of(app) as client, routed:
        for headers, body in ((known, event(1)), ({}, event(2)), (known, {"event_id": "x"}), (known, [])):
            answer = await client.post("/v1/events", headers=headers, json=body)
            plain = await routed.post("/v1/events", headers=headers, json=body)
            assert answer.status_code == plain.status_code
            assert answer.json() | {"request_id": ""} == plain.json() | {"request_id": ""}
            assert set(plain.headers) <= set(answer.headers)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert (await client.post("/v1/events", headers={"Host": "evil.example"})).status_code == 421
        assert (await client.put("/v1/events", headers=known)).status_code == 405
        assert (await client.post("/v1/nothing", headers=known)).status_code == 404
        codes = [
            (await client.post("/v1/events", headers=known, json=event(3))).status_code for _ in range(20)
        ]
        assert codes[-1] == 429


_ASSEMBLED = """
import sys
from pathlib import Path
from pipeline.contract.privacy import Privacy
from pipeline.ingest.durability import Replicated
from pipeline.runtime.http import assemble
from pipeline.settings import load_settings

settings = load_settings(data_dir=Path(sys.argv[1]))
Privacy.load(settings.pseudonym_key_path, create=True)
before = set(sys.modules)
assemble(settings, bootstrap="127.0.0.1:9", client_factory=None, control=None, durable=Replicated, read=False)
with_it = set(sys.modules)
import pyarrow as pa
pa.array([""], pa.string())
print("pandas" in before, "pandas" in with_it, sorted(set(sys.modules) - with_it))
"""


def test_a_gateway_has_imported_what_its_first_event_needs_before_it_listens(tmp_path: Path) -> None:
    """pyarrow imports pandas with the first array it makes, which is on the event loop for small requests."""
    done = subprocess.run(
        [sys.executable, "-c", _ASSEMBLED, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["False True []"], done.stderr
