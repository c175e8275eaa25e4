"""A running service with a little of everything: cases closed on time and late, reworked, rated, rejected."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

GRID = "440704001001003"
#: In other districts.
OTHER_GRIDS = ("440703001001003", "440781001001003")
LON, LAT = 113.10, 22.58
LIFE = ("ACCEPTED", "DISPATCHED", "SIGNED", "ARRIVED", "HANDLING", "RESOLVED", "CLOSED", "FEEDBACK")


def write_reference(directory: Path, *others: str) -> None:
    """One grid and its worker, GW-0001; `others`: further grids in the same place, with GW-0002 and on."""
    directory.mkdir()
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]
    ring = ", ".join(f"{LON + x / 100} {LAT + y / 100}" for x, y in corners)
    since = "2020-01-01T00:00:00+08:00"
    common = {"updated_at": since, "source_system": "test"}
    grid = {
        "version": 1,
        "valid_from": since,
        "grid_name": "江南社区第一网格",
        "grid_type": "residential",
        "village_kind": "community",
        "boundary": f"POLYGON (({ring}))",
        "centroid_lon": LON,
        "centroid_lat": LAT,
        "status": "active",
    }
    worker = {"kind": "full_time", "name_masked": "陈**", "active_from": since}
    codes = dict(enumerate((GRID, *others), 1))
    pl.DataFrame([grid | common | {"grid_code": code} for code in codes.values()]).write_csv(
        directory / "grids.csv"
    )
    pl.DataFrame(
        [
            worker | common | {"worker_key": f"GW-{number:04}", "grid_code": code, "district_code": code[:6]}
            for number, code in codes.items()
        ]
    ).write_csv(directory / "staff.csv")


def event(number: int, kind: str, at: datetime, **changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"{kind.lower()}-{number}",
        "source": "local",
        "event_type": kind,
        "case_id": f"case-{number}",
        "occurred_at": at.isoformat(),
        "channel": "grid_patrol",
        "grid_code": GRID,
        "actor": {"type": "clerk"},
    } | changes


def report(number: int, at: datetime, **changes: Any) -> dict[str, Any]:
    """A grid worker's report that the little reference set admits."""
    return (
        event(
            number,
            "REPORTED",
            at,
            matter_code="SA-07",
            actor={"type": "full_time", "key": "GW-0001"},
            location={"lon": LON, "lat": LAT, "crs": "wgs84"},
            photos=[{"sha256": f"{number:064x}", "taken_at": at.isoformat()}],
            description=f"阳台铁皮松动，第 {number} 处",
        )
        | changes
    )


def history(
    first: int, count: int, now: datetime, *, grid: str = GRID, worker: str = "GW-0001", open_of: int = 3
) -> Iterator[dict[str, Any]]:
    """Events of `count` cases of the last days: one of `open_of` is left open, the others are closed and
    rated, each fourth reworked. worker : of the grid."""
    for number in range(first, first + count):
        at = now - timedelta(hours=6 + 7 * number % 60)
        yield report(number, at, grid_code=grid, actor={"type": "full_time", "key": worker})
        kinds = list(LIFE) if number % open_of else list(LIFE[: 1 + number % 5])
        if number % 4 == 0 and "RESOLVED" in kinds:
            kinds[6:6] = ["REWORK", "HANDLING", "RESOLVED"]
        for step, kind in enumerate(kinds, 1):
            moment = at + timedelta(minutes=step * (5 + number % 7))
            attributes = {"attributes": {"rating": 5 - number % 3}} if kind == "FEEDBACK" else {}
            event_id = f"{kind.lower()}-{number}-{step}"
            yield event(number, kind, moment, event_id=event_id, grid_code=grid, **attributes)
