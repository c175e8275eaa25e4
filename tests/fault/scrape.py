"""Fault 39: while anything else is done to the system, its gateway's metrics are read each second."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fault.system import Process

#: Seconds within which the page comes on an idle machine. Of a hundred scrapes one may take longer, and so
#: may the first of each process, for which the page is made anew.
LIMIT = 0.2
#: What none may take: a tenth of what Prometheus waits for by default.
MOST = 1.0
#: Seconds for which a process that dies may seem to run once its connections are closed.
_DYING = 0.25


class Scraper:
    """Reads the page each second while its process runs, on a thread of its own.

    process : who should answer now; None while there is none. share : by how much everything takes longer
    now, since others want this machine too.
    """

    def __init__(self, page: str, process: Callable[[], Process | None], share: Callable[[], float]) -> None:
        self._page = page
        self._process = process
        self._share = share
        self.answers: Counter[int | str] = Counter()
        #: Seconds that each took, divided by `share` at that moment; those that were the first of a process.
        self.seconds: list[float] = []
        self.firsts: list[float] = []
        self._known: Process | None = None
        self._excused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def excused(self) -> Iterator[None]:
        """While the process is kept from answering at all: no descriptors are left to it, say."""
        self._excused = True
        try:
            yield
        finally:
            self._excused = False

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._stop.wait(1):
                self._scrape(client)

    def _scrape(self, client: httpx.Client) -> None:
        process = self._process()
        if process is None or not process.running or self._excused:
            return
        started = time.monotonic()
        try:
            answer: int | str = client.get(self._page).status_code
        except httpx.TransportError as error:
            answer = type(error).__name__
        seconds = time.monotonic() - started
        # one that was ended or replaced meanwhile owes no answer; an answer counts in any case
        if isinstance(answer, str) and self._is_gone(process):
            return
        self.answers[answer] += 1
        took = self.seconds if process is self._known else self.firsts
        took.append(seconds / self._share())
        self._known = process

    def _is_gone(self, process: Process) -> bool:
        if self._excused or process.ending or not process.running or self._process() is not process:
            return True
        until = time.monotonic() + _DYING
        while process.running and time.monotonic() < until:
            time.sleep(0.01)
        return not process.running and not process.ending  # it died by itself, not by us since

    @property
    def figures(self) -> dict[str, object]:
        """For the summary of the tests."""
        return {
            "scrapes": len(self.seconds) + len(self.firsts),
            "scrapes_late": self.late,
            "scrape_slowest": round(max([*self.seconds, *self.firsts], default=0.0), 3),
        }

    @property
    def late(self) -> int:
        """How many were answered later than the limit."""
        return sum(seconds > LIMIT for seconds in self.seconds)

    def check(self) -> None:
        """Fail unless each was answered by 200 and in time."""
        told = f"scrapes while this went on: {dict(self.answers)}, {self.figures}"
        assert self.answers.keys() <= {200}, told
        assert self.late <= max(1, len(self.seconds) // 100), told
        assert max([*self.seconds, *self.firsts], default=0.0) <= MOST, told
