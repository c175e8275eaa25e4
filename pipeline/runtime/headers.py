"""Response headers that every answer carries, and the check of the Host header on a loopback listener."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.ingest.problem import ProblemError, problem_response, request_id_of

#: Nothing is loaded from elsewhere. Swagger UI sets styles on elements, hence 'unsafe-inline' for styles.
_SECURITY: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


#: As they go over the wire.
_FIELDS: Final = [(name.lower().encode(), value.encode()) for name, value in _SECURITY.items()]


class SecurityHeaders:
    """ASGI wrapper.

    loopback_only : refuse requests whose Host is no loopback name: reading needs no key on a loopback
    listener, and a web page elsewhere could reach it under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                names = {name for name, _ in headers}
                message["headers"] = headers + [field for field in _FIELDS if field[0] not in names]
            await send(message)

        if self._loopback_only and not _is_loopback_name(scope):
            refusal = ProblemError(421, "other_host", "this listener answers to 127.0.0.1 and localhost only")
            await problem_response(refusal, request_id_of(None))(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def _is_loopback_name(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"host":
            host = value.decode("latin-1").lower()
            bare = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            return bare == "localhost" or _is_loopback_address(bare)
    return True  # HTTP/1.0 without Host: no browser sends that


@lru_cache(maxsize=256)
def _is_loopback_address(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return False
