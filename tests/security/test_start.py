"""Start-up refuses what must not run: every problem in one go, one line each, exit 2, no secret in a line."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from clickhouse_connect.driver.client import Client

from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.runtime import broker, doctor, guard, process, store, supervisor
from pipeline.runtime.guard import check_broker, check_start, unprotected
from pipeline.settings import Settings, load_settings
from pipeline.store.windows import check_windows, short_windows, shortfall
from tests.conftest import new_client
from tests.e2e.service import gridpipe
from tests.security.certificates import make

GOOD = "k7Qx-2mV9_pLw4Zr8Tn"


def problems(settings: Settings, *, simulate: bool = False) -> list[str]:
    try:
        check_start(settings, simulate=simulate)
    except ConfigurationError as error:
        return list(error.problems)
    return []


def secret_file(path: Path, content: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def test_defaults_start(tmp_path: Path) -> None:
    assert problems(Settings(data_dir=tmp_path), simulate=True) == []


@pytest.mark.parametrize("name", ["pseudonym.v1", "pseudonym.v2", "signing.v1"])
@pytest.mark.parametrize(
    ("content", "said"),
    [("k7Qx-2mV9", "at least 32 bytes"), ("changeme" * 8, "placeholder"), ("a" * 64, "placeholder")],
)
def test_short_and_default_secrets(tmp_path: Path, name: str, content: str, said: str) -> None:
    secret_file(tmp_path / "secrets" / name, content)
    (line,) = problems(Settings(data_dir=tmp_path))
    assert said in line
    assert name in line
    assert content not in line


def test_secret_files_that_others_can_read(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, clickhouse_password_file=secret_file(tmp_path / "clickhouse", GOOD, 0o640)
    )
    secret_file(tmp_path / "secrets" / "pseudonym.v1", "x", 0o644)
    secret_file(settings.local_key_path, KeyStore(settings.keys_path).create("local"), 0o604)
    found = problems(settings)
    assert [line.split(" can be read")[0].rsplit("/", 1)[1] for line in found[:3]] == [
        "clickhouse", "local.key", "pseudonym.v1",
    ]  # fmt: skip
    assert all("chmod 600" in line for line in found)


def test_a_password_file_that_is_missing_or_open_to_others_is_told_of_once(tmp_path: Path) -> None:
    missing, open_ = tmp_path / "missing", secret_file(tmp_path / "open", GOOD, 0o640)
    kafka = {"kafka": "kafka.example:9093", "kafka_security": "sasl_ssl", "kafka_username": "worker"}
    for path, said in ((missing, "No such file"), (open_, "chmod 600")):
        for given in ({"clickhouse_password_file": path}, {**kafka, "kafka_password_file": path}):
            (line,) = problems(Settings(data_dir=tmp_path, **given))
            assert str(path) in line
            assert said in line


def test_local_key_that_gridpipe_did_not_make(tmp_path: Path) -> None:
    secret_file(tmp_path / "local.key", "password")
    assert ["holds no key" in line for line in problems(Settings(data_dir=tmp_path))] == [True]


def test_signing_keys_without_their_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    KeyStore(settings.keys_path).create("12345", signed=True)
    assert problems(settings) == []
    (tmp_path / "secrets" / "signing.v1").unlink()
    (line,) = problems(settings)
    assert "signing.v1 is missing" in line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://db.example:8123", "needs a password"),
        ("http://default:@db.example:8123", "needs a password"),
        ("https://grid:grid@db.example:8443", "short or a default"),  # pragma: allowlist secret
        ("https://grid:password12345678@db.example:8443", "short or a default"),  # pragma: allowlist secret
        (f"https://grid:{GOOD}@db.example:8443", None),
        ("http://default:@127.0.0.1:8123", None),
    ],
)
def test_clickhouse_that_anybody_could_open(tmp_path: Path, url: str, said: str | None) -> None:
    found = problems(Settings(data_dir=tmp_path, clickhouse=url))
    assert [said in line for line in found if said] == ([True] if said else [])
    assert not any("password12345678" in line for line in found)
    if said:
        given = secret_file(tmp_path / "password", GOOD)
        assert problems(Settings(data_dir=tmp_path, clickhouse=url, clickhouse_password_file=given)) == []


def test_kafka_login_needs_its_parts(tmp_path: Path) -> None:
    base = {"data_dir": tmp_path, "kafka": "kafka.example:9093", "kafka_security": "sasl_ssl"}
    (line,) = problems(Settings(**base))
    assert "GRIDPIPE_KAFKA_PASSWORD_FILE" in line
    short = secret_file(tmp_path / "short", "kafka")
    (line,) = problems(Settings(**base, kafka_username="worker", kafka_password_file=short))
    assert "at least 16 bytes" in line
    good = secret_file(tmp_path / "good", GOOD)
    assert problems(Settings(**base, kafka_username="worker", kafka_password_file=good)) == []
    (line,) = problems(Settings(data_dir=tmp_path, kafka_security="ssl"))
    assert "needs --kafka" in line
    missing = {"kafka_username": "worker", "kafka_password_file": good, "kafka_ca": tmp_path / "nothing.pem"}
    (line,) = problems(Settings(**base, **missing))
    assert "GRIDPIPE_KAFKA_CA" in line


def test_tls_needs_its_parts(tmp_path: Path) -> None:
    found = make(tmp_path / "tls")
    with_admin = {"data_dir": tmp_path, "admin_http": "127.0.0.1:9090"}
    good = Settings(**with_admin, tls_cert=found.cert, tls_key=found.key, tls_client_ca=found.ca)
    assert problems(good) == []
    assert "--no-simulate" in problems(good, simulate=True)[0]
    (line,) = problems(Settings(data_dir=tmp_path, tls_cert=found.cert, tls_key=found.key))
    assert "--admin-http" in line
    assert "belong together" in problems(Settings(**with_admin, tls_cert=found.cert))[0]
    (line,) = problems(Settings(**with_admin, tls_client_ca=found.ca))
    assert "needs GRIDPIPE_TLS_CERT" in line
    (line,) = problems(Settings(**with_admin, tls_cert=found.cert, tls_key=found.client_key))
    assert "fit together" in line
    found.key.chmod(0o644)
    (line,) = problems(good)
    assert "chmod 600" in line


def test_every_problem_at_once_and_exit_2(tmp_path: Path) -> None:
    secret_file(tmp_path / "secrets" / "pseudonym.v1", "0123456789abcdef" * 4)
    result = gridpipe(
        "api", "--data-dir", str(tmp_path), "--http", "0.0.0.0:0",
        "--clickhouse", "http://grid:grid@db.example:8123",  # pragma: allowlist secret
    )  # fmt: skip
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 4, result.stderr
    assert all(line.startswith("error: ") for line in lines)
    for said in ("read key", "--admin-http", "placeholder", "short or a default"):
        assert sum(said in line for line in lines) == 1, said


# --- the embedded broker


def _listener(address: str) -> subprocess.Popen[bytes]:
    code = (
        "import socket, sys, time\n"
        f"s = socket.socket(); s.bind(({address!r}, 0)); s.listen(); print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


@pytest.mark.parametrize(("address", "refused"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_broker_that_others_can_reach(address: str, refused: bool) -> None:
    child = _listener(address)
    try:
        if refused:
            with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0.*must stay on 127\.0\.0\.1"):
                check_broker(child.pid)
        else:
            check_broker(child.pid)
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def test_the_embedded_broker_itself_is_on_loopback_only() -> None:
    from pipeline.runtime import broker

    port = broker.free_port()
    child = subprocess.Popen(broker.command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        check_broker(child.pid)
        addresses = {
            connection.laddr.ip
            for connection in guard.psutil.Process(child.pid).net_connections(kind="inet")
            if connection.status == guard.psutil.CONN_LISTEN
        }
        assert addresses == {"127.0.0.1"}
    finally:
        child.kill()
        child.wait()


def test_up_refuses_a_broker_that_others_can_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = _listener("0.0.0.0")
    killed: list[str] = []

    def start(role: str, *_: Any, **__: Any) -> Any:
        """Stands for every process of the service; the broker is the listener."""

        def end(*_: Any) -> None:
            killed.append(role)

        return SimpleNamespace(pid=child.pid, exit_code=None, log_path="", stop=end, kill=end)

    monkeypatch.setattr(supervisor, "Child", start)
    monkeypatch.setattr(broker, "wait_until_up", lambda *_, **__: None)
    monkeypatch.setattr(broker, "ensure_topic", lambda *_, **__: 12)
    up = supervisor.Supervisor(load_settings(data_dir=tmp_path, http="127.0.0.1:0"), simulate=False)
    try:
        with up, pytest.raises(ConfigurationError, match=r"0\.0\.0\.0.*must stay on 127\.0\.0\.1"):
            up.wait_ready(20)
        assert set(killed) == {"broker", "store", "http"}
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


# --- tables


def test_table_without_a_deduplication_window(clickhouse: Client) -> None:
    database = str(clickhouse.database)
    short, looked_at = short_windows(clickhouse, database)
    assert short == {}
    assert looked_at >= 10
    check_windows(clickhouse, database)
    for table in ("cases", "events"):
        clickhouse.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
    with pytest.raises(ConfigurationError) as caught:
        check_windows(clickhouse, database)
    assert [line.split()[1] for line in caught.value.problems] == ["cases", "events"]
    clickhouse.command("CREATE TABLE extra (x UInt8) ENGINE = MergeTree ORDER BY x")
    assert list(short_windows(clickhouse, database)[0]) == ["cases", "events", "extra"]


def test_table_with_too_short_a_deduplication_window(clickhouse: Client) -> None:
    """A token that is forgotten before its block comes again after an outage protects from nothing."""
    database = str(clickhouse.database)
    clickhouse.command("ALTER TABLE case_events MODIFY SETTING non_replicated_deduplication_window = 99999")
    with pytest.raises(ConfigurationError) as caught:
        check_windows(clickhouse, database)
    (line,) = caught.value.problems
    clickhouse.command(line.rpartition("run: ")[2])
    check_windows(clickhouse, database)


TOKENS = "replicated_deduplication_window = 100000"
SECONDS = "replicated_deduplication_window_seconds = 604800"


@pytest.mark.parametrize(
    ("table", "engine", "settings", "lacking"),
    [
        ("events", "ReplacingMergeTree", "index_granularity = 8192", f"non_{TOKENS}"),
        ("events", "ReplacingMergeTree", "non_replicated_deduplication_window = 1", f"non_{TOKENS}"),
        ("events", "ReplacingMergeTree", f"non_{TOKENS}", ""),
        ("events", "ReplacingMergeTree", TOKENS, f"non_{TOKENS}"),
        ("cases", "ReplacingMergeTree", "non_replicated_deduplication_window = 1000", ""),
        ("events", "ReplicatedReplacingMergeTree", f"non_{TOKENS}", f"{TOKENS}, {SECONDS}"),
        ("events", "SharedReplacingMergeTree", TOKENS, SECONDS),
        ("case_events", "ReplicatedAggregatingMergeTree", f"{TOKENS}, {SECONDS}", ""),
        ("cases", "ReplicatedReplacingMergeTree", "index_granularity = 8192", ""),
        ("cases", "ReplicatedReplacingMergeTree", "replicated_deduplication_window_seconds = 0", SECONDS),
    ],
)
def test_what_a_deduplication_window_lacks(table: str, engine: str, settings: str, lacking: str) -> None:
    """Replicated engines have windows by default: ten thousand tokens and an hour, which is no week."""
    statement = f"CREATE TABLE t.{table} (x UInt8) ENGINE = {engine} ORDER BY x SETTINGS {settings}"
    assert shortfall(table, engine, statement) == lacking


def test_a_worker_refuses_tables_without_a_window(
    clickhouse: Client, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(
        data_dir=tmp_path, clickhouse="http://127.0.0.1:1", database=str(clickhouse.database)
    )
    Privacy.load(settings.pseudonym_key_path, create=True)
    clickhouse.command("ALTER TABLE cases MODIFY SETTING non_replicated_deduplication_window = 0")
    monkeypatch.setattr(store, "connect_server", lambda _, database: new_client(engine_path, database))

    def go_on(*_: Any, **__: Any) -> None:
        pytest.fail("it goes on with tables that take the same insert twice")

    monkeypatch.setattr(store, "wait_for_topic", go_on)
    with pytest.raises(ConfigurationError, match="cases has no deduplication window"):
        store.run_store(settings, bootstrap="127.0.0.1:1", listener=None, token=None)


def test_a_service_that_migrates_a_server_sets_its_retention(
    clickhouse: Client, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody runs `migrate` beside `up`, on a server either; a role alone leaves the tables as they are."""
    settings = load_settings(
        data_dir=tmp_path, clickhouse="http://127.0.0.1:1", database=str(clickhouse.database)
    )
    Privacy.load(settings.pseudonym_key_path, create=True)
    monkeypatch.setattr(store, "connect_server", lambda _, database: new_client(engine_path, database))

    class GoesOn(Exception):  # noqa: N818  not an error
        pass

    def go_on(*_: Any, **__: Any) -> None:
        raise GoesOn

    monkeypatch.setattr(store, "wait_for_topic", go_on)
    for migrates in (False, True):
        with pytest.raises(GoesOn):
            store.run_store(settings, bootstrap="127.0.0.1:1", listener=None, token=None, migrates=migrates)
        made = str(clickhouse.command("SHOW CREATE TABLE events"))
        assert ("toIntervalDay(1095)" in made) is migrates


def test_what_a_child_is_told_is_what_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default is none in a child either: it never takes the place of a retention that is there."""
    settings = load_settings(data_dir=tmp_path, person_link_days=400)
    settings.run_dir.mkdir(parents=True)
    settings.log_dir.mkdir(parents=True)

    class Pipe(io.BytesIO):
        def close(self) -> None:
            pass

    told = Pipe()

    class Process:
        stdin = told

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(process.subprocess, "Popen", Process)
    process.Child("store", "pipeline.runtime.store", settings, {})
    monkeypatch.setattr(process.sys, "stdin", io.StringIO(told.getvalue().decode()))
    for name in ("harden", "die_with_parent"):
        monkeypatch.setattr(process, name, lambda *_: None)
    found = process.receive_order().settings
    assert found == settings
    assert found.model_fields_set == settings.model_fields_set == {"data_dir", "person_link_days"}


def test_what_travels_in_plain_text_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.os, "geteuid", lambda: 1_000)
    assert unprotected(load_settings(data_dir=tmp_path)) == []
    found = unprotected(
        Settings(
            http="0.0.0.0:8080",
            admin_http="0.0.0.0:9090",
            kafka="kafka.example:9092",
            clickhouse=f"http://grid:{GOOD}@db.example:8123",
        )
    )
    assert [line.split(" ")[0] for line in found] == ["HTTP", "admin", "Kafka", "ClickHouse"]
    assert unprotected(Settings(admin_http="127.0.0.1:9090")) == []
    assert GOOD not in "".join(found)


@pytest.mark.parametrize("user", [0, 1_000])
def test_root_is_warned_of_by_doctor_and_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int
) -> None:
    monkeypatch.setattr(guard.os, "geteuid", lambda: user)
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:0")
    tmp_path.chmod(0o700)
    found = [one for one in doctor.examine(settings) if "as root" in one.what]
    assert [(one.check, one.level) for one in found] == ([("protection", "warning")] if user == 0 else [])
    up = supervisor.Supervisor(settings, simulate=False)
    with structlog.testing.capture_logs() as said:
        up._prepare()
        up._release()
    warned = [line["what"] for line in said if line["event"] == "unprotected"]
    assert [what.split(":")[0] for what in warned] == (["gridpipe runs as root"] if user == 0 else [])


def test_a_directory_of_somebody_else_is_not_closed_to_others_and_that_is_said(tmp_path: Path) -> None:
    there, new = tmp_path / "srv", tmp_path / "new" / "data"
    there.mkdir()
    there.chmod(0o755)
    for directory, mode in ((there, 0o755), (new, 0o700)):
        up = supervisor.Supervisor(load_settings(data_dir=directory, http="127.0.0.1:0"), simulate=False)
        with structlog.testing.capture_logs() as said:
            up._prepare()
            up._release()
        assert directory.stat().st_mode & 0o777 == mode
        told = [line["what"] for line in said if line["event"] == "data_directory_open"]
        assert told == ([f"{there} can be read by others: chmod 700 {there}"] if directory == there else [])
        assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_roles_alone_say_what_is_unprotected(tmp_path: Path, role: str) -> None:
    servers = ("--kafka", "192.0.2.1:9092", "--clickhouse", "http://127.0.0.1:9")  # nobody is there
    result = gridpipe(role, "--data-dir", str(tmp_path), *servers)
    assert result.returncode in {2, 3}, result.stderr
    assert "Kafka is reached in plain text" in result.stderr


def test_a_limit_on_the_size_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded engine calls a part stored that was cut off there; a server is on its own machine."""
    monkeypatch.setattr(guard.resource, "getrlimit", lambda _: (1 << 30, 1 << 30))
    assert ["ulimit -f" in problem for problem in problems(Settings(data_dir=tmp_path))] == [True]
    server = Settings(data_dir=tmp_path, clickhouse=f"http://user:{GOOD}@127.0.0.1:8123")
    assert not any("ulimit" in problem for problem in problems(server))
