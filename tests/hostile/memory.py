"""The most memory that a process ever held while a block ran."""

from __future__ import annotations

import threading
from typing import Final

import psutil

#: Shorter than it takes to unpack what would matter, however fast the machine.
_EVERY_SECONDS: Final = 0.01


class Peak:
    """Resident bytes of a process, looked at all the time from `with` on: what was taken and given back
    again is seen, too.

    first : when it began; most : the largest since; samples : how often it looked.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.first = self.most = self._process.memory_info().rss
        self.samples = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # a process that died has not been small, but gone
        assert self._process.is_running(), "the process that was watched has ended"

    @property
    def now(self) -> int:
        return self._process.memory_info().rss

    @property
    def grown(self) -> int:
        return self.most - self.first

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            try:
                self.most = max(self.most, self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return  # told when the block ends
            self.samples += 1
