"""The page without a service: its own files, given answers, a stream that says what it is told.

For what a page shows of given figures. What a service really says is tested beside one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route

from pipeline.page.assets import Assets
from pipeline.page.first import FirstPage
from pipeline.page.history import KPI_FIELDS
from pipeline.page.routes import POLICY
from pipeline.store.kpi_views import DURATIONS, RATES

ADDRESS = "http://page.test/"
#: When the page is opened, by the clock of the server, which it goes by: 16:00 in the city.
NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
CATALOGUE: dict[str, Any] = {
    "matters": [],
    "departments": {"public_security": {"zh": "公安局", "en": "Public Security"}},
    "channels": {},
    "matter_names": {},
    "reasons": {"GRID_UNKNOWN": {"zh": "网格不存在", "en": "unknown grid"}},
    "towns": {"440704001": "江南街道"},
    "districts": {"440704": "江海区"},
}
_STREAM = """(() => {
  const real = window.fetch, encode = (text) => new TextEncoder().encode(text);
  window.streams = []; // of each that was opened: the key, and whether it goes on
  window.fetch = (address, ...rest) => {
    if (address !== "/v1/live") return real(address, ...rest);
    const [{ headers, signal }] = rest;
    const stream = { key: headers.Authorization, open: true };
    window.streams.push(stream);
    const start = (out) => {
      window.tell = (topic, data) =>
        out.enqueue(encode(`event: ${topic}\\ndata: ${JSON.stringify(data)}\\n\\n`));
      for (const [topic, data] of Object.entries(window.told)) window.tell(topic, data);
      const { tell } = window, began = performance.now();
      const again = setInterval(() => {
        if (window.quiet) return;
        if (window.told.figures) tell("figures", window.told.figures);
        if (!window.told.current) return; // the tables go on holding what was stored, as a service says
        const at = Date.parse(window.told.current.at) + performance.now() - began;
        tell("current", { at: new Date(at).toISOString() });
      }, 1000);
      stream.end = () => { clearInterval(again); out.close(); };
      signal.addEventListener("abort", () => {
        stream.open = false;
        clearInterval(again);
        out.error(signal.reason);
      });
    };
    return Promise.resolve(new Response(new ReadableStream({ start })));
  };
})();"""


def instant(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def row(key: str, **figures: Any) -> dict[str, Any]:
    """A KPI row in which everything is known."""
    found: dict[str, Any] = {"key": key, "name_zh": None, "reports": 30, "ratings": 3, "closed": 18}
    found |= {"responded": 19, "cases": 20, "open": 2, "overdue": 1} | dict.fromkeys(RATES, 0.9)
    found |= {name: {"p50": 600, "p90": 7_200, "p99": 90_000} for name in DURATIONS}
    return found | {"parts": {name: [18, 20] for name in RATES}} | figures


def figures(**changed: Any) -> dict[str, Any]:
    """A quiet pipeline's."""
    outcomes = ("admitted", "rejected", "recorded", "duplicate", "quarantined")
    said: dict[str, Any] = {"at": instant(NOW), "worker": True, "expects_worker": True, "gateway": True}
    said |= {"takes_events": True, "missing": [], "unwatched": []}
    said |= {"log_answers": True, "events_per_second": 7.0, "stored": {"events": 35, "seconds": 5.0}}
    said |= {"totals": dict.fromkeys(outcomes, 1_000)}
    said["delay_seconds"] = {"p50": 0.25, "p99": 0.5, "count": 60}
    said["flow"] = {
        "gateway": {
            "accepted_per_second": 7.0,
            "refused_per_second": 0.0,
            "not_written_per_second": 0.0,
            "in_flight_bytes": 0,
            "stuck": False,
        },
        "topic": {"known": True, "lag_records": 3, "lag_seconds": 1.5, "stuck_partitions": []},
        "outcomes_per_second": dict.fromkeys(outcomes, 0.0) | {"admitted": 6.0, "rejected": 1.0},
        "slowest": None,
        "stages": dict.fromkeys(("decode", "deduplicate", "admit", "enrich"), 0.01),
        "store": {
            "retries_per_second": 0.0,
            "seconds_per_insert": 0.02,
            "waiting_bytes": 0,
            "blocked_seconds": 0.0,
            "stuck": False,
        },
    }
    return said | changed


def point(at: datetime, **values: Any) -> dict[str, Any]:
    """Of the trend; what is not given is not known."""
    return {"at": instant(at), **dict.fromkeys((*KPI_FIELDS, "events_per_second", "delay_seconds")), **values}


def told(**topics: Any) -> dict[str, Any]:
    """What the stream says when it is opened; nothing of a topic that is None."""
    said: dict[str, Any] = {"figures": figures(), "current": {"at": instant(NOW)}}
    said["city"] = {"as_of": instant(NOW), "rows": [row("4407")]}
    said["district"] = {"as_of": instant(NOW), "rows": [row("440704")]}
    said["store"] = {"available": True, "at": instant(NOW)}
    said["rejected"] = {"reasons": [], "newest": [], "life_safety": {"reports": 0, "newest": None}}
    return {topic: data for topic, data in (said | topics).items() if data is not None}


def open_canned(page: Page, answers: dict[str, Any] | None = None, **topics: Any) -> None:
    """Open the page as of NOW.

    answers : path → JSON, or what handles the route, where it is no empty table; topics : as of `told`.
    """
    assets = Assets.load()
    index = FirstPage(assets.index, None).now()
    empty = {"as_of": instant(NOW), "rows": [], "again_in_seconds": 60}
    known = {"/v1/live/matters": CATALOGUE} | (answers or {})

    def answer(route: Route) -> None:
        path = urlsplit(route.request.url).path
        file = assets.files.get(path.removeprefix(f"/page/{assets.digest}/"))
        if path == "/" or file is not None:
            found = index if file is None else file
            policy = {"Content-Security-Policy": POLICY} if file is None else {}
            route.fulfill(body=found.body, headers={"Content-Type": found.media_type} | policy)
        elif callable(known.get(path)):
            known[path](route)
        else:
            route.fulfill(json=known.get(path, empty))

    page.route("**/*", answer)
    page.add_init_script(f"window.told = {json.dumps(told(**topics))};" + _STREAM)
    page.goto(ADDRESS)
    page.wait_for_selector("tr.total")


def tell(page: Page, topic: str, data: Any) -> None:
    """Say something more on the stream. Figures are said each second, as by a service."""
    page.evaluate("([topic, data]) => window.tell(topic, window.told[topic] = data)", [topic, data])
