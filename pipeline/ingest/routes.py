"""`POST /v1/events` and `POST /v1/events:validate`: credentials, headers, limits; then the gateway's part."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
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
from pipeline.ingest.signing import Claim, Signed, unauthorised

log = structlog.get_logger(__name__)

#: A key in an address ends up in logs and histories.
_KEY_PARAMETERS: Final = frozenset({"key", "api_key", "apikey", "token", "access_token", "authorization"})

#: Digests of larger bodies are made on a thread.
_THREAD_BYTES: Final = 262_144

#: Ids of refused events in a log line.
_SHOWN_IDS: Final = 5

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
        members, credential = await _handle(gateway, request, handle, request_id)
        headers = {
            "X-Request-Id": request_id,
            "Cache-Control": "no-store",
            **gateway.quotas.headers(address_of(request), credential.sources),
        }
        response = Response(orjson.dumps(members), success, headers, media_type="application/json")
        _tell_refusals(members, request_id, min(credential.sources, default=""))
    except ProblemError as problem:
        _tell_refusals(problem.members or {}, request_id, "")
        response = problem_response(problem, request_id)
    except Exception:
        # The error goes to the log; the sender learns only that it is ours, and that sending again is safe.
        log.exception("request failed", route=route, request_id=request_id)
        failure = ProblemError(500, "internal_error", "something failed here; send again with the same ids")
        response = problem_response(failure, request_id)
    metrics.http_requests.labels(route, str(response.status_code)).inc()
    metrics.http_seconds.labels(route).observe(time.perf_counter() - started)
    return response


def _tell_refusals(members: Mapping[str, Any], request_id: str, source: str) -> None:
    """One line for the refused events of a request; which ones all were is in its answer."""
    errors = members.get("errors")
    if errors:
        log.info(
            "events_refused",
            request_id=request_id,
            source=source,
            codes=dict(Counter(error["code"] for error in errors)),
            event_ids=[error["event_id"] for error in errors[:_SHOWN_IDS]],
        )


async def _handle(
    gateway: Gateway, request: Request, handle: _Handler, request_id: str
) -> tuple[dict[str, Any], Credential]:
    address = address_of(request)
    claim = Claim.of(request.headers.get("authorization", ""))
    credential = None if claim is not None else _bearer(gateway, request, address)
    if credential is not None:
        gateway.quotas.admit_sources(address, credential.sources)
    content_type, encoding = content_type_of(request), encoding_of(request)
    limit = gateway.settings.max_body_bytes
    if gateway.draining:
        raise ProblemError(503, "stopping", "the gateway is stopping; send again")
    held = declared_length(request, limit)
    # Until a signature is verified, which takes the body, its request is the address's and not the key's.
    holder = credential.id if credential is not None else f"address {address}"
    gateway.budget.take(holder, held)
    try:

        def grow(size: int) -> None:
            nonlocal held
            gateway.budget.take(holder, size)
            held += size

        body = await read_body(request, limit, grow)
        if credential is None:
            assert claim is not None
            credential = await _signed(gateway, request, claim, body, address)
            gateway.quotas.admit_sources(address, credential.sources)
        return await handle(Call(body, content_type, encoding, credential, request_id, address)), credential
    finally:
        gateway.quotas.charge_bytes(address, held)
        gateway.budget.give_back(holder, held)


def _bearer(gateway: Gateway, request: Request, address: str) -> Credential:
    if any(name.lower() in _KEY_PARAMETERS for name in request.query_params):
        raise ProblemError(
            401, "key_in_address", "keys are not taken from the address; send Authorization: Bearer KEY"
        )
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    credential = gateway.keys.verify(bearer.strip()) if scheme.lower() == "bearer" else None
    if credential is None:
        gateway.quotas.wrong_credential(address, bearer[:15])
        raise unauthorised()
    return _may_send(credential)


async def _signed(gateway: Gateway, request: Request, claim: Claim, body: bytes, address: str) -> Credential:
    given = signed_parts(request, body)
    try:
        if len(body) > _THREAD_BYTES:
            given = await asyncio.to_thread(given.digested)
        return _may_send(gateway.signatures.verify(claim, given))
    except ProblemError as problem:
        if problem.status == 401:
            gateway.quotas.wrong_credential(address, claim.key_id)
        raise


def signed_parts(request: Request, body: bytes) -> Signed:
    """What a signature covers of `request`, as it came over the wire."""
    raw_path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope.get("query_string", b"")
    target = (raw_path + b"?" + query if query else raw_path).decode("latin-1")
    headers = request.headers
    encoding = ",".join(headers.getlist("content-encoding"))
    return Signed(request.method, target, headers.get("content-type", ""), encoding, body)


def _may_send(credential: Credential) -> Credential:
    if "ingest" not in credential.roles:
        raise ProblemError(403, "not_an_ingest_key", "this key may not send events")
    return credential


def address_of(request: Request) -> str:
    """The peer's address, or whom a proxy on this machine says it speaks for (see `runtime.http.serve`)."""
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
