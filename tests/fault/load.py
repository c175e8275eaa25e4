"""The client of the fault tests: sends cases, believes a 2xx only once its own ledger is on disk."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

SOURCE: Final = "handset"
WORKER: Final = "w-0001"
#: The first steps of a case's life; each is legal right after the one before it.
STEPS: Final = ("REPORTED", "ACCEPTED", "DISPATCHED", "SIGNED", "HANDLING", "RESOLVED", "CLOSED")
GRIDS: Final = tuple(f"440704001{village:03d}003" for village in range(1, 25))
#: Of no reference data: a report from there is rejected. Its cases are told by how their ids begin.
UNKNOWN_GRID: Final = "440704001099003"
REJECTED_CASE: Final = "cx"


class Ledger:
    """What was sent, and what was answered 2xx: the second is written and synced before it is believed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self.lock = threading.Lock()
        self.sent: dict[str, dict[str, Any]] = {}
        self.acked: set[str] = set()

    def sending(self, events: list[dict[str, Any]]) -> None:
        with self.lock:
            self.sent.update((event["event_id"], event) for event in events)

    def answered(self, events: list[dict[str, Any]]) -> None:
        ids = [event["event_id"] for event in events]
        with self.lock:
            self._file.write(json.dumps(ids).encode() + b"\n")
            os.fsync(self._file.fileno())
            self.acked.update(ids)

    def close(self) -> None:
        self._file.close()


@dataclass
class Load:
    """Threads that send events at `url` until `stop`; every request is repeated until it is answered 2xx.

    An answer that no fault excuses (anything but 202, 503 and 429), and whatever ends a thread, is kept in
    `problems`; `check` raises it.

    name : part of the ids, different for each load of a run. pace : requests/s of all threads together;
    size : events per request; copies : share of answered requests that are sent once more; rejected : share
    of cases whose report is rejected; patience : for how long a request is repeated, seconds; timeout : of
    one request, seconds; text : letters of noise in each report, so that compression leaves it its size;
    clock : what time it is for those who report.
    """

    url: str
    key: str
    ledger: Ledger
    seed: int
    name: str = ""
    pace: float = 20
    size: int = 10
    threads: int = 2
    copies: float = 0.1
    rejected: float = 0.05
    patience: float = 60.0
    source: str = SOURCE
    timeout: float = 30.0
    text: int = 0
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    statuses: dict[int | str, int] = field(default_factory=dict)
    slowest: dict[int | str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    #: refusals that did not say when to come again
    unscheduled: int = 0
    #: seconds of each request that was answered 202
    taken: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._give_up = threading.Event()
        self._number = 0
        self._open: list[tuple[str, str, int, datetime]] = []
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._workers = [threading.Thread(target=self._run, daemon=True) for _ in range(self.threads)]

    def start(self) -> Load:
        for worker in self._workers:
            worker.start()
        return self

    def stop(self, seconds: float = 90.0) -> None:
        """Send nothing new; return when what was sent is answered, or after `seconds`."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._give_up.set()
        for worker in self._workers:
            worker.join(30)

    def check(self) -> None:
        """Fail if an answer was wrong or a thread ended of itself; asked once the load is stopped."""
        problems = self.problems + ["a thread still sends" for worker in self._workers if worker.is_alive()]
        assert not problems, "\n".join(problems[:10])

    def _run(self) -> None:
        try:
            self._send()
        except Exception:  # a load that has quietly ended would make every later assertion easier
            self.problems.append(traceback.format_exc())

    def _send(self) -> None:
        with httpx.Client(timeout=self.timeout, trust_env=False) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                batch = self.batch()
                self.ledger.sending(batch)
                if self._until_answered(client, batch) and self._random.random() < self.copies:
                    self.post(client, batch)
                wait = self.threads / self.pace - (time.monotonic() - started)
                self._stop.wait(max(wait, 0))

    def _until_answered(self, client: httpx.Client, batch: list[dict[str, Any]]) -> bool:
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline and not self._give_up.is_set():
            if self.post(client, batch):
                return True
            self._give_up.wait(0.2)
        return False

    def post(self, client: httpx.Client, batch: list[dict[str, Any]]) -> bool:
        """Send once; True if every event was answered 2xx."""
        started, unscheduled = time.monotonic(), 0
        status: int | str
        try:
            answer = client.post(
                f"{self.url}/v1/events", json=batch, headers={"Authorization": f"Bearer {self.key}"}
            )
        except httpx.TransportError as error:
            status = type(error).__name__
        else:
            status = answer.status_code
            if status == 202:
                bad = {error["index"] for error in answer.json()["errors"]}
                self.ledger.answered([event for at, event in enumerate(batch) if at not in bad])
                if bad:
                    status = "202 in part"
            elif status in {503, 429}:
                unscheduled = int("Retry-After" not in answer.headers)
            else:
                self.problems.append(f"{status} {answer.text[:200]}")
        with self._lock:
            self.unscheduled += unscheduled
            self.statuses[status] = self.statuses.get(status, 0) + 1
            seconds = time.monotonic() - started
            self.slowest[status] = max(self.slowest.get(status, 0.0), seconds)
            if status == 202:
                self.taken.append(seconds)
        return status == 202

    def batch(self) -> list[dict[str, Any]]:
        """New cases and next steps of open ones, in random order."""
        with self._lock:
            found = []
            for _ in range(self.size):
                if self._open and self._random.random() < 0.4:
                    # the furthest of a few, or hardly any case would ever be closed
                    some = [self._random.randrange(len(self._open)) for _ in range(3)]
                    case, grid, step, at = self._open.pop(max(some, key=lambda at: self._open[at][2]))
                else:
                    self._number += 1
                    case, grid, step = f"{self.seed}{self.name}-{self._number}", self._random.choice(GRIDS), 0
                    if self._random.random() < self.rejected:
                        case, grid = f"x{case}", UNKNOWN_GRID
                    at = self.clock() - timedelta(minutes=10)
                event = _event(case, grid, step, at, self.source)
                if step == 0 and self.text:
                    noise = self._random.randbytes(self.text // 2).hex()
                    event["description"] += f" {noise.translate(_LETTERS)}"
                found.append(event)
                if step + 1 < len(STEPS):
                    self._open.append((case, grid, step + 1, at))
            self._random.shuffle(found)
            return found


_LETTERS = str.maketrans("0123456789.-", "abcdefghijkl")


def _event(case: str, grid: str, step: int, reported_at: datetime, source: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event_id": f"e{case}-{step}",
        "source": source,
        "event_type": STEPS[step],
        "case_id": f"c{case}",
        "occurred_at": (reported_at + timedelta(seconds=20 * step)).isoformat(),
        "channel": "yuepingan",
        "grid_code": grid,
        "actor": {"type": "full_time", "key": WORKER},
        "matter_code": "SA-07",
    }
    if step == 0:
        event |= {
            "location": {"lon": 113.1, "lat": 22.57, "crs": "wgs84"},
            "photos": [{"sha256": "0123456789abcdef" * 4}],
            # No digits: 147318.1-1024 is redacted as the mobile number that it could be, and the reports of a
            # run with such a seed, all of one text, are resends of each other.
            "description": f"阳台铁皮松动 {case.translate(_LETTERS)}",
        }
    return event
