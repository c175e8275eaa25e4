"""Incarnations of a topic: a new log starts at offset 0 again; its rows and tokens must not meet old ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import structlog
from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now

log = structlog.get_logger(__name__)

_OUTCOME_TABLES = ("events", "rejections", "duplicates", "quarantine")
_SETTINGS = {"async_insert": 0, "insert_deduplicate": 1}


class Newest(NamedTuple):
    """The newest incarnation of a topic, 0 without one, and what the store holds of its log.

    log : topic id and cluster id, None without an incarnation. stored : partition -> last offset stored.
    """

    topic: str
    inc: int
    log: tuple[str, str] | None
    stored: Mapping[int, int]


def resolve(
    client: Client, known: Newest, topic_id: str, cluster_id: str, end_offsets: Mapping[int, int]
) -> int:
    """The incarnation of the log that the broker holds now, unix ms; recorded when it is new.

    known : read before the broker was asked, or what other workers stored in between would look like rows of
    a longer log. topic_id, cluster_id : as the broker tells them. end_offsets : partition -> next offset to
    be written; a partition that is left out is not compared.

    A log is a known one if the newest incarnation of the topic carries its id, and the broker still has every
    offset that was stored from it. Otherwise (new id, broker restarted without its data, log truncated) it is
    a new one. Numbers grow, so they order positions across incarnations.
    """
    if known.log == (topic_id, cluster_id):
        lost = sorted(part for part, last in known.stored.items() if end_offsets.get(part, last + 1) <= last)
        if not lost:
            return known.inc
        log.warning(
            "the log ends before rows stored from it; it is a new one", topic=known.topic, partitions=lost
        )
    inc = max(int(utc_now().timestamp() * 1000), known.inc + 1)
    client.insert(
        "incarnations",
        [[inc, known.topic, topic_id, cluster_id]],
        column_names=["inc", "topic", "topic_id", "cluster_id"],
        # of several workers that start together the first one names the incarnation: same token, one insert
        settings={
            **_SETTINGS,
            "insert_deduplication_token": f"{known.topic}:{topic_id}:{cluster_id}:after-{known.inc}",
        },
    )
    inc = newest(client, known.topic).inc
    log.info("new topic incarnation", topic=known.topic, inc=inc)
    return inc


def newest(client: Client, topic: str) -> Newest:
    """What the store holds of the topic's newest incarnation."""
    rows = client.query(
        "SELECT inc, topic_id, cluster_id FROM incarnations WHERE topic = {topic:String} "
        "ORDER BY inc DESC LIMIT 1",
        parameters={"topic": topic},
    ).result_rows
    if not rows:
        return Newest(topic, 0, None, {})
    inc, topic_id, cluster_id = rows[0]
    each = " UNION ALL ".join(
        f"SELECT _part, max(_off) AS last FROM {table} WHERE _inc = {{inc:UInt64}} GROUP BY _part"
        for table in _OUTCOME_TABLES
    )
    stored = client.query(
        f"SELECT _part, max(last) FROM ({each}) GROUP BY _part", parameters={"inc": inc}
    ).result_rows
    return Newest(topic, int(inc), (topic_id, cluster_id), {int(part): int(last) for part, last in stored})
