"""The map by every metric, against a second reading of how it is coloured (docs/page.md)."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from math import ceil, floor
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.e2e.service import Service
from tests.page.browser import id_of, percent, until_same
from tests.page.conftest import NewPage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: Metrics → how they are coloured: more is better, less is better, much stands out, much is bad.
METRICS = {
    "closure_rate": "v",
    "response_rate": "v",
    "timely_response_rate": "v",
    "closure_on_time_rate": "v",
    "handling_on_time_rate": "v",
    "admission_rate": "v",
    "satisfaction_rate": "v",
    "demand_resolution_rate": "v",
    "rework_rate": "h",
    "extension_rate": "h",
    "return_rate": "h",
    "void_rate": "h",
    "duplicate_rate": "h",
    "reports": "q",
    "admitted_reports": "q",
    "rejected_reports": "q",
    "cases": "q",
    "voided": "q",
    "merged": "q",
    "responded": "q",
    "closed": "q",
    "open": "q",
    "overdue": "h",
    "unproven": "h",
    "ratings": "q",
    "orphans": "h",
    "orphans_overdue": "h",
    "illegal_events": "h",
    "late_events": "h",
    "negative_durations": "h",
    "response_p50": "h",
    "response_p90": "h",
    "response_p99": "h",
    "dispatch_p50": "h",
    "dispatch_p90": "h",
    "dispatch_p99": "h",
    "department_response_p50": "h",
    "department_response_p90": "h",
    "department_response_p99": "h",
    "resolution_p50": "h",
    "resolution_p90": "h",
    "resolution_p99": "h",
}
#: How many: of districts compared among districts.
COUNTS = {name for name in METRICS if not re.search(r"_rate$|_p\d\d$", name)}
#: Of a row, not to colour by: who it is, what says how figures are made, and copies by level, of which the
#: duplicate rate is made.
OTHERS = {"key", "name_zh", "parts", "duplicates"}


def value_of(metric: str, row: dict[str, Any]) -> float | None:
    if metric[-4:-2] == "_p":
        row = row[f"{metric[:-4]}_seconds"]
        metric = metric[-3:]
    found: float | None = row[metric]
    return found


def told(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric.endswith("_rate"):
        return "100" if value >= 1 else percent(value, 1).removesuffix("%")
    if metric[-4:-2] == "_p":
        if value < 3_600:
            return f"{int(value // 60)}分" if value >= 60 else "<1分"
        unit, step, sign = (3600, "0.1", "时") if value < 172_800 else (86_400, "1", "天")
        return f"{Decimal(value / unit).quantize(Decimal(step), ROUND_HALF_UP)}{sign}"
    return f"{value:,}"


def bounds_of(metric: str, values: list[float]) -> list[float]:
    if METRICS[metric] == "h" and metric.endswith("_rate"):
        return [0.01, 0.03, 0.06, 0.1]
    if not metric.endswith("_rate"):
        return [part * max([1.0, *values]) for part in (0.1, 0.25, 0.5, 0.75)]
    fixed, ordered = [0.8, 0.9, 0.95, 0.99], sorted(values)

    def at(part: float) -> float:
        return ordered[floor(part * (len(ordered) - 1))]

    if not ordered or at(0.5) >= 0.9:
        return fixed
    fifths = [floor(at(part) * 100 + 0.5) / 100 for part in (0.2, 0.4, 0.6, 0.8)]
    return fifths if len(set(fifths)) == len(fifths) else fixed


def test_the_map_is_coloured_by_all_that_a_row_tells(service: Service) -> None:
    row = service.get("/v1/live/tables/district")["rows"][0]
    told = set()
    for name, found in row.items():
        percentiles = set(found or ()) if name.endswith("_seconds") else set()
        told |= {f"{name.removesuffix('_seconds')}_{p}" for p in percentiles if p.startswith("p")} or {name}
    assert told - OTHERS == set(METRICS)


@pytest.mark.slow
def test_every_metric_is_shown_coloured_by_its_bounds_and_explained(
    new_page: NewPage, service: Service
) -> None:
    page = new_page()
    choice = id_of(page, "metric")
    options = choice.locator("option")
    # given the texts, both languages: an option that has none would show its own name
    assert options.evaluate_all("(all) => all.map((option) => option.value)") == list(METRICS)
    names = options.all_inner_texts()
    assert len(set(names)) == len(METRICS)
    assert not set(names) & set(METRICS)

    def shown() -> dict[str, str]:
        found: dict[str, str] = page.locator(".cell").evaluate_all(
            """(all) => Object.fromEntries(all.map((cell) => [cell.dataset.code,
                `${[...cell.classList].filter((name) => !['cell', 'district'].includes(name))[0]} ` +
                `${cell.querySelector('.value').innerText}`.trim()].map((text) => text.trim())))"""
        )
        return found

    def expected() -> dict[str, str]:
        levels = {by: service.get(f"/v1/live/tables/{by}")["rows"] for by in ("town", "district")}
        rows = {row["key"]: row for level in levels.values() for row in level}
        values = {code: value_of(metric, row) for code, row in rows.items()}

        def bounds_among(by: str) -> list[float]:
            return bounds_of(metric, [v for row in levels[by] if (v := value_of(metric, row)) is not None])

        found = {}
        for code in shown():
            bounds = bounds_among("district" if len(code) == 6 and metric in COUNTS else "town")
            value = values.get(code)
            if value is None or (metric in COUNTS and not value and not rows[code]["cases"]):
                found[code] = f"none {told(metric, value)}".strip()
            else:
                tone = 1 + sum(value >= bound for bound in bounds)
                found[code] = f"{METRICS[metric]}{tone} {told(metric, value)}"
        return found

    def legend() -> list[str]:
        return page.locator(".legend > span").evaluate_all(
            "(all) => all.map((step) => `${step.querySelector('i').className} ${step.innerText.trim()}`)"
        )

    def legend_told() -> list[str]:
        rows = service.get("/v1/live/tables/town")["rows"]
        bounds = bounds_of(metric, [v for row in rows if (v := value_of(metric, row)) is not None])
        texts = [percent(b, 0) if metric.endswith("_rate") else f"{ceil(b):,}" for b in bounds]
        steps = [f"< {texts[0]}", *(f"≥ {text}" for text in texts)]
        return [f"{METRICS[metric]}{n} {step}" for n, step in enumerate(steps, 1)]

    for metric in METRICS:
        choice.select_option(metric)
        colours = until_same(page, shown, expected)
        assert any(not colour.startswith("none") for colour in colours.values()), metric
        note = page.locator(".map .note")
        (expect(note).to_contain_text if metric in COUNTS else expect(note).not_to_contain_text)("区县之间")
        if metric[-4:-2] == "_p":
            assert [step[:2] for step in legend()] == ["h1", "h2", "h3", "h4", "h5"]
        else:
            until_same(page, legend, legend_told)
