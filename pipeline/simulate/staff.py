"""Simulated grid staff: every kind of worker with grid, department, channel rights and emergency loans."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl

from pipeline.clock import LOCAL_ZONE
from pipeline.frames import TIMESTAMP
from pipeline.reference.query import SIMULATED
from pipeline.simulate.modes import storm_loan_periods
from pipeline.simulate.names import masked_names
from pipeline.simulate.published import DISTRICTS, DistrictFacts

SOURCE_SYSTEM: Final = SIMULATED
UPDATED_AT: Final = datetime(2024, 12, 27, 2, 0, tzinfo=LOCAL_ZONE)
_EMPLOYED_FROM: Final = datetime(2021, 1, 1, tzinfo=LOCAL_ZONE)

LOAN: Final = pl.Struct({"grid_code": pl.String(), "valid_from": TIMESTAMP, "valid_to": TIMESTAMP})
STAFF: Final[dict[str, pl.DataType]] = {
    "worker_key": pl.String(),
    "kind": pl.String(),
    "name_masked": pl.String(),
    "grid_code": pl.String(),
    "district_code": pl.String(),
    "department": pl.String(),
    "active_from": TIMESTAMP,
    "active_to": TIMESTAMP,
    "device_key": pl.String(),
    "channel_rights": pl.List(pl.String()),
    "loans": pl.List(LOAN),
    "updated_at": TIMESTAMP,
    "source_system": pl.String(),
}

#: Departments that attach professional workers to grids.
_PROFESSIONAL_DEPARTMENTS: Final = (
    "public_security", "urban_management", "justice", "market_regulation", "fire_rescue",
    "emergency_management", "health", "civil_affairs",
)  # fmt: skip
_LETTERS: Final = {
    "full_time": "F", "part_time": "P", "professional": "Z", "unit_head": "U", "leader": "L",
    "police_deputy": "J", "clerk": "C", "volunteer": "V",
}  # fmt: skip
_RIGHTS: Final = {
    "full_time": ["grid_patrol", "yuepingan"], "part_time": ["grid_patrol"],
    "professional": ["grid_patrol", "yuepingan"], "unit_head": [], "leader": ["yuepingan"],
    "police_deputy": ["grid_patrol", "yuepingan"], "clerk": ["yuepingan", "petition_market"],
    "volunteer": [],
}  # fmt: skip
RIDER_RIGHTS: Final = ["grid_patrol", "rider_qrcode"]
_LOANED_SHARE = 0.03  # of full-time workers, to another grid of their town while a typhoon mode is active


def head_count(facts: DistrictFacts, towns: int) -> dict[str, int]:
    """Staff per kind of a district. Clerks: three a town and six at the district; volunteers: two a town."""
    return {
        "full_time": facts.full_time,
        "part_time": facts.part_time,
        "professional": facts.professional,
        "unit_head": facts.unit_heads,
        "leader": facts.leaders,
        "police_deputy": facts.police_deputies,
        "clerk": 3 * towns + 6,
        "volunteer": 2 * towns,
    }


def _kind(
    facts: DistrictFacts, grids: Sequence[str], kind: str, count: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One row per worker of a kind, spread over the district's grids round by round."""
    rows = []
    # few workers are spread over the whole district, not over its first grids
    places = np.linspace(0, len(grids), count, endpoint=False).astype(int) if count < len(grids) else None
    lent = rng.random(count) < (_LOANED_SHARE if kind == "full_time" else 0)
    for number in range(count):
        grid = grids[int(places[number]) if places is not None else number % len(grids)]
        rows.append(
            {
                "worker_key": f"W{facts.code}{_LETTERS[kind]}{number + 1:05d}",
                "kind": kind,
                "grid_code": grid,
                "district_code": facts.code,
                "department": (
                    _PROFESSIONAL_DEPARTMENTS[number % len(_PROFESSIONAL_DEPARTMENTS)]
                    if kind == "professional"
                    else "public_security"
                    if kind == "police_deputy"
                    else None
                ),
                "device_key": f"T{facts.code}{number + 1:05d}" if kind == "full_time" else None,
                "channel_rights": (
                    RIDER_RIGHTS if kind == "part_time" and number < facts.riders else _RIGHTS[kind]
                ),
                "loans": _loans(grid, grids, rng) if lent[number] else [],
            }
        )
    return rows


def _loans(home: str, grids: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Loans of one worker to another grid of the same town, one per typhoon of the simulated years."""
    neighbours = [code for code in grids if code[:9] == home[:9] and code != home]
    if not neighbours:
        return []
    target = neighbours[int(rng.integers(len(neighbours)))]
    return [
        {"grid_code": target, "valid_from": start, "valid_to": end} for start, end in storm_loan_periods()
    ]


def hire(layout: pl.DataFrame, seed: int) -> pl.DataFrame:
    """All staff of the city, columns `STAFF`; the counts of `published.DISTRICTS` are exact.

    layout : `geography.lay_out`. Nobody's id number is simulated: staff are known by `worker_key`.
    """
    rows: list[dict[str, Any]] = []
    for number, facts in enumerate(DISTRICTS):
        rng = np.random.default_rng([seed, 2, number])
        mine = layout.filter(pl.col("district_code") == facts.code)
        grids = mine["grid_code"].to_list()
        for kind, count in head_count(facts, mine["town_code"].n_unique()).items():
            rows += _kind(facts, grids, kind, count, rng)
    names = masked_names(np.random.default_rng([seed, 3]), len(rows))
    frame = pl.DataFrame(rows, schema_overrides={"loans": STAFF["loans"], "department": pl.String()})
    return frame.with_columns(
        names.alias("name_masked"),
        pl.lit(_EMPLOYED_FROM).dt.convert_time_zone("UTC").cast(TIMESTAMP).alias("active_from"),
        pl.lit(None, dtype=TIMESTAMP).alias("active_to"),
        pl.lit(UPDATED_AT).dt.convert_time_zone("UTC").cast(TIMESTAMP).alias("updated_at"),
        pl.lit(SOURCE_SYSTEM).alias("source_system"),
    ).select(pl.col(name).cast(dtype) for name, dtype in STAFF.items())
