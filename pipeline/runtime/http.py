"""The HTTP process: gateway and api in one Starlette app on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any, Final, NoReturn

import uvicorn
from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline import logs, metrics
from pipeline.audit import AuditLog
from pipeline.clock import utc_now
from pipeline.collector import spare_collections
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import warm_up
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.ingest.durability import Durability, Replicated, stored_in
from pipeline.ingest.gate import gate_orders
from pipeline.ingest.gateway import Gateway
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.openapi import OPENAPI_PATHS as GATEWAY_PATHS
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.ingest.producer import KafkaProducer
from pipeline.ingest.quota import AddressQuota, Quotas
from pipeline.ingest.routes import gateway_calls, gateway_routes
from pipeline.ingest.signing import Signatures
from pipeline.ingest.validate import Validator
from pipeline.kafka_access import librdkafka_options
from pipeline.page.assets import Assets
from pipeline.page.board import Board
from pipeline.page.live import Live
from pipeline.page.routes import PAGE_PATHS, live_routes, page_files
from pipeline.page.watch import Watch
from pipeline.read.gauges import REFRESH_SECONDS as GAUGES_SECONDS
from pipeline.read.gauges import refresh_for_ever
from pipeline.read.held.figures import LOOK_SECONDS, HeldFigures
from pipeline.read.repeat import repeat
from pipeline.read.routes import OPENAPI_PATHS as READ_PATHS
from pipeline.read.routes import Reader, read_routes
from pipeline.rules.catalogue import Catalogues, load_catalogues
from pipeline.runtime.access import AuditReads, ReadKeys, RoleKeys, SmallCells, guard_metrics
from pipeline.runtime.canary import Canary
from pipeline.runtime.control import ControlClient
from pipeline.runtime.exposition import CONTENT_TYPE, http_part
from pipeline.runtime.headers import SecurityHeaders
from pipeline.runtime.health import Check, Health, broker_check
from pipeline.runtime.pages import TO_DOCS, page, page_routes, to_docs
from pipeline.runtime.process import Order, end_at_once, leave, receive_order, report_problem
from pipeline.runtime.protocol import CutOff, Loop, SecondServer, bounded_to, raise_descriptors
from pipeline.runtime.roll import LogState
from pipeline.runtime.valve import obey
from pipeline.runtime.watchdog import watch_loop
from pipeline.settings import Settings, is_loopback, split_address
from pipeline.store.client import BridgeAddress, connect_bridge, connect_server
from pipeline.tls import admin_is_secure, server_options

#: A read that takes longer is a fault; the client is told so.
_READ_SECONDS: Final = 30.0
#: Threads that nobody's reads wait for: one each for readiness, the canary and the balance.
_WATCHING: Final = 3
#: Threads of the live page and the business gauges, whose readings come one after another.
_SHOWING: Final = 3
#: What an answer may still take once we were asked to stop: below the supervisor's patience.
_DRAIN_SECONDS: Final = 4

#: Pause between looks for the first worker.
_LOOK_SECONDS: Final = 0.1

#: For the queries that still run then: nobody waits for what they bring.
_LAST_QUERIES_SECONDS: Final = 0.2


log = logs.get_logger(__name__)

#: Path items of the routes that move with `--admin-http`.
ADMIN_PATHS: Final[dict[str, Any]] = {
    "/health/live": page("The process answers", "application/json"),
    "/health/ready": page("Every part answers; 503 and what is wrong where one does not", "application/json"),
    "/metrics": page("Metrics for Prometheus", "text/plain"),
}


async def _refused(request: Request, error: Exception) -> Response:
    """Unknown paths and methods as problem documents, like every other refusal."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    problem = ProblemError(error.status_code, code, error.detail)
    answer = problem_response(problem, request_id_of(request.headers.get("x-request-id")))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, _: Exception) -> Response:
    """The error itself goes to the log."""
    problem = ProblemError(500, "internal_error", "something failed here; its log has the reason")
    return problem_response(problem, request_id_of(request.headers.get("x-request-id")))


EXCEPTION_HANDLERS: Final[dict[Any, Any]] = {HTTPException: _refused, Exception: _failed}


@dataclass(frozen=True)
class Parts:
    """What the app is made of. gateway, reader : None where the process has not that role;
    control : the store process on this machine, None where there is none;
    live : the stream of the live page, where there is a reader; canary : where there is a gateway, unless
    switched off; balance : looks for what the gateway answered, until cancelled;
    watch : asks the store for `checks`, `canary` and `balance`, beside everybody's reads;
    show : for the live page and the business gauges, likewise."""

    settings: Settings
    catalogues: Catalogues
    keys: KeyStore
    gateway: Gateway | None
    reader: Reader | None
    control: ControlClient | None
    checks: dict[str, Check]
    live: Live | None = None
    canary: Canary | None = None
    balance: Callable[[], Coroutine[Any, Any, None]] | None = None
    valve_fd: int | None = None
    watch: Reader | None = None
    show: Reader | None = None


def build_app(parts: Parts) -> tuple[ASGIApp, ASGIApp | None]:
    """The public app and, with `admin_http`, the one for /metrics and /health."""
    settings = parts.settings
    paths: dict[str, Any] = {}
    routes: list[BaseRoute] = []
    if parts.gateway is not None:
        routes += gateway_routes(parts.gateway)
        paths |= GATEWAY_PATHS
    if parts.reader is not None:
        routes += read_routes(parts.reader)
        for path, item in READ_PATHS.items():
            paths[path] = paths.get(path, {}) | item
    if parts.live is not None:
        free = parts.live if is_loopback(split_address(settings.http)[0]) else None
        asked = parts.reader or parts.live.board.reader
        assets = Assets.load()
        parts.live.page = assets.digest
        routes += [*page_files(assets, free), *live_routes(parts.live, parts.keys, asked)]
        paths |= PAGE_PATHS
    else:
        routes.append(to_docs())
        paths |= TO_DOCS
    admin = [*Health(parts.checks).routes(), _metrics_route(parts)]
    if settings.admin_http is None:
        routes += admin
        paths |= ADMIN_PATHS
    routes += page_routes(paths)
    loopback = is_loopback(split_address(settings.http)[0])
    app: ASGIApp = _starlette(routes, _lifespan(parts))
    app = AuditReads(app, AuditLog(settings.audit_dir, keep_days=settings.audit_keep_days), parts.keys)
    app = SmallCells(app, passed_on_only=loopback and not settings.small_cells_on_loopback)
    quotas = parts.gateway.quotas if parts.gateway is not None else Quotas(settings)
    signatures = parts.gateway.signatures if parts.gateway is not None else None
    signatures = signatures or Signatures(parts.keys, settings.nonces_path)
    app = ReadKeys(app, parts.keys, signatures=signatures, quotas=quotas, passed_on_only=loopback)
    if settings.admin_http is None:
        app = RoleKeys(app, parts.keys, "admin", ("/metrics",), quotas=quotas, passed_on_only=loopback)
    if parts.gateway is not None:
        app = _Posts(app, gateway_calls(parts.gateway))
    public = CutOff(SecurityHeaders(AddressQuota(app, quotas), loopback_only=loopback))
    if settings.admin_http is None:
        return public, None
    admin_loopback = is_loopback(split_address(settings.admin_http)[0])
    admin_app = _starlette(admin)
    guarded = guard_metrics(admin_app, settings, parts.keys, ("/metrics",))
    return public, SecurityHeaders(guarded, loopback_only=admin_loopback)


def _starlette(
    routes: list[BaseRoute],
    lifespan: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=EXCEPTION_HANDLERS)
    app.router.redirect_slashes = False  # it would send callers, and what they post, to whatever Host says
    return app


class _Posts:
    """ASGI wrapper: a POST to one of `calls` goes straight there.

    What lies behind is for reading and routing: a request of one event spent a third of its time in it.
    """

    def __init__(self, app: ASGIApp, calls: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._calls.get(scope["path"], app)
        await app(scope, receive, send)


def _metrics_route(parts: Parts) -> Route:
    control, reads = parts.control, parts.reader is not None

    async def page(_: Request) -> Response:
        worker = b""
        if control is not None:
            try:
                worker = await control.metrics()
            except UnavailableError:
                log.warning("worker_metrics_missing")
            metrics.process_up.labels(role="store").set(1 if worker else 0)
        return Response(http_part(reads=reads) + worker, media_type=CONTENT_TYPE)

    return Route("/metrics", page, methods=["GET"])


def _lifespan(parts: Parts) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def run(_: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            metrics.watch_data_disk(parts.settings.data_dir)
            watching = asyncio.create_task(
                watch_loop(parts.settings.stall_seconds, metrics.http_loop_late_seconds.set), name="watchdog"
            )
            stack.callback(watching.cancel)
            if parts.control is not None:
                stack.push_async_callback(parts.control.close)
            if parts.watch is not None:
                stack.callback(parts.watch.close, _LAST_QUERIES_SECONDS)
            if parts.show is not None:
                stack.callback(parts.show.close, _LAST_QUERIES_SECONDS)
            if parts.reader is not None:
                stack.callback(parts.reader.close, _LAST_QUERIES_SECONDS)
                shared = (
                    None if parts.live is None else partial(parts.live.board.districts, every=GAUGES_SECONDS)
                )
                gauges = asyncio.create_task(
                    refresh_for_ever(parts.show or parts.reader, districts=shared), name="business-gauges"
                )
                stack.callback(gauges.cancel)
                following = asyncio.create_task(
                    repeat(
                        partial(parts.reader.run, parts.reader.held.keep_up),
                        rest=lambda _: LOOK_SECONDS,
                        failing_as="held_figures_not_read",
                    ),
                    name="held-figures",
                )
                stack.callback(following.cancel)
            if parts.live is not None:
                stack.push_async_callback(parts.live.end)
                live = asyncio.create_task(parts.live.run(), name="live-page")
                stack.callback(live.cancel)
            if parts.gateway is not None:
                stack.push_async_callback(parts.gateway.close)
                if not parts.gateway.confirms and parts.control is not None:
                    awaiting = asyncio.create_task(
                        _await_worker(parts.gateway, parts.control), name="first-worker"
                    )
                    stack.callback(awaiting.cancel)
                if parts.valve_fd is not None:
                    orders = gate_orders(parts.gateway.gate, parts.gateway.renewed)
                    obeying = asyncio.create_task(obey(parts.valve_fd, {**orders, "greet": _greet}))
                    stack.callback(obeying.cancel)
            if parts.canary is not None:
                canary = asyncio.create_task(parts.canary.run(), name="canary")
                stack.callback(canary.cancel)
            if parts.balance is not None:
                balance = asyncio.create_task(parts.balance(), name="balance")
                stack.callback(balance.cancel)
            yield

    return run


async def _await_worker(gateway: Gateway, control: ControlClient) -> None:
    """Let `gateway` take events once a worker has its partitions.

    After a lost broker the worker starts beside this process: who sent events before would wait for it, up to
    the whole patience of a request, and be told 503 then.
    """
    while not gateway.confirms:
        with contextlib.suppress(UnavailableError):
            gateway.confirms = (await control.status()).worker == "assigned"
        await asyncio.sleep(_LOOK_SECONDS)


async def _greet() -> dict[str, Any]:
    """The supervisor asks whether this process is there by now."""
    return {}


def assemble(
    settings: Settings,
    *,
    bootstrap: str | None,
    client_factory: Callable[[], Client],
    control: ControlClient | None,
    durable: Callable[[], Durability] | None,
    read: bool,
) -> Parts:
    """Build the parts of this process. bootstrap, durable : for the gateway role; read : the api role.

    Raises ConfigurationError.
    """
    catalogues = load_catalogues(settings.catalogue_dir)
    keys = KeyStore(settings.keys_path)
    gateway: Gateway | None = None
    checks: dict[str, Check] = {}
    if bootstrap is not None and durable is not None:
        warm_up()
        gateway = Gateway(
            settings,
            keys=keys,
            privacy=Privacy.load(settings.pseudonym_key_path, create=False),
            producer=KafkaProducer(settings, bootstrap, idempotent=settings.kafka is not None),
            durability=durable(),
            validator=Validator(client_factory, catalogues, settings),
            clock=utc_now,
        )
        # a replicated log confirms by itself
        gateway.confirms = control is None or settings.kafka is not None
        broker = broker_check(bootstrap, settings.topic, librdkafka_options(settings))
        checks["broker"] = _log_check(gateway, broker)
    watch = Reader(client_factory, catalogues=catalogues, settings=settings, workers=_WATCHING)
    reader = show = None
    if read:
        held = HeldFigures(settings.held_cases)
        reader = Reader(client_factory, catalogues=catalogues, settings=settings, held=held)
        # what nobody asks for has no place in the queue of those who ask: a crowd of them would blank the
        # page and the alerts, too
        show = Reader(client_factory, catalogues=catalogues, settings=settings, workers=_SHOWING, held=held)
    checks["store"] = _store_check(watch)

    async def catalogue() -> str:
        versions = ", ".join(version.version for version in catalogues.versions)
        return f"{versions}, rules {catalogues.digest[:12]}"

    checks["catalogue"] = catalogue
    checks["keys"] = _keys_check(keys)
    if control is not None:
        checks["worker"] = _worker_check(control)
    live: Live | None = None
    if show is not None:
        answers = None if gateway is None else gateway.log_answers
        watcher = Watch(settings) if settings.watch else None
        live = Live(
            Board(show),
            _expositions(control),
            log_answers=answers,
            watch=watcher,
            has_worker=control is not None,
        )
    canary: Canary | None = None
    if gateway is not None and settings.canary_interval_seconds:
        canary = Canary(
            producer=gateway.producer,
            gate=gateway.gate,
            store=watch,
            privacy=gateway.privacy,
            interval_seconds=settings.canary_interval_seconds,
            partitions=settings.partitions,
            max_block_bytes=settings.max_block_bytes,
        )
    return Parts(
        settings,
        catalogues,
        keys,
        gateway,
        reader,
        control,
        checks,
        live,
        canary,
        balance=None if gateway is None else partial(gateway.balance.run, watch),
        watch=watch,
        show=show,
    )


def _expositions(control: ControlClient | None) -> Callable[[], Awaitable[tuple[bytes, bytes | None]]]:
    async def both() -> tuple[bytes, bytes | None]:
        worker = None
        if control is not None:
            with contextlib.suppress(UnavailableError):
                worker = await control.metrics()
        return http_part(), worker

    return both


def _log_check(gateway: Gateway, broker: Check) -> Check:
    """A broker may answer questions and take nothing: then every POST gets 503."""

    async def check() -> str:
        found = await broker()
        if not gateway.available():
            raise UnavailableError("events cannot be written now: they are answered with 503")
        return found

    return check


def _keys_check(keys: KeyStore) -> Check:
    """Without keys every call that needs one is answered with 503."""

    async def check() -> str:
        try:
            keys.check()
        except ConfigurationError as error:
            log.warning("check_failed", check="keys", error=str(error))
            raise UnavailableError("keys cannot be read; the log says why") from error
        return "readable"

    return check


def _store_check(reader: Reader) -> Check:
    def ask(client: Client) -> str:
        rows = client.query("SELECT version_num FROM alembic_version").result_rows
        return f"schema {rows[0][0]}" if rows else "no schema"

    async def check() -> str:
        return await reader.run(ask)

    return check


def _worker_check(control: ControlClient) -> Check:
    async def check() -> str:
        problem = (await control.status()).problem
        if problem is not None:
            raise UnavailableError(problem)
        return "partitions assigned"

    return check


def serve(
    parts: Parts,
    listener: socket.socket,
    admin_listener: socket.socket | None,
    *,
    alone: bool = False,
) -> NoReturn:
    """Answer until SIGTERM or SIGINT, finish running requests, end this process with 0.

    alone : a second signal ends the process at once, with 1. Under a supervisor it may be the same stop, sent
    to every process by a service manager.
    """

    async def going_on() -> str:
        """The admin listener outlives the other one by its last answers: not ready meanwhile."""
        if server.should_exit:
            raise UnavailableError("the process is stopping")
        return "answers"

    parts.checks["process"] = going_on
    public, admin = build_app(parts)
    raise_descriptors()
    common: dict[str, Any] = {
        "http": bounded_to(parts.settings.max_connections),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # A proxy on this machine may say whom it speaks for; nobody else is believed.
        "forwarded_allow_ips": ["127.0.0.1", "::1"],
        "timeout_graceful_shutdown": _DRAIN_SECONDS,
    }
    secure = server_options(parts.settings, ask_clients=True)
    server = _First(uvicorn.Config(public, lifespan="on", **common, **secure), parts.live, alone=alone)
    secure = server_options(parts.settings, ask_clients=False) if admin_is_secure(parts.settings) else {}
    admin_server = (
        SecondServer(uvicorn.Config(admin, lifespan="off", **common, **secure)) if admin is not None else None
    )

    async def run() -> None:
        if admin_server is None or admin_listener is None:
            await server.serve(sockets=[listener])
            return
        second = asyncio.create_task(admin_server.serve(sockets=[admin_listener]))
        await server.serve(sockets=[listener])
        admin_server.should_exit = True
        await second

    # uvicorn raises the signal again when it has stopped; it must not end this process with an error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    spare_collections()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
        leave(0)


class _First(uvicorn.Server):
    """Ends the streams of the live page when it stops: they have no end of their own.

    alone : see `serve`.
    """

    def __init__(self, config: uvicorn.Config, live: Live | None, *, alone: bool) -> None:
        super().__init__(config)
        self._live = live
        self._alone = alone

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and self._alone:
            end_at_once("ended at once; what was not answered may not be stored, send it again")
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._live is not None:
            self._live.close()
        await super().shutdown(sockets)


def main() -> None:
    """Child process of the supervisor."""
    order = receive_order()
    logs.configure(level=order.settings.log_level, role="http", log_dir=order.settings.log_dir, console=False)
    sys.exit(_run(order))


def _run(order: Order) -> int:
    settings, details = order.settings, order.details
    bootstrap, control = details["bootstrap"], details["control"]
    address = BridgeAddress(control["url"], control["token"], 0)

    def client_factory() -> Client:
        if settings.clickhouse is not None:
            return connect_server(settings, settings.database)
        return connect_bridge(address, settings.database, timeout=_READ_SECONDS)

    try:
        parts = assemble(
            settings,
            bootstrap=bootstrap,
            client_factory=client_factory,
            control=ControlClient(control["url"], control["token"]),
            durable=lambda: Replicated() if settings.kafka is not None else stored_in(settings, bootstrap),
            read=True,
        )
    except GridpipeError as error:
        log.error("http_refused", problem=str(error))
        return report_problem(order, error)
    parts = replace(parts, valve_fd=details["valve_fd"])
    metrics.embedded_log_bytes.set_function(lambda: float(LogState.bytes_in(settings.run_dir)))
    admin = socket.socket(fileno=details["admin_fd"]) if details["admin_fd"] is not None else None
    serve(parts, socket.socket(fileno=details["fd"]), admin)


if __name__ == "__main__":
    main()
