"""Headless Chromium, and how a moving page is compared with a moving store."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")

T = TypeVar("T")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser; where none is installed the test is skipped.

    Playwright's event loop runs until this is left: no other may start in the meantime.
    """
    if CHROMIUM is None:
        pytest.skip("needs Chromium: make browser")
    # Chromium's sandbox refuses root, which is what containers run tests as.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        expect.set_options(timeout=90_000)  # the machine may be busy with other tests
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()


@contextlib.contextmanager
def quiet_page(browser: Browser, **context: Any) -> Iterator[Page]:
    """A page of a context of its own, closed when this is left. Nothing may be written to its console until
    then, but what is refused to it."""
    noise: list[str] = []
    page = browser.new_context(locale="zh-CN", **context).new_page()
    page.on("console", lambda line: noise.append(line.text) if line.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: noise.append(f"uncaught: {error}"))
    yield page
    page.context.close()
    unexpected = [line for line in noise if not line.startswith("Failed to load resource")]
    assert unexpected == [], unexpected


def id_of(page: Page, name: str) -> Any:
    return page.get_by_test_id(name)


def until_same(page: Page, shown: Callable[[], T], told: Callable[[], T], *, seconds: float = 90) -> T:
    """Ask both sides until they agree, and return what they say. The page follows the store within seconds
    and time alone moves a figure, so neither side may be asked once and held against the other later."""
    deadline = time.monotonic() + seconds
    while (found := shown()) != (expected := told()):
        if time.monotonic() > deadline:
            assert found == expected
        page.wait_for_timeout(200)
    return found


def percent(rate: float, digits: int = 2) -> str:
    """As the page shows it: rounded half up; what is below 1 never reads as 100 %."""
    hundredths = Decimal(rate * 100).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    if rate < 1:
        hundredths = min(hundredths, 100 - Decimal(1).scaleb(-digits))
    return f"{hundredths}%"


def slowness() -> float:
    """How many times longer work takes than on a processor of its own, at this moment."""
    wall, spent = time.perf_counter(), time.thread_time()
    while time.perf_counter() - wall < 0.3:
        pass
    return max(1.0, (time.perf_counter() - wall) / max(time.thread_time() - spent, 1e-3))
