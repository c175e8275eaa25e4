"""Prometheus's own checks of our rules, and that no alert lacks its cases, its texts or its page."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.grafana.names import AREAS, CODES
from tests.observability.prometheus import ROOT, RULES, alerts, branches, promtool

#: What is malformed is quarantined before it is judged: no report is ever rejected for it.
REJECTED = {code: name for code, name in CODES["reason"].items() if code != "MALFORMED"}
NAMES = {"district": AREAS.districts, "reason": REJECTED}
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PAGES = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
CASE = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}')


def test_promtool_finds_no_fault_in_configuration_and_rules() -> None:
    config = promtool("check", "config", "--lint-fatal", RULES / "prometheus.yml")
    assert config.returncode == 0, config.stdout + config.stderr
    rules = promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((RULES / "rules").glob("*.yml")))
    assert rules.returncode == 0, rules.stdout + rules.stderr


@pytest.mark.timeout(170)
@pytest.mark.parametrize("name", sorted(path.name for path in (RULES / "tests").glob("*.yml")))
def test_every_alert_fires_and_stays_silent_as_its_cases_say(name: str) -> None:
    done = promtool("test", "rules", RULES / "tests" / name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires, silent = set(), set()
    for path in (RULES / "tests").glob("*.yml"):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in group["promql_expr_test"]:
                if found := CASE.fullmatch(case["expr"]):
                    (fires if case["exp_samples"] else silent).add(found.group(1))
    assert fires == silent == set(alerts())


BRANCHES = [
    (name, number)
    for name, rule in alerts().items()
    if len(found := branches(rule["expr"])) > 1
    for number in range(len(found))
]


def without_branch(name: str, number: int, directory: Path) -> subprocess.CompletedProcess[str]:
    """What promtool says to this alert's cases when one branch of its expression is missing."""
    rules = yaml.safe_load((RULES / "rules" / "alerts.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] == name]  # others cost time only
        for rule in group["rules"]:
            left = branches(rule["expr"])
            del left[number]
            rule["expr"] = " or ".join(left)
    for part in ("rules", "tests"):
        (directory / part).mkdir()
    (directory / "rules" / "alerts.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    shutil.copy(RULES / "rules" / "recording.yml", directory / "rules")
    files = []
    for path in (RULES / "tests").glob("*.yml"):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        found["tests"] = [case for case in found["tests"] if case["name"].startswith(f"{name} ")]
        if found["tests"]:
            files.append(directory / "tests" / path.name)
            files[-1].write_text(yaml.safe_dump(found), encoding="utf-8")
    return promtool("test", "rules", *files)


@pytest.mark.parametrize(("name", "number"), BRANCHES)
def test_each_branch_of_an_alert_has_a_case_that_fires_by_it_alone(
    name: str, number: int, tmp_path: Path
) -> None:
    done = without_branch(name, number, tmp_path)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr


def test_the_branches_are_found() -> None:
    assert branches("(a or b) and c or absent(d) or e") == ["(a or b) and c ", " absent(d) ", " e"]
    assert len(BRANCHES) == 27


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_in_two_languages_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    texts = rule["annotations"]
    assert CHINESE.search(texts["summary_zh"])
    assert re.fullmatch(r"[\x20-\x7e]+", texts["summary"])
    page = (ROOT / texts["runbook"]).read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    for part in ("含义 / What it means", "查看 / How to see it", "处置 / What to do"):
        assert f"## {part}\n\n" in page
    assert " ".join(rule["expr"].split()) in " ".join(page.split()), "the page shows another expression"


def as_a_page_says(summary: str) -> str:
    """A summary with <label> and … in place of what Prometheus fills in, without spaces."""
    text = re.sub(r"{{ if eq \$labels\.(\w+) .*?{{- end }}", r"<\1>", summary, flags=re.DOTALL)
    text = re.sub(r"{{ if [^}]*-}}(.*?){{- else -}}(.*?){{- end }}", r"\1/\2", text, flags=re.DOTALL)
    text = re.sub(r"{{ \$labels\.(\w+) }}", r"<\1>", text)
    text = re.sub(r"<(\w+)>(?: <\1>| \(<\1>\)|（<\1>）)", r"<\1>", re.sub(r"{{.*?}}", "…", text))
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("name", alerts())
def test_a_page_and_the_list_of_pages_say_what_the_alert_says(name: str) -> None:
    """Whoever was paged looks for the words that the pager showed."""
    texts = alerts()[name]["annotations"]
    chinese, english = as_a_page_says(texts["summary_zh"]), as_a_page_says(texts["summary"])
    page = (ROOT / texts["runbook"]).read_text(encoding="utf-8").split("\n\n")
    assert re.sub(r"\s", "", page[1]) == chinese
    assert re.sub(r"\s", "", page[2]) == f"{english}."
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \[{name}\].* \| (\w+) \| (.*) \|$", index, flags=re.MULTILINE)
    assert row[0] == alerts()[name]["labels"]["severity"]
    assert re.sub(r"\s", "", row[1]) == f"{chinese}·{english}"


ENGLISH = {
    "440703": "Pengjiang", "440704": "Jianghai", "440705": "Xinhui", "440781": "Taishan",
    "440783": "Kaiping", "440784": "Heshan", "440785": "Enping",
}  # fmt: skip


def test_chinese_texts_name_districts_and_reasons_as_the_catalogue_does() -> None:
    named = 0
    for alert, rule in alerts().items():
        text = rule["annotations"]["summary_zh"]
        for label, names in NAMES.items():
            if f"$labels.{label}" in text:
                found = re.findall(rf'eq \$labels\.{label} "(\w+)" -}}}} ([^\s{{]+)', text)
                assert dict(found) == names, alert
                named += 1
        if "$labels.district" in text:
            english = re.findall(
                r'eq \$labels\.district "(\w+)" -}} ([A-Z][a-z]+)', rule["annotations"]["summary"]
            )
            assert dict(english) == ENGLISH, alert
    assert named == 5


def test_texts_tell_counts_in_whole_numbers_and_chinese_ones_durations_in_chinese() -> None:
    """`humanize` makes 23.53 of an increase, 1.2k of many; a bare value is 1.5e+06; "5m 30s" is English."""
    for alert, rule in alerts().items():
        for text in (rule["annotations"]["summary_zh"], rule["annotations"]["summary"]):
            assert not re.search(r"humanize\b", text), alert
            assert not re.search(r"{{-? *\$value *-?}}", text), alert
        for pipe in re.findall(r"humanizeDuration([^}]*)}}", rule["annotations"]["summary_zh"]):
            assert re.findall(r'" ([天小时分秒]+)"', pipe) == ["天", "小时", "分", "秒"], alert


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_section_of_a_runbook_is_for_chinese_readers_too(page: Path) -> None:
    """So is each of its points; not the expression."""
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for section in sections:
        title, _, body = section.partition("\n")
        if not title.endswith("Expression"):
            assert CHINESE.search(body), title
            points = re.findall(r"^(?:-|\d+\.) .*$", body, flags=re.MULTILINE)
            assert [point for point in points if not CHINESE.search(point)] == []


def test_no_runbook_is_left_over() -> None:
    pages = {path.stem for path in PAGES} - {"README"}
    assert pages == set(alerts())
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({name}.md)" in index for name in alerts())


def words_written() -> str:
    """Texts in our source that are no docstrings, and the names of values that are logged; a line each."""
    found = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told:
                found.append(node.value)
            elif isinstance(node, ast.keyword) and node.arg is not None:
                found.append(node.arg)
    return "\n".join(found)


def words_to_look_for(page: str) -> list[str]:
    """What the page says that a log has: the words in back quotes of lines that speak of one."""
    return [
        word
        for line in page.splitlines()
        if re.search(r"\blogs?\b|日志|\.out\b", line)
        for word in re.findall(r"`([a-z][a-z_ ]+)`", line)
        if not word.startswith(("gridpipe ", "gridpipe_"))
    ]


def test_a_runbook_names_words_that_a_log_really_has() -> None:
    written = words_written()
    named = {page.stem: words_to_look_for(page.read_text(encoding="utf-8")) for page in PAGES}
    unknown = {
        (name, word)
        for name, words in named.items()
        for word in words
        if not re.search(rf"\b{re.escape(word)}\b", written)
    }
    assert unknown == set()
    assert {"worker_failed", "cases_drifted", "request failed"} <= {
        word for words in named.values() for word in words
    }
