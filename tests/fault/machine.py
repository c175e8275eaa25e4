"""How fast this machine is for a test, without what the test itself makes of it.

`share()` of `system.py` is the load average, to which a fault that keeps both cores busy adds itself: it says
how patiently to wait, not what may be promised. A limit that is promised is multiplied by `Watch.slowness`.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import psutil

_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Processor seconds of `_work` on the machine of the runs in the README, two cores, when it was idle.
REFERENCE_SECONDS: Final = 0.021
#: At most so much of the processors is taken for that of others: what is left is measured too badly.
_MOST: Final = 0.9


class _Used(NamedTuple):
    """Seconds since some moment: of all cores together, by everybody and by this test and what it started."""

    at: float
    everybody: float
    ours: float


class Watch:
    """Begins now."""

    def __init__(self) -> None:
        self._begin = _used()

    def slowness(self) -> float:
        """By how much everything took longer since then than on the reference machine, idle; at least 1.

        A slower core, times what other processes (another test process among them) left of the cores.
        """
        now = _used()
        there = (os.cpu_count() or 1) * max(now.at - self._begin.at, 0.01)
        others = (now.everybody - self._begin.everybody) - (now.ours - self._begin.ours)
        return max(1.0, core()) / (1.0 - min(max(others / there, 0.0), _MOST))


@cache
def core() -> float:
    """By how much a core is slower than that of the reference machine: processor time, the best of a few."""
    took = []
    for _ in range(7):
        started = time.thread_time()
        _work()
        took.append(time.thread_time() - started)
    return min(took) / REFERENCE_SECONDS


def _work() -> int:
    found = 0
    for number in range(300_000):
        found = (found * 31 + number) % 1_000_003
    return found


def _used() -> _Used:
    # user, nice, system, idle, iowait, irq, softirq, steal: idle and iowait are nobody's
    ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    everybody = (sum(ticks) - ticks[3] - ticks[4]) / _TICKS
    ours = sum(os.times()[:4])  # with the children that have ended
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            ours += sum(child.cpu_times()[:4])
    return _Used(time.monotonic(), everybody, ours)
