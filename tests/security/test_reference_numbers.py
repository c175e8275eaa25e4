"""Numbers of persons in reference files reach no table, and no event that is enriched from them."""

from __future__ import annotations

from pathlib import Path

from clickhouse_connect.driver.client import Client

from pipeline.reference.load import load_directory
from tests.integration.worker_world import event, record
from tests.security.test_leak import OWN_GRID, Needles, Seeds, search_store, write_places
from tests.security.test_person import PRIVACY, rules_of, store


def test_numbers_in_reference_files_reach_no_table(clickhouse: Client, tmp_path: Path) -> None:
    seeds = Seeds()
    write_places(tmp_path, seeds)
    report = load_directory(clickhouse, tmp_path, PRIVACY)
    assert {file.kind: (file.stored, file.refused) for file in report.files} == {
        "grids": (1, 5), "units": (1, 1), "organisations": (1, 1), "modes": (1, 0),
    }  # fmt: skip
    refused = {(file.kind, column) for file in report.files for _, column in file.refusals.counts}
    codes = ("shelter_code", "party_org_code", "lead_worker_key", "worker_keys", "department_route")
    assert refused == {
        *(("grids", name) for name in codes), ("units", "unit_head_key"), ("organisations", "org_code")
    }  # fmt: skip
    reported = event(1, channel="hotline_12345", actor={"type": "citizen"}, grid_code=OWN_GRID)
    store(clickhouse, rules_of(clickhouse), [record(0, reported)])
    (found,) = clickhouse.query(
        "SELECT grid_name FROM events UNION ALL SELECT grid_name FROM rejections"
    ).result_rows
    assert found == ("格 [手机号] [身份证号] [身份证号]",)
    needles = Needles(seeds.spellings)
    assert search_store(clickhouse, needles)[2] == [], sorted(needles.found)
    told = str(report.as_dict()) + "".join(line for file in report.files for line in file.lines())
    assert not needles.within(told), sorted(needles.found)
