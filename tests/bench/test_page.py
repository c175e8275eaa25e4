"""What the benchmark of the page relies on: how old figures are at any instant, and a steady feed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from benchmarks import feed, harness
from benchmarks.page_watch import Watching


async def test_age_is_sampled_between_answers_too() -> None:
    seen = Watching()
    at = (datetime.now(UTC) - timedelta(seconds=2)).isoformat()
    seen.take("figures", '{"events_per_second": null}')
    seen.take("current", f'{{"at": "{at}"}}')
    seen.take("city", "{}")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(seen.sample(), 0.3)
    found = seen.behind_seconds()
    assert len(seen.behind) >= 2
    assert seen.refreshes == 1
    assert found["p50"] is not None
    assert 2 <= found["p50"] < 60
    seen.begin()
    assert seen.behind_seconds() == {"p50": None, "p99": None, "most": None}


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
