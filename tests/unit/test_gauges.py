"""How often the business gauges are read: a large store is not read without a pause."""

from __future__ import annotations

import asyncio
import contextlib
import time
from itertools import pairwise
from typing import Any

import pytest

from pipeline.read import gauges


@pytest.mark.parametrize(("took", "rest"), [(0.0, 5.0), (1.25, 5.0), (2.0, 8.0), (15.0, 30.0), (300.0, 30.0)])
def test_a_refresh_rests_four_times_as_long_as_it_took(took: float, rest: float) -> None:
    assert gauges.rest_seconds(took) == rest


async def test_slow_refreshes_leave_the_store_alone_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 800,000 cases the readings took a quarter of a core while events came in."""
    spans: list[tuple[float, float]] = []

    async def refresh(*_: Any) -> None:
        began = time.monotonic()
        await asyncio.sleep(0.05)
        spans.append((began, time.monotonic()))

    monkeypatch.setattr(gauges, "refresh", refresh)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await gauges.refresh_for_ever(None, interval_seconds=0.001)  # type: ignore[arg-type]
    rests = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
    assert rests
    assert min(rests) >= 0.19
