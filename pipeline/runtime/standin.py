"""Answers in place of the HTTP process: while it is replaced together with its broker, and after it has ended
while the rest of the service still ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from functools import partial
from typing import Any, Final, Self

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.runtime.headers import SecurityHeaders
from pipeline.runtime.protocol import SecondServer, bounded_to
from pipeline.settings import Settings
from pipeline.tls import admin_is_secure, server_options

#: A body is read to its end, or the connection would be reset before the answer is; within this time, so
#: that the answer comes within a second.
_BODY_SECONDS: Final = 0.7
_END_SECONDS: Final = 2
#: By then a server has noticed and let its listener go.
_CLOSE_SECONDS: Final = 0.5
_RETRY_AFTER_SECONDS: Final = 2


class StandIn:
    """503 with Retry-After for every request to `listener` and `admin_listener`, from a thread of its own.

    The listeners stay open and others may accept from them at the same time. Nothing is read but to be thrown
    away. `/health/live` is 200: this service must not be killed for what it is mending.
    code, message : of the problem that every answer is.
    Source: reliability c.11 (the broker is down: 503 within a second), c.12 (a stop refuses new requests).
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        admin_listener: socket.socket | None,
        *,
        code: str,
        message: str,
    ) -> None:
        common: dict[str, Any] = {
            "http": bounded_to(settings.max_connections),
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "timeout_graceful_shutdown": _END_SECONDS,
        }
        app = SecurityHeaders(partial(_come_again, code, message), loopback_only=False)
        secure = server_options(settings, ask_clients=True)
        self._servers = [(SecondServer(uvicorn.Config(app, **common, **secure)), listener.dup())]
        if admin_listener is not None:
            secure = server_options(settings, ask_clients=False) if admin_is_secure(settings) else {}
            self._servers.append(
                (SecondServer(uvicorn.Config(app, **common, **secure)), admin_listener.dup())
            )
        self._thread = threading.Thread(target=self._run, name="stand-in", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Accept nobody any more; answers under way may take two seconds more, which nobody waits for."""
        for server, _ in self._servers:
            server.should_exit = True
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        async def both() -> None:
            await asyncio.gather(*(server.serve(sockets=[own]) for server, own in self._servers))

        asyncio.run(both())


async def _come_again(code: str, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            while (got := await receive())["type"] == "http.request" and got.get("more_body"):
                pass
    if scope["path"] == "/health/live":
        answer: ASGIApp = JSONResponse({"status": "live"}, headers={"Connection": "close"})
    else:
        problem = ProblemError(
            503, code, message, retry_after=_RETRY_AFTER_SECONDS, headers={"Connection": "close"}
        )
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        answer = problem_response(problem, request_id_of(given.decode("latin-1")))
    await answer(scope, receive, send)
