"""A key in a file instead of an argument, which every process list and history would keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main, send
from pipeline.cli.common import key_of
from pipeline.errors import ConfigurationError
from pipeline.settings import load_settings


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "source.key"
    path.write_text("gp_file\n")
    path.chmod(0o600)
    return path


def test_a_key_is_read_from_the_option_the_file_and_the_machine_in_this_order(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local.key").write_text("gp_local\n")
    settings = load_settings(data_dir=tmp_path)
    assert send.read_key(None, settings) == "gp_local"
    named = load_settings(data_dir=tmp_path, key_file=key_file)
    assert send.read_key(None, named) == "gp_file"
    assert send.read_key("gp_given", named) == "gp_given"
    monkeypatch.setenv("GRIDPIPE_KEY_FILE", str(key_file))
    assert send.read_key(None, load_settings(data_dir=tmp_path)) == "gp_file"


def test_a_key_file_that_is_open_empty_or_missing_is_refused(tmp_path: Path, key_file: Path) -> None:
    settings = load_settings(data_dir=tmp_path, key_file=key_file)
    key_file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        key_of(settings)
    key_file.chmod(0o600)
    key_file.write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        key_of(settings)
    key_file.unlink()
    with pytest.raises(ConfigurationError, match="No such file"):
        key_of(settings)


@pytest.mark.parametrize(
    "command", [("send", "x"), ("validate", "x"), ("explain", "s", "e"), ("case", "c"), ("kpi",)]
)
def test_every_command_that_shows_a_key_takes_it_from_a_file(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").write_text("{}\n")
    monkeypatch.setattr(send, "_answers", lambda *_: True)
    found = CliRunner().invoke(main.build(), [*command, "--key-file", str(tmp_path / "none")])
    assert isinstance(found.exception, ConfigurationError), found.output
    assert "key file" in str(found.exception)
