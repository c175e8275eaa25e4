"""`explain`, `case` and `kpi` against a real listener, and without one."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
import uvicorn
from clickhouse_connect.driver.client import Client
from rich.cells import cell_len
from rich.console import Console
from starlette.applications import Starlette
from typer.testing import CliRunner

from pipeline.audit import operator
from pipeline.cli import common, query, tables
from pipeline.cli.tables import duration, kpi_table, percent
from pipeline.errors import ContractError, UnavailableError
from pipeline.read.routes import read_routes
from pipeline.store.migrate import migrate
from tests.conftest import new_client
from tests.integration.read_world import reader_over, store_block

DATABASE = "test_read_cli"
WINDOW = ("--from", "2026-05-01T00:00:00+08:00", "--to", "2026-05-02T00:00:00+08:00")


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    made = typer.Typer()
    query.register(made)
    return made


@pytest.fixture(scope="module")
def url(open_client: Client, engine_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with one block, listening on a free port."""
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    store_block(open_client, tmp_path_factory.mktemp("reference"))
    open_client.database = "default"
    reader = reader_over(lambda: new_client(engine_path, DATABASE))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=read_routes(reader)), log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()
    reader.close()
    open_client.command(f"DROP DATABASE {DATABASE}")


def run(app: typer.Typer, *words: str) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "220", "GRIDPIPE_DATA_DIR": "none-here"})
    return result.exit_code, result.stdout, result.exception


def as_json(app: typer.Typer, *words: str) -> Any:
    code, text, _ = run(app, *words, "--json")
    assert code == 0
    return json.loads(text)


def test_json_is_the_answer_of_the_service(app: typer.Typer, url: str) -> None:
    assert as_json(app, "explain", "handset", "e1", "--url", url)["outcome"] == "admitted"
    assert as_json(app, "case", "c1", "--url", url)["state"] == "SIGNED"
    answer = as_json(app, "kpi", "--by", "city", *WINDOW, "--url", url)
    assert answer["rows"][0]["cases"] == 2


def test_tables_speak_chinese(app: typer.Typer, url: str) -> None:
    code, text, _ = run(app, "kpi", *WINDOW, "--url", url)  # the default is the call's: the city
    assert (code, "江门市" in text, "江海区" in text) == (0, True, False)
    code, text, _ = run(app, "kpi", "--by", "district", *WINDOW, "--url", url)
    assert code == 0
    assert "办结率" in text
    assert re.search(r"江海区 440704.* 2 .*0\.00 %.*8 min", text)
    code, text, _ = run(app, "explain", "handset", "e2", "--url", url)
    assert (code, "UNKNOWN_MATTER" in text, "不通过" in text) == (0, True, True)
    code, text, _ = run(app, "case", "c1", "--url", url)
    assert (code, "DISPATCHED" in text) == (0, True)


def test_a_pipe_and_all_show_every_figure_of_the_answer(
    app: typer.Typer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that is new in the answer needs a column."""
    row = as_json(app, "kpi", *WINDOW, "--url", url)["rows"][0]
    answer = {"view": "cohort", "from": "a", "to": "b", "as_of": "c", "rows": [row]}
    read: set[str] = set()

    class Noted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

    whole = kpi_table(answer | {"rows": [Noted(row)]}, "city", whole=True)
    assert read == set(row) - {"suppressed"}
    heads = [str(column.header) for column in whole.columns]
    assert len(heads) == len(set(heads)) == 46
    words = ("kpi", *WINDOW, "--url", url)
    piped = run(app, *words)[1]
    assert [head for head in heads if head not in piped] == []
    monkeypatch.setattr(common, "out", Console(highlight=False, force_terminal=True, width=100))
    for module in (query, tables):
        monkeypatch.setattr(module, "out", common.out)
    few = run(app, *words)[1]
    assert "办结率" in few and "重复率" not in few
    assert "--all" in few
    everything = run(app, *words, "--all")[1]
    assert [head for head in heads if head not in everything] == []


def test_a_missing_event_is_asked_for_again_before_exit_1(
    app: typer.Typer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_NOT_WRITTEN_YET_SECONDS", 0.4)
    monkeypatch.setattr(query, "_ASK_AGAIN_SECONDS", 0.05)
    started = time.monotonic()
    code, text, _ = run(app, "explain", "handset", "none", "--url", url)
    assert (code, text) == (1, "")
    assert time.monotonic() - started >= 0.4


def test_a_bad_parameter_is_exit_2(app: typer.Typer, url: str) -> None:
    assert run(app, "kpi", "--by", "person", "--url", url)[0] == 2
    assert isinstance(run(app, "kpi", "--url", "not a url")[2], ContractError)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_service_that_fails_is_no_fault_of_the_command(status: int) -> None:
    with pytest.raises(UnavailableError, match="something failed here"):
        query._body(status, b'{"message": "something failed here"}', "http://127.0.0.1:1")


def test_nothing_to_ask_is_unreachable(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = run(app, "kpi", "--url", f"http://127.0.0.1:{port}")[2]
    assert isinstance(refused, UnavailableError)
    monkeypatch.setattr(query, "DEFAULT_URL", f"http://127.0.0.1:{port}")
    nowhere = run(app, "kpi", "--data-dir", str(tmp_path / "empty"))[2]
    assert isinstance(nowhere, UnavailableError)
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def offline(url: str, engine_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with the block of `url`, which no service answers for."""
    assert url
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(query, "DEFAULT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setenv("GRIDPIPE_EVENT_RETENTION_DAYS", "3650")
    monkeypatch.setattr("pipeline.store.client.connect", lambda _: new_client(engine_path, DATABASE))
    (tmp_path / "clickhouse").mkdir()
    return tmp_path


def audited(directory: Path) -> list[tuple[Any, ...]]:
    text = "".join(path.read_text() for path in sorted((directory / "audit").glob("*.jsonl")))
    found = [json.loads(line) for line in text.splitlines()]
    return [(line["who"], line["call"], line["subject"], line["status"]) for line in found]


def test_a_read_without_a_service_leaves_a_line_too(
    app: typer.Typer, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ("--data-dir", str(offline))
    assert as_json(app, "explain", "handset", "e1", *place)["outcome"] == "admitted"
    assert as_json(app, "case", "c1", *place)["state"] == "SIGNED"
    assert run(app, "case", "none", *place)[0] == 1
    assert as_json(app, "kpi", *WINDOW, *place)["rows"]  # figures, no person
    monkeypatch.setenv("GRIDPIPE_EVENT_RETENTION_DAYS", "7")
    assert run(app, "explain", "handset", "e1", *place)[0] == 1
    who = operator()
    assert audited(offline) == [
        (who, "explain", "handset/e1", 200),
        (who, "case", "c1", 200),
        (who, "case", "none", 404),
        (who, "explain", "handset/e1", 410),
    ]
    assert (offline / "audit").stat().st_mode & 0o077 == 0


def test_without_a_line_nothing_is_shown(app: typer.Typer, offline: Path) -> None:
    (offline / "audit").write_text("a file where the directory should be")
    for words in (("explain", "handset", "e1"), ("case", "c1")):
        for form in ((), ("--json",)):
            _, text, error = run(app, *words, *form, "--data-dir", str(offline))
            assert (type(error), text) == (UnavailableError, "")  # exit 3, as for the service's 503
            assert "cannot be recorded" in str(error)
    assert as_json(app, "kpi", *WINDOW, "--data-dir", str(offline))["rows"]


class _Answer:
    """A row with wide and narrow names, to be laid out."""

    row: ClassVar[dict[str, Any]] = {
        "reports": 12345, "admission_rate": 1.0, "cases": 1, "closed": 0, "closure_rate": None,
        "response_rate": 0.98739, "timely_response_rate": None, "closure_on_time_rate": None, "open": None,
        "overdue": None, "response_seconds": {"p50": 59, "p90": 3_900},
        "resolution_seconds": {"p50": 187_200},
    }  # fmt: skip


def test_columns_line_up_beside_wide_characters() -> None:
    rows = [
        {"key": "440704", "name_zh": "江海区", **_Answer.row},
        {"key": "440705001001", "name_zh": None, **_Answer.row},
    ]
    answer = {"view": "cohort", "from": "a", "to": "b", "as_of": "c", "rows": rows}
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(kpi_table(answer, "district"))
    lines = [line for line in console.export_text().splitlines() if "12,345" in line]
    console.file.close()
    assert len(lines) == 2
    assert len({cell_len(line[: line.index("12,345")]) for line in lines}) == 1


def test_rates_and_durations_are_readable() -> None:
    assert [percent(rate) for rate in (None, 0.0, 0.98739, 1.0)] == ["–", "0.00 %", "98.74 %", "100.00 %"]
    # the published ones, a half, and one case of twenty thousand that is open
    rates = (23_500 / 23_800, 5 / 7, 0.98735, 19_999 / 20_000, 463 / 599)
    assert [percent(rate) for rate in rates] == ["98.74 %", "71.43 %", "98.74 %", "99.99 %", "77.30 %"]
    assert [duration(seconds) for seconds in (None, 0, 59, 60, 3_599, 3_900, 86_400, 187_200)] == [
        "–", "0 s", "59 s", "1 min", "59 min", "1 h 05 min", "1 d 0 h", "2 d 4 h",
    ]  # fmt: skip
