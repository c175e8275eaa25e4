"""A whole city on a wall, a desk and a phone: what they have room for, in quiet times and in an emergency."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, instant, open_canned, row, tell

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SCHEMAS = Path(__file__).parents[2] / "schemas" / "catalogue"
WALLS = [(1_920, 1_080), (1_920, 950), (1_700, 900), (3_840, 2_160)]
#: Larger ones: of other shapes, and two beside each other with and without what a browser has around a page.
WIDE = [(2_560, 1_440), (3_440, 1_440), (3_840, 1_080), (3_840, 950)]
#: As many cases as a city of millions has in 30 days, and times that take many signs.
LARGE: dict[str, Any] = {"reports": 45_678, "cases": 43_210, "closed": 41_234, "open": 1_976, "overdue": 123}
LARGE |= {
    name: {"p50": 40_920, "p90": 129_540, "p99": 900_000}
    for name in ("response_seconds", "resolution_seconds")
}
#: Beside the messages of a quiet day: a banner, and an emergency mode.
STORE_DOWN = {"available": False, "at": instant(NOW)}
MODES = {"modes": [{"mode": "typhoon", "level": "I", "area_code": "4407"}]}

#: The names at the chart's lines, from the top.
LINES = """() => {
  const chart = echarts.getInstanceByDom(document.querySelector("[data-testid=times-chart]"));
  return chart?.getOption()?.yAxis?.[0].data;
}"""
#: What cannot be read: names of the map with what they have and need, pixels, the chart, what scrolls.
ILLEGIBLE = """() => {
  const chart = echarts.getInstanceByDom(document.querySelector("[data-testid=times-chart]"));
  const { yAxis, series } = chart.getOption(), lines = yAxis[0].data.length;
  const letters = yAxis[0].axisLabel.fontSize;
  const box = document.querySelector(".chart-box"), table = document.querySelector(".scroll");
  const pitch = chart.getModel().getComponent("grid").coordinateSystem.getRect().height / lines;
  const limit = series.find(({ symbol }) => symbol === "rect");
  const cut = [...document.querySelectorAll(".cell .name")].filter((name) => {
    const cell = name.parentElement.getBoundingClientRect();
    const beyond = [...name.parentElement.children].map((part) => part.getBoundingClientRect())
      .some(({ top, bottom }) => top < cell.top - 0.5 || bottom > cell.bottom + 0.5);
    return !name.textContent || name.clientHeight === 0 || name.scrollHeight > name.clientHeight || beyond;
  });
  const text = document.createRange();
  const wider = [...document.querySelectorAll(".cell .name, .cell.district .value")].filter((part) => {
    text.selectNodeContents(part);
    const { left, right } = text.getBoundingClientRect();
    const inside = part.parentElement.getBoundingClientRect(), frame = part.parentElement.clientLeft;
    return left < inside.left + frame - 0.5 || right > inside.right - frame + 0.5;
  });
  const raster = document.querySelector(".raster");
  return [
    ...cut.map((name) => `${name.textContent} ${name.clientHeight} of ${name.scrollHeight}`),
    ...wider.map((part) => `${part.textContent} is wider than its tile`),
    ...(raster.scrollWidth <= raster.clientWidth ? [] : [`a map ${raster.scrollWidth} wide`]),
    ...(pitch >= letters ? [] : [`letters of ${letters} in lines of ${pitch}`]),
    ...(pitch >= limit.symbolSize[1] ? [] : [`marks of ${limit.symbolSize[1]} in lines of ${pitch}`]),
    ...(lines >= 5 ? [] : [`${lines} lines`]),
    ...(box.scrollHeight <= box.clientHeight ? [] : ["the chart scrolls"]),
    ...(table.scrollWidth <= table.clientWidth ? [] : [`a table ${table.scrollWidth} wide`]),
    ...(table.scrollHeight <= table.clientHeight ? [] : ["the table scrolls"]),
    ...(document.documentElement.scrollHeight <= innerHeight ? [] : ["the page scrolls"]),
    ...[...document.querySelectorAll(".panel")]
      .filter((panel) => panel.getBoundingClientRect().bottom > innerHeight)
      .map((panel) => `${panel.dataset.testid} ends below the screen`),
  ];
}"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser) as page:
        yield page


def open_city(page: Page, width: int, height: int, **topics: Any) -> None:
    """The city's own districts, towns and departments, all with something to show."""
    page.set_viewport_size({"width": width, "height": height})
    areas = yaml.safe_load((SCHEMAS / "areas.yaml").read_text())["districts"]
    departments = yaml.safe_load((SCHEMAS / "departments.yaml").read_text())["departments"]
    names = {one["code"]: {"zh": one["name_zh"], "en": one["name_en"]} for one in departments}
    towns = {town["code"]: town["name_zh"] for district in areas for town in district["towns"]}
    catalogue = CATALOGUE | {"departments": names, "towns": towns}
    catalogue |= {"districts": {district["code"]: district["name_zh"] for district in areas}}
    catalogue["reasons"] = {
        "CHANNEL": {"zh": "渠道不受理该事项", "en": "The matter is not taken through this channel"}
    }
    catalogue["matters"] = [
        {"code": f"M-{n}", "lead_department": code, "response_minutes": 30, "resolution_hours": 24}
        for n, code in enumerate(names)
    ]
    table = {"as_of": instant(NOW), "again_in_seconds": 60}
    village, grid = "440784101001", "440784101001002"
    answers = {
        "/v1/live/tables/village": table | {"rows": [row(village, name_zh="龙口镇第1社区")]},
        "/v1/live/tables/grid": table | {"rows": [row(grid, name_zh="龙口镇第1社区新城花园片区第2网格")]},
        "/v1/live/matters": catalogue,
        "/v1/live/tables/town": table | {"rows": [row(code, **LARGE) for code in towns]},
        "/v1/live/tables/department": table | {"rows": [row(code, **LARGE) for code in names]},
    }
    rows = [row(code, name_zh=name, **LARGE) for code, name in catalogue["districts"].items()]
    total = row("4407", **LARGE | {"reports": 345_678, "cases": 333_210})
    now = {"as_of": instant(NOW)}
    topics = {"district": now | {"rows": rows}, "city": now | {"rows": [total]}} | topics
    open_canned(page, answers, **topics)
    page.wait_for_selector("[data-testid=times-chart] canvas")
    page.wait_for_function(LINES)


def rejected(reports: int) -> dict[str, Any]:
    reasons = [{"reason": "CHANNEL", "reports": 3, "life_safety": 0}]
    return {"reasons": reasons, "newest": [], "life_safety": {"reports": reports, "newest": None}}


def in_both_languages(page: Page) -> Iterator[str]:
    for _ in range(2):
        page.wait_for_timeout(300)
        yield str(page.evaluate("document.documentElement.lang"))
        id_of(page, "language").click()


@pytest.mark.parametrize(("width", "height"), [*WALLS, *WIDE])
def test_a_wall_can_be_read_in_an_emergency_too(page: Page, width: int, height: int) -> None:
    """Under two banners the names of towns lost their upper half, and the chart's lay on each other."""
    open_city(page, width, height)
    for state, message in {
        "quiet": ("modes", {"modes": []}),
        "an alarm": ("rejected", rejected(2)),
        "both banners": ("store", STORE_DOWN),
        "and a mode": ("modes", MODES),
    }.items():
        tell(page, *message)
        for language in in_both_languages(page):
            assert page.evaluate(ILLEGIBLE) == [], (state, language)
    # beside each other: one line of the screen, not two
    banners = [id_of(page, name).bounding_box() for name in ("banner", "life-safety")]
    assert banners[0]["y"] == banners[1]["y"]


def test_a_few_lines_of_the_chart_are_those_with_most_cases_and_all_can_be_had(page: Page) -> None:
    open_city(page, 1_920, 950, store=STORE_DOWN, modes=MODES, rejected=rejected(2))
    page.wait_for_timeout(300)
    few = page.evaluate(LINES)
    assert 5 <= len(few) < 14
    id_of(page, "times-all").click()
    page.wait_for_timeout(300)
    everything = page.evaluate(LINES)
    assert everything[: len(few)] == few
    assert len(everything) > 14
    id_of(page, "times-all").click()
    page.set_viewport_size({"width": 1_440, "height": 950})
    page.wait_for_function(f"() => ({LINES})().length === 14")


@pytest.mark.parametrize("width", [390, 1_024, 1_440, 1_920])
def test_the_end_of_a_grids_name_is_seen(page: Page, width: int) -> None:
    """It tells a grid from the others of its village, and was what a phone left out."""
    open_city(page, width, 950)
    page.evaluate("location.hash = '#/440784101001'")
    name = page.locator("tbody th span", has_text="第2网格")
    expect(name).to_be_visible()
    cut = """(span) => [span, span.parentElement].some((box) => box.scrollWidth > box.clientWidth
        && getComputedStyle(box).overflowX !== "visible") || span.getBoundingClientRect().right
        > span.parentElement.getBoundingClientRect().right + 0.5"""
    assert not name.evaluate(cut)
    box = name.bounding_box()
    assert box["width"] > 100  # and does not stand one sign below the other
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1_024, 900), (1_280, 900), *WALLS])
def test_the_counts_behind_a_tile_are_told_without_a_mouse(page: Page, width: int, height: int) -> None:
    """By keyboard and by touch there is no title, on no screen."""
    open_city(page, width, height)
    picked = id_of(page, "map-picked")
    if width > 760:
        expect(picked).to_be_hidden()  # nothing is picked yet
    id_of(page, "metric").select_option("closure_on_time_rate")
    page.locator(".raster .cell[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    expect(picked).to_contain_text("（18 / 20）")
    page.locator(".cell[data-code='440705104']").click()
    expect(picked).to_contain_text("新会区双水镇 按期办结率 90.0%（18 / 20）")
    for language in in_both_languages(page):
        expect(picked).to_be_visible()
        over = picked.evaluate(
            """(told) => {
                const { left, right, top, bottom } = told.getBoundingClientRect();
                return [...document.querySelectorAll(".cell, .note, .legend")].filter((other) => {
                    const box = other.getBoundingClientRect();
                    return box.left < right && box.right > left && box.top < bottom && box.bottom > top;
                }).map((other) => other.textContent);
            }"""
        )
        assert over == [], language
        panel = id_of(page, "map").bounding_box()
        box = picked.bounding_box()
        assert box["x"] >= panel["x"]
        assert box["x"] + box["width"] <= panel["x"] + panel["width"]


#: Screens → their letters, pixels.
LETTERS = {(1_920, 1_080): 15, (2_560, 1_440): 20, (3_840, 2_160): 30, (3_440, 1_440): 20, (3_840, 1_080): 16}


@pytest.mark.parametrize(("width", "height"), LETTERS)
def test_panels_fill_a_wall_of_any_shape(page: Page, width: int, height: int) -> None:
    """Two screens beside each other had the picture of one, twice as wide."""
    open_city(page, width, height)
    letters = LETTERS[width, height]
    assert page.evaluate("getComputedStyle(document.documentElement).fontSize") == f"{letters}px"
    panels = page.locator("main > section.panel").evaluate_all(
        """(all) => all.map((panel) => {
            const { left, right, top, bottom } = panel.getBoundingClientRect();
            return { name: panel.dataset.testid, left, right, top, bottom };
        })"""
    )
    assert max(panel["bottom"] for panel in panels) > height - 1.5 * letters
    for panel in panels:
        if panel["name"] == "flow":
            continue  # it is a line
        shape = (panel["right"] - panel["left"]) / (panel["bottom"] - panel["top"])
        assert 0.7 < shape < 5, panel
        if width > 3 * height:  # and where they touch, there is no panel but them
            assert panel["right"] < width / 2 or panel["left"] > width / 2, panel


@pytest.mark.parametrize(("width", "height"), [(1_700, 900), (1_920, 1_080), (3_840, 1_080)])
def test_a_walls_map_has_room_for_counts_beside_the_names(page: Page, width: int, height: int) -> None:
    open_city(page, width, height)
    id_of(page, "metric").select_option("reports")
    expect(page.locator(".cell[data-code='440703'] .value")).to_have_text("45,678")
    for language in in_both_languages(page):
        assert page.evaluate(ILLEGIBLE) == [], language


@pytest.mark.parametrize("width", [900, 1_240])
def test_a_map_by_itself_has_room_for_english_names(page: Page, width: int) -> None:
    open_city(page, width, 900)
    id_of(page, "language").click()
    for metric in ("closure_rate", "reports"):
        id_of(page, "metric").select_option(metric)
        page.wait_for_timeout(300)
        cut = [said for said in page.evaluate(ILLEGIBLE) if re.search("tile|a map", said)]
        assert cut == [], metric


@pytest.mark.parametrize("language", ["zh", "en"])
def test_departments_are_named_at_their_lines(page: Page, language: str) -> None:
    """English ones ended in dots, but where the longest does."""
    open_city(page, 1_920, 1_080)
    if language == "en":
        id_of(page, "language").click()
    page.wait_for_timeout(300)
    cut = page.evaluate(
        """() => {
            const chart = echarts.getInstanceByDom(document.querySelector("[data-testid=times-chart]"));
            const drawn = chart.getZr().storage.getDisplayList().map((item) => item.style.text || "");
            return drawn.filter((text) => /(…|[.]{3})$/.test(text));
        }"""
    )
    assert [name[:10] for name in cut] == ([] if language == "zh" else ["Political "])


@pytest.mark.parametrize("width", [390, 1_440, 1_920])
def test_a_reason_is_told_to_its_end(page: Page, width: int) -> None:
    open_city(page, width, 1_080, rejected=rejected(0))
    for _ in in_both_languages(page):
        reason = page.locator(".reasons .what")
        assert reason.evaluate("(name) => name.scrollWidth <= name.clientWidth")
        assert reason.get_attribute("title") == f"{reason.inner_text()} · CHANNEL"


def test_why_the_newest_were_rejected_is_told_to_its_end(page: Page) -> None:
    """English reasons ended in dots before the place for a label that few have."""
    example = {"source": "local", "event_id": "e1", "matter_code": "M-1", "primary_reason": "CHANNEL"}
    example |= {"ingested_at": instant(NOW), "grid_code": "440784101001002"}
    open_city(page, 1_920, 1_080, rejected=rejected(0) | {"newest": [example]})
    for _ in in_both_languages(page):
        assert page.locator(".why-not").evaluate("(reason) => reason.scrollWidth <= reason.clientWidth")


def test_an_english_phone_shows_names_that_can_be_read(page: Page) -> None:
    open_city(page, 390, 844)
    id_of(page, "language").click()
    page.wait_for_timeout(300)
    names = """() => [...document.querySelectorAll(".cell .name, .cell.district .value")].map((name) => ({
        text: name.textContent, size: parseFloat(getComputedStyle(name).fontSize),
        cut: name.scrollWidth > name.clientWidth || name.scrollHeight > name.clientHeight
            || [name, name.parentElement].some((box) => box.scrollHeight > box.clientHeight
                || box.scrollWidth > box.clientWidth),
    })).filter(({ text, size, cut }) => !text || size < 10 || cut)"""
    assert page.evaluate(names) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_district_that_was_gone_into_stands_out_in_an_empty_store_too(page: Page) -> None:
    """Its frame was the faintest of all where no district had a case."""
    open_city(page, 1_920, 1_080, district={"as_of": instant(NOW), "rows": []})
    page.locator(".cell[data-code='440704']").click()
    page.mouse.move(5, 5)  # what is pointed at has the same frame
    frame = "(cell) => getComputedStyle(cell).borderTopColor"
    chosen, other = (
        page.locator(f".cell[data-code='{code}']").evaluate(frame) for code in ("440704", "440703")
    )
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert chosen == ink
    assert other != ink


@pytest.mark.parametrize("width", [390, 1_024, 1_440, 1_920, 3_840])
def test_panels_are_reached_in_the_order_in_which_they_stand(page: Page, width: int) -> None:
    """From top to bottom, and from left to right: by Tab and read aloud as by the eye."""
    open_city(page, width, 1_080)
    places = page.locator("main > section").evaluate_all(
        """(all) => all.map((panel) => {
            const { left, top } = panel.getBoundingClientRect();
            return [Math.round(top), Math.round(left)];
        })"""
    )
    assert len(places) == 6
    assert places == sorted(places)
