"""Ends a process whose event loop stands still, so that whoever started it starts it again."""

from __future__ import annotations

import asyncio
import faulthandler
from typing import Final

_LOOK_SECONDS: Final = 1.0


async def watch_loop(seconds: float) -> None:
    """Until cancelled: end the process with status 1 when the loop did not come by for `seconds`; 0: never.

    The timer runs in a thread of C, which no lock of the interpreter can hold up; it writes where every
    thread stood (names and lines, no values) to standard error.
    """
    if not seconds:
        return
    try:
        while True:
            faulthandler.dump_traceback_later(seconds, exit=True)
            await asyncio.sleep(min(_LOOK_SECONDS, seconds / 4))
    finally:
        faulthandler.cancel_dump_traceback_later()
