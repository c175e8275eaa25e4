"""`POST /v1/events` and `POST /v1/events:validate`: credentials, headers, limits; then the gateway's part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson
import structlog
from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from pipeline import metrics
from pipeline.contract.cloudevents import split_media_type
from pipeline.errors import ConfigurationError
from pipeline.ingest.body import WHOLE, declared_length, read_body
from pipeline.ingest.budget import Hold
from pipeline.ingest.gateway import CONTENT_TYPES, Call, Gateway
from pipeline.ingest.keys import Credential
from pipeline.ingest.openapi import OPENAPI_PATHS
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.ingest.quota import caller
from pipeline.ingest.signing import Claim, Signed, keys_unavailable, unauthorised

log = structlog.get_logger(__name__)

#: A key in an address ends up in logs and histories.
_KEY_PARAMETERS: Final = frozenset({"key", "api_key", "apikey", "token", "access_token", "authorization"})

#: Digests of larger bodies are made on a thread.
_THREAD_BYTES: Final = 262_144

EVENTS: Final = "/v1/events"
VALIDATE: Final = "/v1/events:validate"

_Handler = Callable[[Call], Awaitable[dict[str, Any]]]
#: The fields of a request's head by name in lower case; of several with one name, the first.
_Fields = Mapping[bytes, bytes]


class EventsCall:
    """One of the two calls as an ASGI app.

    It reads the head in one pass and writes its answer itself: Starlette's objects for request and response
    and the layers around them cost as much as all that is done for a request of one event.
    """

    def __init__(self, gateway: Gateway, route: str, handle: _Handler, success: int) -> None:
        self._gateway = gateway
        self._route = route
        self._handle = handle
        self._success = success
        # 503 begins at zero: an alert goes by its increase, which does not see a counter's first value
        self._counters: dict[int, Counter] = {503: metrics.http_requests.labels(route, "503")}
        self._seconds = metrics.http_seconds.labels(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        fields = dict(reversed(scope["headers"]))
        given = fields.get(b"x-request-id")
        request_id = request_id_of(None if given is None else given.decode("latin-1"))
        route, status = self._route, self._success
        refusal: Response | None = None
        try:
            members, headers = await self._answer(scope, fields, receive, request_id)
            body = orjson.dumps(members)
        except ProblemError as problem:
            refusal = problem_response(problem, request_id)
        except Exception:
            # The error goes to the log; the sender learns that it is ours and that sending again is safe.
            log.exception("request failed", route=route, request_id=request_id)
            failure = ProblemError(
                500, "internal_error", "something failed here; send again with the same ids"
            )
            refusal = problem_response(failure, request_id)
        if refusal is not None:
            status = refusal.status_code
        if status not in self._counters:
            self._counters[status] = metrics.http_requests.labels(route, str(status))
        self._counters[status].inc()
        self._seconds.observe(time.perf_counter() - started)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        head = [
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, fields: _Fields, receive: Receive, request_id: str
    ) -> tuple[dict[str, Any], list[tuple[bytes, bytes]]]:
        """The members of the answer, and its header fields. Raises ProblemError."""
        gateway = self._gateway
        address = address_of(scope)
        claim = Claim.of(_text(fields, b"authorization"))
        credential = None if claim is not None else _bearer(gateway, scope, fields, address)
        if credential is not None:
            gateway.quotas.admit_sources(address, credential.sources)
        content_type = media_type(_text(fields, b"content-type"))
        encoding = encoding_of(scope, fields)
        limit = gateway.settings.max_body_bytes
        if gateway.draining:
            raise ProblemError(503, "stopping", "the gateway is stopping; send again")
        declared = declared_length(fields.get(b"content-length"), limit)
        # Until a signature is verified, which takes the body, its request is the caller's and not the key's,
        # and holds what arrived: a length is declared for nothing.
        verified = credential is not None
        holder = credential.id if credential is not None else f"address {caller(address)}"
        hold = Hold(gateway.budget, holder, declared if verified else 0, verified=verified)
        sent = waiting = None
        try:
            body = await read_body(receive, hold.size, limit, hold.grow, whole=WHOLE in scope)
            sent = hold.size
            waiting = gateway.waiting.begin()
            if credential is None:
                assert claim is not None
                credential = await _signed(gateway, scope, claim, body, address)
                hold.verify()
                gateway.quotas.admit_sources(address, credential.sources)
            call = Call(body, content_type, encoding, credential, request_id, hold.grow, address)
            members = await self._handle(call)
        finally:
            if waiting is not None:
                gateway.waiting.end(waiting)
            charged = credential.sources if credential else frozenset[str]()
            hold.give_back()
            gateway.quotas.charge_bytes(address, charged, hold.size if sent is None else sent)
        headers = [(b"x-request-id", request_id.encode()), (b"cache-control", b"no-store")]
        for name, value in gateway.quotas.headers(address, credential.sources).items():
            headers.append((name.lower().encode(), value.encode()))
        return members, headers


def gateway_routes(gateway: Gateway) -> list[BaseRoute]:
    """The routes of `gateway`, to be mounted by the HTTP process."""
    return [
        Route(path, call, methods=["POST"], name=name)
        for (path, call), name in zip(
            gateway_calls(gateway).items(), ("send events", "validate events"), strict=True
        )
    ]


def gateway_calls(gateway: Gateway) -> dict[str, EventsCall]:
    """Path -> what answers a POST to it."""
    return {
        EVENTS: EventsCall(gateway, EVENTS, gateway.take, 202),
        VALIDATE: EventsCall(gateway, VALIDATE, gateway.validate, 200),
    }


def _text(fields: _Fields, name: bytes) -> str:
    return fields.get(name, b"").decode("latin-1")


def _bearer(gateway: Gateway, scope: Scope, fields: _Fields, address: str) -> Credential:
    if scope.get("query_string") and any(
        name.lower() in _KEY_PARAMETERS for name in Request(scope).query_params
    ):
        raise ProblemError(
            401, "key_in_address", "keys are not taken from the address; send Authorization: Bearer KEY"
        )
    scheme, _, bearer = _text(fields, b"authorization").partition(" ")
    try:
        credential = gateway.keys.verify(bearer.strip()) if scheme.lower() == "bearer" else None
    except ConfigurationError as error:
        raise keys_unavailable(error) from error
    if credential is None:
        gateway.quotas.wrong_credential(address, bearer[:15])
        raise unauthorised()
    return _may_send(credential)


async def _signed(gateway: Gateway, scope: Scope, claim: Claim, body: bytes, address: str) -> Credential:
    given = signed_parts(Request(scope), body)
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


def address_of(scope: Scope) -> str:
    """The peer's address, or whom a proxy on this machine says it speaks for (see `runtime.http.serve`)."""
    client = scope.get("client")
    return client[0] if client else ""


@lru_cache(maxsize=256)
def media_type(given: str) -> str:
    """The media type without parameters. Raises ProblemError 415: not one of ours, or not UTF-8."""
    kind, utf8 = split_media_type(given)
    if kind not in CONTENT_TYPES:
        raise ProblemError(
            415, "unknown_content_type", f"Content-Type must be one of {', '.join(CONTENT_TYPES)}"
        )
    if not utf8:
        raise ProblemError(415, "unknown_charset", "the charset must be UTF-8")
    return kind


def encoding_of(scope: Scope, fields: _Fields) -> str:
    if b"content-encoding" not in fields:
        return ""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
    encoding = ",".join(given).strip().lower()
    if encoding not in ("", "identity", "gzip", "zstd"):
        raise ProblemError(415, "unknown_encoding", "Content-Encoding must be gzip, zstd or absent")
    return encoding


__all__ = ["OPENAPI_PATHS", "gateway_calls", "gateway_routes"]
