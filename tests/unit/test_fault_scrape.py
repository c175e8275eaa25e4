"""The fault tests' scraper excuses a process that is dying, and no other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fault.scrape import Scraper


@dataclass
class Running:
    """A process as the scraper knows it, which is known to have died `dies_after` seconds from its answer."""

    dies_after: float | None
    killed: bool = False
    answered_at: float | None = None
    ending: bool = False

    @property
    def running(self) -> bool:
        gone = (
            self.answered_at is not None
            and self.dies_after is not None
            and time.monotonic() > self.answered_at + self.dies_after
        )
        self.ending = self.ending or (gone and self.killed)
        return not gone


@pytest.fixture
def breaking() -> Iterator[tuple[int, list[Running]]]:
    """A port at which every connection is broken off, and whose doing that is."""
    listener, whose = socket.create_server(("127.0.0.1", 0)), list[Running]()

    def break_off() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(1000)
            whose[0].answered_at = time.monotonic()
            connection.close()

    thread = threading.Thread(target=break_off)
    thread.start()
    yield listener.getsockname()[1], whose
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.mark.parametrize(
    ("process", "excused"),
    [
        (Running(dies_after=0.1), True),
        (Running(dies_after=None), False),
        (Running(dies_after=0.1, killed=True), False),  # it answered wrongly before anybody killed it
    ],
    ids=["dying", "alive", "killed since"],
)
def test_a_broken_scrape_is_excused_where_its_process_was_dying(
    process: Running, excused: bool, breaking: tuple[int, list[Running]]
) -> None:
    port, whose = breaking
    whose.append(process)
    known: Any = process
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics", lambda: known, lambda: 1.0)
    until = time.monotonic() + 20
    while process.answered_at is None or time.monotonic() < process.answered_at + 0.5:
        assert time.monotonic() < until
        time.sleep(0.05)
    scraper.stop()
    assert bool(scraper.answers) is not excused
