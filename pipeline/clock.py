"""The one place that reads the wall clock, so that stages take time as an argument and tests can set it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

#: Statistical days start at local midnight (domain: Asia/Shanghai, no daylight saving).
LOCAL_ZONE = ZoneInfo("Asia/Shanghai")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The present instant, UTC, cut to milliseconds (the precision of every stored time)."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
