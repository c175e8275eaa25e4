"""The pictures of the README and of docs/page.md, taken from the page of a running service.

.venv/bin/gridpipe up                        # some minutes, until its simulated city reports
.venv/bin/python -m tests.page.pictures      # or with another address: writes docs/images/page-*.png
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page

from tests.page.browser import chromium, id_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def open_page(browser: Browser, url: str, width: int, height: int, *, dark: bool = False) -> Page:
    """The live page, once everything that it shows has come."""
    page = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", locale="zh-CN"
    ).new_page()
    page.goto(url)
    page.wait_for_selector("tr.total")
    page.wait_for_selector(".newest button")
    page.wait_for_selector("[data-testid=times-chart] canvas")
    for name in ("events_per_second", "delay_seconds"):
        id_of(page, f"tile-{name}").locator(".value", has_not_text=re.compile("^(—|0)$")).wait_for()
    page.wait_for_timeout(3_000)  # the towns, and their colours
    page.wait_for_selector(".behind:not(.bad)")  # a machine that does much else is not what they are of
    return page


def keep(page: Page, name: str) -> None:
    """256 colours are all that the page has, and half of the bytes."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"page-{name}.png", optimize=True)
    page.context.close()


def main(url: str = "http://127.0.0.1:8080") -> None:
    with chromium() as browser:
        keep(open_page(browser, url, 1920, 1080), "wall")
        keep(open_page(browser, url, 1920, 1080, dark=True), "dark")
        keep(open_page(browser, url, 390, 844), "phone")
        page = open_page(browser, url, 1120, 928)
        page.locator(".newest button").first.click()
        id_of(page, "explain").wait_for()
        keep(page, "explain")


if __name__ == "__main__":
    main(*sys.argv[1:])
