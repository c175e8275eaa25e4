"""The gate before the log: while the log is replaced, callers wait here and nobody is on the way to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from pipeline import metrics
from pipeline.errors import UnavailableError

#: Beyond the time in which everybody inside is confirmed or given up.
_CLOSE_SLACK_SECONDS: Final = 3.0


class Gate:
    """Open at first. `async with gate:` around everything between the first byte sent and its confirmation.

    patience_seconds : how long a caller waits before a closed gate; then UnavailableError. Used from one
    event loop.
    """

    def __init__(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self._opened = asyncio.Event()
        self._opened.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    async def __aenter__(self) -> Self:
        if not self._opened.is_set():
            try:
                async with asyncio.timeout(self.patience_seconds):
                    while not self._opened.is_set():  # it may close again before our turn
                        await self._opened.wait()
            except TimeoutError:
                raise UnavailableError("the log is being replaced; send again") from None
        self._inside += 1
        self._empty.clear()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._empty.set()

    async def close(self) -> None:
        """Let nobody in any more; returns when everybody is out."""
        self._opened.clear()
        await self._empty.wait()

    def open(self) -> None:
        self._opened.set()


def gate_orders(
    gate: Gate, renewed: Callable[[], Awaitable[None]]
) -> Mapping[str, Callable[[], Awaitable[dict[str, Any]]]]:
    """What the supervisor may order: nobody on the way to the log, the old log goes on, the log is a new one.

    renewed : makes sure that the new log can be reached, and opens the gate.
    """

    async def close() -> dict[str, Any]:
        try:
            async with asyncio.timeout(gate.patience_seconds + _CLOSE_SLACK_SECONDS):
                await gate.close()
        except TimeoutError:
            gate.open()
            raise
        return {}

    async def open_again() -> dict[str, Any]:
        gate.open()
        return {}

    async def renew() -> dict[str, Any]:
        await renewed()
        metrics.embedded_log_rolls.inc()
        return {}

    return {"close": close, "open": open_again, "renewed": renew}
