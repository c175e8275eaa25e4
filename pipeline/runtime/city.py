"""The simulated city as a child of the service: makes it once, loads its reference data, feeds its events."""

from __future__ import annotations

import signal
import sys
import threading
import time

import httpx

from pipeline import logs
from pipeline.contract.privacy import Privacy
from pipeline.errors import GridpipeError, UnavailableError
from pipeline.runtime.process import EXIT_FAILED, Order, receive_order
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
    _wait_ready(details["admin_url"], stop)
    client = connect(settings)
    try:
        report = load_directory(
            client, settings.city_dir, Privacy.load(settings.pseudonym_key_path, create=False)
        )
        log.info("city_loaded", report=str(report)[:500])
    finally:
        client.close()
    if not stop.is_set():
        run_city_feed(
            details["url"],
            details["key"],
            settings.city_dir,
            settings.simulate_seed,
            settings.simulate_events_per_second,
            stop,
            catalogue_dir=settings.catalogue_dir,
        )


def _wait_ready(admin_url: str, stop: threading.Event) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not stop.wait(0.2):
        try:
            if httpx.get(f"{admin_url}/health/ready", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            log.debug("service_not_ready")
        if time.monotonic() > deadline:
            raise UnavailableError("the service did not become ready")


if __name__ == "__main__":
    main()
