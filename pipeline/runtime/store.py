"""The store process: embedded ClickHouse, bridge and worker. With a ClickHouse server: the worker alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any, Final, NoReturn

from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount

from pipeline import logs, metrics
from pipeline.clock import utc_now
from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError, GridpipeError
from pipeline.ingest.keys import KeyStore
from pipeline.kafka_access import librdkafka_options
from pipeline.reference.query import holds_real_reference
from pipeline.runtime.access import guard_metrics
from pipeline.runtime.broker import wait_for_topic
from pipeline.runtime.control import Status, StatusBoard, control_routes
from pipeline.runtime.process import EXIT_FAILED, Order, obey_signals, receive_order, report_problem
from pipeline.runtime.protocol import bounded_to
from pipeline.runtime.topic_settings import check_topic
from pipeline.runtime.valve import obey
from pipeline.runtime.watchdog import watch_loop
from pipeline.settings import Settings
from pipeline.store.bridge import Bridge
from pipeline.store.client import connect_server
from pipeline.store.engine import EmbeddedEngine
from pipeline.store.key_ring import hold_ring
from pipeline.store.migrate import check_schema, migrate
from pipeline.store.retention import apply_retention, forget_ended
from pipeline.store.windows import check_windows
from pipeline.tls import admin_is_secure, server_options

#: The broker starts beside this process.
_TOPIC_SECONDS: Final = 30.0

log = logs.get_logger(__name__)


def run_store(
    settings: Settings,
    *,
    bootstrap: str,
    listener: socket.socket | None,
    token: str | None,
    valve_fd: int | None = None,
    awaits: Collection[str] = (),
    refuse_real_reference: bool = False,
    migrates: bool = True,
) -> None:
    """Open the store, migrate it, publish the catalogue, answer on the bridge, work until SIGTERM.

    A second SIGTERM ends the process at once, with 1.

    bootstrap : Kafka bootstrap servers; listener, token : where other processes reach this one, and the
    password they need (None: no listener; no password, only without an embedded engine); valve_fd : where
    the supervisor gives orders about the log; awaits : kinds of reference data that somebody is loading: not
    ready without them; refuse_real_reference : do not open a store of a real city, for the simulated one is
    about to be loaded unasked; migrates : False: the schema is checked, and `gridpipe migrate` changes
    it and sets the retention.

    Raises ConfigurationError and UnavailableError before the first event is taken.
    """
    from pipeline.rules.catalogue import load_catalogues  # noqa: PLC0415  slow, and only this role needs it
    from pipeline.rules.publish import publish  # noqa: PLC0415

    # Faust takes a second to import; it does so while the engine opens and migrates.
    importing = threading.Thread(target=import_module, args=("pipeline.process.worker",), daemon=True)
    importing.start()
    catalogues = load_catalogues(settings.catalogue_dir)
    engine: EmbeddedEngine | None = None
    client_factory: Callable[[], Client]
    if settings.clickhouse is None:
        engine = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir)
        owned = engine
        client_factory = lambda: owned.new_client(settings.database)  # noqa: E731
        client = engine.new_client()
    else:
        client_factory = lambda: connect_server(settings, settings.database)  # noqa: E731
        client = connect_server(settings, None)
    if migrates:
        before, after = migrate(client, settings.database)
        if refuse_real_reference and before is not None and holds_real_reference(client):
            raise ConfigurationError(
                f"{settings.data_dir} holds reference data that somebody loaded, and `up` would mix the "
                "simulated city in: start with --no-simulate, or with --simulate if you mean to"
            )
        if before != after:
            log.info("migrated", before=before, after=after)
    else:
        after = check_schema(client, settings.database)
    check_windows(client, settings.database)
    # The embedded store's key is made before its directory: by the supervisor, a load or a migration.
    privacy = hold_ring(client, settings.pseudonym_key_path, create=engine is None)
    if migrates:
        retention = apply_retention(client, settings)
        if retention.changed:
            log.info("retention_set", tables=list(retention.changed))
        if retention.kept:
            log.warning("retention_kept", **retention.kept)
        if touched := forget_ended(client, utc_now()):
            log.info("ended_data_deleted", tables=touched)
    publish(client, catalogues)
    client.close()
    board = StatusBoard(Status(catalogue=catalogues.digest, revision=after or ""))
    bridge: Bridge | None = None
    if listener is not None:
        routes = control_routes(board)
        bridge = (
            admin_listener(settings, routes, listener)  # whoever reaches it
            if token is None
            else Bridge(engine, token, listener=listener, extra_routes=routes)
        ).start()
        log.info("bridge_listens", port=bridge.port)
    importing.join()
    admin = wait_for_topic(
        bootstrap, settings.topic, seconds=_TOPIC_SECONDS, access=librdkafka_options(settings)
    )
    if token is None:  # a worker alone, whose topic another process may have made
        check_topic(admin, settings, refuse=False)
    asyncio.run(
        _work(
            settings,
            client_factory=client_factory,
            bootstrap=bootstrap,
            privacy=privacy,
            board=board,
            valve_fd=valve_fd,
            awaits=awaits,
        )
    )
    board.worker_is("stopping")
    if bridge is not None:
        bridge.close()
    if engine is not None:
        engine.close()
    log.info("store_stopped")


def admin_listener(settings: Settings, routes: list[BaseRoute], listener: socket.socket) -> Bridge:
    """Metrics and health of a worker alone: with bounds, and TLS as the other roles' admin listeners."""
    options: dict[str, Any] = {"http": bounded_to(settings.max_connections)}
    if admin_is_secure(settings):
        options |= server_options(settings, ask_clients=False)
    return Bridge(None, None, listener=listener, extra_routes=guarded(settings, routes), options=options)


def guarded(settings: Settings, routes: list[BaseRoute]) -> list[BaseRoute]:
    """A worker alone has a quota per address before its metrics, and shows them to holders of an admin key,
    unless it listens on loopback."""
    keys = KeyStore(settings.keys_path)
    return [Mount("/", guard_metrics(Starlette(routes=routes), settings, keys, ("/metrics", "/status")))]


async def _work(
    settings: Settings,
    *,
    client_factory: Callable[[], Client],
    bootstrap: str,
    privacy: Privacy,
    board: StatusBoard,
    valve_fd: int | None,
    awaits: Collection[str],
) -> None:
    from pipeline.process.worker import Worker  # noqa: PLC0415  Faust is slow to import
    from pipeline.runtime.switch import WorkerSwitch  # noqa: PLC0415

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        """Not ready from now on: what is on the way is finished, nothing new is taken up."""
        board.worker_is("stopping")
        stop.set()

    def asked() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is over: so is what there was to end
            loop.call_soon_threadsafe(end)

    obey_signals(asked, last_words="ended at once; nothing more is committed, the next start reads it again")

    def make(direct_at: float | None) -> Worker:
        if not stop.is_set():
            board.worker_is("starting")
        board.braked_are({})
        return Worker(
            settings,
            client_factory,
            bootstrap,
            privacy,
            ready=lambda: None if stop.is_set() else board.worker_is("assigned"),
            known_sources=_Sources(KeyStore(settings.keys_path)),
            braked=board.braked_are,
            awaits=awaits,
            direct_at=direct_at,
        )

    metrics.watch_data_disk(settings.data_dir)
    watching = asyncio.create_task(watch_loop(settings.stall_seconds, metrics.worker_loop_late_seconds.set))
    switch = WorkerSwitch(make)
    obeying = None if valve_fd is None else asyncio.create_task(obey(valve_fd, switch.orders))
    await switch.run(stop)
    watching.cancel()
    if obeying is not None:
        obeying.cancel()


class _Sources:
    """The sources that keys name: the closed set of the `source` label."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    def __call__(self) -> frozenset[str]:
        return frozenset(source for key in self._keys.list() for source in key.sources)


def main() -> None:
    """Child process of the supervisor."""
    order = receive_order()
    logs.configure(
        level=order.settings.log_level, role="store", log_dir=order.settings.log_dir, console=False
    )
    _end(_run(order))


def run_alone(settings: Settings, *, bootstrap: str, listener: socket.socket | None) -> NoReturn:
    """A worker without supervisor, as `run_store`; ends the process: 0 when it was asked to stop, 1 when it
    cannot go on. Raises ConfigurationError and UnavailableError before the first event is taken."""
    try:
        run_store(settings, bootstrap=bootstrap, listener=listener, token=None, migrates=False)
    except GridpipeError:
        raise
    except Exception:
        log.exception("worker_failed")
        _end(EXIT_FAILED)
    _end(0)


def _end(code: int) -> NoReturn:
    """Without waiting for threads: those of the engine may be in any state, one of ours may hang."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(order: Order) -> int:
    details = order.details
    try:
        run_store(
            order.settings,
            bootstrap=details["bootstrap"],
            listener=socket.socket(fileno=details["fd"]),
            token=details["token"],
            valve_fd=details.get("valve_fd"),
            awaits=details.get("awaits", ()),
            refuse_real_reference=details.get("refuse_real_reference", False),
        )
    except GridpipeError as error:
        log.error("store_refused", problem=str(error))
        return report_problem(order, error)
    except Exception:
        log.exception("store_failed")
        return EXIT_FAILED  # the supervisor starts it again, from the last commit
    return 0


if __name__ == "__main__":
    main()
