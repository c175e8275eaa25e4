"""Reports that pass every rule, to be spoilt one column at a time; and catalogues to be edited."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import frames
from pipeline.rules.admit import admit
from pipeline.rules.catalogue import Catalogues, load_catalogues

CATALOGUE = Path(__file__).parents[2] / "schemas" / "catalogue"
SCHEMA = {**frames.DECODED, **frames.FEATURES}
DISTRICTS = ("440703", "440704", "440705", "440781", "440783", "440784", "440785")
NO_MODES = pl.DataFrame(schema=frames.MODE)
#: A spring morning, 16:00 local.
MORNING = datetime(2026, 5, 1, 8, tzinfo=UTC)
PHOTO = {"sha256": "0123456789abcdef" * 4, "taken_at": MORNING}


@cache
def catalogues() -> Catalogues:
    return load_catalogues(CATALOGUE)


def report(**changes: Any) -> dict[str, Any]:
    """A full-time grid worker reports loose iron sheets (SA-07) in his own grid: admitted as it is."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA)
    row |= {
        "event_id": "e1",
        "source": "handset",
        "event_type": "REPORTED",
        "case_id": "c1",
        "occurred_at": MORNING,
        "channel": "grid_patrol",
        "matter_code": "SA-07",
        "grid_code": "440704001001003",
        "actor_type": "full_time",
        "actor_key": "w-0001",
        "persons": [],
        "lon": 113.1,
        "lat": 22.57,
        "crs": "wgs84",
        "photos": [PHOTO],
        "description": "暴雨中阳台铁皮松动",
        "backfill": False,
        "grid_found": True,
        "grid_active": True,
        "grid_version": 1,
        "point_in_grid": True,
        "staff_found": True,
        "staff_active": True,
        "staff_kind": "full_time",
        "staff_in_grid": True,
        "staff_in_district": True,
        "staff_channel_rights": ["grid_patrol"],
        "persons_given": 0,
        "persons_found": 0,
    }
    row |= changes
    row.setdefault("ingested_at", None)
    if row["ingested_at"] is None:
        row["ingested_at"] = row["occurred_at"] + timedelta(seconds=3)
    return row


def citizen(**changes: Any) -> dict[str, Any]:
    """A citizen reports through the mini-program; nobody looks the reporter up among staff."""
    return report(
        **{
            "channel": "yueshengshi",
            "actor_type": "citizen",
            "actor_key": "f" * 64,
            "staff_found": False,
            "staff_active": None,
            "staff_kind": None,
            "staff_in_grid": None,
            "staff_in_district": None,
            "staff_channel_rights": None,
            **changes,
        }
    )


def about_person(**changes: Any) -> dict[str, Any]:
    """A resident-population update (BI-01), which needs a person on record."""
    person = {"key": "a" * 64, "role": "subject"}
    return report(
        **{"matter_code": "BI-01", "persons": [person], "persons_given": 1, "persons_found": 1, **changes}
    )


def mode(
    kind: str, level: str, area: str, start: datetime, end: datetime | None = None, *, version: int = 1
) -> tuple[Any, ...]:
    return (kind, level, area, start, end, "三防指挥部", version)


def mode_frame(*records: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(records), schema=frames.MODE, orient="row")


def frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def judge(
    row: dict[str, Any],
    *records: tuple[Any, ...],
    rules: Catalogues | None = None,
    districts: Sequence[str] = DISTRICTS,
) -> dict[str, Any]:
    """The decision on one event, while `records` of modes are known."""
    return admit(frame([row]), rules or catalogues(), mode_frame(*records), districts=districts).row(
        0, named=True
    )


def copy_catalogue(target: Path) -> Path:
    shutil.copytree(CATALOGUE, target)
    return target


def edit(file: Path, old: str, new: str) -> int:
    """Replace the first `old` in a file; returns the line (from 1) where it stood."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {file}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1
