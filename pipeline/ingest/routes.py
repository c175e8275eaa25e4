"""`POST /v1/events` and `POST /v1/events:validate`: credentials, headers, limits; then the gateway's part."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pipeline import metrics
from pipeline.ingest.body import declared_length, read_body
from pipeline.ingest.gateway import CONTENT_TYPES, Call, Gateway
from pipeline.ingest.keys import Credential
from pipeline.ingest.openapi import OPENAPI_PATHS
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of

log = structlog.get_logger(__name__)

#: A key in an address ends up in logs and histories.
_KEY_PARAMETERS: Final = frozenset({"key", "api_key", "apikey", "token", "access_token", "authorization"})

EVENTS: Final = "/v1/events"
VALIDATE: Final = "/v1/events:validate"

_Handler = Callable[[Call], Awaitable[dict[str, Any]]]


def gateway_routes(gateway: Gateway) -> list[BaseRoute]:
    """The routes of `gateway`, to be mounted by the HTTP process."""

    async def events(request: Request) -> Response:
        return await _answer(gateway, request, EVENTS, gateway.take, 202)

    async def validate(request: Request) -> Response:
        return await _answer(gateway, request, VALIDATE, gateway.validate, 200)

    return [
        Route(EVENTS, events, methods=["POST"], name="send events"),
        Route(VALIDATE, validate, methods=["POST"], name="validate events"),
    ]


async def _answer(gateway: Gateway, request: Request, route: str, handle: _Handler, success: int) -> Response:
    started = time.perf_counter()
    request_id = request_id_of(request.headers.get("x-request-id"))
    request.scope["gridpipe.request_id"] = request_id
    try:
        credential = _credential(gateway, request)
        members = await _handle(gateway, request, credential, handle, request_id)
        headers = {
            "X-Request-Id": request_id,
            "Cache-Control": "no-store",
            **gateway.quotas.headers(address_of(request), credential.sources),
        }
        response = Response(orjson.dumps(members), success, headers, media_type="application/json")
    except ProblemError as problem:
        response = problem_response(problem, request_id)
    except Exception:
        # The error goes to the log; the sender learns only that it is ours, and that sending again is safe.
        log.exception("request failed", route=route, request_id=request_id)
        failure = ProblemError(500, "internal_error", "something failed here; send again with the same ids")
        response = problem_response(failure, request_id)
    metrics.http_requests.labels(route, str(response.status_code)).inc()
    metrics.http_seconds.labels(route).observe(time.perf_counter() - started)
    return response


async def _handle(
    gateway: Gateway, request: Request, credential: Credential, handle: _Handler, request_id: str
) -> dict[str, Any]:
    address = address_of(request)
    gateway.quotas.admit_sources(address, credential.sources)
    content_type, encoding = content_type_of(request), encoding_of(request)
    limit = gateway.settings.max_body_bytes
    if gateway.draining:
        raise ProblemError(503, "stopping", "the gateway is stopping; send again")
    held = declared_length(request, limit)
    gateway.budget.take(credential.id, held)
    try:

        def grow(size: int) -> None:
            nonlocal held
            gateway.budget.take(credential.id, size)
            held += size

        body = await read_body(request, limit, grow)
        return await handle(Call(body, content_type, encoding, credential, request_id, address))
    finally:
        gateway.quotas.charge_bytes(address, held)
        gateway.budget.give_back(credential.id, held)


def _credential(gateway: Gateway, request: Request) -> Credential:
    if any(name.lower() in _KEY_PARAMETERS for name in request.query_params):
        raise ProblemError(
            401, "key_in_address", "keys are not taken from the address; send Authorization: Bearer KEY"
        )
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    credential = gateway.keys.verify(bearer.strip()) if scheme.lower() == "bearer" else None
    if credential is None:
        gateway.quotas.wrong_credential(address_of(request), bearer[:15])
        raise ProblemError(401, "unauthorised", "a valid key is needed: Authorization: Bearer KEY")
    return credential


def address_of(request: Request) -> str:
    """The peer's address; headers that claim another one are not believed."""
    return request.client.host if request.client else ""


def content_type_of(request: Request) -> str:
    """The media type without parameters. Raises ProblemError 415: not one of ours, or not UTF-8."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind not in CONTENT_TYPES:
        raise ProblemError(
            415, "unknown_content_type", f"Content-Type must be one of {', '.join(CONTENT_TYPES)}"
        )
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "charset" and value.strip('" ').lower() not in ("utf-8", "utf8"):
            raise ProblemError(415, "unknown_charset", "the charset must be UTF-8")
    return kind


def encoding_of(request: Request) -> str:
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity", "gzip", "zstd"):
        raise ProblemError(415, "unknown_encoding", "Content-Encoding must be gzip, zstd or absent")
    return encoding


__all__ = ["OPENAPI_PATHS", "gateway_routes"]
