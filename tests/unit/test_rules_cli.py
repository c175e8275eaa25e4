"""`gridpipe rules`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import common, rules
from pipeline.errors import ConfigurationError
from tests.unit.admit_rows import CATALOGUE, copy_catalogue, edit


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    rules.register(app)
    return app


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.out, "width", 220)


def run(app: typer.Typer, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["rules", *arguments])


def test_check_says_what_it_found(app: typer.Typer) -> None:
    result = run(app, "check")
    assert result.exit_code == 0, result.output
    assert "13 rules" in result.output
    assert "reference_not_official" in result.output


def test_check_as_json(app: typer.Typer) -> None:
    report = json.loads(run(app, "check", str(CATALOGUE), "--json").stdout)
    assert report["ok"] is True
    assert (report["versions"][0]["matters"], report["rules"]) == (65, 13)


def test_check_of_a_broken_catalogue_names_the_place(app: typer.Typer, tmp_path: Path) -> None:
    directory = copy_catalogue(tmp_path / "catalogue")
    line = edit(directory / "channels.yaml", "kind: desk", "kind: table")
    result = run(app, "check", str(directory))
    assert isinstance(result.exception, ConfigurationError)  # the entry point prints it and exits 2
    assert result.exception.problems[0].startswith(
        f"{directory / 'channels.yaml'}:{line}: petition_market: kind:"
    )
    result = run(app, "check", str(directory), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0].startswith(f"{directory / 'channels.yaml'}:{line}: ")


def test_list_shows_the_matters_in_force_with_chinese_names(app: typer.Typer) -> None:
    result = run(app, "list", "--at", "2026-05-01")
    assert result.exit_code == 0, result.output
    assert "65 matters in force" in result.output
    assert "高空坠物及外墙悬挂物隐患" in result.output
    assert "住房和城乡建设局" in result.output


@pytest.mark.parametrize(
    ("at", "count"),
    [("2022-03-31", 0), ("2022-04-01", 40), ("2022-07-31T23:59:59+08:00", 40), ("2022-07-31T16:00:00Z", 65)],
)
def test_list_counts_days_from_local_midnight(app: typer.Typer, at: str, count: int) -> None:
    listed = json.loads(run(app, "list", "--at", at, "--json").stdout)
    assert (len(listed["matters"]), listed["catalogue_version"]) == (count, "0.1")


@pytest.mark.parametrize("at", ["yesterday", "2026-05-01T08:00:00"])
def test_list_refuses_an_unclear_instant(app: typer.Typer, at: str) -> None:
    result = run(app, "list", "--at", at)
    assert isinstance(result.exception, ConfigurationError)
    assert at in str(result.exception)


@pytest.mark.parametrize("command", [("list", "--at", "2026-05-01"), ("check",), ("columns",)], ids=" ".join)
def test_nothing_is_cut_in_a_pipe_or_file(
    app: typer.Typer, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.out, "width", 30)
    text = run(app, *command).output
    assert "…" not in text
    if command[0] == "list":
        assert "高空坠物及外墙悬挂物隐患" in text
        assert "grid_patrol yuepingan" in text


def test_columns_lists_what_a_condition_may_use(app: typer.Typer) -> None:
    rows = json.loads(run(app, "columns", "--json").stdout)["columns"]
    assert {"column": "point_in_grid", "type": "Boolean", "from": "reference"} in rows
    assert {"column": "age_seconds", "type": "Float64", "from": "computed"} in rows
    assert "mode_prioritises" in run(app, "columns").output
