"""SQL of the business panels: the `kpi_cohort` view and nothing else: one number has one definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from infra.grafana.names import CATALOGUES, NAMES
from pipeline.read.kpi import CITIZEN_KINDS

#: Column of the view → the name it is shown under.
COUNTS: Final = {
    "reports": "上报 Reports",
    "cases": "计数案件 Cases",
    "closed": "办结 Closed",
    "open": "未办结 Open",
    "overdue": "超期 Overdue",
    "ratings": "评价 Ratings",
}
RATES: Final = {
    "closure_rate": "办结率 Closure",
    "response_rate": "响应率 Response",
    "timely_response_rate": "按时响应率 Timely response",
    "closure_on_time_rate": "按期办结率 Closed on time",
    "handling_on_time_rate": "按期处置率 Handled on time",
    "rework_rate": "返工率 Rework",
    "satisfaction_rate": "满意率 Satisfaction",
}
PERCENTILES: Final = {
    "response_seconds_p50": "响应 Response p50",
    "response_seconds_p90": "响应 Response p90",
    "response_seconds_p99": "响应 Response p99",
    "resolution_seconds_p50": "办结 Resolution p50",
    "resolution_seconds_p90": "办结 Resolution p90",
    "resolution_seconds_p99": "办结 Resolution p99",
}
BY: Final = {
    "city": "全市 City",
    "district": "区县 District",
    "town": "镇街 Town",
    "department": "主办部门 Department",
    "matter": "事项 Matter",
}


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"


def cohort(by: str, columns: Mapping[str, str], *, where: str = "listed", order: str = "key") -> str:
    """A row per key with its name and these columns; window and instant are those of the dashboard."""
    citizen = sorted(code for code, kind in CATALOGUES.channel_kind.items() if kind in CITIZEN_KINDS)
    shown = []
    if by != "city":
        names = NAMES[by]
        name = f"transform(key, {_texts(list(names))}, {_texts(list(names.values()))}, key)"
        shown.append(f"{name} AS {_quoted(BY[by])}")
    shown += [f"{column} AS {_quoted(title)}" for column, title in columns.items()]
    return (
        f"SELECT {', '.join(shown)} FROM kpi_cohort(by = '{by}', from = $__fromTime_ms, to = $__toTime_ms, "
        f"as_of = $__toTime_ms, citizen_channels = {_texts(citizen)}) WHERE {where} ORDER BY {order}"
    )


def _quoted(name: str) -> str:
    return f'"{name}"'
