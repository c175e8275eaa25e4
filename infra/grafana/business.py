"""Business KPI: rates, counts and times by district, town, department and matter, out of ClickHouse."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.kpi import BY, COUNTS, PERCENTILES, RATES, cohort
from infra.grafana.panels import Panel, lines, page, per_district, sql_bars, sql_figures, sql_table

_UNITS = {
    "percentunit": list(RATES.values()),
    "s": list(PERCENTILES.values()),
    "locale": list(COUNTS.values()),
}


def _dimension(by: str) -> list[Panel]:
    name = BY[by]
    p90 = {column: title for column, title in PERCENTILES.items() if column.endswith("p90")}
    return [
        sql_table(f"{name}：指标 KPIs", cohort(by, COUNTS | RATES), _UNITS),
        sql_table(f"{name}：时间 Times", cohort(by, PERCENTILES), _UNITS, width=14),
        sql_bars(
            f"{name}：p90 最慢的十个 Slowest ten",
            cohort(by, p90, order="response_seconds_p90 DESC NULLS LAST LIMIT 10"),
            unit="s",
            width=10,
        ),
    ]


def business() -> Dashboard:
    rows: dict[str, list[Panel]] = {
        "全市 City": [
            sql_figures("率 Rates", cohort("city", RATES), _UNITS, width=14),
            sql_figures("件数 Counts", cohort("city", COUNTS), _UNITS, width=10),
            sql_figures("响应与办结时间 Response and resolution time", cohort("city", PERCENTILES), _UNITS),
            lines(
                "办结率走势 Closure rate",
                {"{{district}}": per_district("closure_ratio")},
                unit="percentunit",
                description="近 30 天口径 The 30-day cohort, as of each moment",
            ),
            lines(
                "响应时间 p90 Response time p90",
                {"{{district}}": per_district('response_seconds{quantile="0.9"}')},
                unit="s",
            ),
        ]
    }
    rows |= {BY[by]: _dimension(by) for by in ("district", "town", "department", "matter")}
    return page(
        "gridpipe-business",
        "业务指标 Business KPI",
        "所选时段内上报的案件，截至时段末的状态；定义见 docs/metrics.md。"
        " Cases reported in the range, their state at its end; defined in docs/metrics.md.",
        rows,
        since="now-30d",
        refresh="1m",
    )
