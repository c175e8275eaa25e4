"""Threads of the worker, each call with a ClickHouse client that no other call uses."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from clickhouse_connect.driver.client import Client

from pipeline.sink.retry import persist

T = TypeVar("T")

#: Calls of one thread that run at once: its own, and these.
_BESIDE: Final = 2


class Threads:
    """Runs blocking work off the event loop.

    stopping : ends the wait for a server that cannot be reached.
    """

    def __init__(self, most: int, client_factory: Callable[[], Client], stopping: threading.Event) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="block")
        self._beside = ThreadPoolExecutor(most * _BESIDE, thread_name_prefix="block-beside")
        self._client_factory = client_factory
        self._clients: SimpleQueue[Client] = SimpleQueue()
        self._stopping = stopping
        #: Once we work, a server that cannot be reached is waited for; before, its absence is told.
        self.patient = False

    async def __call__(self, call: Callable[[Client], T]) -> T:
        """Run `call` in a thread with a client of its own."""

        return await asyncio.get_running_loop().run_in_executor(self._pool, self._with_client, call)

    def at_once(self, client: Client, calls: Sequence[Callable[[Client], T]]) -> list[T]:
        """Results of `calls` in their order, from within a call of ours: the first with `client`, the others
        beside it with clients of their own. All have ended when it returns, or raises what the first failing
        one raised.
        """
        others: list[Future[T]] = []
        try:
            for call in calls[1:]:
                others.append(self._beside.submit(self._with_client, call))
            return [calls[0](client), *(other.result() for other in others)]
        finally:  # nothing may be written any more once somebody hears of a failure
            for other in others:  # not `wait`, which takes one that `close` has cancelled for unfinished
                with contextlib.suppress(CancelledError):
                    other.exception()

    def _with_client(self, call: Callable[[Client], T]) -> T:
        client = self._client()
        try:
            return call(client)
        finally:
            self._clients.put(client)

    def _client(self) -> Client:
        try:
            return self._clients.get_nowait()
        except Empty:
            if not self.patient:
                return self._client_factory()
            return persist(self._client_factory, stopping=self._stopping, what="a connection to the store")

    def close(self) -> None:
        """Begin nothing new; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._beside.shutdown(wait=False, cancel_futures=True)
        while not self._clients.empty():
            self._clients.get().close()
