"""Holds the pseudonym keys of this machine to those that the store's rows were made with.

Another key under the same version gives every person another pseudonym: residents are unknown, an erasure
misses rows, redeliveries look like other events, and nothing else notices. So the store keeps a fingerprint
of each version (revision 0011), whoever has both compares them at start, and a key is made only for a store
that knows none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.contract.privacy import Privacy, first_line, secret_versions
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.store.client import NOT_ALLOWED

log = structlog.get_logger(__name__)

#: ClickHouse codes.
_NO_TABLE: Final = frozenset({60, 81})  # no such table, no such database


@dataclass(frozen=True)
class KnownKeys:
    """What a store knows. fingerprints : by version, retired ones too; retired : whose keys are destroyed."""

    fingerprints: Mapping[int, str] = field(default_factory=dict)
    retired: frozenset[int] = frozenset()

    @property
    def current(self) -> tuple[int, ...]:
        return tuple(sorted(self.fingerprints.keys() - self.retired))


def known_keys(client: Client) -> KnownKeys | None:
    """None before the migration that made the table."""
    try:
        rows = client.query(
            "SELECT version, argMin(fingerprint, (noted_at, fingerprint)), max(retired) "
            "FROM pseudonym_keys GROUP BY version ORDER BY version"
        ).result_rows
    except ClickHouseError as error:
        if _code(error) in _NO_TABLE:
            return None
        raise _unavailable(error) from error
    return KnownKeys(
        {int(version): str(fingerprint) for version, fingerprint, _ in rows},
        frozenset(int(version) for version, _, retired in rows if retired),
    )


def hold_ring(client: Client, path: Path, *, create: bool, complete: bool = False) -> Privacy:
    """The keys beside `path` (`…/pseudonym.v1`), known to be those of the store; retired versions left out.

    client : its database is gridpipe's; before its first migration nothing can be noted, and nothing is.
    create : make the first key where neither this machine nor the store has one: a site's first start.
    complete : every version in use must be here, as where all rows of a person are looked for.

    Raises ConfigurationError where a key is missing or another one, and where the store knows none and this
    ClickHouse user may not note ours.
    """
    known = known_keys(client)
    if not secret_versions(path):
        _refuse_another(client, path, known)
        if create and known is not None:
            _note(client, {})  # before there is a key that nobody could hold others to
    privacy = Privacy.load(path, create=create)
    if known is None:
        return privacy
    _compare(privacy, known, path, complete=complete)
    if unknown := {v: f for v, f in privacy.fingerprints.items() if v not in known.fingerprints}:
        _note(client, unknown)
        known = known_keys(client) or known  # another machine's first start may have come first
        _compare(privacy, known, path, complete=complete)
    return privacy.without(known.retired)


def problems_of(privacy: Privacy, known: KnownKeys, path: Path, *, complete: bool = False) -> list[str]:
    """One sentence for each key that is not the store's."""
    found = []
    for version, fingerprint in privacy.fingerprints.items():
        if version in known.retired:
            if version == privacy.key_version:
                found.append(
                    f"version {version} of the pseudonym key is in force here and was retired: "
                    f"copy {path.parent}/ of a machine that is up to date"
                )
        elif known.fingerprints.get(version, fingerprint) != fingerprint:
            found.append(
                f"pseudonym key {path.with_suffix(f'.v{version}')} is not the one that this store was filled "
                f"with, nobody would be found under it: copy {path.parent}/ of the first host, or restore it "
                "from your backup"
            )
    missing = [str(version) for version in known.current if version not in privacy.versions]
    if missing and complete:
        found.append(
            f"version {', '.join(missing)} of the pseudonym key is in use and not in {path.parent}/: "
            "copy it from the machine that has it"
        )
    return found


def retire_key(client: Client, version: int) -> None:
    """From now on no machine may use `version`, and no load stores residents under it."""
    known = known_keys(client) or KnownKeys()
    if version in known.fingerprints and version not in known.retired:
        _note(client, {version: known.fingerprints[version]}, retired=True)


def _code(error: ClickHouseError) -> int | None:
    return getattr(error, "code", None)


def _unavailable(error: ClickHouseError) -> UnavailableError:
    return UnavailableError(f"the pseudonym keys in ClickHouse cannot be looked at: {first_line(error)}")


def _compare(privacy: Privacy, known: KnownKeys, path: Path, *, complete: bool) -> None:
    if problems := problems_of(privacy, known, path, complete=complete):
        raise ConfigurationError(problems)
    if missing := set(known.current) - set(privacy.versions):
        log.warning("pseudonym_key_missing", versions=sorted(missing), do=f"copy {path.parent}/")


def _refuse_another(client: Client, path: Path, known: KnownKeys | None) -> None:
    """Raises ConfigurationError where the store's rows were made with a key that is not here."""
    if (known is not None and known.fingerprints) or _holds_pseudonyms(client):
        raise ConfigurationError(
            f"pseudonym key {path} is missing, and this store was filled with one: copy {path.parent}/ of "
            "the first host, or restore it from your backup (another key, other pseudonyms)"
        )


def _holds_pseudonyms(client: Client) -> bool:
    """Of a store that was filled before it noted keys."""
    for query in ("SELECT 1 FROM ref_persons LIMIT 1", "SELECT 1 FROM events WHERE key_version > 0 LIMIT 1"):
        try:
            if client.query(query).result_rows:
                return True
        except ClickHouseError as error:
            if _code(error) not in _NO_TABLE | NOT_ALLOWED:
                raise _unavailable(error) from error
    return False


def _note(client: Client, fingerprints: Mapping[int, str], *, retired: bool = False) -> None:
    """Without fingerprints: only whether this user may. Raises ConfigurationError if not."""
    asked = {"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": "keys:asked"}
    noted = [[version, fingerprint, retired] for version, fingerprint in sorted(fingerprints.items())]
    token = asked | {"insert_deduplication_token": f"keys:{noted}"}
    try:
        client.command(
            "INSERT INTO pseudonym_keys (version, fingerprint) "
            "SELECT version, fingerprint FROM pseudonym_keys WHERE 0",
            settings=asked,
        )
        if fingerprints:
            client.insert(
                "pseudonym_keys",
                noted,
                column_names=["version", "fingerprint", "retired"],
                settings=token,
            )
    except ClickHouseError as error:
        if _code(error) not in NOT_ALLOWED:
            raise _unavailable(error) from error
        raise ConfigurationError(
            "the store knows no such pseudonym key yet, and this ClickHouse user may not note it: start "
            "`gridpipe worker` or `gridpipe up` first, and copy its secrets/ here"
        ) from error
