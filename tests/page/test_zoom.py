"""Zooming makes letters larger on a wall, too, whose letters follow the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page, zoomed_page
from tests.page.test_wall import STORE_DOWN, open_city, rejected

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

#: Of the screens and zooms below those that `make test` looks at.
ALWAYS = [((3_840, 2_160), 1.25), ((3_840, 2_160), 2), ((3_840, 1_080), 1.5)]
#: Text of every part of the page → its height in pixels of the screen.
LETTERS = """() => {
  const parts = ["h1", "h2", ".brand p", ".behind", ".now", ".bar button", ".bar input", ".banner",
    ".tile .label", ".tile .value", ".tile .foot", ".node", ".arrow .rate", ".arrow .facts span",
    ".cell:not(.district) .name", ".cell:not(.district) .value", ".cell.district .name",
    ".cell.district .value", ".legend", ".note", ".pick select", ".crumbs button", ".asof", "thead th",
    "tbody th", "tbody td", ".reasons .what", ".reasons b", ".newest .quiet", ".why-not", ".switch button"];
  const chart = echarts.getInstanceByDom(document.querySelector("[data-testid=times-chart]"));
  const size = (part) => parseFloat(getComputedStyle(document.querySelector(part)).fontSize);
  const all = parts.map((part) => [part, size(part)]);
  all.push(["chart", chart.getOption().yAxis[0].axisLabel.fontSize]);
  return Object.fromEntries(all.map(([part, pixels]) => [part, pixels * devicePixelRatio]));
}"""
#: What runs out of the page, beside what scrolls by itself.
BEYOND = """() => [...document.querySelectorAll("main *, header *")]
  .filter((node) => !node.closest(".scroll, .why, .chart-box") && node.getClientRects().length)
  .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
  .map((node) => `${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`)"""


def letters_of(page: Page, width: int, height: int) -> dict[str, float]:
    example = {"source": "local", "event_id": "e1", "matter_code": "M-1", "primary_reason": "CHANNEL"}
    example |= {"ingested_at": "2026-03-02T08:00:00Z", "grid_code": "440784101001002"}
    open_city(page, width, height, store=STORE_DOWN, rejected=rejected(0) | {"newest": [example]})
    expect(id_of(page, "banner")).to_be_visible()
    expect(page.locator(".why-not")).to_be_visible()
    page.wait_for_timeout(300)
    found: dict[str, float] = page.evaluate(LETTERS)
    return found


@pytest.mark.parametrize(
    ("width", "height", "zoom"),
    [
        pytest.param(*screen, zoom, marks=() if (screen, zoom) in ALWAYS else pytest.mark.slow)
        for screen in ((3_840, 2_160), (1_920, 1_080), (3_840, 1_080))
        for zoom in (1.25, 1.5, 2)
    ],
)
def test_zooming_makes_letters_larger(
    browser: Browser, tmp_path: Path, width: int, height: int, zoom: float
) -> None:
    """They stayed as they were up to 225 % on a screen of 3840 pixels."""
    with quiet_page(browser) as page:
        before = letters_of(page, width, height)
    with zoomed_page(browser, tmp_path / "profile", zoom, width, height) as page:
        after = letters_of(page, width, height)
        assert page.evaluate("[innerWidth, devicePixelRatio]") == [round(width / zoom), zoom]
        # the desk's layout, which comes first, has somewhat smaller letters on the map, for what they grow by
        least = 1.05 if zoom < 1.5 else 0.99 * zoom
        assert {part: after[part] / size for part, size in before.items() if after[part] < least * size} == {}
        assert page.evaluate(BEYOND) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        id_of(page, "times").scroll_into_view_if_needed()  # what has no room any more can be had
        expect(id_of(page, "times-chart")).to_be_in_viewport()


def test_what_stands_beside_the_page_in_the_browsers_window_is_no_zooming(browser: Browser) -> None:
    def letters(outside: int) -> Any:
        page.evaluate(
            """(width) => {
                Object.defineProperty(window, "outerWidth", { value: width, configurable: true });
                dispatchEvent(new Event("resize"));
            }""",
            outside,
        )
        return page.evaluate("getComputedStyle(document.documentElement).fontSize")

    with quiet_page(browser) as page:
        open_city(page, 2_560, 1_440)
        assert letters(2_560) == "20px"
        assert letters(2_960) == "20px"  # a panel of 400 pixels
        assert letters(3_840) == "30px"
        assert letters(2_560) == "20px"
        assert letters(0) == "20px"  # a window that is not shown
