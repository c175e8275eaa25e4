"""Secrets in files of their own, 0600: read, checked, made where there is none. Nothing here logs a value."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigurationError

MIN_SECRET_BYTES: Final = 32
_PLACEHOLDERS: Final = ("changeme", "default", "secret", "password", "example", "0123456789")


def load_secret(path: Path, *, create: bool, least: int = MIN_SECRET_BYTES) -> bytes:
    """The secret at `path`, without white space around it; with `create`, made where there is none.

    least : bytes that it must have.

    Raises ConfigurationError where the file is missing, readable by others, short or a known placeholder.
    """
    if create and not path.exists():
        _create(path)
    name = "pseudonym key" if path.name.startswith("pseudonym") else "secret"
    try:
        mode = path.stat().st_mode
        secret = path.read_bytes().strip()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ConfigurationError(
            f"{name} {path}: {reason}; restore it from your backup (another key, other pseudonyms)"
            if name == "pseudonym key"
            else f"{name} {path}: {reason}; restore it from your backup"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"{name} {path} can be read by others; run: chmod 600 {path}")
    if len(secret) < least:
        raise ConfigurationError(f"{name} {path} must hold at least {least} bytes")
    if is_placeholder(secret):
        raise ConfigurationError(f"{name} {path} is a placeholder; put a random secret there")
    return secret


def is_placeholder(secret: bytes) -> bool:
    """Whether a secret is one that everybody would try, or has next to no variety."""
    return len(set(secret)) < 8 or any(word.encode() in secret.lower() for word in _PLACEHOLDERS)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_hex(MIN_SECRET_BYTES).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # fails if another process was first: then its secret is the one
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
