"""Loading reference files: three formats, versions, refusals, and what workers see of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow.parquet as pq
import pytest
from clickhouse_connect.driver.client import Client

from pipeline import frames
from pipeline.clock import utc_now
from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.reference import history
from pipeline.reference import load as load_module
from pipeline.reference.load import load_directory
from pipeline.reference.query import announced
from pipeline.reference.report import FileReport, LoadReport
from pipeline.reference.schema import KINDS
from pipeline.reference.snapshot import Reference
from pipeline.store.ddl import OUTCOME_SETTINGS
from pipeline.store.erase import entomb

PRIVACY = Privacy(b"a key for tests, 32 bytes or more")
BOX = "POLYGON((113 22.5, 113.01 22.5, 113.01 22.51, 113 22.51, 113 22.5))"
GRID: dict[str, Any] = {
    "grid_code": "440704001001003", "version": 1, "valid_from": "2022-04-01T00:00:00+08:00",
    "grid_name": "第一网格", "grid_type": "residential", "status": "active", "boundary": BOX,
    "risk_tags": ["flood_prone"], "department_route": {"SA": "fire_rescue"}, "area_km2": 0.25,
    "unit_count": 14, "updated_at": "2024-01-01T00:00:00Z",
}  # fmt: skip
UNIT: dict[str, Any] = {
    "unit_code": "440704001001003-U001",
    "version": 1,
    "valid_from": "2022-04-01T00:00:00+08:00",
}
WORKER: dict[str, Any] = {
    "worker_key": "W1", "kind": "full_time", "district_code": "440704", "grid_code": "440704001001003",
    "active_from": "2022-04-01T00:00:00+08:00", "channel_rights": ["grid_patrol"],
    "loans": [{"grid_code": "440704001001003", "valid_from": "2024-09-06T00:00:00Z", "valid_to": None}],
}  # fmt: skip


def id_number(first_17: str) -> str:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return first_17 + "10X98765432"[sum(w * int(d) for w, d in zip(weights, first_17, strict=True)) % 11]


NUMBERS = [id_number(f"999999194910010{n:02d}") for n in range(1, 9)]
PERSON: dict[str, Any] = {
    "id_number": NUMBERS[0],
    "birth_date": "1949-10-01",
    "gender": "male",
    "elderly_alone_flag": True,
}
MODE: dict[str, Any] = {
    "mode": "typhoon", "level": "IV", "area_code": "4407", "valid_from": "2025-09-06T08:00:00+08:00",
    "authority": "三防", "version": 1,
}  # fmt: skip

Loader = Callable[..., LoadReport]


@pytest.fixture
def load(clickhouse: Client, tmp_path: Path) -> Loader:
    """load(grids=[rows], …): write NDJSON files and load them."""

    def load_(*, strict: bool = False, **rows: list[dict[str, Any]]) -> LoadReport:
        for path in tmp_path.iterdir():
            path.unlink()
        for kind, objects in rows.items():
            lines = b"".join(orjson.dumps(row) + b"\n" for row in objects)
            (tmp_path / f"{kind}.ndjson").write_bytes(lines)
        return load_directory(clickhouse, tmp_path, PRIVACY, strict=strict)

    return load_


def only(report: LoadReport) -> FileReport:
    assert len(report.files) == 1
    return report.files[0]


def versions(client: Client, kind: str, columns: str, key: str) -> list[tuple[Any, ...]]:
    condition = f"{KINDS[kind].key[0]} = %(key)s"
    query = f"SELECT version, {columns} FROM ref_{kind} FINAL WHERE {condition} ORDER BY version"
    return [tuple(row) for row in client.query(query, parameters={"key": key}).result_rows]


def content(client: Client, kind: str) -> pl.DataFrame:
    """Everything stored of a kind but what names the load."""
    table = client.query_arrow(f"SELECT * EXCEPT (load_id, loaded_at) FROM ref_{kind} FINAL ORDER BY ALL")
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def look_up(client: Client, *times: datetime) -> list[dict[str, Any]]:
    """What a worker knows of GRID at these times."""
    rows = [
        dict.fromkeys(frames.DECODED) | {"grid_code": GRID["grid_code"], "occurred_at": at} for at in times
    ]
    return (
        Reference.load(client, tolerance_m=0)
        .look_up(pl.DataFrame(rows, schema=frames.DECODED), {})
        .to_dicts()
    )


def test_every_table_deduplicates_by_token(clickhouse: Client) -> None:
    for table in [kind.table for kind in KINDS.values()] + ["ref_loads"]:
        ddl = clickhouse.command(f"SHOW CREATE TABLE {table}")
        assert OUTCOME_SETTINGS.split("=")[0].split()[-1] in str(ddl)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_tables_have_the_columns_of_the_definition(clickhouse: Client, kind: Any) -> None:
    rows = clickhouse.query(
        "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = %(table)s "
        "AND default_kind != 'MATERIALIZED'",
        parameters={"table": kind.table},
    ).result_rows
    own = {"row_digest", "load_id", "loaded_at"}
    period = set() if kind.history == "numbered" else {"version", "valid_from", "valid_to"}
    assert {name for (name,) in rows} == {c.name for c in kind.columns if c.stored} | period | own


def test_an_unchanged_reload_adds_nothing(clickhouse: Client, load: Loader) -> None:
    files = {
        "grids": [GRID], "units": [UNIT], "staff": [WORKER], "persons": [PERSON], "modes": [MODE],
        "organisations": [{"org_code": "O1", "name": "商铺"}],
    }  # fmt: skip
    first = load(**files)
    assert first.fine, [line for file in first.files for line in file.lines()]
    assert [file.stored for file in first.files] == [1] * 6
    seen, before = announced(clickhouse), {kind: content(clickhouse, kind) for kind in KINDS}
    again = load(**files)
    assert [(file.stored, file.unchanged) for file in again.files] == [(0, 1)] * 6
    assert announced(clickhouse) == seen, "workers have no reason to reload"
    for kind in KINDS:
        assert content(clickhouse, kind).equals(before[kind])
        assert clickhouse.command(f"SELECT count() FROM ref_{kind}") == 1


def test_three_formats_are_one(clickhouse: Client, load: Loader, tmp_path: Path) -> None:
    second = GRID | {
        "grid_code": "440704001001004", "risk_tags": [], "department_route": None,
        "valid_to": "2030-01-01T00:00:00Z",
    }  # fmt: skip
    lent = [WORKER, WORKER | {"worker_key": "W2", "loans": [], "channel_rights": [], "grid_code": None}]
    load(grids=[GRID, second], staff=lent, persons=[PERSON], modes=[MODE])
    expected = {kind: content(clickhouse, kind) for kind in KINDS}

    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "grids.csv").write_text(
        "grid_code,version,valid_from,valid_to,grid_name,grid_type,status,boundary,risk_tags,department_route,"
        "area_km2,unit_count,updated_at\n"
        f'440704001001003,1,2022-04-01T00:00:00+08:00,,第一网格,residential,active,"{BOX}",flood_prone,'
        '"{""SA"": ""fire_rescue""}",0.25,14,2024-01-01T00:00:00Z\n'
        f'440704001001004,1,2022-04-01,2030-01-01T00:00:00Z,第一网格,residential,active,"{BOX}",,'
        ",0.25,14,2024-01-01T00:00:00Z\n"
    )
    (tmp_path / "staff.csv").write_text(
        "worker_key,kind,district_code,grid_code,active_from,channel_rights,loans\n"
        "W1,full_time,440704,440704001001003,2022-04-01,grid_patrol,"
        '"[{""grid_code"":""440704001001003"",""valid_from"":""2024-09-06T00:00:00Z""}]"\n'
        "W2,full_time,440704,,2022-04-01,,\n"
    )
    (tmp_path / "persons.csv").write_text(
        f"id_number,birth_date,gender,elderly_alone_flag\n{NUMBERS[0]},1949-10-01,male,true\n"
    )
    (tmp_path / "modes.csv").write_text(
        "mode,level,area_code,valid_from,authority,version\ntyphoon,IV,4407,2025-09-06T08:00:00+08:00,三防,1\n"
    )
    as_csv = load_directory(clickhouse, tmp_path, PRIVACY)
    assert as_csv.fine, [line for file in as_csv.files for line in file.lines()]
    assert as_csv.stored == 0, "the same rows, in CSV"

    for path in tmp_path.iterdir():
        path.unlink()
    typed = pl.DataFrame([GRID, second]).with_columns(
        pl.col("valid_from", "valid_to", "updated_at").str.to_datetime("%+", time_zone="Asia/Shanghai"),
    )
    typed.write_parquet(tmp_path / "grids.parquet")
    staff = pl.DataFrame(lent).with_columns(
        pl.col("active_from").str.to_datetime("%+", time_zone="UTC", time_unit="us"),
        pl.col("loans").list.eval(
            pl.element().struct.with_fields(pl.field("valid_from").str.to_datetime("%+", time_zone="UTC"))
        ),
    )
    staff.write_parquet(tmp_path / "staff.parquet")
    pl.DataFrame([PERSON]).with_columns(pl.col("birth_date").str.to_date()).write_parquet(
        tmp_path / "persons.parquet"
    )
    pl.DataFrame([MODE]).write_parquet(tmp_path / "modes.parquet")
    as_parquet = load_directory(clickhouse, tmp_path, PRIVACY)
    assert as_parquet.fine, [line for file in as_parquet.files for line in file.lines()]
    assert as_parquet.stored == 0, "the same rows, in Parquet"
    assert all(content(clickhouse, kind).equals(expected[kind]) for kind in KINDS)


def test_a_changed_grid_gets_a_version_from_its_change_on(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID])
    changed = GRID | {"grid_name": "改名网格", "updated_at": "2024-06-01T00:00:00Z"}
    report = only(load(grids=[changed]))
    assert (report.stored, report.unchanged) == (1, 0)
    columns = "grid_name, toString(valid_from), toString(valid_to)"
    expected = [
        (1, "第一网格", "2022-03-31 16:00:00.000", "2024-06-01 00:00:00.000"),
        (2, "改名网格", "2024-06-01 00:00:00.000", None),
    ]
    assert versions(clickhouse, "grids", columns, GRID["grid_code"]) == expected
    assert only(load(grids=[changed])).unchanged == 1
    assert only(load(grids=[GRID])).older == 1, "an older record never replaces a newer one"
    assert versions(clickhouse, "grids", columns, GRID["grid_code"]) == expected


def test_a_file_may_bring_the_whole_history(clickhouse: Client, load: Loader) -> None:
    second = GRID | {"version": 2, "valid_from": "2024-01-01T00:00:00Z", "grid_name": "二版"}
    assert only(load(grids=[second, GRID])).stored == 2
    columns = "grid_name, toString(valid_to)"
    assert versions(clickhouse, "grids", columns, GRID["grid_code"]) == [
        (1, "第一网格", "2024-01-01 00:00:00.000"),
        (2, "二版", None),
    ]
    assert only(load(grids=[second, GRID])).unchanged == 2
    third = GRID | {"version": None, "valid_from": "2023-01-01T00:00:00Z", "grid_name": "补版"}
    assert only(load(grids=[second, GRID, third])).stored == 1, "a version that was missing between two"
    assert versions(clickhouse, "grids", columns, GRID["grid_code"]) == [
        (1, "第一网格", "2023-01-01 00:00:00.000"),
        (2, "二版", None),
        (3, "补版", "2024-01-01 00:00:00.000"),
    ]


HISTORY = "grid_name, toString(valid_from), toString(valid_to)"
START = "2022-03-31 16:00:00.000"


def no_version_ends_before_it_begins(client: Client) -> bool:
    return client.command("SELECT count() FROM ref_grids FINAL WHERE valid_to < valid_from") == 0


@pytest.mark.parametrize("name", ["第一网格", "旧名"])
def test_history_that_is_loaded_alone_goes_before_what_is_stored(
    clickhouse: Client, load: Loader, name: str
) -> None:
    load(grids=[GRID])
    before = GRID | {"valid_from": "2018-01-01T00:00:00Z", "valid_to": GRID["valid_from"], "grid_name": name}
    expected = [
        (1, "第一网格", START, None),
        (2, name, "2018-01-01 00:00:00.000", START),
    ]
    assert only(load(grids=[before])).stored == 1
    assert versions(clickhouse, "grids", HISTORY, GRID["grid_code"]) == expected
    for again in ([before], [GRID], [GRID, before]):
        assert only(load(grids=again)).unchanged == len(again)
    (at_that_time,) = look_up(clickhouse, datetime(2019, 1, 1, tzinfo=UTC))
    (now,) = look_up(clickhouse, datetime(2026, 5, 1, tzinfo=UTC))
    assert [(row["grid_name"], row["grid_active"]) for row in (at_that_time, now)] == [
        (name, True), ("第一网格", True),
    ]  # fmt: skip
    renamed = before | {"grid_name": "更正"}
    assert only(load(grids=[renamed])).stored == 1, "history is corrected in its place"
    assert versions(clickhouse, "grids", HISTORY, GRID["grid_code"]) == [
        expected[0], (2, "更正", *expected[1][2:]),
    ]  # fmt: skip


def test_a_planned_version_outlives_a_file_of_today(clickhouse: Client, load: Loader) -> None:
    planned = GRID | {"version": 2, "valid_from": "2150-01-01T00:00:00Z", "status": "inactive"}
    load(grids=[GRID, planned])
    assert only(load(grids=[GRID])).unchanged == 1
    renamed = GRID | {"grid_name": "改名", "updated_at": "2025-01-01T00:00:00Z"}
    assert only(load(grids=[renamed])).stored == 1
    for again in ([renamed], [renamed, planned]):
        assert only(load(grids=again)).unchanged == len(again)
    change, plan = "2025-01-01 00:00:00.000", "2150-01-01 00:00:00.000"
    assert versions(clickhouse, "grids", f"status, {HISTORY}", GRID["grid_code"]) == [
        (1, "active", "第一网格", START, change),
        (2, "inactive", "第一网格", plan, None),
        (3, "active", "改名", change, plan),
    ]
    kept_open = planned | {"status": "active"}
    assert only(load(grids=[kept_open])).stored == 1, "a plan is corrected in its place"
    assert only(load(grids=[renamed, kept_open])).unchanged == 2
    assert versions(clickhouse, "grids", "status", GRID["grid_code"])[1:] == [(2, "active"), (3, "active")]


def test_a_beginning_that_is_moved_back_takes_effect(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID | {"valid_from": "2024-06-01T00:00:00Z"}])
    moved = GRID | {"valid_from": "2020-01-01T00:00:00Z"}
    assert only(load(grids=[moved])).stored == 1
    assert only(load(grids=[moved])).unchanged == 1
    expected = [
        (1, "第一网格", "2024-06-01 00:00:00.000", None),
        (2, "第一网格", "2020-01-01 00:00:00.000", "2024-06-01 00:00:00.000"),
    ]
    assert versions(clickhouse, "grids", HISTORY, GRID["grid_code"]) == expected
    both = GRID | {
        "valid_from": "2019-01-01T00:00:00Z", "grid_name": "改名", "updated_at": "2025-07-01T00:00:00Z",
    }  # fmt: skip
    assert only(load(grids=[both])).stored == 1, "moved further back, and renamed since July"
    assert only(load(grids=[both])).unchanged == 1
    assert [row[1:] for row in versions(clickhouse, "grids", HISTORY, GRID["grid_code"])[2:]] == [
        ("改名", "2019-01-01 00:00:00.000", "2020-01-01 00:00:00.000"),
        ("改名", "2025-07-01 00:00:00.000", None),
    ]


def test_no_version_ends_before_it_begins(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID])
    changed = GRID | {"grid_name": "改名", "updated_at": "2024-06-01T00:00:00Z"}
    load(grids=[changed])
    for row in (
        changed | {"valid_to": "2023-01-01T00:00:00Z"},  # closed before the change that is stored
        changed | {"valid_to": "2025-01-01T00:00:00Z"},
        changed | {"valid_to": "2025-01-01T00:00:00Z", "grid_name": "末名", "updated_at": None},
        changed | {"valid_to": changed["valid_from"], "updated_at": None},
    ):
        assert only(load(grids=[row])).stored == 1
        assert no_version_ends_before_it_begins(clickhouse)
        assert only(load(grids=[row])).unchanged == 1
    (now,) = look_up(clickhouse, datetime(2026, 5, 1, tzinfo=UTC))
    assert not now["grid_active"]


def test_retiring_a_grid_closes_its_version(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID])
    closed = GRID | {"valid_to": "2025-01-01T00:00:00Z"}
    assert only(load(grids=[closed])).stored == 1
    assert versions(clickhouse, "grids", "toString(valid_to)", GRID["grid_code"]) == [
        (1, "2025-01-01 00:00:00.000")
    ]
    assert only(load(grids=[closed])).unchanged == 1


def test_workers_and_persons_change_by_version(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID], staff=[WORKER], persons=[PERSON])
    moved = WORKER | {"loans": []}
    report = load(staff=[moved], persons=[PERSON | {"elderly_alone_flag": False}])
    assert [file.stored for file in report.files] == [1, 1]
    assert [row[:2] for row in versions(clickhouse, "staff", "length(loans)", "W1")] == [(1, 1), (2, 0)]
    key = PRIVACY.person_key(NUMBERS[0])
    stored = versions(clickhouse, "persons", "elderly_alone_flag, valid_to IS NULL", key)
    assert stored == [(1, True, False), (2, False, True)]
    assert len(Reference.load(clickhouse, tolerance_m=0).people) == 1


def test_modes_keep_their_numbers(clickhouse: Client, load: Loader) -> None:
    load(modes=[MODE])
    raised = MODE | {"level": "III", "version": 2, "valid_to": "2025-09-08T00:00:00Z"}
    assert only(load(modes=[MODE, raised])).stored == 1
    assert only(load(modes=[MODE, raised])).unchanged == 2
    assert only(load(modes=[MODE])).older == 1
    modes = Reference.load(clickhouse, tolerance_m=0).modes
    assert modes.select("level", "version").rows() == [("III", 2)]
    corrected = MODE | {"level": "II", "version": None}
    assert only(load(modes=[corrected])).stored == 1
    assert Reference.load(clickhouse, tolerance_m=0).modes.select("level", "version").rows() == [("II", 3)]


def test_good_rows_are_stored_and_bad_ones_reported(clickhouse: Client, load: Loader) -> None:
    report = load(
        grids=[
            GRID,
            GRID,
            GRID | {"grid_code": "x"},
            GRID | {"grid_code": "440704001001009", "boundary": "x"},
        ],
        units=[UNIT, UNIT | {"unit_code": "440704001009999-U001"}],
        staff=[
            WORKER,
            WORKER | {"worker_key": "W2", "grid_code": "440704001009999"},
            WORKER | {"worker_key": "W3", "loans": [WORKER["loans"][0] | {"grid_code": "440704001009999"}]},
        ],
    )
    assert not report.fine
    grids, units, staff = report.files
    assert (grids.rows, grids.stored, grids.refused) == (4, 1, 3)
    assert set(grids.refusals.counts) == {
        ("duplicate_key", "grid_code"), ("bad_pattern", "grid_code"), ("bad_geometry", "boundary"),
    }  # fmt: skip
    assert (units.stored, units.refused) == (1, 1)
    assert set(units.refusals.counts) == {("unknown_parent", "unit_code")}
    assert (staff.stored, staff.refused) == (1, 2)
    assert set(staff.refusals.counts) == {("unknown_parent", "grid_code"), ("unknown_parent", "loans")}
    assert "line 2 (440704001001003)" in "\n".join(grids.lines())


def test_strict_refuses_the_whole_file(clickhouse: Client, load: Loader) -> None:
    report = only(load(strict=True, grids=[GRID, GRID | {"grid_code": "x"}]))
    assert (report.rows, report.stored, report.refused, report.held_back) == (2, 0, 1, True)
    assert clickhouse.command("SELECT count() FROM ref_grids") == 0
    assert only(load(strict=True, grids=[GRID])).stored == 1


def test_id_numbers_are_stored_nowhere(clickhouse: Client, load: Loader) -> None:
    wrong = NUMBERS[1][:17] + ("0" if NUMBERS[1][17] != "0" else "1")
    report = load(
        persons=[PERSON, PERSON, {"id_number": wrong}, {"id_number": NUMBERS[2], "gender": NUMBERS[3]}],
        grids=[GRID], staff=[WORKER | {"id_number": NUMBERS[4]}],
    )  # fmt: skip
    persons = next(file for file in report.files if file.kind == "persons")
    assert (persons.stored, persons.refused) == (1, 3)
    text = orjson.dumps(report.as_dict()).decode() + str(report) + "".join(persons.lines())
    for kind in KINDS:
        text += content(clickhouse, kind).write_json()
    assert not [number for number in [*NUMBERS, wrong] if number in text]
    assert PRIVACY.person_key(NUMBERS[0]) in text
    assert PRIVACY.person_key(NUMBERS[4]) in text
    assert clickhouse.command("SELECT any(age_band) FROM ref_persons") in {"70-79", "80+"}


def test_slices_share_what_they_saw(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.reference.read.SLICE_ROWS", 3)
    rows = [{"id_number": number} for number in (*NUMBERS, NUMBERS[0])]
    pl.DataFrame(rows).write_parquet(tmp_path / "persons.parquet")
    told: list[tuple[str, int, int]] = []
    report = load_directory(
        clickhouse, tmp_path, PRIVACY, progress=lambda kind, done, total: told.append((kind, done, total))
    )
    assert (only(report).stored, only(report).refused) == (8, 1)
    assert only(report).refusals.examples["duplicate_key", "person_key"][0].place == 9
    assert told == [("persons", 3, 9), ("persons", 6, 9), ("persons", 9, 9)]


def test_broken_lines_are_refused_with_their_number(clickhouse: Client, tmp_path: Path) -> None:
    grid = orjson.dumps(GRID)
    lines = [grid, b"", b"{broken", b"[1]", b'"text"', grid.replace(b"1003", b"1004"), b'{"grid_code": 1}']
    (tmp_path / "grids.ndjson").write_bytes(b"\n".join(lines))
    report = only(load_directory(clickhouse, tmp_path, PRIVACY))
    assert (report.rows, report.stored, report.refused) == (6, 2, 4)
    assert [example.place for example in report.refusals.examples["unreadable", None]] == [3, 4, 5]
    assert report.refusals.examples["missing", "grid_name"][0].place == 7


def test_broken_csv_lines_are_refused_with_their_number(clickhouse: Client, tmp_path: Path) -> None:
    (tmp_path / "organisations.csv").write_text(
        "\ufefforg_code,name\nO1,甲\nO2\n\n,无\nO3,乙,多\nO4,丁\nO4,重\n", encoding="utf-8"
    )
    report = only(load_directory(clickhouse, tmp_path, PRIVACY))
    assert (report.rows, report.stored, report.refused) == (6, 2, 4), "an empty line is no row"
    examples = {key: [e.place for e in value] for key, value in report.refusals.examples.items()}
    assert examples == {
        ("unreadable", None): [3, 6], ("missing", "org_code"): [5], ("duplicate_key", "org_code"): [8],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("grids.csv", "", "no column grid_code"),
        ("grids.csv", "grid_code,grid_code\n", "twice"),
        ("organisations.csv", "org_code,name,religion\nO1,a,b\n", "unknown column religion"),
        (
            "organisations.ndjson",
            '{"org_code": "O1", "name": "a", "religion": "b"}\n',
            "unknown column religion",
        ),
        ("persons.parquet", "PAR1 no parquet", "cannot be read"),
    ],
)
def test_a_file_of_another_shape_is_refused_as_a_whole(
    clickhouse: Client, tmp_path: Path, name: str, text: str | bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    report = only(load_directory(clickhouse, tmp_path, PRIVACY))
    assert report.problem is not None
    assert problem in report.problem
    assert not report.fine
    assert report.stored == 0


def test_what_stands_before_a_fault_is_stored_and_announced(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come into force at the next restart anyway, unannounced and unsaid."""
    monkeypatch.setattr("pipeline.reference.read.SLICE_ROWS", 3)
    path = tmp_path / "organisations.parquet"
    rows = [{"org_code": f"O{number}", "name": "甲"} for number in range(9)]
    rows[1] = {"org_code": "no code!", "name": "甲"}
    pl.DataFrame(rows).write_parquet(path, row_group_size=3, compression="uncompressed")
    damaged = pq.read_metadata(path).row_group(2).column(0)
    start, length = damaged.dictionary_page_offset or damaged.data_page_offset, damaged.total_compressed_size
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * length)
    report = only(load_directory(clickhouse, tmp_path, PRIVACY))
    assert report.problem is not None
    assert "cannot be read" in report.problem
    assert (report.rows, report.stored, report.refused) == (6, 5, 1)
    assert "up to row 6" in report.lines()[0]
    assert "row 2 (no code!)" in report.lines()[1], "what was refused before is told too"
    assert set(announced(clickhouse)) == {"organisations"}
    strict = only(load_directory(clickhouse, tmp_path, PRIVACY, strict=True))
    assert (strict.stored, strict.problem is not None) == (0, True)


def test_directories_that_cannot_be_loaded_say_so(clickhouse: Client, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a directory"):
        load_directory(clickhouse, tmp_path / "absent", PRIVACY)
    with pytest.raises(ConfigurationError, match="no reference file"):
        load_directory(clickhouse, tmp_path, PRIVACY)
    for name in ("grids.csv", "grids.ndjson"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigurationError, match="keep one"):
        load_directory(clickhouse, tmp_path, PRIVACY)


def test_a_worker_sees_all_kinds_of_a_load_or_none(
    clickhouse: Client, load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With grids but without their staff, what the staff report would be rejected."""
    seen: list[dict[str, str]] = []
    store = load_module._Load._store

    def watched(self: Any, report: Any) -> None:
        store(self, report)
        seen.append(announced(clickhouse))

    monkeypatch.setattr(load_module._Load, "_store", watched)
    load(grids=[GRID], units=[UNIT], staff=[WORKER], persons=[PERSON])
    assert seen == [{}, {}, {}, {}]
    assert set(announced(clickhouse)) == {"grids", "units", "staff", "persons"}


def test_a_load_that_was_cut_off_is_completed_by_the_next(
    clickhouse: Client, load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(grids=[GRID])
    second = GRID | {"valid_from": "2024-01-01T00:00:00Z", "grid_name": "二版", "version": 2}

    def cut_off(*_: object) -> None:
        raise UnavailableError("the store went away")

    with monkeypatch.context() as patched:
        patched.setattr(load_module._Load, "_close_superseded", cut_off)
        with pytest.raises(UnavailableError):
            load(grids=[GRID, second])
    before = announced(clickhouse)
    report = only(load(grids=[GRID, second]))
    assert (report.stored, report.unchanged) == (0, 2)
    seen = announced(clickhouse)
    assert seen != before, "the rows of the load that was cut off are announced now"
    load(grids=[GRID, second])
    assert announced(clickhouse) == seen, "and only once"
    columns = "toString(valid_to)"
    assert versions(clickhouse, "grids", columns, GRID["grid_code"]) == [
        (1, "2024-01-01 00:00:00.000"),
        (2, None),
    ]


@pytest.mark.parametrize("meanwhile", ["a person is erased", "another load"])
def test_a_load_is_taken_whatever_was_announced_while_it_ran(
    clickhouse: Client, load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    other = tmp_path.parent / f"{tmp_path.name}-other"
    other.mkdir()
    (other / "persons.ndjson").write_bytes(orjson.dumps({"id_number": NUMBERS[1]}))
    workers: list[Reference] = []
    stored = history.Stored.load

    def interrupted(client: Client, kind: Any) -> history.Stored:
        found = stored(client, kind)
        if not workers:
            workers.append(Reference.load(client, tolerance_m=0))  # and the inner load comes here too
            time.sleep(0.01)
            if meanwhile == "another load":
                load_directory(client, other, PRIVACY)
            else:
                entomb(client, {PRIVACY.person_key(NUMBERS[2]): 1}, "R-1", utc_now())
            workers[0] = Reference.load(client, tolerance_m=0, previous=workers[0])
        return found

    monkeypatch.setattr(history.Stored, "load", interrupted)
    load(persons=[PERSON])
    after = Reference.load(clickhouse, tolerance_m=0, previous=workers[0])
    key = pl.Series([PRIVACY.person_key(NUMBERS[0])])
    assert after.people.find(key, np.zeros(1, np.int64)).tolist() != [-1]
    assert Reference.load(clickhouse, tolerance_m=0, previous=after) is after


def test_a_missing_store_is_no_missing_record(clickhouse: Client, load: Loader) -> None:
    load(grids=[GRID])
    clickhouse.command("DROP TABLE ref_loads")
    with pytest.raises(UnavailableError, match="cannot be read"):
        Reference.load(clickhouse, tolerance_m=0)
    clickhouse.command("DROP TABLE ref_grids")
    with pytest.raises(UnavailableError):
        load(grids=[GRID])
