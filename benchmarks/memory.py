"""Memory of a running service's processes, sampled beside a load."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Final

import psutil

from pipeline.runtime.supervisor import Supervisor

#: Memory must be flat within this share after the first third of a soak.
MEMORY_TOLERANCE: Final = 0.05


class Memory:
    """Resident megabytes of the service's processes, sampled beside the load."""

    def __init__(self, service: Supervisor) -> None:
        self.service = service
        self.samples: list[tuple[float, dict[str, float]]] = []
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
        while not self._stop.wait(2):
            found = {}
            for role, pid in self.service.pids.items():
                with contextlib.suppress(psutil.Error):
                    found[role] = psutil.Process(pid).memory_info().rss / 2**20
            self.samples.append((time.monotonic() - begin, found))

    def write(self, path: Path) -> None:
        roles = sorted({role for _, found in self.samples for role in found})
        lines = [",".join(["second", *roles])]
        lines += [
            ",".join([f"{at:.0f}", *(f"{found.get(role, 0):.1f}" for role in roles)])
            for at, found in self.samples
        ]
        path.write_text("\n".join(lines) + "\n")

    def growth(self, role: str) -> float | None:
        """Last third over second third, as a share; None with too few samples to tell."""
        values = [found[role] for _, found in self.samples if role in found]
        third = len(values) // 3
        if third < 3:
            return None
        return sum(values[-third:]) / sum(values[-2 * third : -third]) - 1
