"""Threads for work that waits for somebody else, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.errors import UnavailableError

T = TypeVar("T")


class BoundedPool:
    """threads : calls at work at once; queue : calls that may wait for one of them. Used from one event loop.

    The queue is ours: what is cancelled in an executor's stays there until a thread comes to it, so that who
    calls and leaves, again and again, would fill it.
    """

    def __init__(self, name: str, *, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._queue = queue
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` on a thread. Whoever is cancelled while it waits takes it out of the queue.

        Raises UnavailableError when the queue is full, and what `work` raises.
        """
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        elif len(self._waiting) < self._queue:
            await self._wait(loop.create_future())
        else:
            raise UnavailableError("too many calls wait already; try again in a moment")

        def ended(_: object) -> None:  # on the thread
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._hand_on)

        try:
            future = self._executor.submit(work, *arguments)
        except BaseException:
            self._hand_on()
            raise
        future.add_done_callback(ended)  # before the answer: there is room when it comes
        return await asyncio.wrap_future(future)

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
            else:
                self._hand_on()  # its turn came in the same moment
            raise

    def _hand_on(self) -> None:
        """A thread is free: the next one's turn."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """Begin nothing new; what runs is not waited for."""
        while self._waiting:
            self._waiting.popleft().cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
