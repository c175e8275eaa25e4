"""The list of erased persons as a file, to be kept apart from the backups of the database.

A backup of before an erasure holds the person and not the erasure: who restores it needs the list of today.
One JSON object a line, as in `ref_erasures`: pseudonyms, so the file is for the operator alone (0600).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from clickhouse_connect.driver.client import Client

from pipeline.contract.event import ID_PATTERN
from pipeline.contract.privacy import holds_personal_number
from pipeline.errors import ConfigurationError

#: Instead of the id of a request that is none: once any text was taken, also the person's number.
WITHHELD: Final = "withheld"


class Erasure(NamedTuple):
    """A pseudonym that was erased. erased_at : UTC, whole milliseconds."""

    erased_at: datetime
    request_id: str
    person_key: str
    key_version: int


def is_request_id(text: str) -> bool:
    """Whether `text` may name a request: it stays in clear in tables, in the list and in a file's name."""
    return re.match(ID_PATTERN, text) is not None and not holds_personal_number(text)


def stored_erasures(client: Client) -> set[Erasure]:
    """The list of the database; of several erasures of a pseudonym all that are still told apart."""
    rows = client.query(
        "SELECT toUnixTimestamp64Milli(erased_at), request_id, person_key, key_version FROM ref_erasures"
    ).result_rows
    return {
        Erasure(_instant(at), _request_id(str(request)), str(key), int(version))
        for at, request, key, version in rows
    }


def read_list(path: Path) -> set[Erasure]:
    """The erasures of a file. Raises ConfigurationError if it is missing, open to others, or damaged."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such file") from error
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(f"{path} can be read by others; run: chmod 600 {path}")
    found = set()
    for number, line in enumerate(lines, 1):
        try:
            entry = orjson.loads(line)
            erased_at = datetime.fromisoformat(entry["erased_at"]).astimezone(UTC)
            key, version = str(entry["person_key"]), int(entry["key_version"])
            found.add(Erasure(erased_at, _request_id(str(entry["request_id"])), key, version))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"{path}, line {number}: not of a list of erasures") from error
    return found


def write_list(path: Path, erasures: Iterable[Erasure]) -> None:
    """Replace the file at once, readable by this user only."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    text = b"".join(
        orjson.dumps(erasure._asdict() | {"erased_at": erasure.erased_at.isoformat(timespec="milliseconds")})
        + b"\n"
        for erasure in sorted(erasures)
    )
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _request_id(text: str) -> str:
    return text if is_request_id(text) else WITHHELD


def _instant(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1_000, UTC).replace(
        microsecond=milliseconds % 1_000 * 1_000
    )
