"""Keeps up what KPI calls are answered from, beside the requests."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from pipeline.errors import UnavailableError
from pipeline.read.reader import Reader

#: A call reads what is new by itself; so often it is read without one, so that no call finds much.
LOOK_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


async def keep_up_for_ever(reader: Reader, *, interval_seconds: float = LOOK_SECONDS) -> None:
    """Let `reader.held` read what is new until cancelled. What fails is logged once per spell, never raised:
    calls ask the store meanwhile."""
    failing = False
    while True:
        try:
            await reader.run(reader.held.keep_up)
            failing = False
        except UnavailableError:
            if not failing:
                log.warning("held_figures_not_read", reason="ClickHouse does not answer")
            failing = True
        except Exception:
            if not failing:
                log.exception("held_figures_not_read")
            failing = True
        await asyncio.sleep(interval_seconds)
