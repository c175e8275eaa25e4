"""Rows of reference files: what is taken, what is refused and why; personal values stay out of the report."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from pipeline.reference.report import FileReport
from pipeline.reference.schema import KINDS
from pipeline.reference.validate import Refusals, check_cells

TODAY = date(2026, 6, 15)
GRID: dict[str, Any] = {
    "grid_code": "440704001001003", "valid_from": "2022-04-01", "grid_name": "第一网格",
    "grid_type": "residential", "status": "active",
}  # fmt: skip
STAFF = {
    "worker_key": "W1", "kind": "full_time", "district_code": "440704", "grid_code": "440704001001003",
    "active_from": "2022-04-01T00:00:00+08:00",
}  # fmt: skip


def id_number(first_17: str) -> str:
    """With the check digit of GB 11643."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return first_17 + "10X98765432"[sum(w * int(d) for w, d in zip(weights, first_17, strict=True)) % 11]


#: Unassigned region 999999, so nobody's.
ID_NUMBER = id_number("99999919491001001")


MISSPELT_LOAN = '[{"grid_code": "440704001001004", "valid_from": "2024-09-06", "valid_until": "2024-09-08"}]'
BACKWARD_LOAN = '[{"grid_code": "440704001001004", "valid_from": "2024-09-08", "valid_to": "2024-09-01"}]'


def checked(kind: str, *rows: dict[str, Any]) -> tuple[pl.DataFrame, Refusals]:
    names = KINDS[kind].names
    cells = pl.DataFrame(
        [{name: row.get(name) for name in names} for row in rows], schema=dict.fromkeys(names, pl.String)
    )
    refusals = Refusals()
    return check_cells(KINDS[kind], cells, np.arange(1, len(rows) + 1), refusals, TODAY), refusals


def reasons(refusals: Refusals) -> set[tuple[str, str | None]]:
    return set(refusals.counts)


def test_a_good_row_is_typed() -> None:
    rows, refusals = checked(
        "grids",
        {**GRID, "risk_tags": "flood_prone; forest", "department_route": '{"SA": "fire_rescue"}',
         "unit_count": "14", "area_km2": "0.5", "valid_to": "9999-12-31"},
    )  # fmt: skip
    assert refusals.rows == 0
    row = rows.to_dicts()[0]
    assert row["valid_from"] == datetime(2022, 3, 31, 16, tzinfo=UTC), "a date is its midnight in Shanghai"
    assert row["valid_to"] is None, "9999-12-31 means open"
    assert row["risk_tags"] == ["flood_prone", "forest"]
    assert row["department_route"] == [{"category": "SA", "department": "fire_rescue"}]
    assert (row["unit_count"], row["area_km2"], row["_place"]) == (14, 0.5, 1)


@pytest.mark.parametrize(
    ("change", "reason", "column"),
    [
        ({"grid_code": "44070400100100"}, "bad_pattern", "grid_code"),
        ({"grid_code": "440704001001003\n1"}, "bad_pattern", "grid_code"),
        ({"grid_code": None}, "missing", "grid_code"),
        ({"grid_type": "suburb"}, "not_allowed", "grid_type"),
        ({"valid_from": "2022-04-01T00:00:00"}, "wrong_type", "valid_from"),
        ({"valid_from": "yesterday"}, "wrong_type", "valid_from"),
        ({"valid_from": "9999-12-31"}, "out_of_range", "valid_from"),
        ({"valid_to": "2022-03-01"}, "bad_interval", "valid_to"),
        ({"unit_count": "12.5"}, "wrong_type", "unit_count"),
        ({"unit_count": "-1"}, "out_of_range", "unit_count"),
        ({"unit_count": "99999999999999999999"}, "wrong_type", "unit_count"),
        ({"version": "0"}, "out_of_range", "version"),
        ({"centroid_lon": "22.5"}, "out_of_range", "centroid_lon"),
        ({"area_km2": "NaN"}, "wrong_type", "area_km2"),
        ({"area_km2": "inf"}, "wrong_type", "area_km2"),
        ({"risk_tags": "flood_prone;volcano"}, "not_allowed", "risk_tags"),
        ({"risk_tags": '["flood_prone"'}, "wrong_type", "risk_tags"),
        ({"risk_tags": '[["flood_prone"]]'}, "wrong_type", "risk_tags"),
        ({"department_route": '["SA"]'}, "wrong_type", "department_route"),
        ({"department_route": '{"SA": 1}'}, "wrong_type", "department_route"),
        ({"boundary": "POLYGON((113 22, 113.1 22))"}, "bad_geometry", "boundary"),
        ({"boundary": "POINT(113 22)"}, "bad_geometry", "boundary"),
        ({"boundary": "POLYGON EMPTY"}, "bad_geometry", "boundary"),
        ({"boundary": "drop table"}, "bad_geometry", "boundary"),
        ({"boundary": "POLYGON((113 22,114 23,114 22,113 23,113 22))"}, "bad_geometry", "boundary"),
        ({"boundary": "POLYGON((22 113,22.1 113,22.1 113.1,22 113))"}, "bad_geometry", "boundary"),
        ({"grid_name": "名" * 201}, "too_long", "grid_name"),
    ],
)
def test_a_bad_grid_is_refused_and_its_neighbours_are_not(
    change: dict[str, Any], reason: str, column: str
) -> None:
    rows, refusals = checked("grids", GRID, {**GRID, **change}, {**GRID, "grid_code": "440704001001004"})
    assert reasons(refusals) == {(reason, column)}
    assert refusals.rows == 1
    assert rows["_place"].to_list() == [1, 3]


@pytest.mark.parametrize(
    ("change", "reason", "column"),
    [
        ({"kind": "boss"}, "not_allowed", "kind"),
        ({"district_code": "440703"}, "contradiction", "district_code"),
        ({"active_to": "2022-01-01"}, "bad_interval", "active_to"),
        ({"channel_rights": "grid_patrol;fax"}, "not_allowed", "channel_rights"),
        ({"loans": "tomorrow"}, "wrong_type", "loans"),
        ({"loans": '[{"grid_code": "440704001001004"}]'}, "wrong_type", "loans"),
        ({"loans": BACKWARD_LOAN}, "wrong_type", "loans"),
        ({"loans": MISSPELT_LOAN}, "wrong_type", "loans"),
        ({"loans": "[1]"}, "wrong_type", "loans"),
        ({"person_key": "ab" * 32}, "no_identity", "key_version"),
        ({"id_number": "123"}, "bad_id_number", "id_number"),
        ({"worker_key": "13800001234"}, "personal_number", "worker_key"),
        ({"device_key": f"pda-{ID_NUMBER}"}, "personal_number", "device_key"),
    ],
)  # fmt: skip
def test_a_bad_worker_is_refused(change: dict[str, Any], reason: str, column: str) -> None:
    rows, refusals = checked("staff", STAFF, {**STAFF, "worker_key": "W2", **change})
    assert reasons(refusals) == {(reason, column)}
    assert rows["worker_key"].to_list() == ["W1"]


def test_a_quoted_cell_shows_no_personal_number() -> None:
    _, refusals = checked("staff", {**STAFF, "worker_key": "tel 138 0000 1234"}, {**STAFF, "kind": ID_NUMBER})
    quoted = [example.value for found in refusals.examples.values() for example in found]
    assert sorted(map(str, quoted)) == ["[身份证号]", "tel [手机号]"]


def test_a_list_of_keys_holds_no_personal_number() -> None:
    _, refusals = checked("grids", GRID, {**GRID, "worker_keys": "W1;13800001234"})
    assert reasons(refusals) == {("personal_number", "worker_keys")}


def test_loans_are_read() -> None:
    loans = '[{"grid_code": "440704001001004", "valid_from": "2024-09-06T08:00:00+08:00", "valid_to": null}]'
    rows, refusals = checked("staff", {**STAFF, "loans": loans}, STAFF)
    assert refusals.rows == 0
    assert rows["loans"].to_list() == [
        [{"grid_code": "440704001001004", "valid_from": datetime(2024, 9, 6, tzinfo=UTC), "valid_to": None}],
        [],
    ]


@pytest.mark.parametrize(
    "spelling",
    [
        ID_NUMBER,
        f" {ID_NUMBER.lower()} ",
        f"{ID_NUMBER[:6]} {ID_NUMBER[6:14]}-{ID_NUMBER[14:]}",
        ID_NUMBER.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)}),
    ],
)
def test_spellings_of_one_id_number_are_one(spelling: str) -> None:
    rows, refusals = checked("persons", {"id_number": spelling})
    assert refusals.rows == 0
    assert rows["id_number"].to_list() == [ID_NUMBER]


@pytest.mark.parametrize(
    "number",
    [
        ID_NUMBER[:17] + ("1" if ID_NUMBER[17] == "0" else "0"),  # checksum
        id_number("99999919491301001"),  # month 13
        id_number("99999919490230001"),  # 30 February
        "E12345678",  # a passport, but no overseas resident
        "9" * 18,
        "abc",
    ],
)
def test_a_wrong_id_number_is_refused_and_never_shown(number: str) -> None:
    rows, refusals = checked("persons", {"id_number": number}, {"id_number": ID_NUMBER})
    assert reasons(refusals) == {("bad_id_number", "id_number")}
    assert rows.height == 1
    assert number not in repr(refusals)


def test_old_numbers_and_foreign_documents_are_taken() -> None:
    rows, refusals = checked(
        "persons",
        {"id_number": "999999491001001"},
        {"id_number": "E1234 5678", "residence_kind": "overseas"},
    )
    assert refusals.rows == 0
    assert rows["id_number"].to_list()[1] == "E12345678"


def test_a_person_needs_an_identity() -> None:
    rows, refusals = checked(
        "persons", {"gender": "male"}, {"person_key": "ab" * 32}, {"person_key": "AB", "key_version": "1"}
    )
    assert rows.height == 0
    assert reasons(refusals) == {
        ("no_identity", "id_number"), ("no_identity", "key_version"), ("bad_pattern", "person_key"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("birth_date", "band"),
    [
        ("2020-06-16", "0-5"), ("2020-06-15", "6-13"), ("2012-06-16", "6-13"), ("2012-06-15", "14-17"),
        ("2008-06-15", "18-59"), ("1966-06-16", "18-59"), ("1966-06-15", "60-69"), ("1946-06-15", "80+"),
        ("2026-06-15", "0-5"),
    ],
)  # fmt: skip
def test_age_band_changes_on_the_birthday(birth_date: str, band: str) -> None:
    rows, _ = checked("persons", {"id_number": ID_NUMBER, "birth_date": birth_date})
    assert rows["age_band"].to_list() == [band]


def test_a_birth_in_the_future_is_refused() -> None:
    _, refusals = checked("persons", {"id_number": ID_NUMBER, "birth_date": "2026-06-16"})
    assert reasons(refusals) == {("out_of_range", "birth_date")}


def test_names_and_phones_are_masked_whatever_comes() -> None:
    given = [
        ("陈大文", "13800001234"),
        ("陈**", "138****1234"),
        ("欧阳小明", "+86 138 0000 1234"),
        (None, None),
    ]
    rows, refusals = checked(
        "persons",
        *({"id_number": ID_NUMBER, "name_masked": name, "phone_masked": phone} for name, phone in given),
    )
    assert refusals.rows == 0
    assert rows["name_masked"].to_list() == ["陈**", "陈**", "欧阳**", None]
    assert rows["phone_masked"].to_list() == ["138****1234"] * 3 + [None]


def test_personal_values_are_not_quoted() -> None:
    _, refusals = checked(
        "persons", {"id_number": ID_NUMBER, "home_grid_code": "secret-home", "gender": "zzz"}
    )
    assert reasons(refusals) == {("bad_pattern", "home_grid_code"), ("not_allowed", "gender")}
    assert refusals.rows == 1
    assert "secret-home" not in repr(refusals)
    assert "zzz" not in repr(refusals)


def test_examples_are_few_and_name_their_place() -> None:
    _, refusals = checked("grids", *({**GRID, "status": f"s{n}"} for n in range(50)))
    examples = refusals.examples["not_allowed", "status"]
    assert [example.place for example in examples] == [1, 2, 3, 4, 5]
    assert examples[0].value == "s0"
    assert refusals.counts["not_allowed", "status"] == 50


#: A row of each kind that is taken.
ROWS: dict[str, dict[str, Any]] = {
    "grids": GRID,
    "units": {"unit_code": "440704001001003-U001", "valid_from": "2022-04-01"},
    "staff": STAFF,
    "persons": {"id_number": ID_NUMBER},
    "organisations": {"org_code": "91440700MA4UABCD1X", "name": "陈记小吃"},
    "modes": {
        "mode": "flood",
        "level": "II",
        "area_code": "4407",
        "valid_from": "2022-04-01",
        "authority": "三防",
    },
}
CODES = [
    (kind.name, column.name)
    for kind in KINDS.values()
    for column in kind.columns
    if column.on_number == "refused"
]
TEXTS = [
    (kind.name, column.name)
    for kind in KINDS.values()
    for column in kind.columns
    if column.on_number == "redacted"
]
MOBILE = "13800001234"


def test_every_text_has_a_form_or_is_looked_at_for_numbers() -> None:
    """What is stored as it is given: nothing but fixed forms, words of a list, masks and boundaries."""
    left = {
        (kind.name, column.name)
        for kind in KINDS.values()
        for column in kind.columns
        if column.type in ("text", "list", "routes") and column.on_number is None and not column.values
    }
    assert left == {
        ("grids", "grid_code"), ("units", "unit_code"), ("staff", "grid_code"), ("staff", "district_code"),
        ("staff", "name_masked"), ("staff", "id_number"), ("staff", "person_key"),
        ("persons", "name_masked"), ("persons", "phone_masked"), ("persons", "id_number"),
        ("persons", "person_key"), ("persons", "home_grid_code"), ("persons", "home_unit_code"),
        ("organisations", "grid_code"), ("organisations", "unit_code"), ("modes", "area_code"),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "column"), CODES)
@pytest.mark.parametrize("number", [ID_NUMBER, MOBILE, f"86{MOBILE}", "138-0000-1234"])
def test_a_code_that_holds_a_personal_number_is_refused(kind: str, column: str, number: str) -> None:
    given = f"x-{number}"
    if KINDS[kind].column(column).type == "routes":
        given = orjson.dumps({"SA": "fire_rescue", "PS": f"王工 {number}"}).decode()
    rows, refusals = checked(kind, ROWS[kind], {**ROWS[kind], column: given})
    assert reasons(refusals) == {("personal_number", column)}
    assert rows["_place"].to_list() == [1]
    (line,) = FileReport(kind, f"{kind}.csv", "line", refusals=refusals).lines()
    assert line.startswith(f"{kind}.csv: personal number {column}: 1 rows, for example line 2; ")
    assert "a key or code of your own" in line
    assert number not in line


def test_a_category_of_a_route_holds_no_personal_number() -> None:
    _, refusals = checked(
        "grids", {**GRID, "department_route": orjson.dumps({MOBILE: "fire_rescue"}).decode()}
    )
    assert reasons(refusals) == {("personal_number", "department_route")}


@pytest.mark.parametrize(("kind", "column"), TEXTS)
def test_a_number_in_free_text_becomes_a_mark_and_is_told(kind: str, column: str) -> None:
    texts = [f"东区 {MOBILE[:3]} {MOBILE[3:7]} {MOBILE[7:]}", "东区12号", f"东区{ID_NUMBER}，{MOBILE}"]
    rows, refusals = checked(kind, *({**ROWS[kind], column: text} for text in texts))
    assert rows[column].to_list() == ["东区 [手机号]", "东区12号", "东区[身份证号]，[手机号]"]
    report = FileReport(kind, f"{kind}.csv", "line", refusals=refusals)
    assert report.fine
    assert report.as_dict()["redacted"] == [
        {"column": column, "rows": 2, "examples": [{"line": 1}, {"line": 3}]}
    ]
    (line,) = report.lines()
    assert f"personal number in {column}: 2 rows, for example line 1, line 3; a mark" in line
    assert MOBILE not in line + repr(refusals)


def test_a_row_that_is_refused_shows_no_number_either() -> None:
    long = f"{'名' * 200}{MOBILE}"
    rows, refusals = checked("grids", {**GRID, "grid_name": long}, {**GRID, "status": f"x {MOBILE}"})
    assert rows.height == 0
    assert reasons(refusals) == {("too_long", "grid_name"), ("not_allowed", "status")}
    assert MOBILE not in repr(refusals)


@pytest.mark.parametrize(
    "name",
    [
        "第110网格", "S270高速K12+300至K13+800", "138小区", "2026-01-17专班", "一三八〇〇〇〇一二三四",
        "0750-3333333服务站", "400-830-1234", "440704001001003", "粤海街道A区", "1380000小区",
    ],
)  # fmt: skip
def test_a_name_with_digits_stays_as_it_is(name: str) -> None:
    rows, refusals = checked("grids", {**GRID, "grid_name": name})
    assert rows["grid_name"].to_list() == [name]
    assert not refusals.marked
    assert refusals.rows == 0


@pytest.mark.parametrize(
    "code", ["914407001234567890", "12440700456150000X", "91440700MA4UABCD1X", "ORG-20260117"]
)
def test_a_code_of_a_firm_is_no_personal_number(code: str) -> None:
    _, refusals = checked("organisations", {**ROWS["organisations"], "org_code": code})
    assert refusals.rows == 0
