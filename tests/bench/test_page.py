"""What the benchmark of the page relies on: how old figures are at any instant, and a steady feed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
import pytest

import pipeline.page
from benchmarks import feed, harness, page_watch
from benchmarks.page_watch import Viewer, Watching


async def test_age_is_sampled_between_answers_too() -> None:
    seen = Watching()
    at = (datetime.now(UTC) - timedelta(seconds=2)).isoformat()
    seen.take("figures", {"events_per_second": None})
    seen.take("current", {"at": at})
    seen.take("city", {})
    seen.tables_at["town"] = datetime.now(UTC) - timedelta(seconds=100)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(seen.sample(), 0.3)
    found = seen.behind_seconds()
    assert len(seen.behind) >= 2
    assert seen.refreshes == 1
    assert found["p50"] is not None
    assert 2 <= found["p50"] < 60
    assert 100 <= float(str(seen.tables_behind_seconds()["town"]["p50"])) < 160
    assert seen.tables_behind_seconds()["department"]["p50"] is None
    seen.begin()
    assert seen.tables_behind_seconds()["town"]["p50"] is None
    assert seen.behind_seconds() == {"p50": None, "p99": None, "most": None}


async def test_a_viewer_reads_the_tables_beside_the_stream_as_the_page_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is older than the districts is asked for again as soon as another can be had, then no more."""
    monkeypatch.setattr(page_watch, "_LEAST_REST_SECONDS", 0.01)
    monkeypatch.setattr(page_watch, "_RETRY_SECONDS", 0.05)
    asked: list[str] = []
    begun = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b'event: store\ndata: {"available":true}\n\n'
        yield b'event: district\ndata: {"as_of":"2026-03-01T08:00:02.000Z","rows":[]}\n\n'
        begun.set()
        await asyncio.sleep(0.5)
        yield b'event: current\ndata: {"at":"2026-03-01T08:00:02.000Z"}\n\n'
        await asyncio.sleep(60)

    async def table(as_of: str) -> AsyncIterator[bytes]:
        yield orjson.dumps({"as_of": as_of, "again_in_seconds": 0.02, "rows": []})

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/live":
            return httpx.Response(200, content=stream())
        asked.append(request.url.path.removeprefix("/v1/live/tables/"))
        times = asked.count(asked[-1])
        if asked[-1] == "department" and times == 1:
            return httpx.Response(503)
        as_of = "2026-03-01T08:00:01.000Z" if times == 1 else "2026-03-01T08:00:02.000Z"
        return httpx.Response(200, content=table(as_of))

    seen = Watching()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://page") as client:
        watching = asyncio.create_task(Viewer(client, seen, first=True).watch())
        await begun.wait()
        await asyncio.sleep(0.8)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert sorted(asked) == ["department", "department", "town", "town"]
    assert (seen.tables, seen.tables_failed) == (3, 1)
    assert seen.table_bytes > 0
    assert seen.current_at is not None
    assert seen.tables_at == dict.fromkeys(("town", "department"), datetime(2026, 3, 1, 8, 0, 2, tzinfo=UTC))


def test_the_tables_and_rests_are_those_of_the_page() -> None:
    script = (Path(pipeline.page.__file__).parent / "static" / "app.js").read_text(encoding="utf-8")
    assert 'this.want("town", "")' in script
    assert 'dimension: "department"' in script
    for name, seconds in (
        ("LEAST_REST_MS", page_watch._LEAST_REST_SECONDS),
        ("RETRY_MS", page_watch._RETRY_SECONDS),
    ):
        found = re.search(rf"\b{name} = ([\d_]+)", script)
        assert found, name
        assert int(found.group(1)) == seconds * 1000


def test_records_go_out_when_their_instant_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    class Producer:
        def __init__(self, _: dict[str, Any]) -> None:
            pass

        def produce(self, topic: str, value: bytes, on_delivery: Callable[..., None], **_: Any) -> None:
            sent.append(value)
            on_delivery(None, None)

        def poll(self, _: float) -> None:
            pass

        def flush(self, _: float) -> int:
            return 0

    class Records:
        content_type = "application/vnd.apache.arrow.stream"

        def chunks(self) -> Iterator[pl.DataFrame]:
            yield pl.DataFrame({"partition": [0, 1, 2], "value": [b"a", b"b", b"c"], "events": [50, 50, 50]})

    monkeypatch.setattr(harness, "Producer", Producer)
    told = feed.feed("nowhere", Records(), 500)  # type: ignore[arg-type]
    assert sent == [b"a", b"b", b"c"]
    assert told["events"] == 150
    assert told["seconds"] >= 0.19  # the third starts after 100 events, a fifth of a second
