"""The command line as a whole: every command there, errors in one line, the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import ConfigurationError, ContractError, UnavailableError
from pipeline.settings import Settings

COMMANDS = {
    "up", "gateway", "worker", "api", "migrate", "demo", "keys", "simulate", "send", "validate", "explain",
    "kpi", "reference", "rules", "config", "doctor", "refold",
}  # fmt: skip


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    return main.build()


def test_every_documented_command_is_there_with_a_sentence(app: typer.Typer) -> None:
    found = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    names = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    names |= {group.name for group in app.registered_groups if group.name}
    assert names >= COMMANDS
    for name in COMMANDS:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError(["first problem", "second problem"]), 2),
        (UnavailableError("Kafka at 127.0.0.1:9 does not answer"), 3),
        (ContractError("persons.csv has no column worker_key"), 2),
        (ContractError("/data/[old]/[/x].csv: no such file [red]"), 2),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/srv/log"), 2),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_errors_raised_on_purpose_become_lines_and_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build() -> typer.Typer:
        raise error

    monkeypatch.setattr(main, "build", build)
    monkeypatch.setattr("os.umask", lambda _: 0)
    monkeypatch.setattr(main, "_keep_logs_off_the_terminal", lambda: None)  # the test process keeps its own
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == code
    text = capsys.readouterr().err
    expected = [str(error)] if str(error) else []
    if isinstance(error, ConfigurationError):
        expected = list(error.problems)
    elif isinstance(error, OSError):
        expected = ["/srv/log: Permission denied" if error.filename else "No space left on device"]
    assert text.splitlines() == [f"error: {line}" for line in expected]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TZ": "UTC"} | environment,
    )


def test_config_show_prints_every_setting_as_json(tmp_path: Path) -> None:
    secret = "http://grid:hidden-word@127.0.0.1:8123"  # pragma: allowlist secret
    shown = run("config", "show", "--json", "--data-dir", str(tmp_path), GRIDPIPE_CLICKHOUSE=secret)
    assert shown.returncode == 0, shown.stderr
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert set(rows) == set(Settings.model_fields)
    assert rows["data_dir"]["value"] == str(tmp_path)
    assert "hidden-word" not in shown.stdout


def test_bad_configuration_is_one_line_per_problem_and_exit_2() -> None:
    refused = run("config", "show", GRIDPIPE_PARTITIONS="none", GRIDPIPE_TYPO="1")
    assert refused.returncode == 2
    assert refused.stdout == ""
    lines = refused.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: GRIDPIPE_") for line in lines)


def test_a_role_alone_says_which_servers_it_needs(tmp_path: Path) -> None:
    refused = run("worker", "--data-dir", str(tmp_path))
    assert refused.returncode == 2
    assert [line.split(" (")[0] for line in refused.stderr.strip().splitlines()] == [
        "error: this role needs --kafka BOOTSTRAP",
        "error: this role needs --clickhouse URL",
    ]


def test_an_unreachable_server_is_one_line_and_exit_3(tmp_path: Path) -> None:
    refused = run("migrate", "--data-dir", str(tmp_path), "--clickhouse", "http://127.0.0.1:9")
    assert refused.returncode == 3
    (line,) = refused.stderr.strip().splitlines()
    assert line == "error: ClickHouse at http://127.0.0.1:9 cannot be used: it does not answer"


@pytest.mark.parametrize("command", [("keys", "add", "--source", "s"), ("up", "--no-simulate")], ids=" ".join)
def test_a_directory_that_cannot_be_made_is_one_line_and_exit_2(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    refused = run(*command, "--data-dir", str(tmp_path / "file" / "x"))
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}/file")
    assert line.endswith(": Not a directory")


def test_a_file_that_cannot_be_read_is_one_line_and_exit_2(tmp_path: Path) -> None:
    refused = run("send", "/proc/self/mem", "--key", "gp_x", "--data-dir", str(tmp_path))
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line == "error: /proc/self/mem: cannot be read: Input/output error"


def test_doctor_on_a_machine_without_an_installation_says_what_to_do(tmp_path: Path) -> None:
    found = run("doctor", "--json", "--data-dir", str(tmp_path / "none"), "--http", "127.0.0.1:0")
    findings = {finding["check"]: finding for finding in json.loads(found.stdout)}
    assert found.returncode == 0, found.stdout
    assert findings["data directory"]["level"] == "warning"
    assert "gridpipe up" in findings["service"]["do"]
    assert not (tmp_path / "none").exists()


def test_doctor_fails_on_what_would_leak(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = run("doctor", "--data-dir", str(tmp_path), "--http", "127.0.0.1:0")
    assert found.returncode == 2
    assert f"chmod 700 {tmp_path}" in found.stdout.replace("\n", " ")
