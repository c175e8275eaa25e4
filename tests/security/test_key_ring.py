"""The pseudonym key of every machine is the one that the store was filled with; no other takes its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from typer.testing import CliRunner, Result

from pipeline.cli import person as person_commands
from pipeline.cli import reference as reference_commands
from pipeline.cli import serve
from pipeline.contract.privacy import Privacy, secret_versions
from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.runtime import doctor, store, supervisor
from pipeline.settings import Settings
from pipeline.store import key_ring
from pipeline.store.key_ring import KnownKeys, known_keys, problems_of
from tests.conftest import embedded_only, new_client
from tests.integration.worker_world import GRID, load_reference
from tests.security.fakes import fake_id

MINE = fake_id(1)


@pytest.fixture(autouse=True)
def _one_store(clickhouse: Client, engine_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever address is named, it is the test's database."""
    database = str(clickhouse.database)

    def connect(*_: Any, **__: Any) -> Client:
        return new_client(engine_path, database)

    monkeypatch.setenv("GRIDPIPE_DATABASE", database)
    for name in ("connect", "connect_server"):
        monkeypatch.setattr(f"pipeline.store.client.{name}", connect)
    for module in (supervisor, store):
        monkeypatch.setattr(module, "connect_server", connect)
    monkeypatch.setattr(doctor, "connect", connect)
    monkeypatch.setattr("pipeline.runtime.process.harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda **_: None)


class Host:
    """A machine with a data directory of its own."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
        self.data_dir, self.monkeypatch = data_dir, monkeypatch
        self.settings = Settings(
            data_dir=data_dir,
            http="127.0.0.1:0",
            kafka="127.0.0.1:1",
            clickhouse="http://127.0.0.1:1",
            database=database,
        )
        self.path = self.settings.pseudonym_key_path

    def copy_secrets(self, other: Host) -> None:
        shutil.copytree(other.path.parent, self.path.parent, dirs_exist_ok=True)

    def command(self, *arguments: str) -> Result:
        app = typer.Typer()
        for module in (person_commands, reference_commands):
            module.register(app)
        place = ("--data-dir", str(self.data_dir), "--clickhouse", str(self.settings.clickhouse))
        return CliRunner().invoke(app, [*arguments, *place])

    def load(self, directory: Path) -> Result:
        return self.command("reference", "load", str(directory))

    def find(self) -> Result:
        numbers = self.data_dir / "numbers"
        self.data_dir.mkdir(exist_ok=True)
        numbers.write_text(MINE)
        numbers.chmod(0o600)
        return self.command("person", "find", "--json", "--from", str(numbers))

    def worker(self) -> None:
        """Start one up to where it would wait for Kafka."""
        self.monkeypatch.setattr(store, "wait_for_topic", _goes_on)
        store.run_store(self.settings, bootstrap="127.0.0.1:1", listener=None, token=None)

    def gateway(self) -> None:
        """Start one up to where it would listen."""
        self.monkeypatch.setattr("pipeline.runtime.broker.wait_until_up", lambda *_, **__: None)
        self.monkeypatch.setattr("pipeline.runtime.topic_settings.check_topic", lambda *_, **__: None)
        self.monkeypatch.setattr("pipeline.runtime.http.assemble", _goes_on)
        serve._serve_http(self.settings, "gateway")

    def up(self) -> None:
        """Start it up to where it would start a process."""
        started = supervisor.Supervisor(self.settings)
        self.monkeypatch.setattr(started, "_run", lambda: None)
        with started:
            raise GoesOn


class GoesOn(Exception):  # noqa: N818  not an error
    """The start came past the keys."""


def _goes_on(*_: Any, **__: Any) -> Any:
    raise GoesOn


@pytest.fixture
def hosts(clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Host, Host]]:
    first, second = (Host(tmp_path / name, monkeypatch, str(clickhouse.database)) for name in "ab")
    yield first, second


@pytest.fixture
def persons(tmp_path: Path, clickhouse: Client) -> Path:
    load_reference(clickhouse, tmp_path / "places")
    directory = tmp_path / "persons"
    directory.mkdir()
    (directory / "persons.ndjson").write_text(json.dumps({"id_number": MINE, "home_grid_code": GRID}) + "\n")
    return directory


STARTS = ("worker", "gateway", "up")


@pytest.mark.parametrize("role", STARTS)
def test_only_the_first_host_makes_a_key(hosts: tuple[Host, Host], clickhouse: Client, role: str) -> None:
    first, second = hosts
    with pytest.raises(GoesOn):
        getattr(first, role)()
    known = known_keys(clickhouse)
    assert known == KnownKeys(Privacy.load(first.path, create=False).fingerprints)
    for start in STARTS:
        with pytest.raises(ConfigurationError, match=r"is missing, and this store was filled with one: copy"):
            getattr(second, start)()
        assert not secret_versions(second.path)
    second.copy_secrets(first)
    for start in STARTS:
        with pytest.raises(GoesOn):
            getattr(second, start)()
    assert known_keys(clickhouse) == known


@pytest.mark.parametrize("start", STARTS)
def test_a_host_with_another_key_does_not_start(hosts: tuple[Host, Host], start: str) -> None:
    first, second = hosts
    with pytest.raises(GoesOn):
        first.worker()
    Privacy.load(second.path, create=True)
    with pytest.raises(ConfigurationError, match=r"pseudonym\.v1 is not the one that this store was filled"):
        getattr(second, start)()


def test_another_key_neither_loads_nor_finds(hosts: tuple[Host, Host], persons: Path) -> None:
    first, second = hosts
    assert first.load(persons).exit_code == 0
    assert json.loads(first.find().stdout)["rows"] == {"ref_persons": 1}
    for refused in (second.load(persons), second.find()):
        assert isinstance(refused.exception, ConfigurationError)
        assert "is missing" in str(refused.exception)
    assert not secret_versions(second.path)
    Privacy.load(second.path, create=True)
    for refused in (second.load(persons), second.find(), second.command("pseudonym", "rotate")):
        assert isinstance(refused.exception, ConfigurationError)
        assert "is not the one" in str(refused.exception)
    assert list(secret_versions(second.path)) == [1]


def test_a_store_filled_before_it_noted_keys_gets_no_new_one(
    hosts: tuple[Host, Host], persons: Path, clickhouse: Client
) -> None:
    first, second = hosts
    assert first.load(persons).exit_code == 0
    clickhouse.command("TRUNCATE TABLE pseudonym_keys")
    for start in STARTS:
        with pytest.raises(ConfigurationError, match="is missing"):
            getattr(second, start)()
    with pytest.raises(GoesOn):  # what is there is noted at the next start
        first.worker()
    assert known_keys(clickhouse) == KnownKeys(Privacy.load(first.path, create=False).fingerprints)


def test_who_may_not_note_a_key_makes_none(
    hosts: tuple[Host, Host], clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = hosts
    command = type(clickhouse).command

    def refuse(client: Client, cmd: str, *arguments: Any, **more: Any) -> Any:
        if cmd.startswith("INSERT INTO pseudonym_keys"):
            error = ClickHouseError("Not enough privileges")
            error.code = 497  # type: ignore[attr-defined]
            raise error
        return command(client, cmd, *arguments, **more)

    monkeypatch.setattr(type(clickhouse), "command", refuse)
    with pytest.raises(ConfigurationError, match="start `gridpipe worker` or `gridpipe up` first"):
        first.gateway()
    assert not secret_versions(first.path)
    monkeypatch.setattr(type(clickhouse), "command", command)
    with pytest.raises(GoesOn):
        second.worker()
    monkeypatch.setattr(type(clickhouse), "command", refuse)
    first.copy_secrets(second)
    with pytest.raises(GoesOn):
        first.gateway()


def test_a_gateway_waits_for_the_schema(hosts: tuple[Host, Host], clickhouse: Client) -> None:
    clickhouse.command("DROP TABLE pseudonym_keys")
    with pytest.raises(ConfigurationError, match="run `gridpipe migrate`"):
        hosts[0].gateway()
    assert not secret_versions(hosts[0].path)
    with pytest.raises(GoesOn):  # whose store process migrates, and notes the key then
        hosts[0].up()


def test_the_first_of_two_first_starts_holds(
    hosts: tuple[Host, Host], clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before either had noted its key."""
    first, second = hosts
    asked: list[Client] = []

    def late(client: Client) -> KnownKeys | None:
        asked.append(client)
        if len(asked) > 1:
            return known_keys(client)
        with pytest.raises(GoesOn):
            first.worker()
        return KnownKeys()

    monkeypatch.setattr(key_ring, "known_keys", late)
    with pytest.raises(ConfigurationError, match="is not the one"):
        second.worker()
    with pytest.raises(GoesOn):
        first.worker()


def test_doctor_tells_another_key_and_one_that_is_missing(hosts: tuple[Host, Host]) -> None:
    first, second = hosts

    def told(host: Host) -> list[tuple[str, str]]:
        return [(one.level, one.what) for one in doctor._store(host.settings) if one.check == "key ring"]

    with pytest.raises(GoesOn):
        first.worker()
    assert told(first) == [("ok", "the pseudonym key is the one that the store was filled with")]
    ((level, what),) = told(second)
    assert (level, "holds none" in what) == ("warning", True)
    Privacy.load(second.path, create=True)
    ((level, what),) = told(second)
    assert (level, "is not the one" in what) == ("failed", True)


def test_a_fingerprint_tells_secrets_apart_and_is_none_of_their_pseudonyms() -> None:
    one, other = Privacy(bytes(range(1, 33))), Privacy(bytes(range(2, 34)), 2, {1: bytes(range(1, 33))})
    assert set(one.fingerprints) == {1}
    assert other.fingerprints[1] == one.fingerprints[1] != other.fingerprints[2]
    assert all(len(found) == 16 for found in other.fingerprints.values())
    assert one.person_key("gridpipe:key-check")[:16] != one.fingerprints[1]
    assert other.without({1}).versions == (2,)
    assert other.without({2}) is other
    assert other.versions == (1, 2)


def test_a_version_that_is_used_elsewhere_is_missed_where_all_are_needed() -> None:
    one = Privacy(bytes(range(1, 33)))
    path = Path("secrets/pseudonym.v1")
    both = KnownKeys(one.fingerprints | {2: "0" * 16})
    assert problems_of(one, both, path) == []
    (problem,) = problems_of(one, both, path, complete=True)
    assert "version 2 of the pseudonym key is in use and not in secrets/" in problem
    (problem,) = problems_of(one, KnownKeys(one.fingerprints, frozenset({1})), path)
    assert "is in force here and was retired" in problem


# --- rotation, on both hosts


def linked_event(client: Client, privacy: Privacy) -> None:
    client.insert(
        "events",
        [[0, 1, "e1", datetime.now(UTC), privacy.person_key(MINE), privacy.key_version]],
        column_names=["_part", "_off", "event_id", "ingested_at", "actor_key", "key_version"],
    )


def rotated(first: Host, persons: Path) -> None:
    for arguments in (("rotate",), ("activate", "2")):
        done = first.command("pseudonym", *arguments)
        assert done.exit_code == 0, done.output or done.exception
        assert first.load(persons).exit_code == 0


def test_rotation_is_noted_and_no_host_makes_a_version_of_its_own(
    hosts: tuple[Host, Host], persons: Path, clickhouse: Client
) -> None:
    first, second = hosts
    assert first.load(persons).exit_code == 0
    second.copy_secrets(first)
    rotated(first, persons)
    assert known_keys(clickhouse) == KnownKeys(Privacy.load(first.path, create=False).fingerprints)
    for command in (("pseudonym", "rotate"), ("person", "find")):
        refused = second.find() if command[0] == "person" else second.command(*command)
        assert "version 2 of the pseudonym key is in use" in str(refused.exception)
    assert list(secret_versions(second.path)) == [1]
    with pytest.raises(GoesOn):  # a service goes on until the old version is retired
        second.gateway()
    assert first.command("pseudonym", "retire", "1", "--yes").exit_code == 0
    with pytest.raises(ConfigurationError, match="is in force here and was retired"):
        second.gateway()
    second.copy_secrets(first)
    with pytest.raises(GoesOn):
        second.gateway()
    # The old key is still on the second host: it is not used, and goes by the same command.
    assert list(secret_versions(second.path)) == [1, 2]
    assert second.load(persons).exit_code == 0
    assert clickhouse.command("SELECT count() FROM ref_persons WHERE key_version = 1") == 0
    assert second.command("pseudonym", "retire", "1", "--yes").exit_code == 0
    assert list(secret_versions(second.path)) == [2]


def test_a_key_comes_into_force_though_no_load_stores_who_was_withdrawn_long_ago(
    hosts: tuple[Host, Host], persons: Path, clickhouse: Client
) -> None:
    """The rows under the old key are there until the next night; who is missing otherwise still counts."""
    first, _ = hosts
    row = {"id_number": fake_id(2), "home_grid_code": GRID}
    kept = (persons / "persons.ndjson").read_text()
    for gone in ({}, {"deleted_at": (datetime.now(UTC) - timedelta(days=40)).isoformat()}):
        (persons / "persons.ndjson").write_text(kept + json.dumps(row | gone) + "\n")
        assert first.load(persons).exit_code == 0
    assert first.command("pseudonym", "rotate").exit_code == 0
    early = first.command("pseudonym", "activate", "2")
    assert "0 residents are known under version 2, 1 under 1" in str(early.exception)
    assert first.load(persons).exit_code == 0
    done = first.command("pseudonym", "activate", "2")
    assert done.exit_code == 0, done.output or done.exception


def test_a_version_that_links_events_to_persons_is_retired_by_force_only(
    hosts: tuple[Host, Host], persons: Path, clickhouse: Client
) -> None:
    first, _ = hosts
    assert first.load(persons).exit_code == 0
    linked_event(clickhouse, Privacy.load(first.path, create=False))
    rotated(first, persons)
    refused = first.command("pseudonym", "retire", "1", "--yes")
    assert isinstance(refused.exception, ConfigurationError)
    assert "1 rows of events of the last 365 days are linked to persons under version 1" in str(
        refused.exception
    )
    assert list(secret_versions(first.path)) == [1, 2]
    assert clickhouse.command("SELECT count() FROM ref_persons WHERE key_version = 1") == 1
    assert json.loads(first.find().stdout)["rows"]["events"] == 1
    forced = first.command("pseudonym", "retire", "1", "--yes", "--force")
    assert forced.exit_code == 0, forced.exception
    assert "nobody will find or erase these persons" in forced.output
    assert list(secret_versions(first.path)) == [2]
    assert clickhouse.command("SELECT count() FROM ref_persons WHERE key_version = 1") == 0


def test_a_retirement_that_failed_halfway_keeps_the_key_and_is_completed_by_the_next(
    hosts: tuple[Host, Host], persons: Path, clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = hosts
    assert first.load(persons).exit_code == 0
    rotated(first, persons)
    command = type(clickhouse).command

    def fails(client: Client, cmd: str, *arguments: Any, **more: Any) -> Any:
        if cmd.startswith("ALTER TABLE ref_persons DELETE"):
            raise ClickHouseError("the server is away")
        return command(client, cmd, *arguments, **more)

    monkeypatch.setattr(type(clickhouse), "command", fails)
    assert first.command("pseudonym", "retire", "1", "--yes").exit_code != 0
    assert list(secret_versions(first.path)) == [1, 2]
    monkeypatch.setattr(type(clickhouse), "command", command)
    for _ in range(2):  # a third time, nothing is left to do
        assert first.command("pseudonym", "retire", "1", "--yes").exit_code == 0
        assert list(secret_versions(first.path)) == [2]
    assert clickhouse.command("SELECT count() FROM ref_persons WHERE key_version = 1") == 0
    unknown = first.command("pseudonym", "retire", "7", "--yes")
    assert "there is no version 7" in str(unknown.exception)


def test_a_rotation_tells_machines_what_it_did(hosts: tuple[Host, Host], persons: Path) -> None:
    first, _ = hosts
    assert first.load(persons).exit_code == 0

    def said(*command: str) -> Any:
        return json.loads(first.command("pseudonym", *command, "--json").stdout)

    assert said("rotate") == {"version": 2, "in_force": 1}
    assert first.load(persons).exit_code == 0
    assert said("activate", "2") == {"version": 2, "in_force": 2, "residents": 1}
    assert said("retire", "1", "--yes") == {"version": 1, "destroyed": True, "linked": {}}
    assert said("retire", "1", "--yes") == {"version": 1, "destroyed": False, "linked": {}}


@embedded_only
def test_an_embedded_store_that_was_only_migrated_has_its_key(tmp_path: Path) -> None:
    """`up` makes no key for a store that is there."""
    import subprocess
    import sys

    data = tmp_path / "data"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "migrate", "--data-dir", str(data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "TZ": "UTC"},
    )
    assert done.returncode == 0, done.stderr
    settings = Settings(data_dir=data)
    assert list(secret_versions(settings.pseudonym_key_path)) == [1]
    assert KeyStore(settings.keys_path).list() == []
