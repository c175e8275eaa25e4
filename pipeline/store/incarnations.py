"""Incarnations of a topic: a new log starts at offset 0 again; its rows and tokens must not meet old ones."""

from __future__ import annotations

from collections.abc import Mapping

import structlog
from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now

log = structlog.get_logger(__name__)

_OUTCOME_TABLES = ("events", "rejections", "duplicates", "quarantine")
_SETTINGS = {"async_insert": 0, "insert_deduplicate": 1}


def resolve(
    client: Client, topic: str, topic_id: str, cluster_id: str, end_offsets: Mapping[int, int]
) -> int:
    """The incarnation of the log that the broker holds now, unix ms; recorded when it is new.

    topic_id, cluster_id : as the broker tells them. end_offsets : partition -> next offset to be
    written; a partition that is left out is not compared.

    A log is a known one if the newest incarnation of the topic carries its id, and the broker still has every
    offset that was stored from it. Otherwise (new id, broker restarted without its data, log truncated) it is
    a new one. Numbers grow, so they order positions across incarnations.
    """
    last, known = _newest(client, topic)
    if known == (topic_id, cluster_id):
        lost = _behind(client, last, end_offsets)
        if not lost:
            return last
        log.warning("the log ends before rows stored from it; it is a new one", topic=topic, partitions=lost)
    inc = max(int(utc_now().timestamp() * 1000), last + 1)
    client.insert(
        "incarnations",
        [[inc, topic, topic_id, cluster_id]],
        column_names=["inc", "topic", "topic_id", "cluster_id"],
        # of several workers that start together the first one names the incarnation: same token, one insert
        settings={**_SETTINGS, "insert_deduplication_token": f"{topic}:{topic_id}:{cluster_id}:after-{last}"},
    )
    inc, _ = _newest(client, topic)
    log.info("new topic incarnation", topic=topic, inc=inc)
    return inc


def _newest(client: Client, topic: str) -> tuple[int, tuple[str, str] | None]:
    """(inc, (topic id, cluster id)) of the topic's newest incarnation, (0, None) without one."""
    rows = client.query(
        "SELECT inc, topic_id, cluster_id FROM incarnations WHERE topic = {topic:String} "
        "ORDER BY inc DESC LIMIT 1",
        parameters={"topic": topic},
    ).result_rows
    return (int(rows[0][0]), (rows[0][1], rows[0][2])) if rows else (0, None)


def _behind(client: Client, inc: int, end_offsets: Mapping[int, int]) -> list[int]:
    """Partitions whose log ends at or before an offset that was stored from it."""
    each = " UNION ALL ".join(
        f"SELECT _part, max(_off) AS last FROM {table} WHERE _inc = {{inc:UInt64}} GROUP BY _part"
        for table in _OUTCOME_TABLES
    )
    stored = client.query(
        f"SELECT _part, max(last) FROM ({each}) GROUP BY _part", parameters={"inc": inc}
    ).result_rows
    return sorted(int(part) for part, last in stored if end_offsets.get(int(part), last + 1) <= int(last))
