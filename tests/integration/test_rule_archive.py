"""Rule sets are kept once, and come back as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.rules.archive import RuleArchive, keep
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import Settings
from tests.conftest import new_client
from tests.unit.admit_rows import catalogues, copy_catalogue, edit


def test_what_is_kept_decides_as_before(clickhouse: Client, tmp_path: Path) -> None:
    directory = copy_catalogue(tmp_path / "catalogue")
    edit(directory / "matters" / "2022-04-01.yaml", "response_minutes: 1440", "response_minutes: 720")
    changed = load_catalogues(directory)
    keep(clickhouse, catalogues())
    keep(clickhouse, changed)
    keep(clickhouse, changed)
    assert clickhouse.command("SELECT count() FROM rule_sets") == 2
    archive = RuleArchive(tmp_path / "tmp")
    for rules, minutes in ((catalogues(), 1_440), (changed, 720)):
        found = archive.get(clickhouse, rules.digest)
        assert found.digest == rules.digest
        assert [dict(version.matters) for version in found.versions] == [
            dict(version.matters) for version in rules.versions
        ]
        assert found.versions[0].matters["BI-01"].response_minutes == minutes
        assert archive.get(clickhouse, rules.digest) is found
    names = sorted(path.name for path in (tmp_path / "tmp" / changed.digest).iterdir())
    assert names == sorted({name.split("/")[0] for name in changed.files}), "parts of files stay behind"


def test_every_file_that_decides_is_kept(clickhouse: Client) -> None:
    keep(clickhouse, catalogues())
    [[files]] = clickhouse.query("SELECT files FROM rule_sets").result_rows
    directory = Settings().catalogue_dir
    shipped = {
        str(path.relative_to(directory)): path.read_text(encoding="utf-8")
        for path in directory.rglob("*.yaml")
    }
    del shipped["areas.yaml"]  # names of areas, for readers
    assert files == shipped


def test_processes_that_keep_at_once_keep_one_copy(clickhouse: Client, engine_path: Path) -> None:
    clients = [new_client(engine_path, clickhouse.database) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda client: keep(client, catalogues()), clients))
    assert clickhouse.command("SELECT count() FROM rule_sets") == 1
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "was not kept"),
        ({"modes.yaml": "x", "modes.yaml/x": "x"}, "cannot be laid down"),
        ({"../modes.yaml": "x"}, "outside its directory"),
        ({"/modes.yaml": "x"}, "outside its directory"),
        ({"modes.yaml": "modes: ["}, "modes.yaml:2: not valid YAML"),
        (dict(catalogues().files), "reads as"),
    ],
)
def test_what_cannot_be_read_again_is_told(
    clickhouse: Client, tmp_path: Path, files: dict[str, str], problem: str
) -> None:
    if files:
        clickhouse.insert("rule_sets", [["0123456789abcdef", files]], column_names=["digest", "files"])
    with pytest.raises(ConfigurationError, match=problem):
        RuleArchive(tmp_path / "tmp").get(clickhouse, "0123456789abcdef")
    assert not (tmp_path / "modes.yaml").exists()
