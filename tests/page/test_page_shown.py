"""What the page shows of given figures: no service, no store, a stream that says what it is told."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pipeline.page.assets import STATIC, Assets
from pipeline.read.small_cells import without_small_cells
from tests.page.browser import id_of, quiet_page
from tests.page.canned import CATALOGUE, NOW, figures, instant, open_canned, point, row, tell
from tests.page.conftest import PICTURES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1600, "height": 950}) as page:
        yield page


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
    points += [point(ago(45), open=0)]  # a rate without a case: not known, but nothing was interrupted
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


def test_what_waits_has_a_unit_and_one_word(page: Page) -> None:
    open_canned(page)
    waiting = id_of(page, "flow-decode").locator(".facts")
    expect(waiting).to_contain_text("队列 3 块")
    expect(waiting).to_contain_text("最久等待 1.5 s")
    expect(id_of(page, "tile-events_per_second").locator(".foot")).to_have_text("队列 3 块")
    # lagging is said of what the tables hold, and of nothing else
    expect(page.get_by_text(re.compile("滞后"))).to_have_count(1)
    id_of(page, "language").click()
    expect(waiting).to_contain_text("queue 3 blocks")
    expect(waiting).to_contain_text("oldest 1.5 s")


def test_the_counts_of_the_events_are_those_that_give_the_rate(page: Page) -> None:
    open_canned(page)
    counts = id_of(page, "why-events_per_second").locator("p").last
    expect(counts).to_have_text(
        "计数 35 ÷ 5.0 秒 = 7.0/秒；网关接收 7.0/秒；"
        "准入 6.0/秒 · 不予受理 1.0/秒 · 已记录 0/秒 · 重复 0/秒 · 隔离 0/秒；"
        "启动以来 准入 1,000 · 不予受理 1,000 · 已记录 1,000 · 重复 1,000 · 隔离 1,000"
    )
    id_of(page, "language").click()
    expect(counts).to_contain_text("35 ÷ 5.0 s = 7.0/s; taken by the gateway 7.0/s; admitted ")
    expect(counts).to_contain_text("quarantined 0/s; since start admitted 1,000 · ")


def test_the_names_of_the_tiles_are_not_cut_short(page: Page) -> None:
    open_canned(page)
    cut = """() => [...document.querySelectorAll('.tile .label')]
        .filter((label) => label.scrollWidth > label.clientWidth).map((label) => label.innerText)"""
    assert page.evaluate(cut) == []
    id_of(page, "language").click()
    expect(id_of(page, "tile-closure_rate")).to_contain_text("Closure rate")
    assert page.evaluate(cut) == []


def test_what_is_taken_in_stands_beside_what_is_stored(page: Page) -> None:
    """While the worker stands still, or its metrics are away, the gateway may go on."""
    still = figures(events_per_second=0.0, stored={"events": 0, "seconds": 5.04})
    still["flow"]["gateway"]["accepted_per_second"] = 1_000.0
    open_canned(page, figures=still)
    tile, counts = id_of(page, "tile-events_per_second"), id_of(page, "why-events_per_second").locator("p")
    expect(tile.locator(".label")).to_have_text("每秒入库事件")
    expect(tile.locator(".value")).to_have_text("0")
    expect(counts.last).to_contain_text("计数 0 ÷ 5.0 秒 = 0/秒；网关接收 1,000/秒；准入 ")
    tell(page, "figures", still | {"worker": False, "events_per_second": None, "stored": None})
    expect(tile.locator(".value")).to_have_text("—")
    expect(counts.last).to_have_text("计数 网关接收 1,000/秒")
    tell(page, "figures", still | {"gateway": False})  # it runs elsewhere: nothing is known of it here
    expect(counts.last).to_contain_text("；网关接收 —；")
    tell(page, "figures", still | {"events_per_second": None, "stored": None})  # a worker that begins
    expect(counts.last).to_contain_text("计数 —；网关接收 1,000/秒；准入 ")
    id_of(page, "language").click()
    expect(tile.locator(".label")).to_have_text("Stored events/s")


def rejection(number: int, at: Any, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"source": "local", "event_id": f"e{number}", "ingested_at": instant(at)}
    found |= {"matter_code": None, "grid_code": "440704001001001", "life_safety": False}
    return found | {"primary_reason": "GRID_UNKNOWN"} | changed


def explained(event_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {"source": "local", "event_id": event_id, "case_id": f"c-{event_id}"}
    return found | {"event_type": "REPORTED", "outcome": "admitted", "reasons": [], "rules": []}


def told_case(case_id: str, *events: str) -> dict[str, Any]:
    found: dict[str, Any] = {"case_id": case_id, "state": "REPORTED", "limits": {"due_at": instant(NOW)}}
    steps = [explained(e) | {"occurred_at": instant(NOW), "transition_ok": True} for e in events]
    return found | {"merged_case_ids": [], "events": steps}


def look_for(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")


def give(route: Route, page: Page, answer: dict[str, Any]) -> None:
    """Let a held answer come, and the page take it in."""
    with page.expect_response(route.request.url) as coming:
        route.fulfill(json=answer)
    coming.value.finished()
    page.wait_for_timeout(200)


def test_a_search_that_was_left_opens_nothing(page: Page) -> None:
    held: list[Route] = []
    hit = {"q": "c1", "cases": ["c1"], "events": [], "complete": True, "note": None}
    open_canned(page, {"/v1/live/search": held.append, "/v1/cases/c1": told_case("c1")})
    dialog = id_of(page, "dialog")
    look_for(page, "c1")
    expect(dialog).to_contain_text("读取中")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.wait_for_timeout(100)
    give(held[0], page, hit)
    expect(dialog).to_be_hidden()
    # nor over what was opened since
    look_for(page, "c1")
    page.keyboard.press("Escape")
    id_of(page, "tile-closure_rate").click()
    give(held[1], page, hit)
    expect(id_of(page, "trend-chart")).to_be_visible()
    page.keyboard.press("Escape")
    # who stays gets it
    look_for(page, "c1")
    expect(dialog).to_contain_text("读取中")
    give(held[2], page, hit)
    expect(id_of(page, "case")).to_be_visible()


def test_a_case_tells_of_a_report_that_is_dated_ahead(page: Page) -> None:
    """It is rejected for that, and the case stands as one without a report until then."""
    hit = {"q": "c1", "cases": ["c1"], "events": [], "complete": True, "note": None}
    report = {"source": "local", "event_id": "e1", "occurred_at": instant(NOW + timedelta(days=2))}
    report |= {"outcome": "rejected", "reasons": ["GRID_UNKNOWN"], "ahead": True}
    told = told_case("c1") | {"state": None, "orphan": True, "report": report}
    open_canned(page, {"/v1/live/search": hit, "/v1/cases/c1": told})
    look_for(page, "c1")
    expect(id_of(page, "case")).to_contain_text("不予受理")
    expect(id_of(page, "case")).to_contain_text("发生时间在未来，此前按无上报计")


def test_a_sheet_that_is_opened_right_after_another_was_closed_stays(page: Page) -> None:
    """The browser tells of the closing in a later step: what was asked since must not be dropped with it."""
    hit = {"q": "c1", "cases": ["c1"], "events": [], "complete": True, "note": None}
    open_canned(page, {"/v1/live/search": hit, "/v1/cases/c1": told_case("c1")})
    id_of(page, "tile-closure_rate").click()
    expect(id_of(page, "trend-chart")).to_be_visible()
    page.get_by_role("searchbox", include_hidden=True).evaluate(
        """box => {
            document.querySelector("dialog").close();
            box.value = "c1";
            box.dispatchEvent(new Event("input"));
            box.form.requestSubmit();
        }"""
    )
    expect(id_of(page, "case")).to_be_visible()
    page.keyboard.press("Escape")
    expect(id_of(page, "dialog")).to_be_hidden()


def test_an_answer_that_comes_late_is_not_taken_for_that_of_another_sheet(page: Page) -> None:
    """Event a is slow and left, a case is opened, then a comes; from a step the way leads back."""
    held: list[Route] = []
    rejected = {"reasons": [], "newest": [rejection(1, NOW)]} | {"life_safety": {"reports": 0}}
    hit = {"q": "c2", "cases": ["c2"], "events": [], "complete": True, "note": None}
    answers = {"/v1/events/local/e1": held.append, "/v1/live/search": hit}
    answers |= {"/v1/cases/c2": told_case("c2", "e2"), "/v1/events/local/e2": explained("e2")}
    open_canned(page, answers, rejected=rejected)
    page.locator(".newest button").click()
    page.keyboard.press("Escape")
    look_for(page, "c2")
    step = id_of(page, "case").locator(".timeline .link")
    expect(step).to_be_visible()
    give(held[0], page, explained("e1"))
    step.click()
    title = id_of(page, "dialog").get_by_role("heading", level=2)
    expect(title).to_have_text("事件详情 local/e2")
    page.get_by_role("button", name="返回上级").click()
    expect(title).to_have_text("案件 c2")
    expect(step).to_be_visible()


def test_a_failure_that_comes_late_is_not_said_on_another_sheet(page: Page) -> None:
    held: list[Route] = []
    open_canned(page, {"/v1/live/search": held.append, "/v1/live/key": held.append})
    problem = id_of(page, "problem")
    look_for(page, "c1")
    page.keyboard.press("Escape")
    id_of(page, "key").click()
    held[0].abort()
    page.wait_for_timeout(300)
    expect(problem).to_be_hidden()
    id_of(page, "key-input").fill("bad")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    look_for(page, "c1")
    held[1].fulfill(status=401, json={"code": "unauthorised"})
    page.wait_for_timeout(300)
    expect(problem).to_be_hidden()
    expect(id_of(page, "dialog")).to_contain_text("读取中")


def test_a_rejection_of_another_day_shows_its_date(page: Page) -> None:
    """The city's day, which begins at 16:00 UTC."""
    times = [NOW, NOW - timedelta(hours=15, minutes=59), NOW - timedelta(hours=17), NOW - timedelta(days=29)]
    rejected = {"reasons": [], "newest": [rejection(n, at) for n, at in enumerate(times)]}
    open_canned(page, rejected=rejected | {"life_safety": {"reports": 0, "newest": None}})
    shown = page.locator(".newest .num")
    expect(shown).to_have_text(["16:00:00", "00:01:00", "03/01 23:00", "02/01 16:00"])
    id_of(page, "language").click()
    expect(shown).to_have_text(["16:00:00", "00:01:00", "01 Mar, 23:00", "01 Feb, 16:00"])


def test_rejections_that_are_not_known_are_not_said_to_be_none(page: Page) -> None:
    """As while the store is away when somebody comes: the stream tells none of them."""
    open_canned(page, rejected=None)
    reasons = page.locator(".reasons li:visible")
    expect(reasons).to_have_text(["—"])
    tell(page, "rejected", {"reasons": [], "newest": [], "life_safety": {"reports": 0, "newest": None}})
    expect(reasons).to_have_text(["暂无"])


def test_the_alarm_opens_the_list_of_all_it_counts(page: Page) -> None:
    """Each once, though one was stored twice."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        rows = [rejection(n, ago(5 * n), life_safety=True) for n in (1, 2, 2, 3)]
        route.fulfill(json={"rows": rows})

    rejected: dict[str, Any] = {"reasons": [], "newest": []}
    rejected["life_safety"] = {"reports": 3, "newest": {"source": "local", "event_id": "e1"}}
    open_canned(page, {"/v1/rejections": answer}, rejected=rejected)
    button = id_of(page, "life-safety").get_by_role("button")
    expect(button).to_have_attribute("title", "打开列表")
    button.click()
    rows = id_of(page, "of-reason").locator("li")
    expect(rows).to_have_count(3)
    expect(rows.first.locator(".why-not")).to_have_text("网格不存在")
    expect(id_of(page, "dialog").get_by_role("heading", level=2)).to_have_text("不予受理 · 涉及人身安全")
    (url,) = asked
    query = parse_qs(urlsplit(url).query)
    assert (query["life_safety"], query["limit"]) == (["true"], ["1000"])
    since = datetime.fromisoformat(query["from"][0])
    assert timedelta(0) <= since - ago(60) < timedelta(minutes=5)


def test_figures_that_no_longer_come_are_not_the_present(page: Page) -> None:
    page.clock.install()
    open_canned(page)
    value, arrows = (
        id_of(page, "tile-events_per_second").locator(".value"),
        page.locator(".stages li.unknown"),
    )
    expect(value).to_have_text("7.0")
    page.evaluate("window.quiet = true")
    page.clock.run_for(8_000)
    expect(value).to_have_text("7.0")
    expect(arrows).to_have_count(0)
    page.clock.run_for(4_000)
    expect(value).to_have_text("—")
    expect(arrows).to_have_count(7)
    banner = id_of(page, "banner")
    expect(banner).to_have_text("运行指标 10 秒以上没有更新")
    # the tables are those of the stream as before
    expect(id_of(page, "tile-closure_rate").locator(".value")).to_have_text("90.00%")
    tell(page, "figures", figures())
    expect(value).to_have_text("7.0")
    expect(banner).to_be_hidden()


def test_a_key_that_works_stays_when_another_is_refused(page: Page) -> None:
    shown: list[str | None] = []

    def key(route: Route) -> None:
        shown.append(route.request.headers.get("authorization"))
        if shown[-1] == "Bearer good":
            route.fulfill(json={"sources": ["local"], "backfill": False})
        elif shown[-1] == "Bearer lost":
            route.abort()
        else:
            route.fulfill(status=401, json={"code": "unauthorised", "message": "in English"})

    open_canned(page, {"/v1/live/key": key})
    id_of(page, "key").click()
    form, problem = id_of(page, "key-form"), id_of(page, "problem")
    for typed, said in (
        ("bad", "密钥无效或已撤销"),
        ("good", ""),
        ("baad", "密钥无效"),
        ("lost", "连不上服务"),
    ):
        id_of(page, "key-input").fill(typed)
        page.keyboard.press("Enter")
        expect(problem).to_have_text(re.compile(said) if said else "")
    expect(form).to_contain_text("可发送的来源: local")
    assert page.evaluate("sessionStorage.getItem('gridpipe.key')") == "good"
    page.reload()
    page.wait_for_selector("tr.total")
    expect(id_of(page, "test-event")).to_be_visible()
    assert shown == [f"Bearer {typed}" for typed in ("bad", "good", "baad", "lost", "good")]


def test_a_refusal_that_passes_does_not_end_the_page(page: Page) -> None:
    """As while the keys could not be read for a moment: it stopped for ever, and its key was forgotten."""
    refuses, told_of = [True], list[str]()

    def guarded(answer: dict[str, Any]) -> Any:
        def route_(route: Route) -> None:
            told_of.append(urlsplit(route.request.url).path)
            if refuses[0]:
                route.fulfill(status=401, json={"code": "unauthorised"})
            else:
                route.fulfill(json=answer)

        return route_

    towns = {"as_of": instant(NOW), "rows": [row("440704001")], "again_in_seconds": 60}
    answers = {"/v1/live/tables/town": towns, "/v1/live/matters": CATALOGUE}
    answers["/v1/live/key"] = {"sources": ["local"], "backfill": False}
    page.clock.install()
    page.add_init_script("sessionStorage.setItem('gridpipe.key', 'good')")
    open_canned(page, {path: guarded(answer) for path, answer in answers.items()})
    status, dialog = page.get_by_role("status").first, id_of(page, "dialog")
    expect(status).to_have_text("读取需要密钥：请输入")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    told_of.clear()
    page.clock.run_for(50_000)
    assert told_of == []
    expect(status).to_have_text("读取需要密钥：请输入")
    refuses[0] = False
    page.clock.run_for(15_000)
    expect(status).to_have_text("实时")
    expect(dialog).to_be_hidden()
    expect(page.locator(".cell[data-code='440704001'] .name")).to_have_text("江南")
    expect(page.locator(".cell[data-code='440704001'] .value")).to_have_text("90.0")
    expect(id_of(page, "test-event")).to_be_visible()
    open_streams = "window.streams.filter(({ open }) => open).map(({ key }) => key)"
    assert page.evaluate(open_streams) == ["Bearer good"]


def test_another_key_opens_another_stream(page: Page) -> None:
    """The one that runs ends with the key that it began with."""
    open_canned(page, {"/v1/live/key": {"sources": [], "backfill": False}})
    id_of(page, "key").click()
    for key in ("first", "second", "second"):
        id_of(page, "key-input").fill(key)
        page.keyboard.press("Enter")
        page.wait_for_function(
            "key => window.streams.some((one) => one.open && one.key === `Bearer ${key}`)", arg=key
        )
    page.wait_for_timeout(300)
    streams = page.evaluate("window.streams.map(({ key = '', open }) => [key, open])")
    assert streams == [["", False], ["Bearer first", False], ["Bearer second", True]]
    expect(page.get_by_role("status").first).to_have_text("实时")


def test_with_the_key_goes_what_it_opened(page: Page) -> None:
    refused = {"reasons": [], "newest": [rejection(1, NOW)], "life_safety": {"reports": 0, "newest": None}}
    open_canned(page, {"/v1/live/key": {"sources": [], "backfill": False}}, rejected=refused)
    id_of(page, "key").click()
    id_of(page, "key-input").fill("good")
    page.keyboard.press("Enter")
    expect(page.locator(".newest li")).to_have_count(1)
    page.add_init_script("window.told = {}")  # without a key nothing is told
    id_of(page, "key-form").get_by_role("button", name="清除密钥").click()
    expect(page.locator(".newest li")).to_have_count(0)
    expect(id_of(page, "tile-closure_rate").locator(".value")).to_have_text("—")
    expect(id_of(page, "dialog")).to_be_hidden()
    assert page.evaluate("[sessionStorage.getItem('gridpipe.key'), window.streams[0].key ?? null]") == [
        None,
        None,
    ]


@pytest.mark.slow
def test_behind_counts_the_way_to_this_screen(page: Page) -> None:
    """The clock was set anew by each message, however long that had been on its way."""
    page.clock.install(time=NOW)
    open_canned(page)
    page.clock.pause_at(NOW + timedelta(minutes=20))  # by when what was measured so far counts no more
    behind, clock = id_of(page, "behind"), page.locator(".now b")

    def comes(sent: float, now: float) -> None:
        """What was said so many seconds after NOW."""
        page.clock.run_for(round((now - passed[0]) * 1_000))
        passed[0] = now
        at = instant(NOW + timedelta(seconds=sent))
        tell(page, "current", {"at": at})
        tell(page, "figures", figures(at=at))

    passed = [0.0]
    page.evaluate("window.quiet = true")
    comes(0, 0)
    expect(behind).to_have_text(re.compile(r"滞后 0\.\d 秒"))
    comes(1, 8)  # held for seven seconds
    expect(behind).to_have_text(re.compile(r"滞后 [67]\.\d 秒"))
    expect(behind).to_have_css("color", "rgb(194, 48, 58)")
    expect(clock).to_have_text(re.compile("16:00:0[789]"))
    # this computer's clock is set: nothing changes
    page.clock.set_system_time(datetime(2031, 1, 1, tzinfo=UTC))
    comes(3, 10)
    expect(behind).to_have_text(re.compile(r"滞后 [67]\.\d 秒"))
    expect(clock).to_have_text(re.compile("16:00:(09|1[01])"))
    # the server's is: after ten minutes that is the time
    comes(700, 707)
    comes(701, 708)
    expect(behind).to_have_text(re.compile(r"滞后 0\.\d 秒"))
    expect(clock).to_have_text(re.compile("16:11:4[012]"))


def test_a_page_of_before_an_upgrade_is_loaded_anew_once(page: Page) -> None:
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    open_canned(page, figures=figures(page=Assets.load().digest))
    page.wait_for_timeout(2_500)
    assert len(loads) == 1  # it is the one that is served
    id_of(page, "tile-closure_rate").click()
    tell(page, "figures", figures(page="another"))
    page.wait_for_timeout(2_500)
    assert len(loads) == 1  # somebody looks at a sheet
    page.add_init_script("window.told.figures.page = 'another'")
    page.keyboard.press("Escape")
    page.wait_for_timeout(1_500)
    page.wait_for_selector("tr.total")
    assert len(loads) == 2
    page.wait_for_timeout(3_000)  # the same page came again: another look brings no other one
    assert len(loads) == 2
    tell(page, "figures", figures(page="a third"))
    page.wait_for_timeout(1_500)
    page.wait_for_selector("tr.total")
    assert len(loads) == 3


#: Seconds → in Chinese and English, and the same in a tile of the map.
DURATIONS = {
    40: ("40秒", "40 s", "<1分", "<1m"),
    150: ("2分钟", "2 min", "2分", "2m"),
    3_599: ("59分钟", "59 min", "59分", "59m"),
    10_800: ("3小时", "3 h", "3.0时", "3.0h"),
    11_100: ("3小时5分", "3 h 5 m", "3.1时", "3.1h"),
    86_400: ("24小时", "24 h", "24.0时", "24.0h"),
    190_800: ("2天5小时", "2 d 5 h", "2天", "2d"),
}


def test_a_duration_is_no_time_of_day(page: Page) -> None:
    open_canned(page)
    id_of(page, "metric").select_option("response_p50")
    cell = page.locator(".cell[data-code='440704']")
    column = page.locator("tr[data-key='440704'] td").nth(10)
    for seconds, (zh, en, brief_zh, brief_en) in DURATIONS.items():
        slow = row("440704", response_seconds=dict.fromkeys(("p50", "p90", "p99"), seconds))
        tell(page, "district", {"as_of": instant(NOW + timedelta(seconds=seconds)), "rows": [slow]})
        expect(cell.locator(".value")).to_have_text(brief_zh)
        expect(cell).to_have_attribute("title", f"江海区 响应 p50 {zh}")
        expect(column).to_have_text(zh)
        id_of(page, "language").click()
        expect(cell.locator(".value")).to_have_text(brief_en)
        expect(column).to_have_text(en)
        id_of(page, "language").click()


def test_a_tile_of_the_map_tells_the_counts_behind_its_rate(page: Page) -> None:
    towns = {
        "as_of": instant(NOW),
        "again_in_seconds": 60,
        "rows": [row("440704001"), row("440704004", parts=None)],
    }
    open_canned(page, {"/v1/live/tables/town": towns})
    town, other = (page.locator(f".cell[data-code='44070400{n}']") for n in (1, 4))
    expect(town).to_have_attribute("title", "江海区江南街道 办结率 90.0%（18 / 20）")
    expect(town).to_have_attribute("aria-label", "江海区江南街道 办结率 90.0%（18 / 20）")
    expect(other).to_have_attribute("title", "江海区 办结率 90.0%")
    id_of(page, "language").click()
    expect(town).to_have_attribute("title", re.compile(r" Closure rate 90\.0% \(18 / 20\)$"))
    id_of(page, "metric").select_option("cases")
    expect(town).to_have_attribute("title", re.compile(" 20$"))


def test_a_town_without_a_counted_case_is_coloured_by_what_is_known_of_it(page: Page) -> None:
    """All that it reported was rejected, or made void. A count of nothing is no colour there."""
    found = row("440704001", cases=0, open=0, rejected_reports=5, void_rate=1.0, closure_rate=None)
    towns = {"as_of": instant(NOW), "again_in_seconds": 60, "rows": [found]}
    open_canned(page, {"/v1/live/tables/town": towns})
    cell = page.locator(".cell[data-code='440704001']")
    for metric, colour in (
        ("void_rate", "h5"),
        ("rejected_reports", "q5"),
        ("closure_rate", "none"),
        ("open", "none"),
        ("cases", "none"),
    ):
        id_of(page, "metric").select_option(metric)
        expect(cell).to_have_class(re.compile(rf"\b{colour}\b"))


def test_rows_of_few_cases_are_said_to_be_left_out(page: Page) -> None:
    villages = without_small_cells(
        {"rows": [row("440704001001"), row("440704001002", reports=2, cases=2)]}, "village", 5
    )
    table = villages | {"as_of": instant(NOW), "again_in_seconds": 60}
    towns = {"as_of": instant(NOW), "again_in_seconds": 60, "rows": [row("440704001")]}
    open_canned(page, {"/v1/live/tables/town": towns, "/v1/live/tables/village": table})
    note = id_of(page, "few-cases")
    expect(note).to_be_hidden()
    page.locator(".cell[data-code='440704001']").click()
    expect(page.locator("tr[data-key='440704001002'] td").first).to_have_text("—")
    expect(note).to_have_text("件数过少的行不显示（保护隐私）")
    id_of(page, "language").click()
    expect(note).to_have_text("rows of few cases are not shown (privacy)")


def test_a_table_beside_the_stream_says_until_when_it_holds(page: Page) -> None:
    """Those of the map and of the percentiles are asked for apart: a failure made old figures current."""
    status, rows = [200], {"town": [row("440704001")], "department": [row("public_security")]}

    def table(route: Route) -> None:
        by = urlsplit(route.request.url).path.rpartition("/")[2]
        if status[0] == 200:
            route.fulfill(json={"as_of": instant(NOW), "rows": rows[by], "again_in_seconds": 0})
        else:
            route.fulfill(status=status[0], json={"code": "store_unavailable", "message": "in English"})

    open_canned(page, {f"/v1/live/tables/{by}": table for by in rows})
    ages = [id_of(page, "map-as-of"), id_of(page, "times-as-of")]
    quiet, red = "rgb(90, 104, 119)", "rgb(194, 48, 58)"
    for age in ages:
        expect(age).to_have_text("截至 16:00:00")
        expect(age).to_have_attribute("datetime", instant(NOW))
        expect(age).to_have_css("color", quiet)
    status[0] = 503
    tell(page, "district", {"as_of": instant(ago(-0.5)), "rows": [row("440704")]})
    page.wait_for_timeout(500)
    for age in ages:  # half a minute is what a table may take
        expect(age).to_have_text("截至 16:00:00")
        expect(age).to_have_css("color", quiet)
    tell(page, "district", {"as_of": instant(ago(-0.6)), "rows": [row("440704")]})
    for age in ages:
        expect(age).to_have_text("截至 16:00:00 · ClickHouse 暂无应答 · 正在重试")
        expect(age).to_have_css("color", red)
    id_of(page, "language").click()
    for age in ages:
        expect(age).to_have_text("as of 16:00:00 · ClickHouse does not answer · trying again")
    tell(page, "district", {"as_of": instant(NOW), "rows": [row("440704")]})
    status[0] = 200
    for age in ages:
        expect(age).to_have_text("as of 16:00:00")
        expect(age).to_have_css("color", quiet)


def test_a_table_that_never_came_says_why_and_is_asked_for_again(page: Page) -> None:
    asked: list[int] = []

    def villages(route: Route) -> None:
        asked.append(1)
        if len(asked) < 3:
            return route.abort() if len(asked) == 2 else route.fulfill(status=500, json={})
        return route.fulfill(
            json={"as_of": instant(NOW), "rows": [row("440704001001")], "again_in_seconds": 60}
        )

    towns = {"as_of": instant(NOW), "rows": [row("440704001")], "again_in_seconds": 60}
    open_canned(page, {"/v1/live/tables/town": towns, "/v1/live/tables/village": villages})
    note = id_of(page, "area-note")
    page.locator(".cell[data-code='440704001']").click()
    expect(note).to_have_text("服务出错，原因见其日志 · 正在重试")
    expect(note).to_have_css("color", "rgb(194, 48, 58)")
    expect(note).to_have_text("连不上服务 · 正在重试")
    expect(page.locator("tr[data-key='440704001001']")).to_be_visible()
    expect(note).to_be_hidden()
    expect(id_of(page, "as-of")).to_have_text("截至 16:00:00")


def test_an_answer_that_does_not_come_is_given_up(page: Page) -> None:
    """A way that is gone says nothing: names and tables were never asked for again. Half a minute is a
    second here."""
    held: dict[str, int] = {}

    def hold_once(answer: dict[str, Any]) -> Any:
        def route_(route: Route) -> None:
            path = urlsplit(route.request.url).path
            held[path] = held.get(path, 0) + 1
            if held[path] > 1:
                route.fulfill(json=answer)

        return route_

    page.add_init_script(
        """(() => {
            const real = AbortSignal.timeout.bind(AbortSignal);
            AbortSignal.timeout = (ms) => real(ms / 30);
        })();"""
    )
    towns = {"as_of": instant(NOW), "rows": [row("440704001")], "again_in_seconds": 60}
    hit = {"q": "c1", "cases": [], "events": [], "complete": True, "note": None}
    answers = {"/v1/live/tables/town": towns, "/v1/live/matters": CATALOGUE, "/v1/live/search": hit}
    open_canned(page, {path: hold_once(answer) for path, answer in answers.items()})
    expect(id_of(page, "map-as-of")).to_have_text("连不上服务 · 正在重试")
    expect(page.locator(".cell[data-code='440704001'] .name")).to_have_text("江南")
    expect(id_of(page, "map-as-of")).to_have_text("截至 16:00:00")
    look_for(page, "c1")
    expect(id_of(page, "problem")).to_have_text("连不上服务，请稍后再试")
    assert held == dict.fromkeys(answers, 2) | {"/v1/live/search": 1}


def test_an_answer_that_breaks_off_is_none(page: Page) -> None:
    """Its body was taken for an empty one, which the page then tripped over."""
    tried: list[int] = []

    def cut(route: Route) -> None:
        tried.append(1)
        if len(tried) == 1:
            route.fulfill(body='{"matters": [', content_type="application/json")
        else:
            route.fulfill(json=CATALOGUE)

    open_canned(page, {"/v1/live/matters": cut})
    expect(page.locator(".cell[data-code='440704001'] .name")).to_have_text("江南")


def test_a_message_that_cannot_be_taken_costs_itself(browser: Browser) -> None:
    """It ended the stream, whose connection stayed open, and the next one began with the same message."""
    said: list[str] = []
    page = browser.new_page(locale="zh-CN")
    page.on("console", lambda line: said.append(line.text))
    open_canned(page)
    page.evaluate("window.tell('trend', null)")
    tell(page, "modes", {"modes": [{"mode": "flood", "level": "II", "area_code": "4407"}]})
    expect(id_of(page, "modes")).to_contain_text("防汛 II")
    assert [line.partition(" TypeError")[0] for line in said] == ["a message of the stream was not taken"]
    assert page.evaluate("window.streams.map(({ open }) => open)") == [True]
    # whichever way one ends, nothing of it stays
    page.evaluate("window.streams[0].end()")
    page.wait_for_function("() => window.streams.length === 2")
    assert page.evaluate("window.streams.map(({ open }) => open)") == [False, True]
    page.context.close()


#: What is written on what, painted: ratio of contrast; and of a field's border to both sides of it.
CONTRAST = """() => {
    const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const style = (node) => getComputedStyle(node);
    const above = (node) => (node ? [node, ...above(node.parentElement)] : []);
    const light = (...colours) => {  // painted one over the other
        for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((part) => part / 255).map((p) => (p <= 0.04045 ? p / 12.92 : ((p + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => above(node).map((one) => style(one).backgroundColor).reverse();
    const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const written = [...document.querySelectorAll("body *")].filter((node) =>
        [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim())
        && node.checkVisibility({ visibilityProperty: true }));
    const name = (node) => `${node.className} ${node.textContent.slice(0, 20)}`;
    return {
        faded: written.filter((node) => above(node).some((one) => style(one).opacity < 1)).map(name),
        pale: written.filter((node) => node.tagName !== "OPTION")
            .filter((node) => ratio(light(...ground(node), style(node).color), light(...ground(node))) < 4.5)
            .map(name),
        hints: [...document.querySelectorAll("[placeholder]")].filter((node) => node.checkVisibility())
            .filter((node) => ratio(
                light(...ground(node), getComputedStyle(node, "::placeholder").color), light(...ground(node))
            ) < 4.5).map(name),
        edges: [...document.querySelectorAll("input, select, textarea")]
            .filter((node) => node.checkVisibility())
            .filter((node) => [node, node.parentElement].some((side) =>
                ratio(light(...ground(side), style(node).borderTopColor), light(...ground(side))) < 3))
            .map(name),
        written: written.length,
    };
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_written_can_be_read_and_fields_be_seen(page: Page, theme: str) -> None:
    """WCAG AA, as it is painted: 4.5 to 1, and 3 to 1 for the border that a field is known by."""
    rates = [0.5, 0.85, 0.92, 0.97, 1.0]
    codes = re.findall(r'\["(4407\d{5})"', (STATIC / "tiles.js").read_text())
    assert len(codes) == 73
    rows = [
        row(code, closure_rate=rates[n % 5], cases=8 * (n % 5), overdue=9 * (n % 5))
        for n, code in enumerate(codes)
    ]
    towns = {"as_of": instant(NOW), "rows": rows, "again_in_seconds": 60}
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    open_canned(
        page, {"/v1/live/tables/town": towns, "/v1/live/key": {"sources": ["local"], "backfill": False}}
    )
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    nothing: dict[str, Any] = {"faded": [], "pale": [], "hints": [], "edges": []}

    def found() -> dict[str, Any]:
        told: dict[str, Any] = page.evaluate(CONTRAST)
        assert told.pop("written") > 50
        return told

    for within in (False, True):  # the others are dimmed then
        if within:
            page.locator(".cell[data-code='440704']").click()
            expect(page.locator(".cell.dim")).not_to_have_count(0)
        for metric in ("closure_rate", "cases", "overdue"):
            id_of(page, "metric").select_option(metric)
            expect(page.locator(f".cell[data-code='{codes[4]}'] .value")).not_to_be_empty()
            assert found() == nothing
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"contrast-{theme}-{'within' if within else 'all'}.png")
    id_of(page, "key").click()
    id_of(page, "key-input").fill("good")
    page.keyboard.press("Enter")
    expect(id_of(page, "key-form")).to_contain_text("local")
    page.keyboard.press("Escape")
    id_of(page, "test-event").click()
    expect(id_of(page, "test-form")).to_be_visible()
    assert found() == nothing
    page.screenshot(path=PICTURES / f"contrast-{theme}-form.png")


def test_a_sheet_is_closed_by_a_click_beside_it_and_by_no_other(page: Page) -> None:
    open_canned(page)
    dialog, mouse = id_of(page, "dialog"), page.mouse

    def box() -> tuple[float, float, float]:
        id_of(page, "tile-closure_rate").click()
        expect(dialog).to_be_visible()
        found = dialog.bounding_box()
        return found["x"], found["y"], found["height"]

    left, top, height = box()
    # text that is selected out to beyond the edge, and the other way
    formula = dialog.locator("p").last.bounding_box()
    inside = (formula["x"] + 30, formula["y"] + 8)
    for start, end in ((inside, (left - 30, top)), ((5, 5), (left + 40, top + 60))):
        mouse.move(*start)
        mouse.down()
        mouse.move(*end, steps=4)
        mouse.up()
        page.wait_for_timeout(200)
        expect(dialog).to_be_visible()
    mouse.click(left + 5, top + height - 5)  # its padding
    page.wait_for_timeout(200)
    expect(dialog).to_be_visible()
    mouse.click(left - 20, top + 40)
    expect(dialog).to_be_hidden()


def test_the_focus_stays_on_its_row_while_the_table_is_sorted_anew(page: Page) -> None:
    """A row that goes elsewhere is taken out and put in again, and lost the focus with that."""
    codes = ("440703", "440704", "440705")

    def told(*open_cases: int) -> dict[str, Any]:
        rows = [row(code, open=n) for code, n in zip(codes, open_cases, strict=True)]
        return {"as_of": instant(NOW), "rows": rows}

    open_canned(page, district=told(3, 2, 1))
    header = id_of(page, "areas").locator("thead th").nth(9)
    header.get_by_role("button").click()
    order = "[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.key)"
    focused = "document.activeElement.closest('tr')?.dataset.key ?? null"
    for code in codes:
        tell(page, "district", told(3, 2, 1))
        page.locator(f"tr[data-key='{code}'] th button").focus()
        for given, wanted in (((1, 2, 3), codes[::-1]), ((1, 3, 2), (codes[1], codes[2], codes[0]))):
            tell(page, "district", told(*given))
            page.wait_for_function(f"keys => {order}.slice(0, 3).join() === keys", arg=",".join(wanted))
            assert page.evaluate(focused) == code
    # who went away meanwhile is not fetched back
    page.get_by_role("searchbox").focus()
    tell(page, "district", told(3, 2, 1))
    page.wait_for_timeout(300)
    assert page.evaluate("document.activeElement.type") == "search"


def open_test_event(page: Page, look: Any) -> None:
    """The filled form, with a key for two sources. look : handles the asking for what was sent."""
    key = {"sources": ["one", "other"], "backfill": False}
    open_canned(page, {"/v1/live/key": key, "/v1/events": {"accepted": 1}})
    page.route("**/v1/events/*/*", look)
    id_of(page, "key").click()
    id_of(page, "key-input").fill("good")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    id_of(page, "test-event").click()


def test_what_was_sent_is_opened_as_it_was_sent(page: Page) -> None:
    """The form may have been changed since."""
    asked: list[str] = []

    def look(route: Route) -> None:
        asked.append(urlsplit(route.request.url).path)
        route.fulfill(json=explained("e1"))

    open_test_event(page, look)
    form = id_of(page, "test-form")
    form.get_by_role("button", name="发送").click()
    link = id_of(page, "test-result").get_by_role("button")
    expect(link).to_be_visible()
    form.get_by_label("来源").select_option("other")
    link.click()
    expect(id_of(page, "explain")).to_be_visible()
    assert len(asked) == 2
    assert len(set(asked)) == 1
    assert asked[0].startswith("/v1/events/one/test-")


def test_what_was_sent_is_looked_for_seldom_and_only_in_its_sheet(page: Page) -> None:
    """Each look is a line of the audit log."""
    asked: list[float] = []

    def look(route: Route) -> None:
        asked.append(time.monotonic())
        route.fulfill(status=404, json={"code": "event_not_found"})

    open_test_event(page, look)
    result = id_of(page, "test-result")
    id_of(page, "test-form").get_by_role("button", name="发送").click()
    expect(result).to_contain_text("已发送")
    page.wait_for_timeout(6_000)
    assert 5 <= len(asked) <= 11, asked  # 0.15, 0.23 … s between them, then one
    page.keyboard.press("Escape")
    page.wait_for_timeout(1_500)
    asked.clear()
    id_of(page, "test-event").click()
    page.wait_for_timeout(3_000)
    assert asked == []
    expect(result).to_be_hidden()


def test_a_wide_and_low_window_can_be_scrolled(page: Page) -> None:
    """Everything stood on one screen from a width on, however low: what did not fit could not be reached."""
    page.set_viewport_size({"width": 2560, "height": 720})
    open_canned(page)
    page.mouse.move(1_200, 300)
    page.mouse.wheel(0, 5_000)
    page.wait_for_function(
        "() => document.querySelector('.refused').getBoundingClientRect().bottom <= window.innerHeight"
    )
    assert page.evaluate("window.scrollY") > 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 1920, "height": 950})  # a browser's window on a screen of 1080 lines
    assert page.evaluate("document.documentElement.scrollHeight <= window.innerHeight")


def test_no_word_of_either_language_is_wider_than_a_phone(page: Page) -> None:
    """A choice is as wide as its longest word."""
    page.set_viewport_size({"width": 375, "height": 812})
    open_canned(page)
    for _ in range(2):
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        id_of(page, "language").click()


def test_words(page: Page) -> None:
    departments = {"as_of": instant(NOW), "again_in_seconds": 60, "rows": [row("public_security")]}
    matter: dict[str, Any] = {
        "code": "PO-01",
        "name_zh": "警情",
        "name_en": "Police",
        "lead_department": "public_security",
    }
    matter |= {"response_minutes": 30, "resolution_hours": 24}
    answers = {
        "/v1/live/tables/department": departments,
        "/v1/live/matters": CATALOGUE | {"matters": [matter]},
    }
    open_canned(page, answers)
    foot = id_of(page, "tile-overdue").locator(".foot")
    id_of(page, "times-as-table").click()
    heads = id_of(page, "times-table").get_by_role("columnheader")
    line = id_of(page, "times-table").locator("tbody tr")
    # what the report came without: nothing tells whether a photo was taken since
    unproven = id_of(page, "metric").locator("option[value=unproven]")
    expect(unproven).to_have_text("上报时未附照片的案件")
    expect(foot).to_have_text("占未办结 50.0%")
    expect(id_of(page, "why-delay_seconds")).to_contain_text("99% 的请求不超过此值")
    # not the one that an active mode sets, which changes nothing of the resolution
    expect(id_of(page, "modes")).to_be_hidden()
    expect(heads.last).to_have_text("所辖事项的时限（平时）")
    expect(line).to_have_text(re.compile(r"^公安局\s*19\s*10分钟\s*2小时\s*25小时\s*30分钟\s*$"))
    id_of(page, "language").click()
    expect(foot).to_have_text("50.0% of open")
    expect(unproven).to_have_text("Cases reported without the required photo")
    expect(heads.last).to_have_text("Limits of its matters (routine)")
    expect(line.locator("td").last).to_have_text("30 min")
    id_of(page, "resolution_seconds").click()
    expect(heads.last).to_have_text("Limits of its matters")
    expect(line.locator("td").last).to_have_text("24 h")


def test_an_emergency_mode_is_named_beside_the_limits(page: Page) -> None:
    modes = [("typhoon", "I", "4407"), ("flood", "II", "440704"), ("heat", "IV", "440704001")]
    told = [dict(zip(("mode", "level", "area_code"), mode, strict=True)) for mode in modes]
    open_canned(page, modes={"modes": told})
    expect(id_of(page, "modes")).to_have_text(
        "应急状态生效，优先事项的响应时限可更短：防风 I · 江门市、防汛 II · 江海区、高温 IV · 江海区江南街道"
    )
    id_of(page, "language").click()
    expect(id_of(page, "modes")).to_contain_text(
        "typhoon I · Jiangmen, flood II · Jianghai, heat IV · Jiangnan, "
    )
    tell(page, "modes", {"modes": []})
    expect(id_of(page, "modes")).to_be_hidden()
