"""Every word of the page stands in both languages, and the English page has no Chinese but what is data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_args

import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.page.assets import STATIC
from pipeline.page.figures import OUTCOMES
from pipeline.page.watch import Why
from pipeline.process.decode import MALFORMED, UNSUPPORTED_VERSION
from pipeline.process.deduplicate import ID_CONFLICT
from pipeline.process.flow import UNSTORABLE
from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, figures, instant, open_canned, point, row

SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")}
HTML = (STATIC / "index.html").read_text(encoding="utf-8")
#: Chinese letters and punctuation.
CHINESE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"


def entries(name: str) -> dict[str, tuple[str, str]]:
    """Of a table in texts.js: key → Chinese, English."""
    block = SCRIPTS["texts.js"].partition(f"export const {name} = {{")[2].partition("\n};")[0]
    pairs = re.findall(r'(?:"([\w.]+)"|(\w+)): \["([^"]*)", "([^"]*)"\]', block)
    # each is a pair, and none was overlooked
    assert len(pairs) == re.sub(r'"[^"]*"', '""', block).count(": "), name
    return {quoted or bare: (zh, en) for quoted, bare, zh, en in pairs}


def strings(name: str, script: str) -> list[str]:
    """Of a list of strings in a script."""
    return re.findall(r'"(\w+)"', SCRIPTS[script].partition(f"const {name} = [")[2].partition("];")[0])


TEXTS = entries("TEXTS")


def made_up() -> set[str]:
    """The keys that the page puts together, or takes from what it is told."""
    tiles = strings("TILES", "app.js")
    arrows = re.findall(r'arrow\("(\w+)"', SCRIPTS["app.js"])
    assert len(arrows) == 7
    keys = {*tiles, *strings("COLUMNS", "area.js"), *strings("METRICS", "area.js")}
    keys |= {f"f_{name}" for name in tiles} | {f"n_{name}" for name in arrows}
    keys |= {f"level_{name}" for name in strings("LEVELS", "area.js")}
    keys |= {f"by_{name}" for name in ("department", "matter")}
    keys |= {f"timesOf_{name}" for name in ("department", "matter")}
    keys |= {f"r_{result}" for result in ("true", "false", "unknown")}
    keys |= {f"away_{why}" for why in get_args(Why)} | {f"of_{role}" for role in ("gateway", "worker")}
    keys |= {*OUTCOMES, MALFORMED, UNSUPPORTED_VERSION, UNSTORABLE, ID_CONFLICT}
    return keys | {f"{name}{routine}" for name in ("limit", "limits") for routine in ("", "Routine")}


def literals() -> set[str]:
    code = HTML + "".join(text for name, text in SCRIPTS.items() if name != "texts.js")
    return set(re.findall(r"[\"'](\w+)[\"']", code))


def test_every_word_that_the_page_asks_for_has_two_texts_and_none_is_left_over() -> None:
    code = HTML + "".join(SCRIPTS.values())
    asked = set(re.findall(r"\bt\([\"'](\w+)[\"']\)", code)) | made_up()
    assert len(asked) > 150
    assert asked - TEXTS.keys() == set()
    assert TEXTS.keys() - made_up() - literals() == set()


def test_a_key_stands_once() -> None:
    block = SCRIPTS["texts.js"].partition("export const TEXTS = {")[2].partition("\n};")[0]
    keys = re.findall(r"(\w+): \[", block)
    assert sorted(keys) == sorted(set(keys))


@pytest.mark.parametrize("name", ["TEXTS", "ERRORS", "STATES", "FIELDS", "VALUES"])
def test_the_second_text_of_a_word_is_english(name: str) -> None:
    found = entries(name)
    assert len(found) > 20
    assert [key for key, (zh, en) in found.items() if not (zh and en)] == []
    chinese = {key for key, (_, en) in found.items() if re.search(CHINESE, en)}
    assert chinese <= {"language", "languageLabel"}  # of the button that leads back


# -- as it is shown


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1600, "height": 950}) as page:
        yield page


#: Texts, hints and names of everything in the page, seen or not, but of the button that leads back.
LEFT = """(pattern) => {
    const chinese = new RegExp(pattern), found = [];
    for (const node of document.querySelectorAll("body *")) {
        if (node.matches("[data-testid=language], script, template")) continue;
        const own = [...node.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE);
        const named = ["aria-label", "title", "placeholder"].map((name) => node.getAttribute(name) || "");
        for (const text of [...own.map(({ data }) => data), ...named])
            if (chinese.test(text)) found.push(`${node.tagName} ${node.className} ${text}`);
    }
    return found;
}"""


def no_chinese(page: Page) -> None:
    page.wait_for_timeout(200)
    assert page.evaluate(LEFT, CHINESE) == []


def explained() -> dict[str, Any]:
    """Everything that an explanation can hold, in codes and English names."""
    place = {"incarnation": 1, "partition": 2, "offset": 3, "index": 4, "block": [3, 5], "rules": "abc"}
    event: dict[str, Any] = {"source": "local", "event_id": "e1", "case_id": "c1", "event_type": "REPORTED"}
    event |= {"outcome": "rejected", "reasons": ["GRID_UNKNOWN", "XX"], "position": place}
    event |= dict.fromkeys(("occurred_at", "received_at", "stored_at"), instant(NOW))
    event |= {"channel": "hotline", "matter_code": "PO-01", "grid_code": "440704001001001"}
    event |= {"content": {"title": "lamp", "photos": 2, "photo_hashes": ["a", "b"], "withheld": True}}
    event["content"] |= {"photo_taken_at": [instant(NOW), None], "self_handled": True, "due_at": instant(NOW)}
    event |= {"actor": {"type": "citizen", "protected": False}, "missing_fields": ["photo", "person"]}
    grid = {"found": True, "active": False, "type": "rural", "risk_tags": ["landslide", "forest"]}
    grid |= {"point_in_grid": False, "point_distance_m": 1_234.5}
    staff = {"found": True, "kind": "full_time", "channel_rights": ["hotline", "firm"], "in_grid": False}
    person = {"key": "k", "found": True, "role": "subject", "gender": "female", "flags": ["disability"]}
    event["enrichment"] = {"grid": grid, "staff": staff, "persons": [person, person | {"found": False}]}
    event["enrichment"] |= {"district_code": "440704", "town_code": "440704001"}
    event["enrichment"]["route_department"] = "public_security"
    event["decision"] = {"urgency": "urgent", "mode": "flood", "life_safety": True, "backfill": False}
    event["decision"] |= {"response_limit_seconds": 5_400, "resolution_limit_seconds": 172_800 + 3_600}
    event["matter"] = {"required_fields": ["photo", "location"], "allowed_channels": ["hotline"]}
    event["rules"] = [
        {"number": n, "result": result, "name_zh": "规则", "name_en": "a rule", "reasons": ["GRID_UNKNOWN"]}
        for n, result in enumerate(["true", "false", "unknown", "true"] * 3 + ["true"], start=1)
    ]
    copy = {"received_at": instant(NOW), "position": place}
    return event | {"copies": [copy | {"level": "L1"}], "conflicts": [copy | {"reason": "ID_CONFLICT"}]}


def told_case() -> dict[str, Any]:
    step = {"source": "local", "event_id": "e1", "event_type": "ARCHIVED", "occurred_at": instant(NOW)}
    step |= {"state_after": "CLOSED", "department": "public_security", "rating": 4, "transition_ok": False}
    report = {"outcome": "rejected", "reasons": ["GRID_UNKNOWN", "XX"], "ahead": True, "source": "local"}
    found: dict[str, Any] = {"case_id": "c1", "state": "CLOSED", "matter_code": "PO-01", "rating": 4}
    found |= {"limits": dict.fromkeys(("response_due_at", "due_at"), instant(NOW)), "grid_code": "440704"}
    found |= {"report": report | {"occurred_at": instant(NOW)}, "department": "public_security"}
    return found | {"primary_case_id": "c2", "merged_case_ids": ["c3", "c4"], "events": [step]}


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_no_sheet_of_the_english_page_holds_chinese(page: Page) -> None:
    matter = {"code": "PO-01", "name_zh": "警情", "name_en": "Police", "lead_department": "public_security"}
    catalogue = CATALOGUE | {"matters": [matter | {"response_minutes": 30, "resolution_hours": 24}]}
    catalogue |= {"channels": {"hotline": {"zh": "热线", "en": "Hotline"}}}
    tables = {f"/v1/live/tables/{by}": rows for by, rows in TABLES.items()}
    hit = {"source": "local", "event_id": "e1", "event_type": "REPORTED", "outcome": "recorded"}
    note = {"zh": "没有", "en": "none of those"}
    found: dict[str, Any] = {"q": "e1", "cases": ["c1", "c2"], "complete": False, "note": note}
    found["events"] = [hit | {"ingested_at": instant(NOW)}]
    answers = {"/v1/live/matters": catalogue, "/v1/live/search": found, "/v1/cases/c1": told_case()}
    answers |= {"/v1/events/local/e1": explained(), "/v1/rejections": {"rows": REJECTED["newest"]}}
    answers |= {"/v1/live/key": {"sources": ["local"], "backfill": False}}
    answers |= {
        "/v1/events:validate": {"events": [{"outcome": "rejected", "reasons": ["GRID_UNKNOWN", "XX"]}]}
    }
    points = [point(NOW - timedelta(minutes=n), closure_rate=0.9) for n in (40, 30, 10, 5)]
    modes = [{"mode": "flood", "level": "II", "area_code": "440704001"}]
    stuck = figures(log_answers=False, missing=[{"address": "h:1", "roles": ["worker"], "why": "refused"}])
    topics = {"trend": {"points": points}, "modes": {"modes": modes}, "rejected": REJECTED}
    open_canned(page, answers | tables, figures=stuck, **topics)
    id_of(page, "language").click()
    expect(page.locator(".newest li")).to_have_count(2)
    dialog = id_of(page, "dialog")
    # before a key is there, then after it
    id_of(page, "key").click()
    no_chinese(page)
    id_of(page, "key-input").fill("good")
    page.keyboard.press("Enter")
    expect(id_of(page, "key-form")).to_contain_text("May send as")
    no_chinese(page)
    page.keyboard.press("Escape")
    id_of(page, "test-event").click()
    id_of(page, "test-form").get_by_role("button", name="Check only").click()
    expect(id_of(page, "test-result")).to_contain_text("Decision: rejected")
    no_chinese(page)
    page.keyboard.press("Escape")
    page.get_by_role("searchbox").fill("e1")
    page.keyboard.press("Enter")
    expect(id_of(page, "found")).to_contain_text("too many events to look through")
    no_chinese(page)
    dialog.get_by_role("button", name="Case c1").click()
    expect(id_of(page, "case").locator(".timeline li")).to_have_count(1)
    no_chinese(page)
    id_of(page, "case").locator(".timeline .link").click()
    expect(id_of(page, "explain").locator(".rules li")).to_have_count(13)
    no_chinese(page)
    page.keyboard.press("Escape")
    page.locator(".reasons button").first.click()
    expect(id_of(page, "of-reason").locator("li")).to_have_count(2)
    no_chinese(page)
    page.keyboard.press("Escape")
    for tile in strings("TILES", "app.js"):
        id_of(page, f"tile-{tile}").click()
        expect(id_of(page, "trend-chart")).to_be_visible()
        no_chinese(page)
        page.keyboard.press("Escape")
    # down to the grids, whose names are data
    for key in ("440704", "440704001", "440704001001"):
        page.locator(f"tr[data-key='{key}'] button").click()
        no_chinese(page)


TABLES: dict[str, Any] = {
    by: {"as_of": instant(NOW), "again_in_seconds": 60, "rows": [row(key)]}
    for by, key in (
        ("town", "440704001"),
        ("village", "440704001001"),
        ("grid", "440704001001001"),
        ("department", "public_security"),
        ("matter", "PO-01"),
    )
}
REJECTED: dict[str, Any] = {
    "reasons": [{"reason": "GRID_UNKNOWN", "reports": 3, "life_safety": 1}],
    "newest": [
        {"source": "local", "event_id": f"e{n}", "ingested_at": instant(NOW - timedelta(days=n))}
        | {"matter_code": "PO-01", "grid_code": "440704001001001", "life_safety": True}
        | {"primary_reason": "GRID_UNKNOWN"}
        for n in range(2)
    ],
    "life_safety": {"reports": 2, "newest": {"source": "local", "event_id": "e1"}},
}
