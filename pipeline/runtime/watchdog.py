"""Ends a process whose event loop stands still, so that whoever started it starts it again."""

from __future__ import annotations

import asyncio
import faulthandler
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_LOOK_SECONDS: Final = 1.0
#: Looks whose latest is told: several scrapes see it.
_LOOKS_TOLD: Final = 60


async def watch_loop(seconds: float, late: Callable[[float], object]) -> None:
    """Until cancelled: end the process with status 1 when the loop did not come by for `seconds`; 0: never.

    late : told at each look by how many seconds the loop came late at most, of the last minute's looks.

    The timer runs in a thread of C, which no lock of the interpreter can hold up; it writes where every
    thread stood (names and lines, no values) to standard error.
    """
    pause = min(_LOOK_SECONDS, seconds / 4) if seconds else _LOOK_SECONDS
    lates: deque[float] = deque(maxlen=_LOOKS_TOLD)
    try:
        while True:
            if seconds:
                faulthandler.dump_traceback_later(seconds, exit=True)
            due = time.monotonic() + pause
            await asyncio.sleep(pause)
            lates.append(max(time.monotonic() - due, 0.0))
            late(max(lates))
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
