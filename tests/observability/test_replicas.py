"""Every api exports the same business figures and the same disks: nothing may add them up over the apis."""

from __future__ import annotations

import inspect
import re

import pytest

from pipeline import metrics
from pipeline.read import gauges
from tests.observability.grafana import PROMETHEUS, PanelQuery, panels
from tests.observability.prometheus import alerts, records

AGGREGATIONS = re.compile(
    r"\b(sum|avg|count|max|min|stddev|stdvar|group|topk|bottomk|quantile|count_values)\s*"
    r"(?:(?:by|without)\s*\([^()]*\)\s*)?$"
)


def of_every_api() -> set[str]:
    """Names of the gauges that `pipeline.read.gauges` sets, in every process that reads."""
    attributes = set(re.findall(r"\bmetrics\.(\w+)", inspect.getsource(gauges)))
    names = {family.name for name in attributes for family in getattr(metrics, name).collect()}
    assert len(names) == len(attributes)
    return names


def innermost_aggregation(expression: str, position: int) -> str | None:
    """The operator that first aggregates what stands at `position`; None: every instance's own is shown."""
    open_brackets = 0
    for index in range(position - 1, -1, -1):
        if expression[index] == ")":
            open_brackets += 1
        elif expression[index] == "(" and open_brackets:
            open_brackets -= 1
        elif expression[index] == "(" and (found := AGGREGATIONS.search(expression[:index])):
            return found.group(1)
    return None


def counted_per_api(expression: str) -> list[str]:
    """The gauges in it that two apis would double, as a sum or as two series of the same."""
    return [
        found.group()
        for found in re.finditer(r"\bgridpipe_[a-z0-9_]+", expression)
        if found.group() in of_every_api()
        and innermost_aggregation(expression, found.start()) not in {"max", "min"}
    ]


@pytest.mark.parametrize(
    ("expression", "twice"),
    [
        ("gridpipe_open_cases", 1),
        ("sum(gridpipe_open_cases)", 1),
        ("sum by (district) (gridpipe_open_cases)", 1),
        ("max(sum(gridpipe_open_cases))", 1),
        ("sum(max by (district) (gridpipe_open_cases))", 0),
        ("sum(max(gridpipe_open_cases) by (district))", 0),
        ("min by (disk) (predict_linear(gridpipe_store_disk_free_bytes[6h], 4 * 86400)) < 0", 0),
        ("max by (district) (gridpipe_open_cases) - (gridpipe_open_cases offset 1h)", 1),
        ("sum(gridpipe_consumer_lag_records)", 0),
    ],
)
def test_what_would_count_twice_is_seen(expression: str, twice: int) -> None:
    assert len(counted_per_api(expression)) == twice


@pytest.mark.parametrize("panel", panels(PROMETHEUS), ids=str)
def test_no_panel_counts_a_figure_once_per_api(panel: PanelQuery) -> None:
    assert counted_per_api(panel.text) == []


def test_no_rule_counts_a_figure_once_per_api() -> None:
    rules = {name: rule["expr"] for name, rule in alerts().items()} | records()
    assert {name: found for name, text in rules.items() if (found := counted_per_api(text))} == {}


def test_the_figures_are_watched_at_all() -> None:
    shown = " ".join(panel.text for panel in panels(PROMETHEUS))
    assert {name for name in of_every_api() if not re.search(rf"\b{name}\b", shown)} == set()


def of_who_reads_no_more(expression: str) -> list[str]:
    """The business figures in it that are taken from every api, also from one whose figures are old.

    Disks are read anew or not told; `gridpipe_business_as_of_timestamp_seconds` is the age itself.
    """
    as_of = "gridpipe_business_as_of_timestamp_seconds"
    figures = {name for name in of_every_api() if not name.startswith("gridpipe_store_disk")} - {as_of}
    present = re.compile(
        rf"(?:\{{[^}}]*\}})? (?:and on \(instance\) time\(\) - {as_of} < 120"
        rf"|offset 1d and on \(instance\) time\(\) - 86400 - {as_of} offset 1d < 120)\)"
    )
    return [
        found.group()
        for found in re.finditer(r"\bgridpipe_[a-z0-9_]+", expression)
        if found.group() in figures and not present.match(expression, found.end())
    ]


def test_figures_of_an_api_that_reads_no_more_are_seen() -> None:
    fresh = "and on (instance) time() - gridpipe_business_as_of_timestamp_seconds < 120"
    assert of_who_reads_no_more(f"max by (district) (gridpipe_open_cases {fresh}) > 1") == []
    assert of_who_reads_no_more("max by (district) (gridpipe_open_cases) > 1") == ["gridpipe_open_cases"]
    assert of_who_reads_no_more(f"max(gridpipe_open_cases offset 1d {fresh})") == ["gridpipe_open_cases"]


@pytest.mark.parametrize("panel", panels(PROMETHEUS), ids=str)
def test_no_panel_shows_figures_of_an_api_that_reads_no_more(panel: PanelQuery) -> None:
    assert of_who_reads_no_more(panel.text) == []


def test_no_rule_takes_figures_of_an_api_that_reads_no_more() -> None:
    rules = {name: rule["expr"] for name, rule in alerts().items()} | records()
    assert {name: found for name, text in rules.items() if (found := of_who_reads_no_more(text))} == {}
