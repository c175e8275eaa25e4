"""docs/metrics.md names every metric that there is, and no other; rules and dashboards use only these."""

from __future__ import annotations

import re

from pipeline.metrics import REGISTRY
from tests.observability.grafana import PROMETHEUS, panels
from tests.observability.prometheus import ROOT, alerts, records

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
METRIC = re.compile(r"(?<![a-z:])gridpipe_[a-z0-9_]+(?![a-z0-9_]*:)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


def exported() -> set[str]:
    """Names as Prometheus stores them, histograms without their suffixes."""
    return {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}


def test_the_page_lists_what_there_is() -> None:
    table = PAGE.split("## Prometheus metrics", 1)[1].split("## The canary", 1)[0]
    assert set(re.findall(r"`(gridpipe_[a-z0-9_]+)`", table)) == exported()


def test_rules_and_dashboards_ask_for_nothing_else() -> None:
    expressions = [rule["expr"] for rule in alerts().values()] + list(records().values())
    expressions += [panel.text for panel in panels(PROMETHEUS)]
    asked = {
        SUFFIX.sub("", name) if SUFFIX.sub("", name) in exported() else name
        for expression in expressions
        for name in METRIC.findall(expression)
    }
    assert len(asked) > 20
    assert asked <= exported()
    recorded = {
        name for expression in expressions for name in re.findall(r"\b[a-z]+:[a-z0-9_:]+", expression)
    }
    assert recorded <= set(records())
