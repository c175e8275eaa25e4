"""Rejected reports by primary reason, and those that may concern life and limb."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.read.times import instant

#: So long a rejection that may concern life and limb stays an alarm, on the page and for Prometheus.
LIFE_SAFETY: Final = timedelta(hours=1)


def rejection_reasons(client: Client, *, from_: datetime, to: datetime) -> list[dict[str, Any]]:
    """Reports that were received in [from_, to) and rejected, by primary reason, most frequent first.

    By receipt, as the clerk's list: reports are rejected for having occurred too long ago, or in the future.
    A report counts once whatever copies of it were stored.
    Returns reason, reports, life_safety (how many may concern life and limb) and last (newest receipt).
    """
    found = client.query(
        """
        SELECT reasons[1] AS reason, uniqExact(id_hi, id_lo) AS reports,
            uniqExactIf((id_hi, id_lo), life_safety) AS life_safety, max(ingested_at) AS last
        FROM rejections
        WHERE event_type = 'REPORTED'
            AND ingested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
            AND ingested_at < fromUnixTimestamp64Milli({to_ms:Int64}, 'UTC')
        GROUP BY reason ORDER BY reports DESC, reason
        """,
        parameters={"from_ms": round(from_.timestamp() * 1000), "to_ms": round(to.timestamp() * 1000)},
    )
    return [{**row, "last": instant(row["last"])} for row in found.named_results()]


def life_safety_rejections(client: Client, *, from_: datetime) -> dict[str, Any]:
    """Reports that may concern life and limb, received since `from_` and rejected.

    Returns reports (how many) and newest ({"source", "event_id"}, None without one).
    """
    found = client.query(
        """
        SELECT uniqExact(id_hi, id_lo), argMax((source, event_id), ingested_at)
        FROM rejections
        WHERE life_safety AND event_type = 'REPORTED'
            AND ingested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
        """,
        parameters={"from_ms": round(from_.timestamp() * 1000)},
    )
    reports, newest = found.result_rows[0]
    named = dict(zip(("source", "event_id"), newest, strict=True)) if reports else None
    return {"reports": reports, "newest": named}


def life_safety_by_reason(client: Client, *, from_: datetime) -> dict[str, int]:
    """The same reports by primary reason; '' for one without."""
    found = client.query(
        """
        SELECT reasons[1] AS reason, uniqExact(id_hi, id_lo)
        FROM rejections
        WHERE life_safety AND event_type = 'REPORTED'
            AND ingested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
        GROUP BY reason
        """,
        parameters={"from_ms": round(from_.timestamp() * 1000)},
    )
    return {str(reason): int(reports) for reason, reports in found.result_rows}
