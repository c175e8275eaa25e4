"""Emergency modes of the simulated years: three real patterns, repeated each year and marked as simulated.

The patterns are public notices: typhoon level IV from 12:00 on 31 July 2019; flood level IV from 13:00 on
22 July 2025; typhoon level IV raised to III at 23:30 on 6 September 2025, just before midnight. Their ends
and every other year are simulated, so that any year that a demo covers has its storms.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl

from pipeline.clock import LOCAL_ZONE
from pipeline.frames import MODE

YEARS: Final = range(2024, 2032)
_AUTHORITY: Final = "江门市三防指挥部（模拟 simulated）"


def _local(year: int, month: int, day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=LOCAL_ZONE).astimezone(UTC)


def mode_calendar() -> pl.DataFrame:
    """Every simulated mode, columns `frames.MODE`, oldest first."""
    rows = []
    for year in YEARS:
        flood = _local(year, 7, 22, 13)
        july = _local(year, 7, 31, 12)
        september = _local(year, 9, 6, 8)
        raised = _local(year, 9, 6, 23, 30)
        rows += [
            ("flood", "IV", "4407", flood, flood + timedelta(hours=52)),
            ("typhoon", "IV", "4407", july, july + timedelta(hours=44)),
            ("heat", "IV", "440781", _local(year, 8, 12, 10), _local(year, 8, 16, 20)),
            ("typhoon", "IV", "4407", september, raised),
            ("typhoon", "III", "4407", raised, raised + timedelta(hours=40)),
        ]
    frame = pl.DataFrame(
        rows, schema=["mode", "level", "area_code", "valid_from", "valid_to"], orient="row"
    ).with_columns(pl.lit(_AUTHORITY).alias("authority"), pl.lit(1).alias("version"))
    return frame.select(pl.col(name).cast(dtype) for name, dtype in MODE.items())


def storm_loan_periods() -> list[tuple[datetime, datetime]]:
    """When full-time workers are lent to other grids: the September typhoon of each simulated year."""
    return [(_local(year, 9, 6, 8), _local(year, 9, 8, 16)) for year in YEARS]
