"""Calls of Python functions on the hot path: a count that no machine and no neighbour changes."""

from __future__ import annotations

import itertools
import sys
import threading
from types import CodeType
from typing import Any


class Calls:
    """Counts calls within `functions`, once `on`, of this thread and of those that start later.

    A coroutine is within itself from one `await` to the next. What event loops, regular looks and waiting
    cost besides grows with the time that all takes, and is left out.
    """

    def __init__(self, functions: set[CodeType]) -> None:
        self.python, self.native = itertools.count(), itertools.count()
        self.on = False
        self._functions = functions
        self._within: set[int] = set()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        thread = threading.get_ident()
        if frame.f_code in self._functions and event in {"call", "return"}:
            (self._within.add if event == "call" else self._within.discard)(thread)
        if self.on and thread in self._within:
            if event == "call":
                next(self.python)
            elif event == "c_call":
                next(self.native)

    def take(self) -> dict[str, int]:
        self.on = False
        return {"python": next(self.python), "native": next(self.native)}
