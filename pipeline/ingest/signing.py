"""Signed requests: HMAC-SHA-256 over time, nonce, method, address and the body as sent; no replay.

    Authorization: GRIDPIPE-HMAC-SHA256 key=<id>,time=<unix seconds>,nonce=<nonce>,signature=<hex>

A nonce is 16–64 characters from A–Z a–z 0–9 _ -, never used before. The signature is HMAC-SHA-256 under the
key's secret (what follows `gps_<id>_`) of these lines joined by a line feed, without one at the end:

    GRIDPIPE-HMAC-SHA256
    <time>
    <nonce>
    <method, upper case>
    <path and query as sent>
    <Content-Type as sent, empty if absent>
    <Content-Encoding as sent, empty if absent>
    <SHA-256 of the body as sent, hex>

A nonce is used up before its request is handled. Whoever got no answer signs the request anew before sending
it again, with the same event ids; a 409 says nothing about the first try.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import structlog

from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import SIGNED_PREFIX, Credential, KeyStore
from pipeline.ingest.problem import ProblemError

log = structlog.get_logger(__name__)

SCHEME: Final = "GRIDPIPE-HMAC-SHA256"
#: How far a request's time may be from ours, seconds; nonces are kept for twice as long.
TOLERANCE_SECONDS: Final = 300
_HEADER: Final = re.compile(
    r"key=([0-9a-f]{12}),\s*time=([0-9]{1,12}),\s*nonce=([A-Za-z0-9_-]{16,64}),\s*signature=([0-9a-f]{64})"
)
_KEY: Final = re.compile(r"gps_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SWEEP_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Signed:
    """What is signed of a request. target : path and query as sent."""

    method: str
    target: str
    content_type: str
    content_encoding: str
    body: bytes
    digest: str = ""

    def digested(self) -> Signed:
        """The same with the digest of the body."""
        return replace(self, digest=self.digest or hashlib.sha256(self.body).hexdigest())


@dataclass(frozen=True, slots=True)
class Claim:
    """A signature as it was sent; nothing of it is verified."""

    key_id: str
    time: str
    nonce: str
    signature: str

    @classmethod
    def of(cls, authorization: str) -> Claim | None:
        """None if the header is not of this scheme and form."""
        scheme, _, rest = authorization.partition(" ")
        match = _HEADER.fullmatch(rest.strip()) if scheme.upper() == SCHEME else None
        return cls(*match.groups()) if match else None


def signature(secret: bytes, time_: str, nonce: str, request: Signed) -> str:
    """Hexadecimal signature of a request."""
    lines = (
        SCHEME,
        time_,
        nonce,
        request.method.upper(),
        request.target,
        request.content_type,
        request.content_encoding,
        request.digested().digest,
    )
    return hmac.digest(secret, "\n".join(lines).encode("utf-8", "replace"), "sha256").hex()


class Nonces:
    """Nonces seen lately, on disk: a restart makes no old request new. Processes may share the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS nonces (key_id TEXT, nonce TEXT, seen_at REAL, "
            "PRIMARY KEY (key_id, nonce)) WITHOUT ROWID"
        )
        self._swept_at = float("-inf")

    def take(self, key_id: str, nonce: str, now: float) -> bool:
        """Remember a nonce; False if it was there already. Raises sqlite3.Error where that cannot be told."""
        if now - self._swept_at > _SWEEP_SECONDS:
            self._swept_at = now
            self._db.execute("DELETE FROM nonces WHERE seen_at < ?", (now - 2 * TOLERANCE_SECONDS,))
        done = self._db.execute("INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)", (key_id, nonce, now))
        return done.rowcount == 1

    def close(self) -> None:
        self._db.close()


class Signatures:
    """Verifies signed requests of the keys in `keys`. One per process, used from its event loop."""

    def __init__(self, keys: KeyStore, nonces_path: Path, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._path = nonces_path
        self._clock = clock
        self._nonces: Nonces | None = None

    def verify(self, claim: Claim, request: Signed) -> Credential:
        """What the request's key allows.

        Raises ProblemError: 401 wrong (whatever is wrong) or too far from our time, 409 seen before, 503 when
        keys cannot be read or nonces not be kept.
        """
        try:
            secret, credential = self._keys.signing(claim.key_id)
        except ConfigurationError as error:
            raise keys_unavailable(error) from error
        expected = signature(secret, claim.time, claim.nonce, request)
        if not hmac.compare_digest(expected, claim.signature) or credential is None:
            raise unauthorised()
        now = self._clock()
        if abs(now - int(claim.time)) > TOLERANCE_SECONDS:
            raise ProblemError(
                401,
                "stale_signature",
                f"the signature's time is more than {TOLERANCE_SECONDS} s from this server's, {int(now)}; "
                "set the clock and sign again",
            )
        try:
            if self._nonces is None:
                self._nonces = Nonces(self._path)
            fresh = self._nonces.take(claim.key_id, claim.nonce, now)
        except sqlite3.Error:
            raise ProblemError(
                503, "unavailable", "signed requests cannot be told from replays now"
            ) from None
        if not fresh:
            raise ProblemError(
                409,
                "replayed",
                "this signed request was received before, and its events may be stored or not; sign it anew, "
                "with the same event ids, and send it again",
            )
        return credential

    def close(self) -> None:
        if self._nonces is not None:
            self._nonces.close()
            self._nonces = None


def keys_unavailable(error: ConfigurationError) -> ProblemError:
    """Nobody can be told from anybody else now: the caller's key may be as good as ever."""
    log.error("keys_unavailable", problem=str(error))
    return ProblemError(503, "keys_unavailable", "keys cannot be looked at now; send again")


def unauthorised() -> ProblemError:
    """The one answer to every credential that is not right."""
    return ProblemError(
        401, "unauthorised", f"a valid key is needed: Authorization: Bearer KEY, or {SCHEME} for signing keys"
    )


class SigningAuth(httpx.Auth):
    """Signs each request of an httpx client, also one that is sent again, with key `gps_<id>_<secret>`."""

    requires_request_body = True

    def __init__(self, key: str, clock: Callable[[], float] = time.time) -> None:
        match = _KEY.fullmatch(key)
        if match is None:
            raise ConfigurationError("--key: a signing key looks like gps_<12 hex digits>_<43 characters>")
        self._key_id, self._secret = match[1], match[2].encode()
        self._clock = clock

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        moment, nonce = str(int(self._clock())), secrets.token_urlsafe(18)
        given = Signed(
            request.method,
            request.url.raw_path.decode("ascii"),
            request.headers.get("content-type", ""),
            request.headers.get("content-encoding", ""),
            request.content,
        )
        signed = signature(self._secret, moment, nonce, given)
        request.headers["Authorization"] = (
            f"{SCHEME} key={self._key_id},time={moment},nonce={nonce},signature={signed}"
        )
        yield request


class BearerAuth(httpx.Auth):
    """Sends the key along."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = self._header
        yield request


def auth_for(key: str) -> httpx.Auth:
    """How a client shows `key`: a signing key signs, any other is sent. ConfigurationError: damaged."""
    return SigningAuth(key) if key.startswith(SIGNED_PREFIX) else BearerAuth(key)
