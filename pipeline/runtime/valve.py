"""Orders of the supervisor to a running child, over a pair of sockets that only the two hold: one line of
JSON each way. Nobody else can reach it, and the end of either process ends it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog

from pipeline.errors import UnavailableError

log = structlog.get_logger(__name__)

_LONGEST_LINE: Final = 65_536
#: How soon a wait notices that it is over.
_SLICE_SECONDS: Final = 0.2

Answer = dict[str, Any]
#: What a child does for each order; it returns the members of the answer.
Orders = Mapping[str, Callable[[], Awaitable[Answer]]]


class RefusedError(UnavailableError):
    """The child answered that it did not do it."""


class Valve:
    """The supervisor's end. `theirs` goes to the child (inherited), then `started` closes our copy of it."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._number = 0

    def started(self) -> None:
        self.theirs.close()

    def ask(self, order: str, *, seconds: float, give_up: Callable[[], bool] = bool) -> Answer:
        """The child's answer. Raises RefusedError: it said no. Raises UnavailableError: it is gone, took
        longer, or `give_up` became true; what it did is then unknown, and a late answer is passed over."""
        self._number += 1
        deadline = time.monotonic() + seconds
        received = b""
        try:
            self._ours.settimeout(_SLICE_SECONDS)
            self._ours.sendall(json.dumps({"order": order, "number": self._number}).encode() + b"\n")
            while True:
                line, found, rest = received.partition(b"\n")
                if found:
                    answer: Answer = json.loads(line)
                    if answer.pop("number") == self._number:
                        break
                    received = rest  # an answer that nobody waits for any more
                    continue
                try:
                    chunk = self._ours.recv(_LONGEST_LINE)
                except TimeoutError:
                    if give_up() or time.monotonic() > deadline:
                        raise
                    continue
                if not chunk:
                    raise UnavailableError(f"{order}: the child is gone")
                received += chunk
        except TimeoutError as error:
            raise UnavailableError(f"{order}: no answer within {seconds:g} s") from error
        except OSError as error:
            raise UnavailableError(f"{order}: the child is gone") from error
        if "error" in answer:
            raise RefusedError(f"{order}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()


async def obey(fd: int, orders: Orders) -> None:
    """The child's end: carry out one order after another until the supervisor is gone."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    try:
        while line := await reader.readline():
            given = json.loads(line)
            order = given["order"]
            try:
                answer = await orders[order]()
            except Exception as error:
                log.exception("order_failed", order=order)
                answer = {"error": type(error).__name__}
            writer.write(json.dumps({**answer, "number": given["number"]}).encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        pass  # the supervisor is gone, and this process with it
    finally:
        writer.close()
