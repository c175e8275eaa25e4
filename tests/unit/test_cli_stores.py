"""Commands that change a store: none is made unasked, and none is taken for the running service's."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from pipeline.runtime.health import Health
from pipeline.store.erasure_list import write_list
from tests.conftest import embedded_only


def run(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "TZ": "UTC",
            "PYTHONPATH": str(Path.cwd()),
            "GRIDPIPE_HTTP": "127.0.0.1:9",
        }
        | environment,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a shell stands: beside reference files, a person's number and a list of erasures; no `var`."""
    (tmp_path / "city").mkdir()
    organisation = {
        "org_code": "91440704MA4UXXXX0X",
        "name": "小吃店",
        "updated_at": "2026-01-01T00:00:00+08:00",
        "source_system": "ours",
    }
    (tmp_path / "city" / "organisations.ndjson").write_text(json.dumps(organisation) + "\n")
    (tmp_path / "number").write_text("13800001234\n")
    (tmp_path / "number").chmod(0o600)
    write_list(tmp_path / "erased", set())
    return tmp_path


CHANGING = (
    ("reference", "load", "city"),
    ("person", "find", "--from", "number"),
    ("person", "erase", "--from", "number", "--yes"),
    ("person", "export-erasures", "list"),
    ("person", "reapply", "erased"),
    ("pseudonym", "rotate"),
    ("pseudonym", "activate", "2"),
    ("pseudonym", "retire", "1", "--yes"),
)


@pytest.mark.parametrize("command", CHANGING, ids=" ".join)
def test_without_a_store_nothing_is_made_and_what_to_do_is_said(
    place: Path, command: tuple[str, ...]
) -> None:
    before = sorted(place.rglob("*"))
    refused = run(place, *command)
    assert (refused.returncode, refused.stdout) == (3, ""), refused.stderr
    (line,) = refused.stderr.strip().splitlines()
    assert "var holds no store" in line
    for way in ("--data-dir", "--clickhouse", "gridpipe migrate"):
        assert way in line
    assert sorted(place.rglob("*")) == before


def test_a_named_directory_without_a_store_is_named_in_the_advice(place: Path) -> None:
    before = sorted(place.rglob("*"))
    refused = run(place, "person", "find", "--from", "number", "--data-dir", "my own")
    assert refused.returncode == 3, refused.stderr
    assert "gridpipe migrate --data-dir 'my own'" in refused.stderr
    assert sorted(place.rglob("*")) == before


@embedded_only
@pytest.mark.parametrize("migrated", [True, False], ids=["migrated", "new"])
def test_a_directory_that_is_named_is_loaded_before_the_first_start(place: Path, migrated: bool) -> None:
    if migrated:
        made = run(place, "migrate", "--data-dir", "mine")
        assert made.returncode == 0, made.stderr
        assert "in mine" in made.stdout
    loaded = run(place, "reference", "load", "city", "--data-dir", "mine", "--json")
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    assert [(file["kind"], file["stored"]) for file in json.loads(loaded.stdout)["files"]] == [
        ("organisations", 1)
    ]
    assert ("mine holds no store yet: making one" in loaded.stderr) is not migrated


@embedded_only
def test_migrate_sets_the_retention_and_keeps_what_nobody_asks_to_change(place: Path) -> None:
    made = run(place, "migrate", "--data-dir", "mine", "--json", GRIDPIPE_EVENT_RETENTION_DAYS="30")
    assert made.returncode == 0, made.stderr
    tables = ["events", "rejections", "duplicates", "quarantine"]
    assert json.loads(made.stdout)["retention_set"] == tables
    again = run(place, "migrate", "--data-dir", "mine")
    assert again.returncode == 0, again.stderr
    assert "retention set" not in again.stdout
    assert "GRIDPIPE_EVENT_RETENTION_DAYS is not set here; the tables keep 30 days" in again.stderr
    asked = run(place, "migrate", "--data-dir", "mine", "--json", GRIDPIPE_EVENT_RETENTION_DAYS="90")
    assert json.loads(asked.stdout)["retention_set"] == ["events", "rejections", "quarantine"]


@pytest.fixture
def service() -> Iterator[str]:
    """Address of a running service with another data directory."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=Health({}).routes()), log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.mark.parametrize("command", [("migrate",), *CHANGING[::4]], ids=" ".join)
def test_the_directory_at_hand_is_not_taken_for_that_of_a_running_service(
    place: Path, service: str, command: tuple[str, ...]
) -> None:
    (place / "var" / "clickhouse").mkdir(parents=True)
    before = sorted(place.rglob("*"))
    refused = run(place, *command, GRIDPIPE_HTTP=service)
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    assert f"var is not the data directory of the service at http://{service}" in refused.stderr
    assert sorted(place.rglob("*")) == before
