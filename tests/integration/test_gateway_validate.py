"""What a check tells is what the worker would decide: the same look-ups and rules on real tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.ingest.validate import Validator
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import Settings
from tests.unit.gateway_world import event, make_world


@pytest.fixture
def grid(clickhouse: Client) -> str:
    """A grid in Jianghai around (113.1, 22.55), in force since 2022."""
    code = "440704001001003"
    square = "POLYGON((113.09 22.54,113.11 22.54,113.11 22.56,113.09 22.56,113.09 22.54))"
    known = {row[0]: row[1] for row in clickhouse.query("DESCRIBE TABLE ref_grids").result_rows}
    given: dict[str, Any] = {
        "grid_code": code,
        "version": 1,
        "valid_from": datetime(2022, 1, 1, tzinfo=UTC),
        "valid_to": None,
        "grid_name": "测试网格",
        "grid_type": "residential",
        "boundary": square,
        "status": "active",
        "_deleted": 0,
    }
    row = {name: value for name, value in given.items() if name in known}
    clickhouse.insert("ref_grids", [list(row.values())], column_names=list(row))
    return code


async def test_decisions_follow_reference_data_and_rules(
    clickhouse: Client, grid: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    validator = Validator(lambda: clickhouse, load_catalogues(settings.catalogue_dir), settings)
    world = make_world(tmp_path, validator=validator)
    inside = {"lon": 113.1, "lat": 22.55, "crs": "wgs84"}
    outside = {"lon": 112.5, "lat": 22.0, "crs": "wgs84"}
    good = {"grid_code": grid, "description": "路灯不亮", "location": inside}
    batch = [
        event(1, **good),
        event(2, **{**good, "location": outside}),
        event(3, **{**good, "grid_code": "440704001001999"}),
        event(4, **good, event_type="CLOSED", matter_code=...),
        event(5, **{**good, "matter_code": "ZZ-99"}),
    ]
    async with world.client() as client:
        response = await client.post("/v1/events:validate", json=batch)
    assert response.status_code == 200, response.text
    decisions = response.json()["decisions"]
    assert [item["outcome"] for item in decisions] == [
        "admitted",
        "rejected",
        "rejected",
        "recorded",
        "rejected",
    ]
    assert [item["reasons"] for item in decisions[1:]] == [
        ["LOCATION_GRID_MISMATCH"],
        ["GRID_UNKNOWN"],
        [],
        ["UNKNOWN_MATTER"],
    ]
    assert [rule["number"] for rule in decisions[0]["rules"]] == list(range(1, 14))
    assert world.stored().is_empty()
