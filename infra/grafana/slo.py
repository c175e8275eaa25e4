"""SLO and pipeline: freshness and its budget, the flow stage by stage, the processes. Out of Prometheus."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.panels import SINCE, figure, in_an_hour, least, lines, most, page

_WINDOWS = {
    "5m": "5 分钟",
    "30m": "30 分钟",
    "1h": "1 小时",
    "2h": "2 小时",
    "6h": "6 小时",
    "1d": "1 天",
    "3d": "3 天",
}


def _quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[{SINCE}])))"


def slo() -> Dashboard:
    return page(
        "gridpipe-slo",
        "时效与管道 SLO and pipeline",
        "目标：99 % 的事件 5 秒内可查。 Objective: 99 % of events queryable within 5 s.",
        {
            "时效目标 Freshness": [
                figure(
                    "3 天内达标 In time, 3 d",
                    "1 - gridpipe:freshness_late:ratio_rate3d",
                    unit="percentunit",
                    steps=((None, "red"), (0.99, "green")),
                ),
                figure(
                    "3 天预算剩余 Budget left, 3 d",
                    "1 - gridpipe:freshness_late:ratio_rate3d / 0.01",
                    unit="percentunit",
                    steps=((None, "red"), (0, "orange"), (0.5, "green")),
                ),
                lines(
                    "迟到比例 Late share",
                    {
                        f"{words} {window}": most(f"gridpipe:freshness_late:ratio_rate{window}")
                        for window, words in _WINDOWS.items()
                    },
                    unit="percentunit",
                    limit=0.01,
                    width=16,
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
                    "探测事件延迟 Canary delay by partition",
                    {"分区 {{partition}}": f"max by (partition) ({most('gridpipe_canary_delay_seconds')})"},
                    unit="s",
                    limit=5,
                ),
            ],
            "流 Flow": [
                lines(
                    "积压（记录） Lag by partition, records",
                    {"分区 {{partition}}": f"max by (partition) ({most('gridpipe_consumer_lag_records')})"},
                ),
                lines(
                    "最早未处理 Age of the oldest record",
                    {"分区 {{partition}}": f"max by (partition) ({most('gridpipe_consumer_lag_seconds')})"},
                    unit="s",
                ),
                lines(
                    "各阶段耗时 Mean time of a stage",
                    {"{{stage}}": most("stage:gridpipe_stage_seconds:mean5m")},
                    unit="s",
                ),
                lines(
                    "写入耗时 p99 Insert time p99",
                    {"{{table}}": _quantile(0.99, "gridpipe_insert_seconds", "table")},
                    unit="s",
                ),
                lines(
                    "每轮行数 Rows per round",
                    {
                        "p50": _quantile(0.5, "gridpipe_batch_rows"),
                        "p99": _quantile(0.99, "gridpipe_batch_rows"),
                    },
                ),
                lines(
                    "提交 Records committed",
                    {"分区 {{partition}}": f"max by (partition) (deriv(gridpipe_committed_offset[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "校验器 Verifier, 1 h",
                    {
                        "偏移异常 offsets": most("gridpipe:verifier_anomalies:increase1h"),
                        "案件不符 drifted": in_an_hour("gridpipe_verifier_drift_total"),
                        "编号重复 double ids": in_an_hour("gridpipe_verifier_double_ids_total"),
                        "提前遗忘 forgotten ids": in_an_hour("gridpipe_dedup_forgotten_total"),
                    },
                    limit=1,
                ),
                lines(
                    "写入受阻 Store refuses for",
                    {"处理 worker {{instance}}": most("gridpipe_sink_blocked_seconds")},
                    unit="s",
                    limit=60,
                ),
                lines(
                    "探测事件缺失 Canaries missing, 1 h",
                    {"分区 {{partition}}": in_an_hour("gridpipe_canary_missing_total", "partition")},
                    limit=1,
                ),
            ],
            "网关 Gateway": [
                lines(
                    "请求 Requests by status",
                    {"状态码 {{status}}": f"sum by (status) (rate(gridpipe_http_requests_total[{SINCE}]))"},
                    unit="reqps",
                ),
                lines(
                    "应答时间 p99 Answer time p99",
                    {"路径 {{route}}": _quantile(0.99, "gridpipe_http_seconds", "route")},
                    unit="s",
                ),
                lines(
                    "事件 Events by answer",
                    {"{{answer}}": f"sum by (answer) (rate(gridpipe_gateway_events_total[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "为请求占用的字节 Bytes held for requests",
                    {"网关 {{instance}}": most("gridpipe_gateway_in_flight_bytes")},
                    unit="bytes",
                ),
            ],
            "机器 Machine": [
                lines(
                    "进程内存 Memory of our processes",
                    {
                        "网关与接口 http {{instance}}": most("gridpipe_http_memory_bytes"),
                        "处理 worker {{instance}}": most("gridpipe_worker_memory_bytes"),
                    },
                    unit="bytes",
                ),
                lines(
                    "事件循环延迟 Event loop late by",
                    {
                        "网关与接口 http {{instance}}": most("gridpipe_http_loop_late_seconds"),
                        "处理 worker {{instance}}": most("gridpipe_worker_loop_late_seconds"),
                    },
                    unit="s",
                    limit=1,
                ),
                lines(
                    "可用内存 Memory available",
                    {
                        "网关与接口 http {{instance}}": least("gridpipe_http_machine_memory_free_ratio"),
                        "处理 worker {{instance}}": least("gridpipe_worker_machine_memory_free_ratio"),
                    },
                    unit="percentunit",
                ),
                lines(
                    "ClickHouse 磁盘剩余 Disk free",
                    {
                        "磁盘 {{disk}}": "min by (disk) "
                        f"({least('gridpipe_store_disk_free_bytes')} / gridpipe_store_disk_size_bytes)"
                    },
                    unit="percentunit",
                ),
                lines(
                    "去重状态 Ids held for deduplication",
                    {"{{level}}": "sum by (level) (gridpipe_dedup_entries)"},
                ),
            ],
        },
        since="now-6h",
        refresh="10s",
    )
