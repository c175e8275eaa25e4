"""ClickHouse sink: what the worker writes, how long it takes, and what lies in the tables."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.panels import SINCE, figure, lines, page, sql_table

_PARTS = """
SELECT table AS "表 Table", count() AS "数据部分 Parts", sum(rows) AS "行 Rows",
    sum(bytes_on_disk) AS "磁盘 Disk",
    sum(data_uncompressed_bytes) / sum(data_compressed_bytes) AS "压缩比 Ratio",
    max(modification_time) AS "最近写入 Last write"
FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table ORDER BY table"""
_PARTITIONS = """
SELECT table AS "表 Table", partition AS "分区 Partition", count() AS "数据部分 Parts", sum(rows) AS "行 Rows"
FROM system.parts WHERE active AND database = currentDatabase()
GROUP BY table, partition ORDER BY "数据部分 Parts" DESC LIMIT 20"""


def sink() -> Dashboard:
    return page(
        "gridpipe-sink",
        "ClickHouse 写入 ClickHouse sink",
        "插入、重试与各表大小 Inserts, retries and the size of each table.",
        {
            "写入 Inserts": [
                lines(
                    "插入次数 Inserts by table",
                    {"{{table}}": f"sum by (table) (rate(gridpipe_insert_seconds_count[{SINCE}]))"},
                    unit="ops",
                ),
                lines(
                    "平均耗时 Mean time of an insert",
                    {
                        "{{table}}": f"sum by (table) (rate(gridpipe_insert_seconds_sum[{SINCE}]))"
                        f" / sum by (table) (rate(gridpipe_insert_seconds_count[{SINCE}]))"
                    },
                    unit="s",
                ),
                figure(
                    "重试（1 小时） Retries, 1 h",
                    "sum(increase(gridpipe_insert_retries_total[1h]))",
                    steps=((None, "green"), (1, "orange")),
                    width=6,
                ),
                figure(
                    "每轮行数 Rows per round",
                    "sum(rate(gridpipe_batch_rows_sum[5m])) / sum(rate(gridpipe_batch_rows_count[5m]))",
                    width=6,
                ),
                figure(
                    "磁盘剩余 Disk free",
                    "sum(min by (disk) (gridpipe_store_disk_free_bytes))",
                    unit="bytes",
                    width=6,
                ),
                figure(
                    "处理进程内存 Worker memory", "sum(gridpipe_worker_memory_bytes)", unit="bytes", width=6
                ),
            ],
            "表 Tables": [
                sql_table(
                    "各表 Tables",
                    " ".join(_PARTS.split()),
                    {"bytes": ["磁盘 Disk"], "locale": ["行 Rows"]},
                    names="表 Table",
                    width=14,
                ),
                sql_table(
                    "数据部分最多的分区 Most parts",
                    " ".join(_PARTITIONS.split()),
                    {"locale": ["行 Rows"]},
                    names="表 Table",
                    width=10,
                ),
            ],
        },
        since="now-6h",
        refresh="30s",
    )
