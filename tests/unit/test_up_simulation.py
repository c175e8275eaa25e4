"""Whether `gridpipe up` and `gridpipe demo` simulate: never into stores of somebody's own unless asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner

from pipeline.cli import demo as demo_command
from pipeline.cli import reference as reference_commands
from pipeline.cli import serve
from pipeline.errors import ConfigurationError
from pipeline.runtime import process, store, supervisor
from pipeline.settings import Settings
from tests.conftest import embedded_only, new_client
from tests.integration.worker_world import load_reference


class Asked(Exception):  # noqa: N818  not an error: the test has seen enough
    """What `up` would have done."""

    def __init__(self, settings: Settings, *, simulate: bool | None) -> None:
        super().__init__()
        self.simulates = supervisor.simulates_by_default(settings) if simulate is None else simulate


def up(monkeypatch: pytest.MonkeyPatch, data_dir: Path, *arguments: str, **environment: str) -> bool:
    """Whether `gridpipe up` with these would simulate."""

    def stop(settings: Settings, *, simulate: bool | None) -> Any:
        raise Asked(settings, simulate=simulate)

    monkeypatch.setattr(supervisor, "Supervisor", stop)
    monkeypatch.setattr(process, "harden", lambda: None)
    monkeypatch.setattr("pipeline.logs.configure", lambda **_: None)
    app = typer.Typer()
    serve.register(app)
    found = CliRunner().invoke(app, ["up", "--data-dir", str(data_dir), *arguments], env=environment)
    assert isinstance(found.exception, Asked), found.output
    return found.exception.simulates


def test_up_simulates_on_embedded_stores_only_unless_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka, server = ("--kafka", "127.0.0.1:1"), ("--clickhouse", "http://127.0.0.1:1")
    assert up(monkeypatch, tmp_path) is True
    assert up(monkeypatch, tmp_path, "--no-simulate") is False
    for arguments in (kafka, server, kafka + server):
        assert up(monkeypatch, tmp_path, *arguments) is False
        assert up(monkeypatch, tmp_path, *arguments, "--simulate") is True
    assert up(monkeypatch, tmp_path, GRIDPIPE_KAFKA="127.0.0.1:1") is False
    assert up(monkeypatch, tmp_path, GRIDPIPE_CLICKHOUSE="http://127.0.0.1:1") is False


def test_a_demo_never_feeds_its_year_into_somebodys_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "harden", lambda: None)
    app = typer.Typer()
    demo_command.register(app)
    for name, value in (("GRIDPIPE_KAFKA", "127.0.0.1:1"), ("GRIDPIPE_CLICKHOUSE", "http://127.0.0.1:1")):
        found = CliRunner().invoke(app, ["--data-dir", str(tmp_path / "demo")], env={name: value})
        assert isinstance(found.exception, ConfigurationError), found.output
        assert "needs stores of its own" in str(found.exception)
    assert not (tmp_path / "demo").exists()


def test_after_a_real_city_was_loaded_up_no_longer_simulates(
    clickhouse: Client, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    organisation = {
        "organisation_code": "91440704MA4UXXXX0X",
        "name": "小吃店",
        "grid_code": "440704001001003",
        "updated_at": "2026-01-01T00:00:00+08:00",
        "source_system": "simulated-city",
    }
    monkeypatch.setenv("GRIDPIPE_DATABASE", str(clickhouse.database))
    monkeypatch.setattr(
        "pipeline.store.client.connect", lambda *_, **__: new_client(engine_path, str(clickhouse.database))
    )
    app = typer.Typer()
    reference_commands.register(app)
    run_dir = tmp_path / "data" / "run"
    run_dir.mkdir(parents=True)
    (tmp_path / "data" / "clickhouse").mkdir()
    (run_dir / "pids.json").write_text(json.dumps({"up": 1, "city": 2}))

    def load() -> str:
        found = CliRunner().invoke(
            app, ["reference", "load", str(files), "--data-dir", str(tmp_path / "data")]
        )
        assert found.exit_code in {0, 1}, found.output
        return found.output

    pl.DataFrame([organisation]).write_ndjson(files / "organisations.ndjson")
    assert "still feeds the simulated city" not in load()
    assert up(monkeypatch, tmp_path / "data") is True
    load_reference(clickhouse, tmp_path / "places")
    assert "still feeds the simulated city" in load()
    assert up(monkeypatch, tmp_path / "data") is False
    assert up(monkeypatch, tmp_path / "data", "--simulate") is True
    assert up(monkeypatch, tmp_path / "other") is True


@embedded_only
def test_a_store_of_a_real_city_is_not_opened_for_the_simulated_one(
    clickhouse: Client, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restore, or an upgrade: nothing but the rows tell."""
    settings = Settings(data_dir=tmp_path, clickhouse="http://127.0.0.1:1", database=str(clickhouse.database))
    store.Privacy.load(settings.pseudonym_key_path, create=True)
    monkeypatch.setattr(store, "connect_server", lambda _, database: new_client(engine_path, database))

    class GoesOn(Exception):  # noqa: N818
        pass

    def go_on(*_: Any, **__: Any) -> None:
        raise GoesOn

    monkeypatch.setattr(store, "wait_for_topic", go_on)
    run = {"bootstrap": "127.0.0.1:1", "listener": None, "token": None}
    with pytest.raises(GoesOn):
        store.run_store(settings, **run, refuse_real_reference=True)  # type: ignore[arg-type]
    load_reference(clickhouse, tmp_path / "places")
    with pytest.raises(ConfigurationError, match="start with --no-simulate"):
        store.run_store(settings, **run, refuse_real_reference=True)  # type: ignore[arg-type]
    with pytest.raises(GoesOn):
        store.run_store(settings, **run)  # type: ignore[arg-type]
