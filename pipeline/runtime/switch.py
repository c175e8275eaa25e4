"""The worker of the store process, and the orders by which the supervisor takes it off one log and puts it on
the next: the process, its engine and its bridge stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pipeline.collector import collect_what_ended
from pipeline.process.worker import Worker
from pipeline.runtime.valve import Answer, Orders

log = structlog.get_logger(__name__)


class WorkerSwitch:
    """Runs one worker after another, each on the log of its time.

    make : a new worker, of one that knows when the last record came that was not the gateway's (monotonic
    seconds; None: nobody does).
    """

    def __init__(self, make: Callable[[float | None], Worker]) -> None:
        self._make = make
        self._direct_at: float | None = None
        self._worker: Worker | None = None
        self._leave = asyncio.Event()
        self._closed = asyncio.Event()
        self._opened = asyncio.Event()
        self._opened.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`. Raises what the worker raises."""
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._leave.set())
        try:
            while not stop.is_set():
                self._worker = self._make(self._direct_at)
                await self._worker.run(self._leave)
                self._direct_at = self._worker.direct_at
                self._worker = None
                collect_what_ended()  # it is in cycles, and was frozen with its reference data
                self._closed.set()
                opening = asyncio.create_task(self._opened.wait())
                await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
                opening.cancel()
        finally:
            stopping.cancel()

    # --- orders

    @property
    def orders(self) -> Orders:
        return {"rest": self.rest, "close": self.close, "open": self.open}

    async def rest(self) -> Answer:
        """drained : everything up to the log's end is committed; direct_seconds : since the last record that
        did not come from the gateway, or since the worker opened."""
        if self._worker is None:
            return {"drained": False, "direct_seconds": 0.0}
        return {"drained": self._worker.drained(), "direct_seconds": self._worker.direct_seconds()}

    async def close(self) -> Answer:
        """Leave the log; returns when nothing of it is on the way any more."""
        self._opened.clear()
        self._closed.clear()
        self._leave.set()
        await self._closed.wait()
        log.info("log_closed")
        return {}

    async def open(self) -> Answer:
        """Go on with the log that the broker has now. Callers may write to it at once: they are answered when
        the worker has its partitions and stores what they wrote."""
        self._leave.clear()
        self._opened.set()
        log.info("log_opened")
        return {}
