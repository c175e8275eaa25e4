"""Names and words out of the data are text wherever the page shows them, in the pictures too."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, instant, open_canned, point, row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HOSTILE = "<img src=/x onerror=window.hacked=1><b>粗</b>{{7*7}}"
#: What the page's markup has none of, wherever it stands.
MADE = "img, iframe, object, embed, dd *, th b, canvas ~ *, .chart b, .bigchart b"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1600, "height": 950}) as page:
        yield page
        assert page.evaluate("window.hacked") is None
        assert page.locator(MADE).count() == 0


def texts_after_hovering(page: Page, chart: str, at: list[float]) -> list[str]:
    """What stands in a picture, its tooltip too, with the mouse on the point `at` of its first series."""
    box = id_of(page, chart)
    x, y = page.evaluate(
        """([id, at]) => {
            const box = document.querySelector(`[data-testid=${id}]`);
            return window.echarts.getInstanceByDom(box).convertToPixel({ seriesIndex: 0 }, at);
        }""",
        [chart, at],
    )
    for away in (30, 0):
        box.hover(position={"x": x - away, "y": y})
    page.wait_for_timeout(300)
    drawn: list[str] = page.evaluate(
        """(id) => {
            const box = document.querySelector(`[data-testid=${id}]`);
            const all = window.echarts.getInstanceByDom(box).getZr().storage.getDisplayList(true);
            return all.filter(({ style, ignore }) => style.text && !ignore).map(({ style }) => style.text);
        }""",
        chart,
    )
    return drawn


@pytest.mark.parametrize("by", ["department", "matter"])
def test_the_name_at_a_percentile_is_text_in_the_tooltip(page: Page, by: str) -> None:
    names = {"name_zh": HOSTILE, "name_en": HOSTILE}
    matter = {"code": "XX-01", "lead_department": "x", "response_minutes": 30, "resolution_hours": 24}
    catalogue = CATALOGUE | {"departments": {"x": {"zh": HOSTILE, "en": HOSTILE}}}
    rows = {"department": row("x"), "matter": row("XX-01")}
    tables = {
        f"/v1/live/tables/{name}": {"as_of": instant(NOW), "again_in_seconds": 60, "rows": [found]}
        for name, found in rows.items()
    }
    open_canned(page, {"/v1/live/matters": catalogue | {"matters": [matter | names]}} | tables)
    id_of(page, f"by-{by}").click()
    name = HOSTILE if by == "department" else f"XX-01 {HOSTILE}"
    id_of(page, "times-as-table").click()
    expect(id_of(page, "times-table").get_by_role("rowheader")).to_have_text(name)
    id_of(page, "times-as-table").click()
    page.wait_for_function("() => window.echarts")
    page.wait_for_timeout(300)
    shown = texts_after_hovering(page, "times-chart", [600, 0])
    assert name in shown
    assert "p90  2小时" in shown  # of the tooltip alone


def test_the_tooltip_of_a_trend_is_drawn(page: Page) -> None:
    points = [point(NOW - timedelta(minutes=n), closure_rate=0.8) for n in range(40, 0, -5)]
    open_canned(page, trend={"points": points})
    id_of(page, "tile-closure_rate").click()
    expect(id_of(page, "trend-chart").locator("canvas")).to_be_visible()
    at = (NOW - timedelta(minutes=20)).timestamp() * 1_000
    assert "办结率  80.00%" in texts_after_hovering(page, "trend-chart", [at, 0.8])


def test_all_words_of_an_explained_event_are_text(page: Page) -> None:
    words = ("title", "description", "address", "organisation_name", "void_reason", "level")
    event: dict[str, Any] = {"source": "local", "event_id": "e1", "case_id": "c1", "event_type": "REPORTED"}
    event |= {"outcome": "admitted", "reasons": [HOSTILE], "matter_code": HOSTILE, "channel": HOSTILE}
    event |= {"content": dict.fromkeys(words, HOSTILE), "detail": HOSTILE, "actor": {"name": HOSTILE}}
    rule = {"number": 3, "result": "false", "name_zh": HOSTILE, "name_en": HOSTILE, "reasons": [HOSTILE]}
    event |= {"rules": [rule], "enrichment": {"grid": {"name": HOSTILE}, "persons": [{"key": HOSTILE}]}}
    hit = {"source": "local", "event_id": "e1", "event_type": "REPORTED", "outcome": "admitted"}
    found = {"q": "e1", "cases": [], "events": [hit | {"ingested_at": instant(NOW)}], "complete": True}
    open_canned(page, {"/v1/live/search": found | {"note": None}, "/v1/events/local/e1": event})
    page.get_by_role("searchbox").fill("e1")
    page.keyboard.press("Enter")
    explain = id_of(page, "explain")
    fields = ["title", "description", "address", "organisation_name", "void_reason", "detail", "actor.name"]
    for field in [*fields, "matter_code", "channel", "enrichment.grid.name"]:
        expect(explain.locator(f"[data-field='{field}']")).to_have_text(HOSTILE)
    expect(explain.locator(".rules li")).to_contain_text(HOSTILE)
    expect(explain.locator(".verdict .tag")).to_have_text(HOSTILE)
