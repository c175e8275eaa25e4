"""What happens between two points of a curve is seen in it, however long the range that somebody looks at."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

import pytest
import yaml

from pipeline.metrics import REGISTRY
from tests.observability.grafana import CLICKHOUSE, PROMETHEUS, PanelQuery, panels, promql, scrape_seconds
from tests.observability.prometheus import RULES, Prometheus, promtool

CURVES: Final = [panel for panel in panels(PROMETHEUS) if panel.curve]
#: A figure with its labels and its window.
FIGURE: Final = re.compile(r"\b((?:[a-z]+:)?gridpipe[a-z0-9_:]*)({[^}]*})?(?:\[([^\]]*)\])?")
SINCE: Final = "$__rate_interval"

_BUSINESS: Final = (
    "of 30 days or of all cases: it moves by a case at a time; and how old it is, is asked at the point"
)
_HOUR: Final = "the hour of its title, and the time since the point before where that holds more"
_SIZE: Final = "does not change by itself"
#: Panel and figure → why its curve asks for it over another window than the time since the point before.
FIXED: Final = {
    ("business", "办结率走势 Closure rate", "gridpipe_closure_ratio"): _BUSINESS,
    ("business", "响应时间 p90 Response time p90", "gridpipe_response_seconds"): _BUSINESS,
    ("overview", "办结率 Closure rate", "gridpipe_closure_ratio"): _BUSINESS,
    ("overview", "响应率 Response rate", "gridpipe_response_ratio"): _BUSINESS,
    ("overview", "未办结 Open cases", "gridpipe_open_cases"): _BUSINESS,
    ("overview", "超期 Overdue cases", "gridpipe_overdue_cases"): _BUSINESS,
    ("slo", "校验器 Verifier, 1 h", "gridpipe_verifier_drift_total[1h]"): _HOUR,
    ("slo", "校验器 Verifier, 1 h", "gridpipe_verifier_double_ids_total[1h]"): _HOUR,
    ("slo", "校验器 Verifier, 1 h", "gridpipe_dedup_forgotten_total[1h]"): _HOUR,
    ("slo", "探测事件缺失 Canaries missing, 1 h", "gridpipe_canary_missing_total[1h]"): _HOUR,
    ("slo", "ClickHouse 磁盘剩余 Disk free", "gridpipe_store_disk_size_bytes"): _SIZE,
    ("slo", "去重状态 Ids held for deduplication", "gridpipe_dedup_entries"): "ids stay for days",
}
#: Part of every business curve: the age of its figures.
AS_OF: Final = "gridpipe_business_as_of_timestamp_seconds"
#: Figures of which a curve shows what they are at the point.
UNMOVED: Final = {name for (_, _, name), reason in FIXED.items() if reason is not _HOUR} | {AS_OF}


def counters() -> set[str]:
    """Names of the series that only ever grow, as Prometheus stores them."""
    found = set()
    for family in REGISTRY.collect():
        if family.type == "counter":
            found.add(f"{family.name}_total")
        elif family.type == "histogram":
            found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return found


def not_since_the_point_before(expression: str) -> list[str]:
    """The figures in it with a fixed window, which stands behind the name, or as they are at the point."""
    return [
        f"{name}[{window}]" if window else name
        for name, _, window in FIGURE.findall(expression)
        if window != SINCE and name != AS_OF
    ]


def test_fixed_windows_and_figures_of_an_instant_are_seen() -> None:
    since = "sum(rate(gridpipe_events_total{a='b'}[$__rate_interval]))"
    assert not_since_the_point_before(since) == []
    assert not_since_the_point_before(f"{since} / sum(rate(gridpipe_events_total[5m]))") == [
        "gridpipe_events_total[5m]"
    ]
    assert not_since_the_point_before("sum(outcome:gridpipe_events:rate1m)") == [
        "outcome:gridpipe_events:rate1m"
    ]


def test_curves_begin_at_the_point_before_but_for_those_that_say_why_not() -> None:
    assert len(CURVES) > 40
    assert all(FIGURE.search(panel.text) for panel in CURVES)
    found = {
        (panel.dashboard, panel.title, name)
        for panel in CURVES
        for name in not_since_the_point_before(panel.text)
    }
    assert found == set(FIXED)


@pytest.mark.parametrize("panel", CURVES, ids=str)
def test_what_grows_is_asked_for_its_rate_and_what_moves_for_its_extremes(panel: PanelQuery) -> None:
    for found in FIGURE.finditer(panel.text):
        name, _, window = found.groups()
        called = re.search(r"(\w+)\($", panel.text[: found.start()])
        if name in counters():
            assert called and called.group(1) in {"rate", "increase"}, found.group()
        elif window:
            assert called and called.group(1) in {"max_over_time", "min_over_time", "avg_over_time", "deriv"}


@pytest.mark.parametrize("panel", panels(CLICKHOUSE), ids=str)
def test_rows_out_of_clickhouse_are_of_no_times(panel: PanelQuery) -> None:
    """They are as many as a closed set has keys. Rows by the minute would be more with every day."""
    assert not re.search(r"\btoStartOf|\btoInterval|\bDIV\b|INTERVAL", panel.text)


def test_figures_of_now_have_windows_that_no_range_changes() -> None:
    now = [panel for panel in panels(PROMETHEUS) if not panel.curve]
    assert any("[" in panel.text for panel in now)
    assert [str(panel) for panel in now if "$" in panel.text] == []


def test_grafana_is_told_how_often_we_scrape_and_evaluate() -> None:
    """What it takes for the time between two scrapes: four of them hold a rate though one is lost."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))["global"]
    assert config["scrape_interval"] == config["evaluation_interval"] == f"{scrape_seconds()}s"


def test_the_window_is_that_of_grafana() -> None:
    assert promql("rate(x[$__rate_interval])", 15) == "rate(x[60s])"
    assert promql("rate(x[$__rate_interval])", 600) == "rate(x[615s])"
    with pytest.raises(AssertionError):
        promql("rate(x[$__interval])", 15)


@pytest.mark.parametrize("panel", CURVES, ids=str)
def test_a_panel_says_what_its_points_are(panel: PanelQuery) -> None:
    for function, words in (("max_over_time", "最大值"), ("min_over_time", "最小值"), ("increase", "增量")):
        assert (f"{function}(" in panel.text) <= (words in panel.description), panel.title


#: Seconds between two points of a range of 60 days, and of a week.
STEPS: Final = (7200, 600)
#: Seconds: how long something happens, and how long after a point it begins: all is over when a window of
#: five minutes begins that ends at the next one.
BURST: Final = 120
AFTER: Final = 100
#: Figures that stay as they are in the burst.
STILL: Final = {name for (_, _, name), reason in FIXED.items() if reason is _SIZE}


def _amounts(name: str, labels: str, unquiet: bool) -> float:
    """What a figure is, or grows by from one scrape to the next. In the burst there is much, slow and low."""
    if name in STILL:
        return 1
    if 'le="0.1"' in labels:
        return 0 if unquiet else 1
    if name.endswith("_sum"):
        return 500 if unquiet else 0.1
    if any(f"min_over_time({name}[" in panel.text for panel in CURVES):
        return 0.1 if unquiet else 1
    return 100 if unquiet else 1


def _lines(name: str, labels: str, begin: int) -> Iterator[str]:
    """Its samples in the text that promtool reads: calm, but for the burst."""
    scrape = scrape_seconds()
    grows = name in counters() or name == "gridpipe_committed_offset"
    value = 0.0
    for moment in range(begin - max(STEPS) - 600, begin + max(STEPS) + 600, scrape):
        amount = _amounts(name, labels, begin <= moment < begin + BURST)
        value = value + amount if grows else amount
        yield f"{name}{{{labels}}} {value} {moment}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, int]]:
    """A Prometheus that knows every figure of the curves, and when its burst began."""
    directory = tmp_path_factory.mktemp("burst")
    begin = (int(time.time()) - 86400) // max(STEPS) * max(STEPS) + AFTER
    figures = {found[:2] for panel in CURVES for found in FIGURE.findall(panel.text)}
    lines = [
        line
        for name, matchers in sorted(figures)
        for labels in (
            ('le="0.1"', 'le="10"', 'le="+Inf"') if name.endswith("_bucket") else (matchers[1:-1],)
        )
        for line in _lines(name, labels, begin)
    ]
    (directory / "samples").write_text("\n".join([*lines, "# EOF\n"]), encoding="utf-8")
    made = promtool("tsdb", "create-blocks-from", "openmetrics", directory / "samples", directory / "data")
    assert made.returncode == 0, made.stderr
    running = Prometheus(directory, "127.0.0.1:9")  # nothing to scrape there
    try:
        yield running, begin
    finally:
        running.close()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "panel",
    [panel for panel in CURVES if not {name for name, _, _ in FIGURE.findall(panel.text)} <= UNMOVED],
    ids=str,
)
def test_two_minutes_between_two_points_are_seen_in_the_next(
    watched: tuple[Prometheus, int], panel: PanelQuery, step: int
) -> None:
    prometheus, begin = watched
    point = begin - AFTER
    lines = prometheus.curves(promql(panel.text, step), seconds=step, step=step, end=point + step)
    assert lines
    for line in lines:
        before, after = (float(value) for _, value in line["values"])
        assert after != pytest.approx(before, rel=0.1)


@pytest.mark.parametrize(("later", "step"), [(600, 15), (2400, 7200), (5400, 7200)])
def test_an_hours_increase_is_shown_while_one_of_its_windows_has_it(
    watched: tuple[Prometheus, int], later: int, step: int
) -> None:
    """later : seconds since the last sample. One window is empty then, or both are not."""
    prometheus, begin = watched
    hours = [panel for panel in CURVES if "[1h]" in panel.text]
    assert len(hours) == 4
    for panel in hours:
        end = begin + max(STEPS) + 600 + later
        assert prometheus.curves(promql(panel.text, step), seconds=0, step=step, end=end), panel.title
