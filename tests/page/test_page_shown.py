"""What the page shows of given figures: no service, no store, a stream that says what it is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import chromium, id_of
from tests.page.canned import NOW, figures, instant, open_canned, point, row, tell

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Nothing may be written to its console."""
    noise: list[str] = []
    context = browser.new_context(viewport={"width": 1600, "height": 950}, locale="zh-CN")
    page = context.new_page()
    page.on("console", lambda line: noise.append(line.text) if line.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: noise.append(f"uncaught: {error}"))
    yield page
    context.close()
    assert noise == []


def ago(minutes: float) -> Any:
    return NOW - timedelta(minutes=minutes)


def lines_of(page: Page, name: str) -> list[list[float]]:
    """Where the points of a tile's lines stand, of a hundred."""
    drawn = str(id_of(page, f"tile-{name}").locator(".spark .line").get_attribute("d"))
    return [[float(x) for x in re.findall(r"([\d.]+),[\d.]+", part)] for part in drawn.split("M")[1:]]


def test_a_trend_ends_now_and_is_interrupted_where_nothing_was_known(page: Page) -> None:
    """Of the hour: points each six minutes as they are read back, twenty minutes without a process, a store
    that was away for three."""
    known = [54, 48, 42, 20, 19, 18, 14, 13]
    points = [point(ago(minutes), closure_rate=0.9 - minutes / 1_000) for minutes in known]
    points += [point(ago(minutes), events_per_second=5.0) for minutes in (17, 16, 15)]
    points.sort(key=lambda item: item["at"])
    open_canned(page, trend={"points": points}, city={"as_of": instant(ago(11)), "rows": [row("4407")]})
    before, between, after = lines_of(page, "closure_rate")
    assert before == pytest.approx([10, 20, 30], abs=1)
    assert between == pytest.approx([100 - minutes / 0.6 for minutes in (20, 19, 18)], abs=1)
    # what was read eleven minutes ago stands there, not at the right edge
    assert after == pytest.approx([100 - minutes / 0.6 for minutes in (14, 13, 11)], abs=1)
    # figures of now stand at the edge, by themselves
    assert lines_of(page, "events_per_second")[-1] == pytest.approx([100], abs=1)
    id_of(page, "tile-closure_rate").click()
    chart = id_of(page, "trend-chart")
    expect(chart).to_have_attribute("aria-label", re.compile("15:06:00 .*; 15:49:00 .*; 中断 2; 最低"))
    expect(chart.locator("canvas")).to_be_visible()
    option = page.evaluate(
        """() => {
            const box = document.querySelector("[data-testid=trend-chart]");
            const { xAxis, series } = window.echarts.getInstanceByDom(box).getOption();
            return {edges: [xAxis[0].min, xAxis[0].max], joined: series[0].connectNulls,
                values: series[0].data.map(([, value]) => value)};
        }"""
    )
    now = NOW.timestamp() * 1_000
    assert option["edges"][1] == pytest.approx(now, abs=40_000)
    assert option["edges"][1] - option["edges"][0] == 3_600_000
    assert option["joined"] is False
    assert [n for n, value in enumerate(option["values"]) if value is None] == [3, 7]


def test_a_delay_above_the_last_bound_is_shown_as_one(page: Page) -> None:
    late = figures(delay_seconds={"p50": 12.0, "p99": None, "count": 60})
    open_canned(page, figures=late, trend={"points": [point(ago(1), delay_seconds=30.0)]})
    tile = id_of(page, "tile-delay_seconds")
    expect(tile.locator(".value")).to_have_text("> 30 s")
    expect(id_of(page, "why-delay_seconds")).to_contain_text("p50 12 s · p99 > 30 s · n = 60")
    assert len(lines_of(page, "delay_seconds")[0]) == 2
    tile.click()
    expect(id_of(page, "trend-chart")).to_have_attribute("aria-label", re.compile("最高 > 30 s"))
    page.keyboard.press("Escape")
    tell(page, "figures", figures(delay_seconds={"p50": None, "p99": None, "count": 60}))
    expect(tile.locator(".foot")).to_have_text("p50 > 30 s")
