"""The figures that stand in the page before any script has run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from pipeline.page.assets import Asset
from pipeline.page.board import Board
from pipeline.page.first import FirstPage
from pipeline.page.live import Live
from pipeline.runtime.http import build_app
from pipeline.settings import load_settings
from tests.integration.read_world import reader_over
from tests.unit.test_runtime_http import parts_of

INDEX = Asset.of("text/html", b"<b>@closure_rate@</b><i>@closure_rate_counts@</i><u>@open@</u><s>@data@</s>")


def live_page() -> Live:
    async def no_metrics() -> tuple[bytes, bytes | None]:
        return b"", None

    def gone() -> Any:
        raise OSError("connection refused")

    return Live(Board(reader_over(gone)), no_metrics)


def city(closed: int, cases: int, **more: Any) -> dict[str, Any]:
    rates = ("closure_rate", "response_rate", "timely_response_rate", "closure_on_time_rate")
    row: dict[str, Any] = dict.fromkeys((*rates, "handling_on_time_rate"))
    row["parts"] = {rate: [0, 0] for rate in row} | {"closure_rate": [closed, cases]}
    row |= {"closure_rate": closed / cases, "open": cases - closed, "overdue": 0}
    return {"rows": [row | more]}


def test_known_figures_stand_in_the_page_and_unknown_ones_are_a_dash() -> None:
    live = live_page()
    page = FirstPage(INDEX, live)
    assert page.now().body == "<b>—</b><i>—</i><u>—</u><s>{}</s>".encode()
    live._publish("city", city(19_999, 20_000))
    text = page.now().body.decode()
    assert text.startswith("<b>99.99%</b><i>19,999 / 20,000</i><u>1</u><s>{")  # cut, not rounded
    assert orjson.loads(re.findall("<s>(.*)</s>", text)[0]) == {"city": city(19_999, 20_000)}
    assert page.now() is page.now()
    live._publish("city", city(20_000, 20_000))
    assert b"<b>100.00%</b>" in page.now().body


def test_nothing_of_single_events_stands_in_it_and_no_name_ends_its_element() -> None:
    live = live_page()
    live._publish("rejected", {"newest": [{"event_id": "e-secret"}]})
    live._publish("city", city(1, 2, name_zh="</script><script>alert(1)</script>"))
    text = FirstPage(INDEX, live).now().body.decode()
    assert "e-secret" not in text
    assert "<script" not in text
    assert "</script" not in text
    assert "alert(1)" in text


@pytest.mark.parametrize(
    ("http", "headers", "shown"),
    [
        ("127.0.0.1:0", {}, True),
        ("0.0.0.0:0", {}, False),
        ("127.0.0.1:0", {"X-Forwarded-For": "203.0.113.9"}, False),
    ],
)
async def test_where_reading_needs_a_key_no_figure_stands_in_the_page(
    tmp_path: Path, http: str, headers: dict[str, str], *, shown: bool
) -> None:
    live = live_page()
    live._publish("city", city(3, 4))
    parts = parts_of(load_settings(data_dir=tmp_path, http=http, admin_http="127.0.0.1:0"))
    public, _ = build_app(replace(parts, live=live))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(public), base_url="http://127.0.0.1:8080"
    ) as client:
        answer = await client.get("/", headers=headers)
    assert answer.status_code == 200
    assert ("75.00%" in answer.text) is shown
    assert ('"city"' in answer.text) is shown


async def test_who_comes_first_is_not_told_the_instant_of_the_last_who_watched() -> None:
    live = live_page()
    live._publish("figures", {"at": "2026-01-01T00:00:00Z"})
    live._publish("city", city(3, 4))
    stream = live.stream()
    assert await anext(stream) == b"retry: 2000\n\n"
    assert (await anext(stream)).startswith(b"event: city\n")
    other = live.stream()
    await anext(other)
    live._publish("figures", {"at": "2026-01-01T00:01:00Z"})
    assert b"00:01:00Z" in await anext(other)
    live.close()


async def test_the_stream_says_which_page_is_served(tmp_path: Path) -> None:
    """The address below which its files lie: a page that stays open compares it with its own."""
    live = live_page()
    app, _ = build_app(replace(parts_of(load_settings(data_dir=tmp_path)), live=live))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
        index = (await client.get("/")).text
    await live._publish_figures(0.0)
    told = orjson.loads(live.known(["figures"])["figures"])
    assert f'src="/page/{told["page"]}/app.js"' in index
