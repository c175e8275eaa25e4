"""The live page while something is wrong: the stream, a key, an answer; and what must not be overlooked."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from playwright.sync_api import Page, Route, expect

from tests.e2e.service import Service
from tests.page.browser import id_of, slowness, until_same
from tests.page.conftest import POINT, NewPage, citizen_report

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TOWN = "440704001"


def cases_on_the_map(page: Page, code: str = TOWN) -> int:
    return int(page.locator(f".cell[data-code='{code}'] .value").inner_text().replace(",", "") or 0)


def cases_told(service: Service, by: str, key: str) -> int:
    (row,) = [row for row in service.get("/v1/kpi", by=by)["rows"] if row["key"] == key]
    cases: int = row["cases"]
    return cases


def test_the_map_follows_when_nothing_more_is_sent(new_page: NewPage, service: Service) -> None:
    """The second report comes when the towns' table was read a moment ago."""
    page = new_page()
    id_of(page, "metric").select_option("cases")
    before = until_same(page, lambda: cases_on_the_map(page), lambda: cases_told(service, "town", TOWN))
    city = page.locator("tr.total td:nth-of-type(3)")
    whole = cases_told(service, "city", "4407")
    slow = slowness()
    for n in (1, 2):
        service.send(citizen_report(f"map-{n}", location=POINT))
        stored = time.monotonic()
        expect(city).to_have_text(f"{whole + n:,}")
    page.wait_for_function(
        "([code, cases]) => document.querySelector(`.cell[data-code='${code}'] .value`).innerText === cases",
        arg=[TOWN, f"{before + 2:,}"],
    )
    seen = time.monotonic()
    slow = max(slow, slowness(), service.busy)
    print(f"on the map {seen - stored:.2f} s after it was stored, slowed {slow:.1f} times")
    assert seen - stored < 4 * slow


def test_a_table_that_is_older_than_the_news_is_asked_for_again(new_page: NewPage, service: Service) -> None:
    """Others may just have asked: the server hands out what it holds, and says when there is a newer one."""
    page = new_page(expect_noise="Failed to load")
    district = service.get("/v1/live/tables/district")
    towns = service.get("/v1/live/tables/town")
    first, second = "2099-01-01T00:00:01.000Z", "2099-01-01T00:00:02.000Z"
    opened, asked = [], []

    def news(route: Route) -> None:
        opened.append(1)
        if len(opened) > 1:
            return route.abort()
        messages = [json.dumps(district | {"as_of": at}) for at in (first, second)]
        body = "".join(f"event: district\ndata: {message}\n\n" for message in messages)
        return route.fulfill(content_type="text/event-stream", body=body)

    def table(route: Route) -> None:
        asked.append(1)
        new = len(asked) > 3
        rows = [row | {"cases": 7001 if new else 7000} for row in towns["rows"]]
        route.fulfill(json=towns | {"rows": rows, "as_of": second if new else first, "again_in_seconds": 0.6})

    page.route("**/v1/live", news)
    page.route("**/v1/live/tables/town", table)
    page.reload()
    id_of(page, "metric").select_option("cases")
    expect(page.locator(f".cell[data-code='{TOWN}'] .value")).to_have_text("7,001", timeout=30_000)
    page.wait_for_timeout(2_000)
    assert len(asked) == 4  # and then no more


def test_nothing_runs_while_the_stream_is_interrupted(new_page: NewPage, service: Service) -> None:
    page = new_page(expect_noise="Failed to load|ERR_")
    arrows = page.locator(".stages li:not(.from)")
    running = [
        id_of(page, f"tile-{name}").locator(".value") for name in ("events_per_second", "delay_seconds")
    ]
    expect(page.locator(".stages li.unknown")).to_have_count(0)
    expect(running[0]).not_to_have_text("—")
    service.send(citizen_report("break", location=POINT))
    expect(running[1]).not_to_have_text("—")
    page.route("**/v1/live", lambda route: route.abort())
    service.children()["http"].kill()
    expect(id_of(page, "banner")).to_contain_text("连接中断")
    expect(page.locator(".stages li.unknown")).to_have_count(arrows.count())
    for shaft in arrows.locator(".shaft").all():
        expect(shaft).to_have_css("background-color", "rgb(217, 223, 231)")
    for value in running:
        expect(value).to_have_text("—")
    expect(id_of(page, "tile-events_per_second").locator(".foot")).to_be_empty()
    # the last figures stay, and how old they are is told
    expect(id_of(page, "tile-closure_rate").locator(".value")).to_have_text(re.compile(r"[\d.]+%"))
    expect(id_of(page, "behind")).to_have_css("color", "rgb(194, 48, 58)")
    page.unroute("**/v1/live")
    expect(id_of(page, "banner")).to_be_hidden()
    expect(page.locator(".stages li.unknown")).to_have_count(0)
    expect(running[0]).not_to_have_text("—")


def test_a_rejection_about_life_safety_is_an_alarm(new_page: NewPage, service: Service) -> None:
    page = new_page()
    alarm = id_of(page, "life-safety")
    for number in ("danger-1", "danger-2"):
        service.send(citizen_report(number, matter_code="REF-110"))
        rejected = service.get(f"/v1/events/local/page-{number}")
        assert (rejected["outcome"], rejected["decision"]["life_safety"]) == ("rejected", True)
    recent = service.get("/v1/rejections", life_safety="true")["rows"]
    assert all(row["life_safety"] for row in recent)
    assert len(recent) >= 2
    # everything that this service knows was received a moment ago
    expect(alarm).to_have_text(f"⚠ 有涉及人身安全的上报不予受理，近一小时件数：{len(recent)}")
    expect(alarm).to_have_attribute("role", "alert")
    id_of(page, "language").click()
    expect(alarm).to_have_text(f"⚠ Reports about life safety were rejected; in the last hour: {len(recent)}")
    button = alarm.get_by_role("button")
    expect(button).to_have_attribute("title", "Open the list")
    button.click()
    expect(id_of(page, "dialog").get_by_role("heading", level=2)).to_have_text("Rejections · life safety")
    # every one of them, newest first, with the reason
    rows = id_of(page, "of-reason").locator("li")
    expect(rows).to_have_count(len(recent))
    assert rows.evaluate_all("(all) => all.map((li) => li.dataset.event)") == [r["event_id"] for r in recent]
    expect(rows.first.locator(".why-not")).not_to_be_empty()
    rows.first.get_by_role("button").click()
    expect(id_of(page, "explain")).to_be_visible()
    expect(id_of(page, "dialog").get_by_role("heading", level=2)).to_have_text("Event local/page-danger-2")


REFUSALS: list[tuple[int, dict[str, Any], str, str]] = [
    (404, {"code": "event_not_found"}, "没有这个事件，或尚未入库", "no such event"),
    (410, {"code": "past_retention"}, "这个事件已过保存期限", "past its days of retention"),
    (503, {"code": "store_unavailable"}, "ClickHouse 暂无应答", "ClickHouse does not answer"),
    (429, {"code": "some_new_code"}, "请求太多", "too many requests"),
    (418, {}, "读取失败 · HTTP 418", "could not be read · HTTP 418"),
]


def test_what_the_server_refuses_is_said_in_the_language_of_the_page(new_page: NewPage) -> None:
    page = new_page(expect_noise="Failed to load")
    problem = id_of(page, "problem")

    def look_for(text: str) -> None:
        page.get_by_role("searchbox").fill(text)
        page.keyboard.press("Enter")

    def is_told(zh: str, en: str) -> None:
        expect(problem).to_contain_text(zh)
        page.keyboard.press("Escape")
        id_of(page, "language").click()
        look_for("page-1")
        expect(problem).to_contain_text(en)
        page.keyboard.press("Escape")
        id_of(page, "language").click()

    def refusing(status: int, body: dict[str, Any]) -> Callable[[Route], None]:
        return lambda route: route.fulfill(status=status, json={"message": "in English", **body})

    for status, body, zh, en in REFUSALS:
        page.route("**/v1/live/search*", refusing(status, body))
        look_for("page-1")
        is_told(zh, en)
        page.unroute("**/v1/live/search*")
    page.route("**/v1/live/search*", lambda route: route.abort())
    look_for("page-1")
    is_told("连不上服务", "the service cannot be reached")


def test_a_forgotten_key_ends_what_it_opened(new_page: NewPage, service: Service) -> None:
    """As on a listener that asks for a key: whatever comes without one is refused."""
    page = new_page(expect_noise="401")
    status, asked = page.get_by_role("status").first, []

    def guard(route: Route) -> None:
        if "authorization" in route.request.headers:
            return route.continue_()
        asked.append(route.request.url)
        return route.fulfill(status=401, json={"code": "unauthorised", "message": "a key is needed"})

    id_of(page, "key").click()
    # Not before the dialog is open: a page that happens to ask just then opens it by itself, under the click.
    page.route("**/v1/live**", guard)
    id_of(page, "key-input").fill(service.key)
    page.keyboard.press("Enter")
    form = id_of(page, "key-form")
    expect(form).to_contain_text("local")
    asked.clear()  # of before the key
    form.get_by_role("button", name="清除密钥").click()
    expect(status).to_contain_text("读取需要密钥")
    expect(id_of(page, "banner")).to_contain_text("读取需要密钥")
    page.wait_for_timeout(7_000)
    assert len(asked) == len(set(asked)), asked  # by the page that is loaded anew, each once
    # another key opens it again
    id_of(page, "key-input").fill(service.key)
    page.keyboard.press("Enter")
    expect(status).to_contain_text("实时")
    expect(id_of(page, "banner")).to_be_hidden()


def test_a_table_that_is_refused_is_not_asked_for_for_ever(new_page: NewPage) -> None:
    page = new_page(expect_noise="403")
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=403, json={"code": "not_a_read_key", "message": "in English"})

    id_of(page, "by-matter").click()
    page.route("**/v1/live/tables/**", refuse)  # after the click, which the dialog would catch
    expect(page.get_by_role("status").first).to_contain_text("读取需要密钥")
    page.wait_for_timeout(7_000)
    assert 1 <= len(asked) <= 3, asked


def figures_of(page: Page) -> dict[str, Any]:
    """What the service really tells now, off its stream."""
    found: dict[str, Any] = page.evaluate(
        """async () => {
          const reader = (await fetch("/v1/live")).body.pipeThrough(new TextDecoderStream()).getReader();
          for (let held = ""; ;) {
            held += (await reader.read()).value;
            const told = held.match(/event: figures\\ndata: (.*)\\n/);
            if (told) { reader.cancel(); return JSON.parse(told[1]); }
          }
        }"""
    )
    return found


def tell_only(page: Page, messages: dict[str, Any]) -> None:
    """A stream that says these, and figures each second as the real one."""
    text = "".join(f"event: {topic}\ndata: {json.dumps(data)}\n\n" for topic, data in messages.items())
    page.add_init_script(
        f"window.told = {json.dumps(text)};"
        """(() => {
          const real = window.fetch;
          window.fetch = (address, ...rest) => {
            if (address !== "/v1/live") return real(address, ...rest);
            const say = (out) => out.enqueue(new TextEncoder().encode(window.told));
            const start = (out) => { say(out); setInterval(say, 1000, out); };
            return Promise.resolve(new Response(new ReadableStream({ start })));
          };
        })();"""
    )
    page.reload()
    page.wait_for_selector("tr.total")


def test_a_log_that_does_not_answer_is_red_and_said(new_page: NewPage) -> None:
    page = new_page()
    figures = figures_of(page)
    assert figures["log_answers"] is True
    tell_only(page, {"figures": figures | {"log_answers": False}})
    topic, banner = id_of(page, "flow-topic"), id_of(page, "banner")
    expect(topic).to_have_class(re.compile("stuck"))
    expect(topic).to_contain_text("无应答")
    expect(banner).to_contain_text("消息队列没有应答")
    id_of(page, "language").click()
    expect(banner).to_contain_text("the log does not answer")
    expect(id_of(page, "flow-gateway")).not_to_have_class(re.compile("stuck"))


def test_blocks_that_are_not_written_make_the_topic_red(new_page: NewPage) -> None:
    page = new_page()
    figures = figures_of(page)
    figures["flow"]["gateway"]["not_written_per_second"] = 2.5
    tell_only(page, {"figures": figures})
    topic = id_of(page, "flow-topic")
    expect(topic).to_have_class(re.compile("stuck"))
    expect(topic.locator(".alarm")).to_have_text("未写入")
    expect(id_of(page, "banner")).to_be_hidden()


def rename_a_town(page: Page, service: Service) -> list[int]:
    """From the second asking on the catalogue has another name for it."""
    catalogue = service.get("/v1/live/matters")
    asked: list[int] = []

    def answer(route: Route) -> None:
        asked.append(1)
        new = {"towns": catalogue["towns"] | {TOWN: "新名镇"}} if len(asked) > 1 else {}
        route.fulfill(json=catalogue | new)

    page.route("**/v1/live/matters", answer)
    return asked


def test_names_are_asked_for_again_when_the_stream_comes_back(new_page: NewPage, service: Service) -> None:
    page = new_page()
    rename_a_town(page, service)
    page.route(
        "**/v1/live", lambda route: route.fulfill(content_type="text/event-stream", body=": ended\n\n")
    )
    page.reload()
    expect(page.locator(f".cell[data-code='{TOWN}'] .name")).to_have_text("新名", timeout=30_000)


def test_a_page_that_stays_open_follows_the_catalogue(new_page: NewPage, service: Service) -> None:
    page = new_page()
    asked = rename_a_town(page, service)
    page.clock.install()
    tell_only(page, {})
    name = page.locator(f".cell[data-code='{TOWN}'] .name")
    expect(name).to_have_text(re.compile("."))
    page.clock.fast_forward(9 * 60_000)
    assert len(asked) == 1
    page.clock.fast_forward(2 * 60_000)
    expect(name).to_have_text("新名", timeout=30_000)


def test_charts_come_though_their_library_did_not_at_first(new_page: NewPage) -> None:
    page = new_page(expect_noise="Failed to load")
    tried: list[int] = []

    def fail_once(route: Route) -> None:
        tried.append(1)
        if len(tried) == 1:
            route.abort()
        else:
            route.continue_()

    page.route("**/echarts.common.min.js", fail_once)
    page.reload()
    expect(id_of(page, "times-chart").locator("canvas")).to_be_visible(timeout=30_000)
    assert len(tried) == 2


@pytest.mark.parametrize("name", ["decode", "deduplicate", "admit", "enrich", "store"])
def test_what_holds_the_others_up_is_red_and_said(new_page: NewPage, name: str) -> None:
    page = new_page()
    figures = figures_of(page)
    figures["flow"]["slowest"] = name
    tell_only(page, {"figures": figures})
    expect(page.locator(".stages li.stuck")).to_have_count(1)
    expect(id_of(page, f"flow-{name}").locator(".alarm")).to_have_text("最慢环节")
    id_of(page, "language").click()
    expect(id_of(page, f"flow-{name}").locator(".alarm")).to_have_text("slowest")


def test_a_worker_that_begins_shows_no_zero(new_page: NewPage) -> None:
    page = new_page()
    figures = figures_of(page)
    flow = figures["flow"]
    flow["topic"] |= {"known": False, "lag_records": None, "lag_seconds": None}
    flow["outcomes_per_second"] = dict.fromkeys(flow["outcomes_per_second"])
    flow["gateway"]["accepted_per_second"] = flow["store"]["retries_per_second"] = None
    tell_only(page, {"figures": figures | {"events_per_second": None}})
    tile = id_of(page, "tile-events_per_second")
    expect(tile.locator(".value")).to_have_text("—")
    expect(tile.locator(".foot")).to_have_text("队列 —")
    for name in ("topic", "gateway", "decode", "deduplicate", "admit", "enrich", "store"):
        expect(id_of(page, f"flow-{name}").locator(".rate")).to_have_text("—")
    expect(id_of(page, "flow-decode")).to_have_class(re.compile("unknown"))
    expect(id_of(page, "flow-decode").locator(".facts")).to_contain_text("队列 —")


def test_a_partition_that_stands_still_is_named(new_page: NewPage, service: Service) -> None:
    """The last one here: the partition stays as it is until the service starts anew."""
    page = new_page()
    stage = id_of(page, "flow-decode")
    expect(stage).not_to_have_class(re.compile("stuck"))
    (address,) = [part for part in service.children()["tansu"].cmdline() if part.startswith("tcp://")][:1]
    producer = Producer({"bootstrap.servers": address.removeprefix("tcp://")})
    for _ in range(1_500):  # a thousand in a row are left alone
        producer.produce("grid.events", b"{broken", partition=3)
    assert producer.flush(30) == 0
    expect(stage).to_have_class(re.compile("stuck"), timeout=60_000 * slowness())
    expect(stage).to_contain_text("停滞的分区 3")
    assert service.send(citizen_report("beside-it"))["accepted"] == 1
    id_of(page, "language").click()
    expect(stage).to_contain_text("stuck partitions 3")
