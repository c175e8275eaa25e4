"""Who may read. On a loopback listener everybody on the machine; on any other, holders of a read key.

A read key is a key for the reserved source `read` (`gridpipe keys add --source read`).
"""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.settings import Settings, is_loopback, split_address

READ_SOURCE: Final = "read"
#: The source of the key that `gridpipe up` makes for this machine.
LOCAL_SOURCE: Final = "local"


def check_listeners(settings: Settings) -> None:
    """Refuse a public listener that would answer without keys or show its metrics to everybody.

    Raises ConfigurationError. Source: design 4, Keys.
    """
    problems: list[str] = []
    if not is_loopback(split_address(settings.http)[0]):
        keys = KeyStore(settings.keys_path).list()
        # The operator's own key reads too, but nobody else has it: it does not make a listener usable.
        usable = [k for k in keys if READ_SOURCE in k.sources and LOCAL_SOURCE not in k.sources]
        if not any(key.revoked_at is None for key in usable):
            problems.append(
                f"listening on {settings.http} needs a read key: "
                f"run `gridpipe keys add --source {READ_SOURCE}`"
            )
        if settings.admin_http is None:
            problems.append(
                f"listening on {settings.http} needs --admin-http HOST:PORT for /metrics and /health, "
                "for example 127.0.0.1:9090"
            )
    if problems:
        raise ConfigurationError(problems)


class ReadKeys:
    """ASGI wrapper: reading under /v1/ needs a read key; everything else passes."""

    def __init__(self, app: ASGIApp, keys: KeyStore) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] in {"GET", "HEAD"}
            and scope["path"].startswith("/v1/")
            and (refusal := self._refusal(Headers(scope=scope))) is not None
        ):
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        credential = self._keys.verify(bearer.strip()) if scheme.lower() == "bearer" else None
        if credential is not None and READ_SOURCE in credential.sources:
            return None
        status, code = (401, "unauthorised") if credential is None else (403, "not_a_read_key")
        message = "reading on this address needs a read key: Authorization: Bearer KEY"
        request_id = request_id_of(headers.get("x-request-id"))
        return problem_response(ProblemError(status, code, message), request_id)
