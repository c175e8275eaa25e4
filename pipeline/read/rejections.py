"""Rejected reports with their reasons, newest first: the clerk's list."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.read.times import instant

DEFAULT_LIMIT: Final = 100
LARGEST_LIMIT: Final = 1_000


def rejections(
    client: Client,
    *,
    reason: str | None = None,
    life_safety: bool = False,
    from_: datetime | None = None,
    limit: int = DEFAULT_LIMIT,
) -> list[dict[str, Any]]:
    """At most `limit` rejected reports, newest receipt first. No reporter is shown.

    reason : a reason code; matches reports that have it among their reasons.
    life_safety : only reports that may concern life and limb, as the alarm counts them (read/rejected.py).
    from_ : only reports received at or after this instant.
    """
    conditions = ["1"]
    parameters: dict[str, Any] = {"limit": limit}
    if reason is not None:
        conditions.append("has(reasons, {reason:String})")
        parameters["reason"] = reason
    if life_safety:
        conditions.append("life_safety AND event_type = 'REPORTED'")
    if from_ is not None:
        conditions.append("ingested_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')")
        parameters["from_ms"] = round(from_.timestamp() * 1000)
    # LIMIT 1 BY position: a block that was inserted again before a merge shows once
    found = client.query(
        f"""
        SELECT source, event_id, case_id, occurred_at, ingested_at, channel, matter_code, category, grid_code,
               urgency, lead_department, reasons, missing_fields, life_safety, catalogue_version
        FROM rejections
        WHERE {" AND ".join(conditions)}
        ORDER BY ingested_at DESC, _inc DESC, _part DESC, _off DESC, _idx DESC
        LIMIT 1 BY _inc, _part, _off, _idx
        LIMIT {{limit:UInt32}}
        """,
        parameters=parameters,
    )
    return [
        {
            **row,
            "occurred_at": instant(row["occurred_at"]),
            "ingested_at": instant(row["ingested_at"]),
            "reasons": list(row["reasons"]),
            "missing_fields": list(row["missing_fields"]),
            "primary_reason": row["reasons"][0] if row["reasons"] else None,
        }
        for row in found.named_results()
    ]
