"""Threads of the worker, each call with a ClickHouse client that no other call uses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

from clickhouse_connect.driver.client import Client

from pipeline.sink.retry import persist

T = TypeVar("T")


class Threads:
    """Runs blocking work off the event loop.

    stopping : ends the wait for a server that cannot be reached.
    """

    def __init__(self, most: int, client_factory: Callable[[], Client], stopping: threading.Event) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="block")
        self._client_factory = client_factory
        self._clients: SimpleQueue[Client] = SimpleQueue()
        self._stopping = stopping
        #: Once we work, a server that cannot be reached is waited for; before, its absence is told.
        self.patient = False

    async def __call__(self, call: Callable[[Client], T]) -> T:
        """Run `call` in a thread with a client of its own."""

        def run() -> T:
            client = self._client()
            try:
                return call(client)
            finally:
                self._clients.put(client)

        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

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
        while not self._clients.empty():
            self._clients.get().close()
