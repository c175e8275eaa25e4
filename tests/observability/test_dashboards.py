"""The committed dashboards are what the code makes, and what Grafana needs to find its sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from infra.grafana import generate
from pipeline import metrics
from pipeline.process.account import Account
from pipeline.read.names import Areas
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import ENV_PREFIX, load_settings
from tests.observability.grafana import (
    CLICKHOUSE,
    DASHBOARDS,
    PROMETHEUS,
    PROVISIONING,
    every_panel,
    panels,
)
from tests.observability.prometheus import ROOT

NAMES = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ENGLISH = re.compile(r"[A-Za-z]{3}")
#: Of a curve also a time, 5m; of a name also Da'ao.
ENGLISH_CURVE = re.compile(r"[A-Za-z]{3}|\b\d+[mhd]\b")
ENGLISH_NAME = re.compile(r" [A-Z][a-z]")
#: Read alike in both languages.
NEUTRAL = re.compile(r"p\d+|")


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
        assert CHINESE.search(panel["title"]), panel["title"]
        assert ENGLISH.search(panel["title"]), panel["title"]
        assert panel["targets"], panel["title"]
        assert (panel["datasource"]["type"], panel["datasource"]["uid"]) in known


def test_the_dashboards_are_provisioned_as_files_that_nobody_changes_in_grafana() -> None:
    """Whoever could save a change there would see another figure than this repository says. With
    `disableDeletion` a dashboard whose file is gone would stay, as one that anybody may change."""
    provisioned = yaml.safe_load((PROVISIONING / "dashboards" / "gridpipe.yml").read_text())
    assert provisioned["apiVersion"] == 1
    (provider,) = provisioned["providers"]
    assert (provider["type"], provider["allowUiUpdates"], provider["disableDeletion"]) == (
        "file",
        False,
        False,
    )
    assert provider["name"] and provider["folder"]
    assert Path(provider["options"]["path"]).is_absolute()


@pytest.mark.parametrize("name", NAMES)
def test_curves_are_asked_for_a_time_and_single_figures_for_an_instant(name: str) -> None:
    for panel in every_panel(name):
        for target in panel["targets"]:
            if "expr" in target:
                assert (target["range"], target["instant"]) == (
                    (True, False) if panel["type"] == "timeseries" else (False, True)
                )


@pytest.mark.parametrize("name", NAMES)
def test_business_figures_come_from_the_kpi_views_alone(name: str) -> None:
    for panel in every_panel(name):
        for target in panel["targets"]:
            tables = re.findall(r"\bFROM\s+([a-z_.]+)", target.get("rawSql", ""))
            assert all(table.startswith(("kpi_", "system.")) for table in tables), tables


def closed_sets() -> dict[str, set[str]]:
    """Label → every code that the product can give it."""
    Account(lambda: ())
    catalogue = load_settings().catalogue_dir
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline" / "process").glob("*.py"))
    writes = (ROOT / "pipeline" / "sink" / "tables.py").read_text(encoding="utf-8")
    counters = {"outcome": metrics.events, "answer": metrics.gateway_events, "level": metrics.duplicates}
    return {
        "district": set(Areas.load(catalogue).districts),
        "reason": {*load_catalogues(catalogue).reason_names_zh, "other"},
        "stage": set(re.findall(r'(?:\.lap|stage_seconds\.labels)\("(\w+)"\)', code)),
        "table": set(re.findall(r'(?:_Rows|\._send)\(\s*"(\w+)"', writes)),
    } | {
        label: {sample.labels[label] for family in counter.collect() for sample in family.samples}
        for label, counter in counters.items()
    }


def test_the_closed_sets_are_found() -> None:
    found = closed_sets()
    assert len(found["district"]) == 7
    assert {"GRID_UNKNOWN", "OUT_OF_ADMIN_SCOPE"} <= found["reason"]
    assert {"decode", "admit", "fold"} <= found["stage"]
    assert found["table"] == {"events", "rejections", "duplicates", "quarantine", "case_events"}
    assert found["outcome"] == {"admitted", "rejected", "recorded", "duplicate", "quarantined"}


@pytest.mark.parametrize("name", NAMES)
def test_every_curve_has_a_chinese_and_an_english_name(name: str) -> None:
    """By its legend, or where that is a code of a closed set: by an override for each of the codes."""
    closed = closed_sets()
    for panel in every_panel(name):
        words = {
            override["matcher"]["options"]: entry["value"]
            for override in panel["fieldConfig"]["overrides"]
            for entry in override["properties"]
            if entry["id"] == "displayName"
        }
        for target in panel["targets"]:
            legend = target.get("legendFormat", "")
            label = re.fullmatch(r"{{(\w+)}}", legend)
            assert not label or label.group(1) in closed, f"{panel['title']}: say what {legend} is"
            names = closed[label.group(1)] if label else {legend}
            for code in names:
                shown = words.get(code, "" if label else legend)
                both = CHINESE.search(shown) and ENGLISH_CURVE.search(shown)
                assert both or (not label and NEUTRAL.fullmatch(shown)), (panel["title"], shown)
                assert not label or code in shown


def test_every_name_in_a_table_out_of_clickhouse_is_chinese_with_english() -> None:
    seen = set()
    for panel in panels(CLICKHOUSE):
        for names in re.findall(r"transform\(key, \[.*?\], \[(.*?)\], key\)", panel.text):
            for name in re.findall(r"'((?:[^'\\]|\\.)*)'", names):
                assert CHINESE.search(name), name
                assert ENGLISH_NAME.search(name), name
                seen.add(name)
    assert {"蓬江区 Pengjiang", "大鳌镇 Da\\'ao", "公安局 Public security (incl. traffic police)"} <= seen
    assert len(seen) > 150


@pytest.mark.parametrize("name", NAMES)
def test_figures_of_now_are_asked_for_now_and_say_where_there_are_none(name: str) -> None:
    """Out of a range, Grafana shows its last number for hours after gridpipe went down."""
    for panel in every_panel(name):
        if panel["type"] != "stat" or panel["datasource"]["type"] != PROMETHEUS:
            continue
        for target in panel["targets"]:
            assert (target["instant"], target["range"]) == (True, False), panel["title"]
        assert panel["options"]["graphMode"] == "none", panel["title"]
        assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["noValue"] == "无数据 No data", panel["title"]


def test_the_sources_take_nothing_that_others_need() -> None:
    text = (PROVISIONING / "datasources" / "gridpipe.yml").read_text()
    names = set(re.findall(r"\$(\w+)", text)) - {"__file"}
    assert len(names) == 4
    # an unknown GRIDPIPE_… in its environment stops every gridpipe process
    assert not [name for name in names if name.startswith(ENV_PREFIX)]
    # Grafana refuses two defaults, and every panel names its source
    assert not any(source.get("isDefault") for source in yaml.safe_load(text)["datasources"])


@pytest.mark.parametrize("name", NAMES)
def test_figures_out_of_clickhouse_have_colours_and_words_of_their_own(name: str) -> None:
    """Grafana's own: red from 80 on, whatever is counted, and "No data"."""
    for panel in every_panel(name):
        if panel["datasource"]["type"] != CLICKHOUSE:
            continue
        if panel["type"] == "stat":
            defaults = panel["fieldConfig"]["defaults"]
            assert [step["color"] for step in defaults["thresholds"]["steps"]] == ["text"], panel["title"]
            assert defaults["noValue"] == "无数据 No data", panel["title"]
            ids = {entry["id"] for one in panel["fieldConfig"]["overrides"] for entry in one["properties"]}
            assert not any(entry.startswith("custom.") for entry in ids), panel["title"]  # of tables
        if panel["type"] == "barchart":  # which bar is which
            assert panel["options"]["legend"]["showLegend"], panel["title"]


def test_the_lowest_rates_name_their_district() -> None:
    lowest = [panel for panel in every_panel("overview") if "最低" in panel["title"]]
    assert len(lowest) == 2
    for panel in lowest:
        assert panel["options"]["textMode"] == "value_and_name"
        assert [target["legendFormat"] for target in panel["targets"]] == ["{{district}}"]


def test_panels_of_the_lag_say_that_it_is_counted_in_records() -> None:
    titles = [panel["title"] for name in NAMES for panel in every_panel(name) if "积压" in panel["title"]]
    assert len(titles) == 3
    assert all("积压（记录）" in title and title.endswith(", records") for title in titles)
