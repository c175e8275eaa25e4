"""How long one input may take, in processor time: what a busy machine gives to others is not its doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from tests.fault.machine import core

#: Of all threads of the process together, on a core as fast as that of the runs in the fault tests' README.
INPUT_SECONDS: Final = 2.0
#: One that waits takes no processor time: so long, whatever else the machine has to do.
WAIT_SECONDS: Final = 30.0


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Fails where the block took more than `INPUT_SECONDS`, a slower core its share more, or `WAIT_SECONDS`
    by the clock. One that never ends is ended by the time-out of its test."""
    used, began = time.process_time(), time.monotonic()
    yield
    used, waited = time.process_time() - used, time.monotonic() - began
    assert used < INPUT_SECONDS * max(1.0, core()), f"took {used:.1f} s of processor time"
    assert waited < WAIT_SECONDS, f"took {waited:.1f} s"
