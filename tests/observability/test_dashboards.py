"""The committed dashboards are what the code makes, and what Grafana needs to find its sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from infra.grafana import generate
from tests.observability.grafana import DASHBOARDS, every_panel

NAMES = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
PROVISIONING = DASHBOARDS.parent / "provisioning"


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    assert generate.drifted() == []


def test_a_changed_and_a_stray_file_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generate, "DIRECTORY", tmp_path)
    for path, text in generate.rendered().items():
        path.write_text(text, encoding="utf-8")
    assert generate.drifted() == []
    (tmp_path / "slo.json").write_text("{}")
    (tmp_path / "stray.json").write_text("{}")
    assert generate.drifted() == ["slo.json", "stray.json"]


@pytest.mark.parametrize("name", NAMES)
def test_titles_are_chinese_with_english_and_sources_are_provisioned(name: str) -> None:
    provisioned = yaml.safe_load((PROVISIONING / "datasources" / "gridpipe.yml").read_text())["datasources"]
    known = {(source["type"], source["uid"]) for source in provisioned}
    found = list(every_panel(name))
    assert len(found) >= 8
    for panel in found:
        assert re.search(r"[\u4e00-\u9fff]", panel["title"]), panel["title"]
        assert re.search(r"[A-Za-z]{3}", panel["title"]), panel["title"]
        assert panel["targets"], panel["title"]
        assert (panel["datasource"]["type"], panel["datasource"]["uid"]) in known


@pytest.mark.parametrize("name", NAMES)
def test_business_figures_come_from_the_kpi_views_alone(name: str) -> None:
    for panel in every_panel(name):
        for target in panel["targets"]:
            tables = re.findall(r"\bFROM\s+([a-z_.]+)", target.get("rawSql", ""))
            assert all(table.startswith(("kpi_", "system.")) for table in tables), tables
