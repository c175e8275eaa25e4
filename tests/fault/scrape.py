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

#: Seconds within which the page comes on an idle machine; of a hundred scrapes one may take longer.
LIMIT = 0.2
#: What no scrape may take, whatever the machine does: a tenth of Prometheus' own default.
MOST = 1.0


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
        #: Seconds that each took, divided by `share` at that moment.
        self.seconds: list[float] = []
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
        if isinstance(answer, str) and (
            self._excused or process.ending or not process.running or self._process() is not process
        ):
            return
        self.answers[answer] += 1
        self.seconds.append(seconds / self._share())

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the scrapes was answered; 0 if there was none."""
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else 0.0

    @property
    def figures(self) -> dict[str, object]:
        """For the summary of the tests."""
        return {
            "scrapes": len(self.seconds),
            "scrape_p99": self.percentile(0.99),
            "scrape_slowest": self.percentile(1.0),
        }

    def check(self) -> None:
        """Fail unless each was answered by 200 and in time."""
        told = f"scrapes while this went on: {dict(self.answers)}, {self.figures}"
        assert self.answers.keys() <= {200}, told
        assert self.percentile(0.99) <= LIMIT, told
        assert self.percentile(1.0) <= MOST, told
