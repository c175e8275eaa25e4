"""The data map of docs/privacy.md: every column that can hold something about a person is named in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.reference.schema import KINDS
from pipeline.store.retention import DETAILS, LINKS

PAGE = Path(__file__).parents[2] / "docs" / "privacy.md"
REPORTS = ("events", "rejections")

#: Nobody is in these.
NOT_ABOUT_PEOPLE = {
    "alembic_version", "incarnations", "pseudonym_keys", "ref_loads", "ref_matters", "rule_sets",
}  # fmt: skip
#: Of the other tables: ids and codes as they were given, which are refused with a number of a person in them;
#: times, counts, words of fixed lists.
_PLACE = "_inc _part _off _idx _blk_lo _blk_hi _rules ingested_at stored_at"
_ID = "event_id source event_type case_id"
_REFERENCE = "version valid_from valid_to updated_at row_digest load_id loaded_at"
_REPORT = f"""
    {_PLACE} {_ID} occurred_at channel matter_code grid_code actor_type crs organisation_code due_at
    primary_case_id rating department self_handled backfill key_version id_hi id_lo content_hash
    grid_found grid_active grid_version grid_type grid_risk_tags unit_found point_in_grid
    point_distance_m staff_found staff_active staff_kind staff_department staff_in_grid staff_in_district
    staff_channel_rights persons_given persons_found organisation_found route_department outcome reasons
    missing_fields rule_results evidence_pending life_safety category urgency lead_department
    response_limit_seconds resolution_limit_seconds mode mode_level catalogue_version late_beyond_horizon
    time_adjusted district_code town_code village_code"""
HARMLESS = {
    "events": _REPORT,
    "rejections": f"{_REPORT} primary_reason",
    "duplicates": f"""{_PLACE} {_ID} level occurred_at channel matter_code grid_code category lead_department
        original_source original_event_id original_case_id content_hash key_version""",
    "quarantine": f"{_PLACE} reason source event_id event_type content_type payload_bytes",
    "ref_units": f"{_REFERENCE} unit_code",
    "ref_organisations": f"{_REFERENCE} org_code grid_code unit_code key_industry_flag",
    "ref_modes": "mode level area_code version valid_from valid_to row_digest load_id loaded_at",
    "ref_grids": f"""{_REFERENCE} grid_code district_code town_code village_code grid_type
        village_kind boundary centroid_lon centroid_lat area_km2 unit_count building_count dwelling_count
        rental_count household_count population_registered population_floating elderly_60_count
        elderly_alone_count disabled_count hardship_count children_care_count enterprise_count shop_count
        school_count medical_count risk_tags shelter_code party_org_code department_route status""",
}


def data_map() -> list[tuple[str, set[str], str]]:
    """Rows of the map: the field, what its cell of columns names, how long it is kept."""
    table = PAGE.read_text(encoding="utf-8").split("## Data map\n", 1)[1].split("\n## ", 1)[0]
    cells = [re.split(r" *\| *", line.strip("|")) for line in table.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in cells[0]][:2] == ["field", "columns"]
    return [(row[0], set(re.findall(r"`([^`]+)`", row[1])), row[5]) for row in cells[2:]]


def named(stored: dict[str, set[str]]) -> set[tuple[str, str]]:
    """(table, column) of all that the map names; also where there is no such column."""
    found: set[tuple[str, str]] = set()
    for _, names, _ in data_map():
        for name in names:
            table, _, column = name.partition(".")
            if column:
                found.add((table, column))
            elif name in stored:
                found |= {(name, of_it) for of_it in stored[name]}
            else:
                found |= {(report, name) for report in REPORTS}
    return found


@pytest.fixture
def stored(clickhouse: Client) -> dict[str, set[str]]:
    """Columns by table."""
    found = clickhouse.query(
        """SELECT table, groupArray(name) FROM system.columns WHERE database = currentDatabase() AND table IN
           (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine NOT LIKE '%View')
           GROUP BY table"""
    ).result_rows
    return {table: set(columns) for table, columns in found}


def test_the_map_names_every_column_that_can_hold_something_about_a_person(
    stored: dict[str, set[str]],
) -> None:
    everything = {(table, column) for table, columns in stored.items() for column in columns}
    nobody = {(table, column) for table, columns in HARMLESS.items() for column in columns.split()}
    nobody |= {(table, column) for table, column in everything if table in NOT_ABOUT_PEOPLE}
    assert named(stored) <= everything, "the map names what is not there"
    assert nobody <= everything, "these lists name what is not there"
    assert named(stored) & nobody == set()
    assert everything - named(stored) - nobody == set(), "is it about a person? the map or a list must say"


def test_free_texts_of_reference_files_are_in_the_map() -> None:
    """Whatever somebody types may be about a person; the map names what is redacted while loading."""
    free = {
        (kind.table, column.name)
        for kind in KINDS.values()
        for column in kind.columns
        if column.on_number == "redacted" and kind.name not in ("staff", "persons")  # these as a whole
    }
    assert free
    (texts,) = [names for field, names, _ in data_map() if field.strip() == "words of reference files"]
    assert {f"{table}.{column}" for table, column in free} | {"grid_name"} == texts


def test_the_map_says_how_long_as_the_tables_do() -> None:
    days = {name: kept for _, names, kept in data_map() for name in names}
    assert {name for name in DETAILS if not days[name].startswith("90 days")} == set()
    assert {name for name in LINKS if not days[name].startswith("1 year")} == set()
