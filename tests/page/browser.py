"""Headless Chromium, and how a moving page is compared with a moving store."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, TypeVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
#: Chromium's sandbox refuses root, which is what containers run tests as.
FLAGS = ["--no-sandbox"] if os.geteuid() == 0 else []

T = TypeVar("T")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser; where none is installed the test is skipped.

    Playwright's event loop runs until this is left: no other may start in the meantime.
    """
    if CHROMIUM is None:
        pytest.skip("needs Chromium: make browser")
    with sync_playwright() as playwright:
        expect.set_options(timeout=90_000)  # the machine may be busy with other tests
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@contextlib.contextmanager
def quiet_page(browser: Browser, **context: Any) -> Iterator[Page]:
    """A page of a context of its own, closed when this is left. Nothing may be written to its console until
    then, but what is refused to it."""
    with _quiet(browser.new_context(locale="zh-CN", **context)) as page:
        yield page


@contextlib.contextmanager
def zoomed_page(browser: Browser, profile: Path, zoom: float, width: int, height: int) -> Iterator[Page]:
    """A quiet page of a Chromium of its own, whose user has all pages zoomed.

    profile : a directory that is not there yet; zoom : 1.5 is 150 %; width, height : of the screen, pixels.
    """
    (profile / "Default").mkdir(parents=True)
    # "x" is what Chromium calls the profile's own partition; each level of zooming is a fifth more
    preferences = {"partition": {"default_zoom_level": {"x": math.log(zoom, 1.2)}}}
    (profile / "Default" / "Preferences").write_text(json.dumps(preferences))
    screen: Any = {"width": width, "height": height}
    launch = browser.browser_type.launch_persistent_context
    with _quiet(
        launch(profile, executable_path=CHROMIUM, args=FLAGS, viewport=screen, locale="zh-CN")
    ) as page:
        yield page


@contextlib.contextmanager
def _quiet(context: BrowserContext) -> Iterator[Page]:
    noise: list[str] = []
    page = context.new_page()
    page.on("console", lambda line: noise.append(line.text) if line.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: noise.append(f"uncaught: {error}"))
    yield page
    context.close()
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
