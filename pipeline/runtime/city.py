"""The simulated city as a child of the service: makes it once, loads its reference data, feeds its events."""

from __future__ import annotations

import signal
import sys
import threading
import time

import httpx
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline import logs
from pipeline.contract.privacy import Privacy
from pipeline.errors import GridpipeError, UnavailableError
from pipeline.runtime.process import EXIT_FAILED, Order, receive_order
from pipeline.settings import Settings
from pipeline.store.client import connect

_READY_SECONDS = 120.0

log = logs.get_logger(__name__)


def main() -> None:
    """Child process of the supervisor."""
    order = receive_order()
    logs.configure(level=order.settings.log_level, role="city", log_dir=order.settings.log_dir, console=False)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        _run(order, stop)
    except GridpipeError as error:
        log.error("city_failed", problem=str(error))
        sys.exit(EXIT_FAILED)
    except Exception:
        log.exception("city_failed")
        sys.exit(EXIT_FAILED)


def _run(order: Order, stop: threading.Event) -> None:
    from pipeline.reference.load import load_directory  # noqa: PLC0415  slow to import
    from pipeline.simulate.city import ensure_city  # noqa: PLC0415
    from pipeline.simulate.feed import run_city_feed  # noqa: PLC0415

    settings, details = order.settings, order.details
    ensure_city(
        settings.city_dir,
        catalogue_dir=settings.catalogue_dir,
        seed=settings.simulate_seed,
        persons=settings.simulated_persons,
    )
    # Before the service is ready, and for it: a report that comes first finds its grid.
    client = _connect_migrated(settings, stop)
    if client is None:
        return
    try:
        report = load_directory(
            client, settings.city_dir, Privacy.load(settings.pseudonym_key_path, create=False)
        )
        log.info("city_loaded", report=str(report)[:500])
    finally:
        client.close()
    if _wait_ready(details["admin_url"], stop):
        control = details["control"]
        run_city_feed(
            details["url"],
            details["key"],
            settings.city_dir,
            settings.simulate_seed,
            settings.simulate_events_per_second,
            stop,
            catalogue_dir=settings.catalogue_dir,
            metrics_url=control["url"],  # the store process itself: needs no admin key, wherever /metrics is
            metrics_key=control["token"],
        )


def _connect_migrated(settings: Settings, stop: threading.Event) -> Client | None:
    """A client once the store has its tables; None if `stop` is set before."""
    deadline = time.monotonic() + _READY_SECONDS
    while not stop.is_set():
        try:
            client = connect(settings)
            try:
                migrated = bool(client.command("EXISTS TABLE ref_modes"))
            except ClickHouseError:
                client.close()
                raise
            if migrated:
                return client
            client.close()
        except (UnavailableError, ClickHouseError):
            log.debug("store_not_there")
        if time.monotonic() > deadline:
            raise UnavailableError("the store has no tables yet")
        stop.wait(0.1)
    return None


def _wait_ready(admin_url: str, stop: threading.Event) -> bool:
    """True once the service is ready, False if `stop` is set before."""
    deadline = time.monotonic() + _READY_SECONDS
    while not stop.wait(0.2):
        try:
            if httpx.get(f"{admin_url}/health/ready", timeout=2.0, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            log.debug("service_not_ready")
        if time.monotonic() > deadline:
            raise UnavailableError("the service did not become ready")
    return False


if __name__ == "__main__":
    main()
