"""Overview: is the city's work going well, and is the pipeline well? Out of Prometheus."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.panels import SINCE, figure, lines, of_the_apis, page, per_district

_GOOD_RATE = ((None, "red"), (0.8, "orange"), (0.9, "green"))
_ZERO = ((None, "green"), (1, "red"))


def overview() -> Dashboard:
    return page(
        "gridpipe-overview",
        "总览 Overview",
        "业务与管道一屏 The city's work and the pipeline on one screen.",
        {
            "现在 Now": [
                figure("事件/秒 Events/s", "sum(source:gridpipe_events_received:rate1m)", unit="ops"),
                figure(
                    "告警 Alerts firing",
                    # nothing, and no green 0, where our rules are not loaded; other teams' alerts are theirs
                    'count(ALERTS{alertname=~"Gridpipe.+",alertstate="firing"})'
                    " or 0 * count(gridpipe:consumer_lag_records:sum)",
                    steps=_ZERO,
                ),
                figure(
                    "入库延迟 p99 Ingest delay p99",
                    "gridpipe:ingest_delay_seconds:p99_5m",
                    unit="s",
                    steps=((None, "green"), (5, "red")),
                ),
                figure("积压（记录） Lag, records", "gridpipe:consumer_lag_records:sum"),
                figure(
                    "探测延迟 Canary delay",
                    "max(gridpipe_canary_delay_seconds)",
                    unit="s",
                    steps=((None, "green"), (5, "red")),
                ),
                figure(
                    "涉及人身安全的不予受理（1 小时） Life-safety rejections, 1 h",
                    f"sum({of_the_apis('life_safety_rejections_last_hour_reports', 'reason')})",
                    steps=_ZERO,
                ),
                figure(
                    "办结率最低 Lowest closure rate",
                    f"bottomk(1, {per_district('closure_ratio')})",
                    unit="percentunit",
                    steps=_GOOD_RATE,
                    legend="{{district}}",
                ),
                figure(
                    "响应率最低 Lowest response rate",
                    f"bottomk(1, {per_district('response_ratio')})",
                    unit="percentunit",
                    steps=_GOOD_RATE,
                    legend="{{district}}",
                ),
                figure("未办结 Open", f"sum({per_district('open_cases')})"),
                figure("超期 Overdue", f"sum({per_district('overdue_cases')})"),
                figure("响应超时 Response limit breached", f"sum({per_district('response_breached_cases')})"),
                figure(
                    "一小时内响应超时 Response limit breached, 1 h",
                    f"sum({per_district('response_breaches_last_hour_cases')})",
                ),
                figure(
                    "指标时刻 Figures as of",
                    "min(gridpipe_business_as_of_timestamp_seconds) * 1000",
                    unit="dateTimeAsIso",
                ),
            ],
            "业务 Work": [
                lines(
                    "办结率 Closure rate", {"{{district}}": per_district("closure_ratio")}, unit="percentunit"
                ),
                lines(
                    "响应率 Response rate",
                    {"{{district}}": per_district("response_ratio")},
                    unit="percentunit",
                ),
                lines("未办结 Open cases", {"{{district}}": per_district("open_cases")}),
                lines("超期 Overdue cases", {"{{district}}": per_district("overdue_cases")}),
            ],
            "流入 Intake": [
                lines(
                    "来源 By source",
                    {"来源 {{source}}": f"sum by (source) (rate(gridpipe_events_received_total[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "结果 By outcome",
                    {"{{outcome}}": f"sum by (outcome) (rate(gridpipe_events_total[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "不予受理原因 Rejections by reason",
                    # ten minutes: of most reasons there is hardly one a minute
                    {"{{reason}}": f"topk(8, avg_over_time(reason:gridpipe_rejections:rate10m[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "重复 Duplicates by level",
                    {"{{level}}": f"sum by (level) (rate(gridpipe_duplicates_total[{SINCE}]))"},
                    unit="ops",
                ),
            ],
        },
        since="now-6h",
        refresh="10s",
    )
