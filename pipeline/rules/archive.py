"""Rule sets that were in force, kept in ClickHouse: what was begun by one is finished by the same.

Source: reliability c.3 and c.4 (a recovered block is rebuilt with the recorded `_rules`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.rules.catalogue import Catalogues, load_catalogues


def keep(client: Client, catalogues: Catalogues) -> None:
    """Write the files of a rule set to `rule_sets`, unless they are there.

    client : connected, migrated, its default database chosen. Safe to call from several processes at once.
    """
    known = "SELECT count() FROM rule_sets WHERE digest = {digest:String}"
    if client.query(known, parameters={"digest": catalogues.digest}).result_rows[0][0]:
        return
    client.insert(
        "rule_sets",
        [[catalogues.digest, dict(catalogues.files)]],
        column_names=["digest", "files"],
        settings={
            "async_insert": 0,
            "insert_deduplicate": 1,
            "insert_deduplication_token": f"rule_sets:{catalogues.digest}",
        },
    )


class RuleArchive:
    """Earlier rule sets, each read once; may be asked from several threads."""

    def __init__(self, directory: Path) -> None:
        """directory : private; the files of a rule set lie there under its digest."""
        self._directory = directory
        self._read: dict[str, Catalogues] = {}

    def get(self, client: Client, digest: str) -> Catalogues:
        """The rule set of this digest.

        Raises ConfigurationError where it was never kept, where its files cannot be laid down, or where this
        version of the program reads them otherwise; whatever the client raises.
        """
        found = self._read.get(digest)
        return found or self._read.setdefault(digest, self._load(client, digest))

    def _load(self, client: Client, digest: str) -> Catalogues:
        rows = client.query(
            "SELECT files FROM rule_sets WHERE digest = {digest:String} LIMIT 1",
            parameters={"digest": digest},
        ).result_rows
        if not rows:
            raise ConfigurationError(f"rule set {digest} was not kept")
        directory = self._directory / digest
        try:
            for name, text in rows[0][0].items():
                _lay_down(directory, name, text)
        except OSError as error:
            raise ConfigurationError(f"rule set {digest} cannot be laid down: {error}") from error
        found = load_catalogues(directory)
        if found.digest != digest:
            raise ConfigurationError(f"rule set {digest} reads as {found.digest}: it is of another version")
        return found


def _lay_down(directory: Path, name: str, text: str) -> None:
    """Another process may lay the same file down, or read it, at the same time."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigurationError(f"a rule set holds a file outside its directory: {name!r}")
    path = directory / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
