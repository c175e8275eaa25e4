"""Rule sets that were in force, kept in ClickHouse: what was begun by one is finished by the same.

Source: reliability c.3 and c.4 (a recovered block is rebuilt with the recorded `_rules`).
"""

from __future__ import annotations

import tempfile
import threading
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

    def __init__(self, tmp_dir: Path) -> None:
        """tmp_dir : private; the files of a rule set lie there while they are read."""
        self._tmp_dir = tmp_dir
        self._read: dict[str, Catalogues] = {}
        self._lock = threading.Lock()

    def get(self, client: Client, digest: str) -> Catalogues:
        """The rule set of this digest.

        Raises ConfigurationError where it was never kept, or where this version of the program reads its
        files otherwise; whatever the client raises.
        """
        with self._lock:
            if digest not in self._read:
                self._read[digest] = self._load(client, digest)
            return self._read[digest]

    def _load(self, client: Client, digest: str) -> Catalogues:
        rows = client.query(
            "SELECT files FROM rule_sets WHERE digest = {digest:String} LIMIT 1",
            parameters={"digest": digest},
        ).result_rows
        if not rows:
            raise ConfigurationError(f"rule set {digest} was not kept")
        self._tmp_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._tmp_dir, prefix="rules-") as directory:
            for name, text in rows[0][0].items():
                relative = PurePosixPath(name)
                if relative.is_absolute() or ".." in relative.parts:
                    raise ConfigurationError(
                        f"rule set {digest} holds a file outside its directory: {name!r}"
                    )
                path = Path(directory, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            found = load_catalogues(Path(directory))
        if found.digest != digest:
            raise ConfigurationError(f"rule set {digest} reads as {found.digest}: it is of another version")
        return found
