"""What axe-core finds on the page and its sheets, by the rules of WCAG 2.1 A and AA: nothing.

It sees what a machine can see (names, roles, contrast, order of heads); keyboard and focus are in
`test_live_page.py::test_the_keyboard_reaches_everything`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, figures, instant, open_canned, point, row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
SIZES = {"phone": (390, 844), "desk": (1_440, 950), "wall": (1_920, 1_080)}


@pytest.fixture(params=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Browser, theme: str) -> Iterator[Page]:
    with quiet_page(browser, color_scheme=theme) as page:
        yield page


def answers() -> dict[str, Any]:
    """Every panel with something in it, good and bad: a late department, a reason, an event, a case."""
    rule = {"number": 3, "result": "false", "name_zh": "网格", "name_en": "grid", "reasons": ["GRID_UNKNOWN"]}
    event: dict[str, Any] = {"source": "local", "event_id": "e1", "case_id": "c1", "event_type": "REPORTED"}
    event |= {"outcome": "rejected", "reasons": ["GRID_UNKNOWN"], "matter_code": "UE-08"}
    event |= {"content": {"title": "路灯不亮"}, "occurred_at": instant(NOW), "ingested_at": instant(NOW)}
    event |= {
        "rules": [rule, rule | {"number": 4, "result": "unknown"}, rule | {"number": 5, "result": "true"}]
    }
    event |= {"enrichment": {"grid": {"name": "江南一格"}, "persons": []}}
    step = event | {"outcome": "recorded", "reasons": [], "transition_ok": False}
    case = {"case_id": "c1", "state": "REPORTED", "limits": {"due_at": instant(NOW)}, "merged_case_ids": []}
    hit = {"source": "local", "event_id": "e1", "event_type": "REPORTED", "outcome": "rejected"}
    found = {"cases": ["c1"], "events": [hit | {"ingested_at": instant(NOW)}], "complete": True, "note": None}
    matter = {"code": "UE-08", "name_zh": "路灯", "name_en": "street light", "lead_department": "x"}
    catalogue = CATALOGUE | {"matters": [matter | {"response_minutes": 30, "resolution_hours": 24}]}
    catalogue |= {"departments": {"x": {"zh": "公安局", "en": "Public Security"}}}
    tables = {
        "town": [row("440704001", closure_rate=0.7)],
        "department": [row("x")],
        "matter": [row("UE-08")],
    }
    table = {"as_of": instant(NOW), "again_in_seconds": 60}
    return {
        "/v1/live/search": {"q": "e1"} | found,
        "/v1/events/local/e1": event,
        "/v1/cases/c1": case | {"events": [event, step]},
        "/v1/live/matters": catalogue,
        **{f"/v1/live/tables/{by}": table | {"rows": rows} for by, rows in tables.items()},
    }


def open_full(page: Page, size: str) -> None:
    """Something is stuck and something alarms: red text must be legible, too."""
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    stuck = figures()
    stuck["flow"]["topic"] |= {"stuck_partitions": [3], "lag_seconds": 70.0}
    stuck["flow"]["store"]["stuck"] = True
    example = {"source": "local", "event_id": "e1", "matter_code": "UE-08", "reasons": ["GRID_UNKNOWN"]}
    example |= {
        "primary_reason": "GRID_UNKNOWN",
        "received_at": instant(NOW),
        "grid_code": None,
        "title": "路灯",
    }
    example |= {"occurred_at": instant(NOW), "case_id": "c1"}
    reasons = [{"reason": "GRID_UNKNOWN", "reports": 3}]
    points = [point(NOW - timedelta(minutes=minutes), closure_rate=0.9) for minutes in (50, 40, 5)]
    open_canned(
        page,
        answers(),
        figures=stuck,
        trend={"points": points},
        rejected={"reasons": reasons, "newest": [example], "life_safety": {"reports": 2, "newest": example}},
    )
    page.wait_for_selector("[data-testid=times-chart] canvas")


def faults(page: Page) -> list[str]:
    page.wait_for_timeout(400)  # colours fade in
    found = Axe().run(page, options={"runOnly": WCAG}).response
    # a run that looked at nothing finds nothing
    assert {"button-name", "color-contrast"} <= {rule["id"] for rule in found["passes"]}
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]} | {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=() if size == "wall" else pytest.mark.slow) for size in SIZES]
)
def test_axe_finds_nothing_on_the_page_in_either_language(page: Page, size: str) -> None:
    open_full(page, size)
    assert faults(page) == []
    id_of(page, "language").click()
    assert faults(page) == []


def test_axe_finds_nothing_on_a_sheet(page: Page) -> None:
    """The large trend, what a search finds, an event explained, its case, the keys, the list of alarms."""
    open_full(page, "desk")
    dialog = id_of(page, "dialog")
    id_of(page, "tile-closure_rate").click()
    expect(dialog.locator("canvas")).to_be_visible()
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.locator(".newest button").first.click()
    expect(id_of(page, "explain")).to_be_visible()
    assert faults(page) == []
    dialog.locator(".verdict .link").click()
    expect(id_of(page, "case")).to_be_visible()
    assert faults(page) == []
    page.keyboard.press("Escape")
    id_of(page, "key").click()
    expect(dialog).to_be_visible()
    assert faults(page) == []
