"""The one place that reads the wall clock, so that stages take time as an argument and tests can set it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

#: Statistical days start at local midnight (domain: Asia/Shanghai, no daylight saving).
LOCAL_ZONE = ZoneInfo("Asia/Shanghai")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The present instant, UTC, cut to milliseconds (the precision of every stored time)."""
    # `now` and `replace` take 1.5 µs, of a single event's request 1 % each time; this 0.6
    return datetime.fromtimestamp(time.time_ns() // 1_000_000 / 1000, UTC)
