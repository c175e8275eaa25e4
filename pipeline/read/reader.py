"""Runs read queries off the event loop, each on a client of its own from a small pool."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import urllib3.exceptions
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError

from pipeline.clock import Clock, utc_now
from pipeline.errors import UnavailableError
from pipeline.pool import BoundedPool
from pipeline.read.held.figures import HeldFigures
from pipeline.read.names import Areas
from pipeline.rules.catalogue import Catalogues
from pipeline.settings import Settings

Result = TypeVar("Result")

#: Server errors after which the same read may succeed: the database or a table is not there yet (migrations
#: run at start), or the server is short of time, memory, connections or query slots.
_PASSING_CODES: Final = frozenset({60, 81, 159, 202, 209, 210, 241})


#: Reads that may wait for a thread; a city's page and its gauges ask a handful at once.
_WAITING: Final = 100


class Reader:
    """What the read calls need: a pool of clients, the catalogues, settings and a clock.

    client_factory : opens a client whose database is the pipeline's; a client runs one query at a time, so
    the pool has one per worker thread. A client that met a connection error is dropped, never reused.
    held : answers KPI calls where it can; by default it never does.
    """

    def __init__(
        self,
        client_factory: Callable[[], Client],
        *,
        catalogues: Catalogues,
        settings: Settings,
        clock: Clock = utc_now,
        workers: int = 4,
        held: HeldFigures | None = None,
    ) -> None:
        self.catalogues = catalogues
        self.areas = Areas.load(settings.catalogue_dir)
        self.settings = settings
        self.clock = clock
        self.held = held or HeldFigures(0)
        self._client_factory = client_factory
        self._idle: queue.LifoQueue[Client] = queue.LifoQueue()
        self._pool = BoundedPool("read", threads=workers, queue=_WAITING)
        self._ended = threading.Condition()
        self._running = 0

    async def run(self, work: Callable[[Client], Result]) -> Result:
        """`work(client)` in a thread. Whoever is cancelled while it waits for one is not asked for.

        Raises UnavailableError when ClickHouse does not answer, or too many wait.
        """
        return await self._pool.run(self.run_here, work)

    def run_here(self, work: Callable[[Client], Result]) -> Result:
        """`work(client)` in the calling thread. Raises UnavailableError when ClickHouse does not answer."""
        with self._ended:
            self._running += 1
        try:
            return self._run(work)
        finally:
            with self._ended:
                self._running -= 1
                self._ended.notify_all()

    def _run(self, work: Callable[[Client], Result]) -> Result:
        try:
            client = self._take()
            try:
                result = work(client)
            except ClickHouseError as error:
                if getattr(error, "code", None) is None:
                    client.close()  # no answer of the server: the connection is in doubt
                else:
                    self._idle.put(client)
                raise
            except (urllib3.exceptions.HTTPError, OSError):
                client.close()
                raise
            except BaseException:
                self._idle.put(client)
                raise
            self._idle.put(client)
        except (OperationalError, urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError("ClickHouse does not answer; try again in a moment") from error
        except ClickHouseError as error:
            if getattr(error, "code", None) in _PASSING_CODES:
                raise UnavailableError("ClickHouse cannot answer now; try again in a moment") from error
            raise
        return result

    def _take(self) -> Client:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._client_factory()

    def close(self, seconds: float | None = None) -> None:
        """Begin no query, wait for those that run, close every client.

        seconds : to wait at most; a store that does not answer keeps a query, and its thread, for as long as
        its client waits.
        """
        self._pool.close()
        with self._ended:
            self._ended.wait_for(lambda: not self._running, seconds)
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
