"""`gridpipe refold`: settled cases folded again from their stored events, beside workers that go on."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner

from pipeline.cli import operate
from pipeline.errors import UnavailableError
from pipeline.store.bridge import Bridge
from pipeline.store.cases import read_sets, refold, store_cases
from pipeline.store.client import BridgeAddress
from pipeline.store.migrate import migrate
from tests.conftest import embedded_only
from tests.integration.case_world import World, chain
from tests.integration.test_bridge import TOKEN, _SessionEngine

SHUT: Any = [
    ("REPORTED", 0),
    ("ACCEPTED", 1),
    ("DISPATCHED", 2),
    ("SIGNED", 3),
    ("RESOLVED", 4),
    ("CLOSED", 5),
]


def whole(client: Client) -> list[Any]:
    """Every case as it is read, but for when it was stored."""
    return list(client.query("SELECT * EXCEPT stored_at FROM cases FINAL ORDER BY case_id").result_rows)


def spoil(client: Client) -> None:
    """As an earlier version might have folded them: at the same version, in the same state."""
    client.command(
        "ALTER TABLE cases UPDATE due_at = NULL, first_response_at = reported_at, grid_code = '' WHERE 1 "
        "SETTINGS mutations_sync = 2"
    )


def some_cases(client: Client) -> World:
    world = World(client)
    for number in range(7):
        world.write(*chain(f"c{number}", SHUT[: number or 1]))
    return world


def test_every_case_is_folded_again_slice_by_slice(clickhouse: Client) -> None:
    some_cases(clickhouse)
    right = whole(clickhouse)
    spoil(clickhouse)
    assert whole(clickhouse) != right
    assert list(refold(clickhouse, most=3)) == [3, 6, 7]
    assert whole(clickhouse) == right
    assert list(refold(clickhouse)) == [7]
    assert whole(clickhouse) == right, "again is the same"


def test_an_empty_store_has_nothing_to_fold(clickhouse: Client) -> None:
    assert list(refold(clickhouse)) == []


def test_what_a_worker_stores_meanwhile_wins(clickhouse: Client) -> None:
    world = World(clickhouse)
    world.write(*chain("c1", SHUT[:5]))
    read_before = read_sets(clickhouse, pl.DataFrame({"case_id": ["c1"]}))
    world.write(*chain("c1", SHUT[5:]))
    store_cases(clickhouse, read_before)
    assert world.case("c1")["state"] == "CLOSED"


def test_a_case_that_is_cut_by_the_size_of_a_slice_is_whole(clickhouse: Client) -> None:
    """Its entries lie in several rows until they are merged."""
    world = World(clickhouse)
    for step in SHUT:
        world.write(*chain("c1", [step]))
    spoil(clickhouse)
    assert list(refold(clickhouse, most=1)) == [1]
    assert (world.case("c1")["state"], world.case("c1")["event_count"]) == ("CLOSED", 6)


@pytest.fixture
def data_dir(
    open_client: Client, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Of a running service, whose store has a database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    migrate(open_client, name)
    monkeypatch.setenv("GRIDPIPE_DATABASE", name)
    served = Bridge(_SessionEngine(engine_path), TOKEN, handles=3).start()
    (tmp_path / "run").mkdir()
    BridgeAddress(served.url, TOKEN, os.getpid()).write(tmp_path / "run")
    yield tmp_path
    served.close()
    open_client.command(f"DROP DATABASE {name}")
    open_client.database = "default"


@embedded_only
def test_the_command_folds_beside_a_running_service(data_dir: Path, open_client: Client) -> None:
    some_cases(open_client)
    right = whole(open_client)
    spoil(open_client)
    app = typer.Typer()
    operate.register(app)
    done = CliRunner().invoke(app, ["refold", "--data-dir", str(data_dir), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["cases"]) == (0, 7), done.output
    assert whole(open_client) == right
    told = CliRunner().invoke(app, ["refold", "--data-dir", str(data_dir)])
    assert (told.exit_code, "7 cases" in told.stdout) == (0, True)


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    app = typer.Typer()
    operate.register(app)
    found = CliRunner().invoke(app, ["refold", "--data-dir", str(tmp_path)])
    assert isinstance(found.exception, UnavailableError)
    assert list(tmp_path.iterdir()) == []
