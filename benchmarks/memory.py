"""Memory of a running service's processes, sampled beside a load."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Final

import psutil

from pipeline.runtime.supervisor import Supervisor

#: Memory must be flat within this share after the first third of a soak.
MEMORY_TOLERANCE: Final = 0.05
#: What an id that is held for deduplication takes of the store's process at least, bytes: keys, entry, slots.
#: It is 58 at most, for the slots grow to the double; a leak would hide in the difference.
ID_BYTES: Final = 50
#: Grow with what was sent, by design: role -> why its memory is not judged.
NOT_JUDGED: Final = {"broker": "the embedded broker keeps every event until its log is rolled"}
_SAMPLE_SECONDS: Final = 2.0
#: As often as a monitor would: a scrape has the gauges read anew.
_HELD_SECONDS: Final = 15.0


class Memory:
    """Resident megabytes of the service's processes, sampled beside the load.

    held : tells how many ids and contents are held for deduplication, and the bytes of the cases and reports
    that KPI calls are answered from; OSError, HTTPException: not now.
    """

    def __init__(self, service: Supervisor, held: Callable[[], tuple[float, float]] | None = None) -> None:
        self.service = service
        self.samples: list[tuple[float, dict[str, float]]] = []
        #: Beside each sample what was held when last asked, NaN before.
        self.held: list[tuple[float, float]] = []
        self._ask = held
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begin = time.monotonic()
        held, ask_at = (math.nan, math.nan), begin
        while not self._stop.wait(_SAMPLE_SECONDS):
            if self._ask and time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _HELD_SECONDS
                with contextlib.suppress(OSError, HTTPException):
                    held = self._ask()
            found = {}
            for role, pid in self.service.pids.items():
                with contextlib.suppress(psutil.Error):
                    found[role] = psutil.Process(pid).memory_info().rss / 2**20
            self.held.append(held)
            self.samples.append((time.monotonic() - begin, found))

    def write(self, path: Path) -> None:
        roles = sorted({role for _, found in self.samples for role in found})
        lines = [",".join(["second", *roles, "ids_held", "figures_held_bytes"])]
        lines += [
            ",".join(
                [f"{at:.0f}", *(f"{found.get(role, 0):.1f}" for role in roles), f"{ids:.0f}", f"{size:.0f}"]
            )
            for (at, found), (ids, size) in zip(self.samples, self.held, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n")

    def growth(self, role: str) -> float | None:
        """Last third over second third, as a share; None with too few samples to tell."""
        thirds = _thirds([found[role] for _, found in self.samples if role in found])
        return None if thirds is None else thirds[1] / thirds[0] - 1

    def verdict(self, role: str) -> tuple[str, bool]:
        """How the memory of a process grew, in words, and whether it is flat, cannot be told or is left out.

        What grows by design is taken off: of the store what the ids take that came in between, whose window
        bounds it, of http the cases that calls are answered from, whose number is bounded.
        """
        thirds = _thirds([found[role] for _, found in self.samples if role in found])
        if thirds is None:
            return f"memory of {role}: too short a run to tell", True
        earlier, later = thirds
        text = (
            f"memory of {role}: {later / earlier - 1:+.1%} ({later - earlier:+,.0f} MB) from the second to "
            "the last third"
        )
        if role in NOT_JUDGED:
            return f"{text}; not judged: {NOT_JUDGED[role]}", True
        if role == "store" and (ids := self._more_held(0)) is not None:
            later -= ids * ID_BYTES / 2**20
            text += (
                f"; {ids:,.0f} more ids and contents are held for deduplication, which take at least "
                f"{ids * ID_BYTES / 2**20:,.0f} MB: {later / earlier - 1:+.1%} without them"
            )
        elif role == "http" and (size := self._more_held(1)):
            later -= size / 2**20
            text += (
                f"; {size / 2**20:,.0f} MB more of cases and reports are held to answer from: "
                f"{later / earlier - 1:+.1%} without them"
            )
        return text, later / earlier - 1 <= MEMORY_TOLERANCE

    def _more_held(self, at: int) -> float | None:
        """From the second to the last third; None where it was not told."""
        thirds = _thirds([held[at] for held in self.held if not math.isnan(held[at])])
        return None if thirds is None else max(0.0, thirds[1] - thirds[0])


def _thirds(values: Sequence[float]) -> tuple[float, float] | None:
    """Means of the second and of the last third; None with too few values to tell."""
    third = len(values) // 3
    if third < 3:
        return None
    return sum(values[-2 * third : -third]) / third, sum(values[-third:]) / third
