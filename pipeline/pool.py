"""Threads for work that waits for somebody else, with a bounded queue before them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.errors import UnavailableError

T = TypeVar("T")


class BoundedPool:
    """threads : calls at work at once; queue : calls that may wait for one of them."""

    def __init__(self, name: str, *, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places = threading.BoundedSemaphore(threads + queue)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` on a thread. Whoever is cancelled while it waits takes it out of the queue.

        Raises UnavailableError when the queue is full, and what `work` raises.
        """
        if not self._places.acquire(blocking=False):
            raise UnavailableError("too many calls wait already; try again in a moment")
        try:
            future = self._executor.submit(work, *arguments)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Begin nothing new; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
