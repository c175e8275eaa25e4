"""The emergency modes in force: while one is, prioritised matters there have other response limits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client


def modes_in_force(client: Client, *, at: datetime) -> list[dict[str, Any]]:
    """mode, level and area_code (of the city, a district or a town) of each that is in force at `at`.

    Of records with one mode, area and valid_from, those of the highest version count (rules/modes.py).
    """
    found = client.query(
        """
        SELECT toString(mode) AS mode, toString(level) AS level, toString(area_code) AS area_code
        FROM (SELECT * FROM ref_modes FINAL ORDER BY version DESC LIMIT 1 BY mode, area_code, valid_from)
        WHERE valid_from <= fromUnixTimestamp64Milli({at_ms:Int64}, 'UTC')
            AND (valid_to IS NULL OR valid_to > fromUnixTimestamp64Milli({at_ms:Int64}, 'UTC'))
        ORDER BY area_code, mode, level
        """,
        parameters={"at_ms": round(at.timestamp() * 1000)},
    )
    return [dict(row) for row in found.named_results()]
