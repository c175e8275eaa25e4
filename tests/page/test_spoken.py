"""What the page tells without eyes or a mouse: percentiles as a table, what is stuck in words, how long a
list is. No service: a stream that says what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, figures, instant, open_canned, row, tell

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

#: More matters than the chart shows at first, or a box is high.
MATTERS = [
    {"code": f"UE-{n:02}", "name_zh": f"事项{n}", "name_en": f"Matter {n}", "lead_department": "x"}
    | {"response_minutes": 60 * n, "resolution_hours": 24}
    for n in range(1, 41)
]
DEPARTMENTS = {"x": {"zh": "公安局", "en": "Public Security"}, "y": {"zh": "住建局", "en": "Housing"}}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1_920, "height": 1_080}) as page:
        yield page


def table(*rows: dict[str, Any], at: Any = NOW) -> dict[str, Any]:
    return {"as_of": instant(at), "again_in_seconds": 0, "rows": list(rows)}


def answers(**tables: dict[str, Any]) -> dict[str, Any]:
    catalogue = CATALOGUE | {"matters": MATTERS, "departments": DEPARTMENTS}
    known: dict[str, Any] = {"/v1/live/matters": catalogue}
    return known | {f"/v1/live/tables/{by}": found for by, found in tables.items()}


def cells(line: Locator) -> list[str]:
    return line.locator("th, td").all_inner_texts()


def names_drawn(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        """() => {
            const box = document.querySelector("[data-testid=times-chart]");
            return window.echarts.getInstanceByDom(box).getOption().yAxis[0].data;
        }"""
    )
    return found


# -- percentiles


def test_percentiles_are_a_table_that_the_keyboard_opens(page: Page) -> None:
    """The picture's rows in its order, with what only hovering told before."""
    slow = {"p50": 7_200, "p90": 172_800, "p99": 172_800}
    rows = [row("y", cases=7, responded=6), row("x", cases=9, responded=8, response_seconds=slow)]
    open_canned(page, answers(department=table(*rows)))
    chart, button = id_of(page, "times-chart"), id_of(page, "times-as-table")
    expect(chart.locator("canvas")).to_be_visible()
    drawn = names_drawn(page)
    assert drawn == ["公安局", "住建局"]
    found = page.get_by_role("table", name="时长分位 · 按部门 · 响应时间", exact=True)
    expect(found).to_have_count(0)
    expect(button).to_have_attribute("aria-pressed", "false")
    button.focus()
    page.keyboard.press("Enter")
    expect(found).to_be_visible()
    expect(chart).to_be_hidden()
    expect(button).to_have_attribute("aria-pressed", "true")
    heads = found.get_by_role("columnheader")
    expect(heads).to_have_text(["部门", "已响应", "p50", "p90", "p99", "所辖事项的时限（平时）"])
    expect(found.get_by_role("rowheader")).to_have_text(drawn)
    lines = found.locator("tbody tr")
    assert cells(lines.nth(0)) == ["公安局", "8", "2小时", "2天", "2天", "1小时–40小时"]
    assert cells(lines.nth(1)) == ["住建局", "6", "10分钟", "2小时", "25小时", "—"]
    # two days are above forty hours; nobody knows a limit of the other's
    expect(found.locator("td.bad")).to_have_text(["2天", "2天"])
    id_of(page, "language").click()
    id_of(page, "resolution_seconds").click()
    found = page.get_by_role("table", name="Percentiles of time · By department · Resolution time")
    expect(found.get_by_role("columnheader")).to_have_text(
        ["Department", "Closed", "p50", "p90", "p99", "Limits of its matters"]
    )
    assert cells(found.locator("tbody tr").nth(0)) == [
        "Public Security", "18", "10 min", "2 h", "25 h", "24 h",
    ]  # fmt: skip
    button.focus()
    page.keyboard.press("Space")
    expect(chart.locator("canvas")).to_be_visible()
    expect(found).to_have_count(0)


def test_the_table_of_percentiles_follows_without_losing_the_place(page: Page) -> None:
    """Neither focus nor what was scrolled to; all rows where all are asked for."""
    told = [[row(matter["code"], cases=100 - n) for n, matter in enumerate(MATTERS)]]
    at = [NOW]

    def answer(route: Route) -> None:
        route.fulfill(json=table(*told[-1], at=at[-1]))

    open_canned(page, answers(department=table()) | {"/v1/live/tables/matter": answer})
    id_of(page, "by-matter").click()
    id_of(page, "times-as-table").click()
    found = id_of(page, "times-table")
    expect(found.locator("tbody tr")).to_have_count(14)
    id_of(page, "times-all").click()
    expect(found.get_by_role("rowheader")).to_have_text([f"UE-{n:02} 事项{n}" for n in range(1, 41)])
    box = page.get_by_role("group", name="时长分位", exact=True)
    page.keyboard.press("Tab")  # over the button for the table to what it scrolls in
    page.keyboard.press("Tab")
    expect(box).to_be_focused()
    page.keyboard.press("End")
    bottom = "(box) => Math.round(box.scrollHeight - box.scrollTop - box.clientHeight)"
    page.wait_for_function(f"() => ({bottom})(document.activeElement) <= 1")
    assert box.evaluate("(box) => box.scrollTop") > 100
    # the last one comes first, and another time is told of it
    at.append(NOW + timedelta(seconds=5))
    faster = {"p50": 60, "p90": 120, "p99": 180}
    told.append([*told[0][:-1], row("UE-40", cases=500, response_seconds=faster)])
    tell(page, "district", {"as_of": instant(at[-1]), "rows": [row("440704")]})
    expect(found.locator("tbody tr").first).to_contain_text("UE-40")
    expect(found.locator("tbody tr").first.locator("td").nth(1)).to_have_text("1分钟")
    expect(box).to_be_focused()
    assert box.evaluate(bottom) <= 1


def test_the_label_of_the_percentiles_says_how_many_and_how_many_are_late(page: Page) -> None:
    """Of all matters it was four thousand signs long, and one breath of a screen reader."""
    rows = [row(matter["code"], cases=100 - n) for n, matter in enumerate(MATTERS)]
    open_canned(page, answers(department=table(row("y")), matter=table(*rows)))
    chart = id_of(page, "times-chart")
    # no limit is known there: none is above it
    expect(chart).to_have_attribute("aria-label", "时长分位 · 按部门 · 响应时间; 1 行")
    id_of(page, "by-matter").click()
    id_of(page, "times-all").click()
    # their p90 is two hours, the limits go from one hour to forty
    expect(chart).to_have_attribute(
        "aria-label", "时长分位 · 按事项 · 响应时间; 40 行; p90 超过时限（取最长）的：1"
    )
    id_of(page, "language").click()
    expect(chart).to_have_attribute(
        "aria-label",
        "Percentiles of time · By matter · Response time; 40 rows; with p90 above the limit (the longest): 1",
    )
    id_of(page, "by-department").click()
    expect(chart).to_have_attribute(
        "aria-label", "Percentiles of time · By department · Response time; 1 row"
    )


def test_a_matter_that_was_withdrawn_has_its_limit(page: Page) -> None:
    """Its cases of the last thirty days are in the picture, and their limit has not gone with it."""
    former = {"code": "TMP-1", "name_zh": "旧事项", "name_en": "An old matter", "lead_department": "y"}
    former |= {"response_minutes": 90, "resolution_hours": 48}
    known = answers(department=table(row("y")), matter=table(row("TMP-1")))
    known["/v1/live/matters"] |= {"former": [former]}
    open_canned(page, known)
    id_of(page, "times-as-table").click()
    found = id_of(page, "times-table").locator("tbody tr")
    expect(found.locator("td").last).to_have_text("1小时30分")
    id_of(page, "by-matter").click()
    expect(found.locator("td").last).to_have_text("1小时30分")
    expect(found.locator("th")).to_have_text("TMP-1 旧事项")
    id_of(page, "language").click()
    expect(found.locator("th")).to_have_text("TMP-1 An old matter")


# -- what holds things up


def stuck(**topic: Any) -> dict[str, Any]:
    found = figures()
    found["flow"]["topic"] |= {"stuck_partitions": [3]} | topic
    return found


def open_held(page: Page) -> None:
    """A quiet page whose clock goes on only where a test lets it, however long the machine takes."""
    page.clock.install(time=NOW)
    open_canned(page)
    page.clock.pause_at(NOW + timedelta(minutes=5))
    page.clock.run_for(3_000)
    expect(id_of(page, "banner")).to_be_hidden()


def test_what_is_stuck_is_said_once_and_stands_on_top_once_it_lasts(page: Page) -> None:
    open_held(page)
    said, banner = id_of(page, "alarms"), id_of(page, "banner")
    expect(said).to_have_attribute("role", "status")
    expect(said).to_be_empty()
    page.evaluate(
        """() => {
            window.changes = [];
            for (const id of ["alarms", "banner"])
                new MutationObserver((all) => window.changes.push(...all.map(() => id))).observe(
                    document.querySelector(`[data-testid=${id}]`),
                    { childList: true, characterData: true, subtree: true },
                );
        }"""
    )
    found = stuck()
    found["flow"]["gateway"]["stuck"] = True
    tell(page, "figures", found)
    expect(said).to_have_text("网关、消息队列 停滞；解码、ClickHouse 停滞的分区 3")
    page.clock.run_for(8_000)
    expect(banner).to_be_empty()
    page.clock.run_for(4_000)
    expect(banner).to_have_text("网关、消息队列 停滞 · 解码、ClickHouse 停滞的分区 3")
    page.clock.run_for(20_000)
    # the same each second is nothing new to be read out
    assert page.evaluate("window.changes") == ["alarms", "banner"]
    # another partition beside it: the same trouble goes on
    found["flow"]["topic"]["stuck_partitions"] = [3, 5]
    tell(page, "figures", found)
    expect(said).to_have_text("网关、消息队列 停滞；解码、ClickHouse 停滞的分区 3, 5")
    expect(banner).to_contain_text("停滞的分区 3, 5")
    id_of(page, "language").click()
    expect(said).to_have_text("Gateway, Topic stuck; Decode, ClickHouse stuck partitions 3, 5")
    tell(page, "figures", figures())
    expect(said).to_be_empty()
    expect(banner).to_be_empty()
    page.clock.run_for(2_000)
    # what begins again has not lasted yet
    tell(page, "figures", stuck())
    page.clock.run_for(5_000)
    expect(said).not_to_be_empty()
    expect(banner).to_be_empty()


def test_what_is_slowest_and_what_comes_late_stand_on_top_once_they_last(page: Page) -> None:
    open_held(page)
    slow = figures()
    slow["flow"]["slowest"] = "admit"
    tell(page, "figures", slow)
    tell(page, "current", {"at": instant(NOW - timedelta(seconds=8))})
    page.clock.run_for(2_000)
    said, banner = id_of(page, "alarms"), id_of(page, "banner")
    expect(said).to_have_text("准入 最慢环节；显示的数据晚了 5 秒以上")
    expect(banner).to_be_empty()
    page.clock.run_for(12_000)
    expect(banner).to_have_text("准入 最慢环节 · 显示的数据晚了 5 秒以上")
    id_of(page, "language").click()
    expect(banner).to_have_text("Admit slowest · what is shown is over 5 s old")
    # without the store it follows from that, which is said
    tell(page, "store", {"available": False, "at": instant(NOW)})
    expect(banner).to_contain_text("ClickHouse does not answer")
    expect(banner).not_to_contain_text("over 5 s old")
    expect(said).to_have_text("Admit slowest; ClickHouse no answer")


def test_a_banner_is_seen_wherever_a_phone_was_scrolled_to(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_canned(page, figures=figures(log_answers=False))
    banner = id_of(page, "banner")
    expect(banner).to_be_visible()
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_timeout(200)
    assert page.evaluate("scrollY") > 800
    box = banner.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 100
    expect(banner).to_be_in_viewport(ratio=1)


def test_a_worker_that_does_not_answer_is_said_in_words_that_can_be_acted_on(page: Page) -> None:
    open_held(page)
    silent = figures(worker=False, events_per_second=None, stored=None, delay_seconds=None)
    tell(page, "figures", silent)
    banner = id_of(page, "banner")
    # one answer that is late may be no more than that
    expect(banner).to_have_text("处理进程无应答")
    page.clock.run_for(12_000)
    expect(banner).to_have_text("处理进程无应答：事件暂不入库，显示的是最后入库的数据")
    id_of(page, "language").click()
    expect(banner).to_have_text(
        "the worker does not answer: events are not stored for now, and what is shown is what was stored last"
    )
    tell(page, "figures", figures())
    expect(banner).to_be_empty()


def test_one_block_is_no_blocks(page: Page) -> None:
    one = figures()
    one["flow"]["topic"]["lag_records"] = 1
    open_canned(page, figures=one)
    foot = id_of(page, "tile-events_per_second").locator(".foot")
    expect(foot).to_have_text("队列 1 块")
    id_of(page, "language").click()
    expect(foot).to_have_text("queue 1 block")
    expect(id_of(page, "flow-decode").locator(".facts")).to_contain_text("queue 1 blockoldest")
    one["flow"]["topic"]["lag_records"] = 1_200
    tell(page, "figures", one)
    expect(foot).to_have_text("queue 1,200 blocks")


# -- sheets, the map, what scrolls


def refused(number: int) -> dict[str, Any]:
    found: dict[str, Any] = {"source": "local", "event_id": f"e{number}", "ingested_at": instant(NOW)}
    found |= {"matter_code": None, "grid_code": "440704001001001", "life_safety": False}
    return found | {"primary_reason": "GRID_UNKNOWN"}


@pytest.mark.parametrize(("listed", "cut"), [(12, True), (11, False)])
def test_a_list_of_a_reason_says_how_many_there_are(page: Page, listed: int, cut: bool) -> None:
    """Twelve of three thousand looked like all of them; while they were read the title named no reason."""
    held: list[Route] = []
    reasons = [{"reason": "GRID_UNKNOWN", "reports": 3_000, "life_safety": 0}]
    alarms = {"reports": 0, "newest": None}
    rejected = {"reasons": reasons, "newest": [refused(1)], "life_safety": alarms}
    open_canned(page, {"/v1/rejections": held.append}, rejected=rejected)
    page.locator(".reasons button").click()
    title = id_of(page, "dialog").get_by_role("heading", level=2)
    busy = id_of(page, "dialog").get_by_role("status")
    expect(title).to_have_text("不予受理 · 网格不存在")
    expect(busy).to_have_text("读取中…")
    held[0].fulfill(json={"rows": [refused(n) for n in range(listed)]})
    expect(id_of(page, "of-reason").locator("li")).to_have_count(listed)
    expect(busy).to_be_empty()
    said = id_of(page, "cut")
    expect(said).to_be_visible(visible=cut)
    if cut:
        expect(said).to_have_text("只列最新 12 件；近 30 天收到、以此为首要原因的共 3,000 件")
        # as the panel behind the sheet goes on counting
        more = reasons[0] | {"reports": 3_001}
        tell(page, "rejected", rejected | {"reasons": [more]})
        expect(said).to_contain_text("3,001")


def test_alarms_that_are_too_many_to_list_are_counted(page: Page) -> None:
    rejected = {"reasons": [], "newest": [], "life_safety": {"reports": 1_234, "newest": None}}
    rows = [refused(n) | {"life_safety": True} for n in range(1_000)]
    open_canned(page, {"/v1/rejections": {"rows": rows}}, rejected=rejected)
    id_of(page, "language").click()
    id_of(page, "life-safety").get_by_role("button").click()
    expect(id_of(page, "cut")).to_have_text("the newest 1,000 only; in the last hour: 1,234")


def test_where_the_map_led_is_said(page: Page) -> None:
    """The table beside it changes, and the focus stays on the map. Down the table the title takes it."""
    open_canned(page, answers(town=table(row("440704001"))))
    said = id_of(page, "led-to")
    expect(said).to_have_attribute("role", "status")
    expect(said).to_be_empty()
    town = page.locator(".cell[data-code='440704']")
    town.focus()
    page.keyboard.press("Enter")
    expect(said).to_have_text("镇街 · 江门市 江海区")
    expect(town).to_be_focused()
    id_of(page, "language").click()
    expect(said).to_have_text("Towns · Jiangmen Jianghai")
    id_of(page, "areas").get_by_role("navigation").get_by_role("button").first.click()
    expect(said).to_be_empty()
    page.locator("tr[data-key='440704'] th button").click()
    expect(id_of(page, "areas").get_by_role("heading", level=2)).to_be_focused()
    expect(said).to_be_empty()


def test_what_scrolls_and_takes_the_focus_has_a_name(page: Page) -> None:
    """Chromium gives it to what scrolls, as a box without role and name."""
    rows = [row(matter["code"], cases=100 - n) for n, matter in enumerate(MATTERS)]
    rejected = {"reasons": [], "newest": [], "life_safety": {"reports": 0, "newest": None}}
    open_canned(page, answers(matter=table(*rows)), rejected=rejected)
    id_of(page, "by-matter").click()
    id_of(page, "times-all").click()
    expect(id_of(page, "times-chart").locator("canvas")).to_be_visible()
    # a low box, so that both scroll
    page.set_viewport_size({"width": 1_440, "height": 600})
    nameless = """() => {
        const { activeElement: held } = document;
        const control = held.matches("a, button, input, select, textarea, body");
        const named = held.role && held.getAttribute("aria-labelledby");
        return control || named ? [] : [held.outerHTML.slice(0, 80)];
    }"""
    stops: list[str] = []
    page.locator(".cell[tabindex='0']").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        stops.append(str(page.evaluate("document.activeElement.className")))
        assert page.evaluate(nameless) == []
    assert {"chart-box", "two"} <= set(stops)
