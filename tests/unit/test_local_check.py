"""`gridpipe validate` without a service: what reference data would say stays unknown, modes among it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from pipeline.clock import utc_now
from pipeline.ingest.validate import LocalCheck
from pipeline.settings import Settings
from tests.unit.gateway_world import event


@pytest.fixture(scope="module")
def local() -> LocalCheck:
    return LocalCheck(Settings(data_dir=Path("none-here")))


def decided(local: LocalCheck, **changes: Any) -> dict[str, Any]:
    given = event(1, occurred_at=utc_now().isoformat(), description="树倒了", **changes)
    report = local.check(orjson.dumps(given))
    assert report["errors"] == []
    (decision,) = report["decisions"]
    decision["rules"] = {rule["number"]: rule["result"] for rule in decision["rules"]}
    return dict(decision)


PATROL = {"channel": "grid_patrol", "actor": {"type": "full_time", "key": "w1"}}
THERE = {"location": {"lon": 113.1, "lat": 22.6, "crs": "wgs84"}}


def test_a_photo_that_a_mode_could_waive_is_unknown(local: LocalCheck) -> None:
    found = decided(local, matter_code="SA-07", **PATROL, **THERE)
    assert (found["outcome"], found["reasons"], found["missing_fields"]) == ("admitted", [], [])
    assert found["rules"][10] == "unknown"


def test_what_no_mode_waives_is_missing(local: LocalCheck) -> None:
    found = decided(local, matter_code="SA-07", **PATROL)
    assert (found["outcome"], found["rules"][10]) == ("rejected", "false")
    assert (found["reasons"], found["missing_fields"]) == (["REQUIRED_FIELD_MISSING"], ["location"])


def test_whether_a_mode_is_active_is_unknown(local: LocalCheck) -> None:
    found = decided(local, matter_code="TMP-2023-TYP-01", **PATROL, **THERE)
    assert "MODE_NOT_ACTIVE" not in found["reasons"]
    assert found["rules"][5] == "unknown"
