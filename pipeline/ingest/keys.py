"""Keys of the feeding systems and of those who read, in `<data-dir>/keys.json`.

A bearer key is `gp_<id>_<secret>`; the file holds a salted hash of its secret. A signing key is
`gps_<id>_<secret>` and never travels: its secret is derived from `secrets/signing.v1` and the entry's salt,
so that the file alone is worth nothing.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from pipeline.clock import utc_now
from pipeline.contract.canary import CANARY_SOURCE
from pipeline.contract.event import ID_PATTERN
from pipeline.contract.privacy import holds_personal_number, redact_head
from pipeline.contract.secret import load_secret
from pipeline.errors import ConfigurationError, PermanentError

_KEY: Final = re.compile(r"gp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SOURCE: Final = re.compile(ID_PATTERN)
#: What a key may do: send events; call the read API; see metrics on a listener that is not loopback.
ROLES: Final = ("ingest", "read", "admin")
#: Reserved: a key for this source has the role `read`.
READ_SOURCE: Final = "read"
SIGNED_PREFIX: Final = "gps_"
#: Good bearers remembered until the file changes; more than any city has feeding systems.
_CACHE_SIZE: Final = 4_096


class Credential(msgspec.Struct, frozen=True):
    """What a key allows: these roles; as `ingest` these sources, and with `backfill` reports of any age."""

    id: str
    sources: frozenset[str]
    backfill: bool
    roles: frozenset[str] = frozenset({"ingest"})


class StoredKey(msgspec.Struct, frozen=True):
    """One entry of the file; `hash` is HMAC-SHA-256 of the secret under `salt`, hexadecimal, "" if signed.

    roles : empty in entries of earlier versions: what the sources say.
    """

    id: str
    sources: list[str]
    backfill: bool
    salt: str
    hash: str
    created_at: datetime
    revoked_at: datetime | None = None
    roles: list[str] = []
    signed: bool = False
    expires_at: datetime | None = None

    def in_force(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def all_roles(self) -> frozenset[str]:
        if self.roles:
            return frozenset(self.roles)
        named = {"read"} if READ_SOURCE in self.sources else set()
        return frozenset(named | ({"ingest"} if set(self.sources) - {READ_SOURCE} else set()))

    def credential(self) -> Credential:
        return Credential(self.id, frozenset(self.sources), self.backfill, self.all_roles)


class _File(msgspec.Struct):
    keys: list[StoredKey] = []


def _hash(salt: str, secret: str) -> str:
    return hmac.digest(salt.encode(), secret.encode(), "sha256").hex()


def _derive(master: bytes, key_id: str, salt: str) -> str:
    """The secret of a signing key, 43 characters."""
    digest = hmac.digest(master, f"gridpipe:signing:{key_id}:{salt}".encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class KeyStore:
    """The keys of one file. Reads it again when it changes, so that a revoked key stops at once.

    verify, holds, signing and check raise ConfigurationError where the file cannot be read, or is missing
    though it was there with keys.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._clock = clock
        self._master_path = path.parent / "secrets" / "signing.v1"
        self._version: tuple[int, int, int] | None = None
        self._master: bytes | None = None
        self._keys: dict[str, StoredKey] = {}
        self._verified: dict[bytes, tuple[StoredKey, Credential]] = {}

    def create(
        self,
        source: str | Sequence[str] = (),
        backfill: bool = False,
        *,
        roles: Sequence[str] = (),
        signed: bool = False,
        expires_at: datetime | None = None,
    ) -> str:
        """Make a key and return it: shown this once, only a hash of it is kept.

        source : one or several, needed by the role `ingest`. roles : of `ROLES`; unset: `ingest`.
        signed : a key that signs requests instead of travelling with them. Raises ConfigurationError.
        """
        sources = [source] if isinstance(source, str) else list(dict.fromkeys(source))
        self._check(sources, roles, backfill, expires_at)
        if CANARY_SOURCE in sources:
            raise ConfigurationError(f"source {CANARY_SOURCE!r} is the pipeline's own; choose another name")
        number, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
        digest = _hash(salt, secret)
        if signed:
            secret, digest = _derive(load_secret(self._master_path, create=True), number, salt), ""
        with self._exclusive() as file:
            file.keys.append(
                StoredKey(
                    number,
                    sources,
                    backfill,
                    salt,
                    digest,
                    created_at=self._clock(),
                    roles=[role for role in ROLES if role in roles],
                    signed=signed,
                    expires_at=expires_at,
                )
            )
        return f"{SIGNED_PREFIX if signed else 'gp_'}{number}_{secret}"

    def _check(
        self, sources: Sequence[str], roles: Sequence[str], backfill: bool, expires_at: datetime | None
    ) -> None:
        wrong = [name for name in sources if not _SOURCE.match(name)]
        if unknown := [role for role in roles if role not in ROLES]:
            raise ConfigurationError(
                f"role {redact_head(unknown[0], 64)!r} must be one of {', '.join(ROLES)}"
            )
        if wrong or (not sources and (not roles or "ingest" in roles)):
            shown = redact_head(wrong[0], 64) if wrong else ""
            raise ConfigurationError(f"source {shown!r} must be 1–64 characters from A–Z a–z 0–9 . _ : -")
        if any(holds_personal_number(name) for name in sources):
            raise ConfigurationError("a source must not hold an identity or mobile number")
        if roles and "ingest" not in roles and (backfill or set(sources) - {READ_SOURCE}):
            raise ConfigurationError("sources and backfill belong to the role ingest; add --role ingest")
        if expires_at is not None and expires_at <= self._clock():
            raise ConfigurationError("the key would have expired already; give a later time")

    def revoke(self, key_id: str) -> StoredKey:
        """Stop a key. Raises PermanentError if there is no such key; revoking twice changes nothing."""
        with self._exclusive() as file:
            for at, key in enumerate(file.keys):
                if key.id == key_id:
                    if key.revoked_at is None:
                        file.keys[at] = msgspec.structs.replace(key, revoked_at=self._clock())
                    return file.keys[at]
        raise PermanentError(f"no key {redact_head(key_id, 64)!r}; `gridpipe keys list` shows them")

    def list(self) -> Sequence[StoredKey]:
        """Every key, oldest first; no secrets."""
        return self._read().keys

    def verify(self, bearer: str) -> Credential | None:
        """What `bearer` allows, or None: unknown, wrong, revoked, expired and signing keys look alike, in
        equal time."""
        self._refresh()
        fingerprint = hashlib.sha256(bearer.encode("utf-8", "replace")).digest()
        known = self._verified.get(fingerprint)
        if known is not None:
            return known[1] if known[0].in_force(self._clock()) else None
        match = _KEY.fullmatch(bearer)
        number, secret = match.groups() if match else ("", "")
        key = self._keys.get(number)
        expected = key.hash if key and not key.signed else "0" * 64
        right = hmac.compare_digest(_hash(key.salt if key else "none", secret), expected)
        if key is None or key.signed or not right or not key.in_force(self._clock()):
            return None
        if len(self._verified) >= _CACHE_SIZE:
            self._verified.clear()
        self._verified[fingerprint] = key, key.credential()
        return self._verified[fingerprint][1]

    def holds(self, key_id: str, role: str) -> bool:
        """Whether the key with this id is in force and has the role. For who has shown the key before."""
        self._refresh()
        key = self._keys.get(key_id)
        return key is not None and key.in_force(self._clock()) and role in key.all_roles

    def signing(self, key_id: str) -> tuple[bytes, Credential | None]:
        """The secret that requests of signing key `key_id` are signed with, and what it allows.

        For an unknown, revoked or expired key: a secret that nobody has, and None, in equal time.
        Raises ConfigurationError where `secrets/signing.v1` is missing or not private; start-up looks too.
        """
        self._refresh()
        key = self._keys.get(key_id)
        usable = key is not None and key.signed and key.in_force(self._clock())
        if key is None or not usable:
            return _derive(os.urandom(32), key_id, "none").encode(), None
        if self._master is None:
            self._master = load_secret(self._master_path, create=False)
        return _derive(self._master, key_id, key.salt).encode(), key.credential()

    def check(self) -> None:
        """Raises ConfigurationError, as every look at keys does, where the file cannot be used."""
        self._refresh()

    def _refresh(self) -> None:
        try:
            status = os.stat(self._path)  # noqa: PTH116  at each request: Path.stat takes twice as long
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
        except OSError:
            version = (0, 0, 0)
        if version != self._version:
            file = self._read_if_there()
            if file is None and self._keys:
                # it may be about to be replaced, and all its keys be good
                raise ConfigurationError(f"key file {self._path} is missing; restore it")
            self._keys = {key.id: key for key in (file or _File()).keys}
            self._verified = {}
            self._version = version

    def _read(self) -> _File:
        return self._read_if_there() or _File()

    def _read_if_there(self) -> _File | None:
        try:
            content = self._path.read_bytes()
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"key file {self._path}: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"key file {self._path} can be read by others; run: chmod 600 {self._path}"
            )
        try:
            return msgspec.json.decode(content, type=_File)
        except msgspec.MsgspecError as error:
            raise ConfigurationError(f"key file {self._path} is damaged: {error}; restore it") from error

    @contextmanager
    def _exclusive(self) -> Iterator[_File]:
        """Read, let the caller change, replace the file as a whole; one process at a time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._read()
            yield file
            temporary = self._path.with_suffix(".tmp")
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as output:
                output.write(msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
                output.flush()
                os.fsync(output.fileno())
            temporary.replace(self._path)
        finally:
            os.close(lock)
