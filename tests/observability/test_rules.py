"""Prometheus's own checks of our rules, and that no alert lacks its cases, its texts or its page."""

from __future__ import annotations

import re

import pytest
import yaml

from infra.grafana.names import AREAS, CODES
from tests.observability.prometheus import ROOT, RULES, alerts, promtool

NAMES = {"district": AREAS.districts, "reason": CODES["reason"]}
CASE = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}')


def test_promtool_finds_no_fault_in_configuration_and_rules() -> None:
    config = promtool("check", "config", "--lint-fatal", RULES / "prometheus.yml")
    assert config.returncode == 0, config.stdout + config.stderr
    rules = promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((RULES / "rules").glob("*.yml")))
    assert rules.returncode == 0, rules.stdout + rules.stderr


@pytest.mark.timeout(170)
def test_every_alert_fires_and_stays_silent_as_its_cases_say() -> None:
    done = promtool("test", "rules", *sorted((RULES / "tests").glob("*.yml")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires, silent = set(), set()
    for path in (RULES / "tests").glob("*.yml"):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in group["promql_expr_test"]:
                if found := CASE.fullmatch(case["expr"]):
                    (fires if case["exp_samples"] else silent).add(found.group(1))
    assert fires == silent == set(alerts())


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_in_two_languages_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    texts = rule["annotations"]
    assert re.search(r"[\u4e00-\u9fff]", texts["summary_zh"])
    assert re.fullmatch(r"[\x20-\x7e]+", texts["summary"])
    page = (ROOT / texts["runbook"]).read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    for part in ("含义 / What it means", "查看 / How to see it", "处置 / What to do"):
        assert f"## {part}\n\n" in page
    assert " ".join(rule["expr"].split()) in " ".join(page.split()), "the page shows another expression"


def test_chinese_texts_name_districts_and_reasons_as_the_catalogue_does() -> None:
    named = 0
    for alert, rule in alerts().items():
        text = rule["annotations"]["summary_zh"]
        for label, names in NAMES.items():
            if f"$labels.{label}" in text:
                found = re.findall(rf'eq \$labels\.{label} "(\w+)" -}}}} ([^\s{{]+)', text)
                assert dict(found) == names, alert
                named += 1
    assert named == 5


def test_no_runbook_is_left_over() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    assert pages == set(alerts())
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name}.md)" in index for name in alerts())
