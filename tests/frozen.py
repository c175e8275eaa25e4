"""Freeze a process, and know that it is frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

#: What stands behind the name in a thread's stat: stopped, traced, gone.
_STILL = frozenset("TtZX")
_SECONDS = 30.0


def freeze(pid: int) -> None:
    """SIGSTOP; returns when no thread of the process runs any more.

    The kernel lets one thread take the signal and stop the others: on a busy machine that one waits for its
    turn, and the others go on answering meanwhile.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _SECONDS
    while not all(state in _STILL for state in _states(pid)):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.001)


def _states(pid: int) -> list[str]:
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return found
