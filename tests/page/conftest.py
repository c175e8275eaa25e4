"""A small real service with a small real city, and headless Chromium in front of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from pipeline.simulate.sender import wait_for_reference
from tests.e2e.service import Service, gridpipe
from tests.page.browser import chromium

EVENTS = 2_000
#: A grid of this city, and a point in it.
GRID = "440704001001001"
POINT = {"lon": 113.104808, "lat": 22.503802, "crs": "wgs84"}
#: What the tests leave to look at.
PICTURES = Path(__file__).parents[2] / "var" / "page" / "screenshots"

NewPage = Callable[..., Page]


def run(*arguments: str) -> str:
    done = gridpipe(*arguments, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def citizen_report(number: str, **changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"page-{number}",
        "source": "local",
        "event_type": "REPORTED",
        "case_id": f"page-case-{number}",
        "submission_id": f"page-submission-{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "channel": "hotline_12345",
        "matter_code": "UE-08",
        "grid_code": GRID,
        "actor": {"type": "citizen", "phone": "13800001234"},
        "description": f"路灯不亮 {number}",
    } | changes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`gridpipe up` with the reference data of a city of 600 persons and 2,000 of its events."""
    directory = tmp_path_factory.mktemp("page")
    city, events, data = directory / "city", directory / "events.ndjson", directory / "data"
    run("simulate", "city", "--out", str(city), "--seed", "7", "--persons", "600")
    run(
        "simulate", "events", "--city", str(city), "--count", str(EVENTS), "--seed", "3", "--out", str(events)
    )
    running = Service(data, "--no-simulate", "--http", "127.0.0.1:0")
    try:
        at = ("--url", running.url, "--data-dir", str(data))
        loaded = json.loads(run("reference", "load", str(city), "--json", *at))
        # of every kind: with the grids alone a staff member's report would be rejected
        rows = {file["kind"]: file["rows"] for file in loaded["files"]}
        wait_for_reference(running.url, rows, seconds=180)
        run("send", str(events), *at)
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
        running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of this module only: see `chromium`."""
    with chromium() as running:
        yield running


@pytest.fixture
def new_page(browser: Browser, service: Service) -> Iterator[NewPage]:
    """Opens the live page in a context of its own: `new_page(width=…, height=…, dark=…, path=…)`.

    When the test is over, nothing may have been written to any page's console. `expect_noise` is a pattern of
    what the test provoked itself.
    """
    noise: list[str] = []
    allowed: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            noise.append(f"{message.type}: {message.text}")

    def open_page(
        *, width: int = 1600, height: int = 950, dark: bool = False, wait: bool = True, expect_noise: str = ""
    ) -> Page:
        if expect_noise:
            allowed.append(expect_noise)
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale="zh-CN",
        )
        page = context.new_page()
        page.set_default_timeout(max(90_000, 30_000 * service.busy))
        page.on("console", listen)
        page.on("pageerror", lambda error: noise.append(f"uncaught: {error}"))
        page.goto(service.url)
        if wait:
            page.wait_for_selector("tr.total")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    unexpected = [line for line in noise if not any(re.search(pattern, line) for pattern in allowed)]
    assert unexpected == []
