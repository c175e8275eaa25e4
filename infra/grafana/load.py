"""Load test: what comes in, what is answered, what stays behind, on a scale of minutes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.panels import SINCE, figure, lines, most, page


def _answer_time(q: float) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate(gridpipe_http_seconds_bucket[{SINCE}])))"


def load() -> Dashboard:
    return page(
        "gridpipe-load",
        "压测 Load test",
        "`make load` 期间打开 To be watched during `make load`.",
        {
            "吞吐 Throughput": [
                figure(
                    "接收 Accepted/s",
                    'sum(rate(gridpipe_gateway_events_total{answer="accepted"}[1m]))',
                    unit="ops",
                    width=6,
                ),
                figure("入库 Stored/s", "sum(outcome:gridpipe_events:rate1m)", unit="ops", width=6),
                figure(
                    "拒收 Refused/s",
                    'sum(rate(gridpipe_gateway_events_total{answer="refused"}[1m]))',
                    unit="ops",
                    width=6,
                ),
                figure(
                    "未写入 Not written/s",
                    'sum(rate(gridpipe_gateway_events_total{answer="not_written"}[1m]))',
                    unit="ops",
                    steps=((None, "green"), (0.01, "red")),
                    width=6,
                ),
                lines(
                    "接收与入库 Accepted and stored",
                    {
                        "接收 accepted": "sum(rate("
                        f'gridpipe_gateway_events_total{{answer="accepted"}}[{SINCE}]))',
                        "入库 stored": f"sum(rate(gridpipe_events_total[{SINCE}]))",
                    },
                    unit="ops",
                ),
                lines(
                    "应答 Answers by status",
                    {"状态码 {{status}}": f"sum by (status) (rate(gridpipe_http_requests_total[{SINCE}]))"},
                    unit="reqps",
                ),
            ],
            "延迟 Latency": [
                lines(
                    "应答时间 Answer time",
                    {"p50": _answer_time(0.5), "p99": _answer_time(0.99)},
                    unit="s",
                ),
                lines(
                    "入库延迟 Ingest delay",
                    {
                        "p50": most("gridpipe:ingest_delay_seconds:p50_5m"),
                        "p99": most("gridpipe:ingest_delay_seconds:p99_5m"),
                    },
                    unit="s",
                    limit=5,
                ),
                lines(
                    "积压（记录） Lag, records", {"记录 records": most("gridpipe:consumer_lag_records:sum")}
                ),
                lines(
                    "阶段 Stages",
                    {"{{stage}}": most("stage:gridpipe_stage_seconds:mean5m")},
                    unit="s",
                ),
                lines(
                    "内存 Memory",
                    {
                        "网关与接口 http {{instance}}": most("gridpipe_http_memory_bytes"),
                        "处理 worker {{instance}}": most("gridpipe_worker_memory_bytes"),
                    },
                    unit="bytes",
                ),
                lines(
                    "网关为请求占用的字节 Bytes held for requests",
                    {"网关 {{instance}}": most("gridpipe_gateway_in_flight_bytes")},
                    unit="bytes",
                ),
            ],
        },
        since="now-15m",
        refresh="5s",
    )
