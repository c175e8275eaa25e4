"""The page on screens of every size: nothing runs out of it, and figures can be read without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import NOW, figures, instant, open_canned, row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TOWNS: dict[str, Any] = {
    "as_of": instant(NOW),
    "again_in_seconds": 60,
    "rows": [row("440704001", closure_rate=0.875, parts={"closure_rate": [35, 40]})],
}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser) as page:
        yield page


def busy() -> dict[str, Any]:
    """Figures as wide as they become: a hundred thousand events a second, everything late."""
    found = figures(events_per_second=123_456.0)
    gateway, topic, store = (found["flow"][name] for name in ("gateway", "topic", "store"))
    gateway |= {"accepted_per_second": 123_456.0, "refused_per_second": 12_345.0, "in_flight_bytes": 99 << 20}
    topic |= {"lag_records": 123_456, "lag_seconds": 1_234.5}
    store |= {"waiting_bytes": 999 << 20, "blocked_seconds": 12.3, "retries_per_second": 1.5}
    outcomes = ("admitted", "rejected", "recorded", "duplicate", "quarantined")
    found["flow"]["outcomes_per_second"] = dict.fromkeys(outcomes, 23_456.0)
    return found


@pytest.mark.parametrize("width", [375, 768, 1_024, 1_280, 1_440])
def test_no_language_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    open_canned(page, figures=busy())
    for _ in range(2):
        page.wait_for_timeout(300)
        wider = page.evaluate(
            """() => [...document.querySelectorAll("main *, header *")]
                .filter((node) => !node.closest(".scroll, .why, .chart-box"))
                .filter((node) => node.getBoundingClientRect().right > window.innerWidth + 1)
                .map((node) => `${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`)"""
        )
        assert wider == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        id_of(page, "language").click()


def test_a_phone_tells_the_figure_of_the_tile_that_is_tapped(page: Page) -> None:
    """There is room for names alone, and a title needs a mouse."""
    page.set_viewport_size({"width": 390, "height": 844})
    district = {"as_of": instant(NOW), "rows": [row("440704", closure_rate=0.9)]}
    open_canned(page, {"/v1/live/tables/town": TOWNS}, district=district)
    picked = id_of(page, "map-picked")
    expect(picked).to_have_text("点一格看其数值")
    town = page.locator(".cell[data-code='440704001']")
    town.click()
    expect(picked).to_have_text("江海区江南街道 办结率 87.5%（35 / 40）")
    assert picked.bounding_box()["width"] <= 390
    page.keyboard.press("ArrowDown")  # by keyboard, too
    expect(picked).not_to_contain_text("江南街道")
    page.locator(".cell[data-code='440704']").click()
    expect(picked).to_contain_text("江海区 办结率 90.0%")
    # of the districts there is room for it in the tile
    value = page.locator(".cell[data-code='440704'] .value")
    expect(value).to_be_visible()
    expect(value).to_have_text("90.0")
    for _ in range(2):
        page.wait_for_timeout(200)
        assert (
            page.evaluate(
                """() => [...document.querySelectorAll(".cell.district, .cell.district .name")]
                .filter((box) => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight)
                .map((box) => box.textContent)"""
            )
            == []
        )
        id_of(page, "language").click()
