"""Who may read, and who looks at metrics.

On a loopback listener everybody on the machine reads; on any other, and through a proxy on the machine,
holders of a key with the role `read`. Metrics on an `admin_http` that is not loopback, and through a proxy,
need the role `admin`. Reads of personal data are audited.
"""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.audit import AuditLog
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import READ_SOURCE, Credential, KeyStore
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.ingest.quota import AddressQuota, Clock, Quotas
from pipeline.ingest.routes import address_of, signed_parts
from pipeline.ingest.signing import Claim, Signatures, keys_unavailable, unauthorised
from pipeline.read.small_cells import SMALL_CELLS
from pipeline.settings import Settings, is_loopback, split_address

__all__ = [
    "LOCAL_SOURCE",
    "READ_SOURCE",
    "AuditReads",
    "ReadKeys",
    "RoleKeys",
    "SmallCells",
    "bearer_of",
    "check_listeners",
    "guard_metrics",
    "is_passed_on",
    "still_reads",
]

#: The source of the key that `gridpipe up` makes for this machine.
LOCAL_SOURCE: Final = "local"
#: Calls whose answers tell of one person's report or case, however masked.
_PERSONAL: Final = ("/v1/events/", "/v1/cases/", "/v1/rejections", "/v1/live/search")
#: So does the stream, which shows the newest rejected reports; what the page asks below it is figures.
_STREAM: Final = "/v1/live"
#: Requests per second of one address on a listener for metrics: a hundred that ask each second. Not the
#: senders' setting, which may be lower than what watching needs.
_ADMIN_REQUESTS_PER_SECOND: Final = 100
#: What proxies add. None of this machine's own callers sends one.
_PASSED_ON: Final = frozenset({b"forwarded", b"via", b"x-real-ip"})
_PASSED_ON_PREFIX: Final = b"x-forwarded-"
_CALLER: Final = "gridpipe.caller"
_KEY_ID: Final = "gridpipe.key_id"
_ROLES: Final = "gridpipe.roles"


def check_listeners(settings: Settings) -> None:
    """Refuse a public listener that would answer without keys or show its metrics to everybody.

    Raises ConfigurationError. Source: design 4, Keys.
    """
    problems: list[str] = []
    # The operator's own key reads too, but nobody else has it: it does not make a listener usable.
    roles = {
        role
        for key in KeyStore(settings.keys_path).list()
        if key.in_force(utc_now()) and LOCAL_SOURCE not in key.sources
        for role in key.all_roles
    }
    if not is_loopback(split_address(settings.http)[0]):
        if "read" not in roles:
            problems.append(
                f"listening on {settings.http} needs a read key: run `gridpipe keys add --role read`"
            )
        if settings.admin_http is None:
            problems.append(
                f"listening on {settings.http} needs --admin-http HOST:PORT for /metrics and /health, "
                "for example 127.0.0.1:9090"
            )
    if (
        settings.admin_http is not None
        and not is_loopback(split_address(settings.admin_http)[0])
        and "admin" not in roles
    ):
        problems.append(
            f"--admin-http {settings.admin_http} needs an admin key: run `gridpipe keys add --role admin`"
        )
    if problems:
        raise ConfigurationError(problems)


def is_passed_on(scope: Scope) -> bool:
    """Whether a proxy says that it passes a request on: whoever sent it need not be on this machine, though
    the connection is."""
    return any(name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX) for name, _ in scope["headers"])


class RoleKeys:
    """ASGI wrapper: GET and HEAD of paths that begin with one of `prefixes` need a key with `role`; other
    requests pass."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyStore,
        role: str,
        prefixes: tuple[str, ...],
        *,
        signatures: Signatures | None = None,
        quotas: Quotas | None = None,
        any_id: bool = False,
        passed_on_only: bool = False,
    ) -> None:
        """quotas : counts refused credentials, and locks out who shows too many; any_id : under whatever
        key ids, instead of under one; passed_on_only : only what a proxy passed on needs a key, as on a
        loopback listener."""
        self._app = app
        self._passed_on_only = passed_on_only
        self._any_id = any_id
        self._keys = keys
        self._quotas = quotas
        self._role = role
        self._prefixes = prefixes
        self._signatures = signatures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] in {"GET", "HEAD"}
            and scope["path"].startswith(self._prefixes)
            and (not self._passed_on_only or is_passed_on(scope))
            and (refusal := self._refusal(scope)) is not None
        ):
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        request_id = request_id_of(Headers(scope=scope).get("x-request-id"))
        try:
            credential = self._identified(scope)
            if self._role not in credential.roles:
                raise ProblemError(
                    403, f"not_a_{self._role}_key", f"this call needs a key with the role {self._role}"
                )
        except ProblemError as problem:
            if self._passed_on_only and problem.code == unauthorised().code:
                problem = ProblemError(
                    problem.status,
                    problem.code,
                    f"{problem.message}; a proxy passed this request on, so that it needs one also here: "
                    f"gridpipe keys add --role {self._role}",
                )
            return problem_response(problem, request_id)
        scope[_CALLER], scope[_ROLES] = f"key {credential.id}", credential.roles
        scope[_KEY_ID] = credential.id
        return None

    def _identified(self, scope: Scope) -> Credential:
        try:
            credential = identify(scope, self._keys, self._signatures)
            if credential is None:
                raise unauthorised()
        except ProblemError as problem:
            authorization = Headers(scope=scope).get("authorization", "")
            if problem.status == 401 and authorization and self._quotas is not None:
                claim = Claim.of(authorization)
                shown = claim.key_id if claim is not None else authorization.partition(" ")[2].strip()[:15]
                self._quotas.wrong_credential(address_of(scope), None if self._any_id else shown)
            raise
        return credential


class ReadKeys(RoleKeys):
    """Reading under /v1/ needs a read key."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyStore,
        *,
        signatures: Signatures | None = None,
        quotas: Quotas | None = None,
        passed_on_only: bool = False,
    ) -> None:
        super().__init__(
            app,
            keys,
            "read",
            ("/v1/",),
            signatures=signatures,
            quotas=quotas,
            passed_on_only=passed_on_only,
        )


def guard_metrics(
    app: ASGIApp,
    settings: Settings,
    keys: KeyStore,
    prefixes: tuple[str, ...],
    *,
    clock: Clock = time.time,
) -> ASGIApp:
    """What stands before the routes of `admin_http`, with counters of its own: a quota per address and, where
    the listener is not loopback or a proxy passed the request on, the role `admin` for paths that begin with
    one of `prefixes`.

    Health is never refused. A scrape with the right key is not for what others show or send from its address:
    credentials are looked at before the quota, and a wrong one is charged to nothing but the count of them.
    """
    quotas = Quotas(settings, clock, address_requests_per_second=_ADMIN_REQUESTS_PER_SECOND)
    guarded = AddressQuota(app, quotas, free=("/health/",))
    loopback = is_loopback(split_address(settings.admin_http or settings.http)[0])
    # few have business here: who shows a hundred wrong keys a minute has none, whatever ids they name
    return RoleKeys(guarded, keys, "admin", prefixes, quotas=quotas, any_id=True, passed_on_only=loopback)


def identify(scope: Scope, keys: KeyStore, signatures: Signatures | None) -> Credential | None:
    """Whose request without a body this is; None without a valid key.

    Raises ProblemError as `Signatures`, and 503 where keys cannot be read.
    """
    authorization = Headers(scope=scope).get("authorization", "")
    claim = Claim.of(authorization)
    if claim is not None:
        return None if signatures is None else signatures.verify(claim, signed_parts(Request(scope), b""))
    return bearer_of(scope, keys)


def bearer_of(scope: Scope, keys: KeyStore) -> Credential | None:
    """What the plain key allows that a request shows; None without a valid one.

    Raises ProblemError 503 where keys cannot be read.
    """
    scheme, _, bearer = Headers(scope=scope).get("authorization", "").partition(" ")
    try:
        return keys.verify(bearer.strip()) if scheme.lower() == "bearer" else None
    except ConfigurationError as error:
        raise keys_unavailable(error) from error


def still_reads(scope: Scope, keys: KeyStore) -> bool:
    """Whether the key that a request needed still allows it to read; true where none was needed, false where
    that cannot be said."""
    key_id = scope.get(_KEY_ID)
    try:
        return key_id is None or keys.holds(key_id, "read")
    except ConfigurationError:
        return False


class SmallCells:
    """ASGI wrapper: answers hold no small cells, unless the caller's key has the role `admin`.

    passed_on_only : only those to requests that a proxy passed on.
    """

    def __init__(self, app: ASGIApp, *, passed_on_only: bool = False) -> None:
        self._app = app
        self._passed_on_only = passed_on_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (not self._passed_on_only or is_passed_on(scope)):
            scope[SMALL_CELLS] = "admin" not in scope.get(_ROLES, ())
        await self._app(scope, receive, send)


class AuditReads:
    """ASGI wrapper: a line for each answer about one report or case, before it is sent.

    Where the line cannot be written the answer is not sent: 503.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog, keys: KeyStore) -> None:
        self._app = app
        self._audit = audit
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = scope["type"] == "http" and scope["method"] in {"GET", "HEAD"}
        if not read or not (scope["path"] == _STREAM or scope["path"].startswith(_PERSONAL)):
            await self._app(scope, receive, send)
            return
        failed = False

        async def audited(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                try:
                    self._record(scope, message["status"])
                except OSError:
                    failed = True
                    problem = ProblemError(503, "not_audited", "reads cannot be recorded now; try again")
                    await problem_response(problem, request_id_of(None))(scope, receive, send)
            if not failed:
                await send(message)

        await self._app(scope, receive, audited)

    def _record(self, scope: Scope, status: int) -> None:
        call = next((prefix for prefix in _PERSONAL if scope["path"].startswith(prefix)), _STREAM)
        query = scope.get("query_string", b"").decode("latin-1")
        self._audit.record(
            who=scope.get(_CALLER) or self._who(scope),
            call=f"{scope['method']} {call.rstrip('/')}",
            subject=scope["path"].removeprefix(call).lstrip("/") or None,
            query=unquote(query) or None,
            address=scope["client"][0] if scope.get("client") else None,
            status=status,
        )

    def _who(self, scope: Scope) -> str:
        """On a loopback listener a key is not needed, but one that is shown tells who it is."""
        try:
            credential = bearer_of(scope, self._keys)
        except ProblemError:
            credential = None
        return f"key {credential.id}" if credential else "loopback"
