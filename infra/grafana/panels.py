"""The kinds of panel that our dashboards are made of. Titles: Chinese with English; units: Grafana's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import barchart, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from infra.grafana.names import shown

PROMETHEUS: Final = models.DataSourceRef("prometheus", "gridpipe-prometheus")
CLICKHOUSE: Final = models.DataSourceRef("grafana-clickhouse-datasource", "gridpipe-clickhouse")
#: What a figure says where Prometheus has nothing.
NO_DATA: Final = "无数据 No data"
#: Unit → the fields of a SQL answer that have it, by the name they are shown under.
Units = Mapping[str, Sequence[str]]

Panel = stat.Panel | timeseries.Panel | table.Panel | barchart.Panel


class ClickHouseQuery(Dataquery):
    """A query of the ClickHouse plugin; the kit knows the types of Grafana's own sources only."""

    def __init__(self, sql: str, ref_id: str) -> None:
        self.sql = sql
        self.ref_id = ref_id

    def to_json(self) -> dict[str, Any]:
        return {
            "datasource": {"type": CLICKHOUSE.type_val, "uid": CLICKHOUSE.uid},
            "editorType": "sql",
            "format": 1,  # table
            "queryType": "table",
            "rawSql": self.sql,
            "refId": self.ref_id,
        }


class _Sql(Builder[Dataquery]):
    def __init__(self, sql: str) -> None:
        self._sql = sql

    def build(self) -> Dataquery:
        return ClickHouseQuery(self._sql, "A")


def _expressions(panel: Any, expressions: Mapping[str, str], *, instant: bool = False) -> Any:
    """expressions : legend → PromQL."""
    for number, (legend, expression) in enumerate(expressions.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        panel = panel.with_target(query.instant() if instant else query.range())
    return panel.datasource(PROMETHEUS)


def _named(panel: Any, legend: str) -> Any:
    """The panel with Chinese and English words for the codes that this legend can show."""
    for name, words in shown(legend).items():
        panel = panel.override_by_name(name, [models.DynamicConfigValue("displayName", words)])
    return panel


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )


#: Grafana's word in a curve's query: the time between two points and one scrape, at least four scrapes.
#: Windows of this length leave nothing out between two points, however long the range; fixed ones do.
SINCE: Final = "$__rate_interval"
#: Function of a curve's query → what to say of the points that it gives.
_OF_POINTS: Final = {
    "max_over_time": "每点为自上一点以来的最大值 Each point is the greatest since the point before.",
    "min_over_time": "每点为自上一点以来的最小值 Each point is the least since the point before.",
    "increase": "一小时内的增量；两点相距更久时为自上一点以来的增量"
    " Increase within an hour, or since the point before where that is longer ago.",
}


def most(figure: str) -> str:
    """The most that this gauge or recorded figure was since the point before.

    Asked for itself it would say what it was at each point: of a week at every tenth minute.
    Not over `$__interval`, which is a single scrape on a short range: one that is late leaves a hole.
    """
    return f"max_over_time({figure}[{SINCE}])"


def least(figure: str) -> str:
    """As `most`, of what is bad when it is low."""
    return f"min_over_time({figure}[{SINCE}])"


def in_an_hour(counter: str, by: str = "") -> str:
    """Its increase within an hour or since the point before, whichever is more. by : the label that stays.

    Either may be missing: there may be no two samples since the point before, or none within an hour.
    """
    total = f"sum by ({by})" if by else "sum"
    hour, since = (f"{total} (increase({counter}[{window}]))" for window in ("1h", SINCE))
    return f"{since} > {hour} or {hour} or {since}"


def of_the_apis(figure: str, label: str) -> str:
    """A business figure by `label`, once: every api exports all of them, and a sum would add those up too.

    Only of apis whose figures are of the last two minutes: one that ClickHouse does not answer goes on
    telling its last ones, which a max would show.
    """
    as_of = "gridpipe_business_as_of_timestamp_seconds"
    return f"max by ({label}) (gridpipe_{figure} and on (instance) time() - {as_of} < 120)"


def per_district(figure: str) -> str:
    """As `of_the_apis`."""
    return of_the_apis(figure, "district")


def lines(
    title: str,
    expressions: Mapping[str, str],
    *,
    unit: str = "short",
    description: str = "",
    width: int = 12,
    limit: float | None = None,
) -> timeseries.Panel:
    """Curves over time. limit : a line drawn at the value from which on it is bad.

    The windows of its queries begin at the point before (`SINCE`, `most`, `least`).
    """
    of_points = [words for name, words in _OF_POINTS.items() if f"{name}(" in " ".join(expressions.values())]
    panel = timeseries.Panel().title(title).description(" ".join(filter(None, [description, *of_points])))
    panel = panel.unit(unit).span(width).height(8).min(0)
    panel = panel.show_points(common_models.VisibilityMode.NEVER).fill_opacity(8)
    panel = panel.legend(_legend())
    if limit is not None:
        steps = [models.Threshold(None, "green"), models.Threshold(limit, "red")]
        panel = panel.thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
        )
        style = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.LINE)
        panel = panel.thresholds_style(style)
    for legend in expressions:
        panel = _named(panel, legend)
    found: timeseries.Panel = _expressions(panel, expressions)
    return found


def figure(
    title: str,
    expression: str,
    *,
    unit: str = "short",
    description: str = "",
    width: int = 4,
    steps: Sequence[tuple[float | None, str]] = ((None, "text"),),
    legend: str = "",
) -> stat.Panel:
    """One number as it is now; steps : (from this value on, colour); legend : what to name beside it.

    An instant query: out of a range Grafana would show the last number of hours ago while gridpipe is down.
    Its windows are fixed: `SINCE` would make the number of now a mean over as long as the range asks for.
    """
    panel = stat.Panel().title(title).description(description).unit(unit).span(width).height(4)
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE).no_value(NO_DATA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.thresholds(
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value, colour) for value, colour in steps])
    )
    if legend:
        panel = panel.text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        panel = _named(panel, legend)
    found: stat.Panel = _expressions(panel, {legend: expression}, instant=True)
    return found


def sql_figures(title: str, sql: str, units: Units, *, width: int = 24) -> stat.Panel:
    """One number per column of the one row that the query gives."""
    panel = stat.Panel().title(title).span(width).height(4).datasource(CLICKHOUSE).with_target(_Sql(sql))
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/"))
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE).no_value(NO_DATA)
    # without any Grafana makes everything from 80 on red
    panel = panel.thresholds(
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(None, "text")])
    )
    for name, properties in _properties(units, cells=False):
        panel = panel.override_by_name(name, properties)
    return panel


def sql_table(
    title: str, sql: str, units: Units, *, names: str = "", width: int = 24, height: int = 9
) -> table.Panel:
    """names : a column of table names, which are shown with words for them."""
    panel = table.Panel().title(title).span(width).height(height).datasource(CLICKHOUSE)
    panel = panel.with_target(_Sql(sql)).filterable(True)
    for name, properties in _properties(units):
        panel = panel.override_by_name(name, properties)
    if names:
        words = {name: {"text": text} for name, text in shown("{{table}}").items()}
        mapping = {"type": "value", "options": words}
        panel = panel.override_by_name(names, [models.DynamicConfigValue("mappings", [mapping])])
    return panel


#: Characters of a bar's name beside it: the longest would leave no room for bars.
_BAR_LABEL: Final = 24


def sql_bars(title: str, sql: str, *, unit: str, width: int = 12) -> barchart.Panel:
    """Bars by the first column, a group per further column."""
    panel = barchart.Panel().title(title).span(width).height(9).unit(unit).datasource(CLICKHOUSE)
    panel = panel.x_tick_label_max_length(_BAR_LABEL).legend(_legend())
    return panel.with_target(_Sql(sql)).orientation(common_models.VizOrientation.HORIZONTAL)


def _properties(units: Units, *, cells: bool = True) -> list[tuple[str, list[models.DynamicConfigValue]]]:
    """cells : the panel is a table, whose cells can be drawn."""
    return [
        (
            name,
            [
                models.DynamicConfigValue("unit", unit),
                *_OF_A_RATE.get(unit, []),
                *(_BARS.get(unit, []) if cells else []),
            ],
        )
        for unit, names in units.items()
        for name in names
    ]


_OF_A_RATE: Final = {
    "percentunit": [
        models.DynamicConfigValue("min", 0),
        models.DynamicConfigValue("max", 1),
        models.DynamicConfigValue("decimals", 2),
    ]
}
#: Rates are drawn as bars within the cells of a table.
_BARS: Final = {
    "percentunit": [models.DynamicConfigValue("custom.cellOptions", {"type": "gauge", "mode": "basic"})]
}


def page(
    uid: str,
    title: str,
    description: str,
    rows: Mapping[str, Sequence[Panel]],
    *,
    since: str,
    refresh: str,
) -> dashboard.Dashboard:
    """A dashboard of titled rows."""
    found = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["gridpipe"])
        .time(since, "now")
        .refresh(refresh)
        .timezone("Asia/Shanghai")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
    )
    for name, panels in rows.items():
        found = found.with_row(dashboard.Row(name))
        for panel in panels:
            found = found.with_panel(panel)
    return found
