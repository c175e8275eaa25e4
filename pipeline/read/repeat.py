"""Readings that go on beside the requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from pipeline.errors import UnavailableError

log = structlog.get_logger(__name__)


async def repeat(
    work: Callable[[], Awaitable[object]], *, rest: Callable[[float], float], failing_as: str
) -> None:
    """`work` until cancelled, with a rest after each time. A failure is logged once per spell, never raised.

    rest : seconds of it, by how many the work took. failing_as : the event that the log calls it.
    """
    failing = False
    while True:
        began = time.monotonic()
        try:
            await work()
            failing = False
        except UnavailableError:
            if not failing:
                log.warning(failing_as, reason="ClickHouse does not answer")
            failing = True
        except Exception:
            if not failing:
                log.exception(failing_as)
            failing = True
        await asyncio.sleep(rest(time.monotonic() - began))
