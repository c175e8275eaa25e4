"""Keys of the feeding systems: `gp_<id>_<secret>`, stored as salted hashes in `<data-dir>/keys.json`."""

from __future__ import annotations

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
from pipeline.contract.event import ID_PATTERN
from pipeline.errors import ConfigurationError, PermanentError

_KEY: Final = re.compile(r"gp_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SOURCE: Final = re.compile(ID_PATTERN)
#: Good bearers remembered until the file changes; more than any city has feeding systems.
from pipeline.contract.canary import CANARY_SOURCE
_CACHE_SIZE: Final = 4_096


class Credential(msgspec.Struct, frozen=True):
    """What a key allows: these sources, and with `backfill` reports of any age."""

    id: str
    sources: frozenset[str]
    backfill: bool


class StoredKey(msgspec.Struct, frozen=True):
    """One entry of the file; `hash` is HMAC-SHA-256 of the secret under `salt`, hexadecimal."""

    id: str
    sources: list[str]
    backfill: bool
    salt: str
    hash: str
    created_at: datetime
    revoked_at: datetime | None = None


class _File(msgspec.Struct):
    keys: list[StoredKey] = []


def _hash(salt: str, secret: str) -> str:
    return hmac.digest(salt.encode(), secret.encode(), "sha256").hex()


class KeyStore:
    """The keys of one file. Reads it again when it changes, so that a revoked key stops at once."""

    def __init__(self, path: Path, clock: Callable[[], datetime] = utc_now) -> None:
        self._path = path
        self._clock = clock
        self._version: tuple[int, int, int] | None = None
        self._keys: dict[str, StoredKey] = {}
        self._verified: dict[bytes, Credential] = {}

    def create(self, source: str | Sequence[str], backfill: bool = False) -> str:
        """Make a key for one source or several and return it: shown this once, only its hash is kept."""
        sources = [source] if isinstance(source, str) else list(dict.fromkeys(source))
        self._check(sources, roles, backfill, expires_at)
        if CANARY_SOURCE in sources:
            raise ConfigurationError(f"source {CANARY_SOURCE!r} is the pipeline's own; choose another name")
        number, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
        with self._exclusive() as file:
            file.keys.append(
                StoredKey(number, sources, backfill, salt, _hash(salt, secret), created_at=self._clock())
            )
        return f"gp_{number}_{secret}"

    def revoke(self, key_id: str) -> StoredKey:
        """Stop a key. Raises PermanentError if there is no such key; revoking twice changes nothing."""
        with self._exclusive() as file:
            for at, key in enumerate(file.keys):
                if key.id == key_id:
                    if key.revoked_at is None:
                        file.keys[at] = msgspec.structs.replace(key, revoked_at=self._clock())
                    return file.keys[at]
        raise PermanentError(f"no key {key_id!r}; `gridpipe keys list` shows them")

    def list(self) -> Sequence[StoredKey]:
        """Every key, oldest first; no secrets."""
        return self._read().keys

    def verify(self, bearer: str) -> Credential | None:
        """What `bearer` allows, or None: unknown, wrong and revoked keys look alike, in equal time."""
        self._refresh()
        fingerprint = hashlib.sha256(bearer.encode("utf-8", "replace")).digest()
        known = self._verified.get(fingerprint)
        if known is not None:
            return known
        match = _KEY.fullmatch(bearer)
        number, secret = match.groups() if match else ("", "")
        key = self._keys.get(number)
        expected = key.hash if key else "0" * 64
        right = hmac.compare_digest(_hash(key.salt if key else "none", secret), expected)
        if key is None or not right or key.revoked_at is not None:
            return None
        credential = Credential(key.id, frozenset(key.sources), key.backfill)
        if len(self._verified) >= _CACHE_SIZE:
            self._verified.clear()
        self._verified[fingerprint] = credential
        return credential

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            version = (0, 0, 0)
        if version != self._version:
            self._keys = {key.id: key for key in self._read().keys}
            self._verified = {}
            self._version = version

    def _read(self) -> _File:
        try:
            content = self._path.read_bytes()
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            return _File()
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
