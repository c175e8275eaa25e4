"""Rotation of the pseudonym key: a coming version beside the one in force, its turn, the end of the old one.

rotate    make the next version; reference loads then store residents under both
activate  new pseudonyms are made under it, from the next start of gateway and workers on
retire    destroy an old version: its pseudonyms can never be made, or linked, again
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.contract.privacy import active_version, secret_versions
from pipeline.contract.secret import load_secret
from pipeline.errors import ConfigurationError


def rotate(path: Path) -> int:
    """Make the next version beside `path` (`…/pseudonym.v1`); returns it.

    Raises ConfigurationError while another rotation is under way.
    """
    versions, active = secret_versions(path), active_version(path)
    if active not in versions:
        raise ConfigurationError(f"no pseudonym key at {path}; the first start of the service makes one")
    if coming := [version for version in versions if version > active]:
        raise ConfigurationError(
            f"version {coming[0]} is waiting to be activated: run `gridpipe pseudonym activate {coming[0]}`"
        )
    following = max(versions) + 1
    load_secret(path.with_suffix(f".v{following}"), create=True)
    _point(path, active)
    return following


def activate(path: Path, version: int) -> None:
    """Put `version` in force. Raises ConfigurationError if there is no such secret."""
    if version not in secret_versions(path):
        raise ConfigurationError(f"there is no version {version}; `gridpipe pseudonym list` shows them")
    load_secret(path.with_suffix(f".v{version}"), create=False)
    _point(path, version)


def check_retirable(path: Path, version: int) -> None:
    """Raises ConfigurationError if `version` is in force or not there."""
    if version not in secret_versions(path):
        raise ConfigurationError(f"there is no version {version}; `gridpipe pseudonym list` shows them")
    if version == active_version(path):
        raise ConfigurationError(f"version {version} is in force; activate another one first")


def retire(path: Path, version: int) -> None:
    """Destroy the secret of `version`. Raises as `check_retirable`."""
    check_retirable(path, version)
    file = secret_versions(path)[version]
    with file.open("r+b") as secret:  # what a journal or a snapshot of the disk still holds is beyond us
        secret.write(os.urandom(file.stat().st_size))
        secret.flush()
        os.fsync(secret.fileno())
    file.unlink()


def _point(path: Path, version: int) -> None:
    pointer = path.with_suffix(".active")
    fresh = pointer.with_suffix(".active.tmp")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(f"{version}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(pointer)
