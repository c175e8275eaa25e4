"""Keys: made once, kept as hashes, checked alike whether unknown, wrong or revoked."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from pipeline.cli import keys as keys_commands
from pipeline.errors import ConfigurationError, PermanentError
from pipeline.ingest.keys import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


def test_key_opens_its_sources_only(store: KeyStore) -> None:
    credential = store.verify(store.create(["12345", "smart-grid"], backfill=True))
    assert credential is not None
    assert credential.sources == {"12345", "smart-grid"}
    assert credential.backfill
    plain = store.verify(store.create("rider"))
    assert plain is not None
    assert not plain.backfill


def test_secret_is_not_in_the_file_and_the_file_is_private(store: KeyStore, tmp_path: Path) -> None:
    key = store.create("12345")
    path = tmp_path / "keys.json"
    assert key.split("_", 2)[2].encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: "",
        lambda key: key[:-1],
        lambda key: key + "x",
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key.replace("gp_", "gp-"),
        lambda key: "gp_" + "0" * 12 + key[15:],
        lambda key: "\ud800",
        lambda key: "x" * 100_000,
    ],
)
def test_other_strings_open_nothing(store: KeyStore, spoil: object) -> None:
    key = store.create("12345")
    assert callable(spoil)
    assert store.verify(spoil(key)) is None
    assert store.verify(key) is not None


def test_revoked_key_stops_at_once_in_another_process(store: KeyStore, tmp_path: Path) -> None:
    key = store.create("12345")
    assert store.verify(key) is not None
    other = KeyStore(tmp_path / "keys.json")
    other.revoke(key.split("_")[1])
    assert store.verify(key) is None
    assert other.list()[0].revoked_at is not None
    first = other.list()[0].revoked_at
    assert other.revoke(key.split("_")[1]).revoked_at == first


def test_key_made_elsewhere_is_seen(store: KeyStore, tmp_path: Path) -> None:
    assert store.verify("gp_000000000000_" + "x" * 43) is None
    assert store.verify(KeyStore(tmp_path / "keys.json").create("12345")) is not None


def test_unknown_key_cannot_be_revoked(store: KeyStore) -> None:
    with pytest.raises(PermanentError, match="keys list"):
        store.revoke("nothing")


@pytest.mark.parametrize("source", ["", "a b", "x" * 65, "源"])
def test_source_must_fit_the_contract(store: KeyStore, source: str) -> None:
    with pytest.raises(ConfigurationError, match="source"):
        store.create(source)


def test_file_that_others_can_read_or_that_is_damaged_is_refused(store: KeyStore, tmp_path: Path) -> None:
    key = store.create("12345")
    path = tmp_path / "keys.json"
    path.chmod(0o644)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ConfigurationError, match="chmod 600"):
        store.verify(key)
    path.chmod(0o600)
    path.write_bytes(b"{")
    with pytest.raises(ConfigurationError, match="damaged"):
        store.verify(key)


def test_a_file_that_goes_missing_is_not_a_file_without_keys(store: KeyStore, tmp_path: Path) -> None:
    """It may be about to be replaced: 401 would tell every sender that its key is over."""
    path, aside = tmp_path / "keys.json", tmp_path / "aside"
    store.check()
    assert store.verify("gp_000000000000_" + "x" * 43) is None  # there was none
    key = store.create("12345")
    assert store.verify(key) is not None
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="is missing"):
            store.verify(key)
    with pytest.raises(ConfigurationError, match="is missing"):
        store.check()
    aside.rename(path)
    assert store.verify(key) is not None
    store.check()


def test_commands_add_list_and_revoke(tmp_path: Path) -> None:
    run = CliRunner().invoke
    place = ["--data-dir", str(tmp_path)]
    added = run(keys_commands.keys, ["add", "--source", "a", "--source", "b", "--backfill", *place])
    key = added.stdout.strip()
    assert KeyStore(tmp_path / "keys.json").verify(key) is not None
    listed = orjson.loads(run(keys_commands.keys, ["list", "--json", *place]).stdout)
    assert [(item["sources"], item["backfill"], item["revoked_at"]) for item in listed] == [
        (["a", "b"], True, None)
    ]
    assert "hash" not in listed[0]
    run(keys_commands.keys, ["revoke", listed[0]["id"], *place])
    assert KeyStore(tmp_path / "keys.json").verify(key) is None
    assert "a, b" in run(keys_commands.keys, ["list", *place]).stdout
