"""Which emergency mode acts on a report: the strongest one active in the grid's area when it happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.rules.catalogue import Modes

#: Digits of an area code: the city (4407), a district, a town. Grid codes have 15.
_GRID_CODE_DIGITS: Final = 15
_FOREVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ActiveModes:
    """Per report: index (from 0) of the strongest level and of its mode, -1 where none is active."""

    level: npt.NDArray[np.int8]
    mode: npt.NDArray[np.int8]

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        return self.level >= 0


def mode_bits(modes: Modes) -> Mapping[str, int]:
    """One bit per mode, so that the modes of a matter are one number."""
    return {code: 1 << number for number, code in enumerate(modes.names)}


def strongest_active(
    reports: pl.DataFrame, wanted: npt.NDArray[np.int64], records: pl.DataFrame, modes: Modes
) -> ActiveModes:
    """The strongest active mode among those that each report's matter wants.

    reports : (n, ..) with occurred_at and grid_code (15 digits); wanted : n bit sets of `mode_bits`;
    records : rows of frames.MODE. A record is active from valid_from (inclusive) to valid_to (exclusive,
    null: open) in every grid whose code begins with its area code. Of records with one mode, area and
    valid_from, those of the highest version count. Unknown modes and levels are ignored: they belong to a
    newer catalogue. At equal level the mode that the catalogue lists first is taken.

    Loops over the records in force during the block, of which there are few; every step is vectorised.
    """
    level = np.full(reports.height, -1, np.int8)
    mode = np.full(reports.height, -1, np.int8)
    if not reports.height or not records.height or not wanted.any():
        return ActiveModes(level, mode)
    occurred = reports["occurred_at"].to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()
    relevant = _relevant(records, reports["occurred_at"], modes)
    if not relevant.height:
        return ActiveModes(level, mode)
    grid = reports["grid_code"].cast(pl.Int64, strict=False).fill_null(-1).to_numpy()
    levels = {entry.code: number for number, entry in enumerate(modes.levels)}
    order = {code: number for number, code in enumerate(modes.names)}
    bits = mode_bits(modes)
    areas: dict[int, npt.NDArray[np.int64]] = {}
    for record in relevant.iter_rows(named=True):
        area, digits = int(record["area_code"]), len(record["area_code"])
        prefix = areas.setdefault(digits, grid // 10 ** (_GRID_CODE_DIGITS - digits))
        strength, kind = levels[record["level"]], order[record["mode"]]
        hit = (occurred >= record["starts"]) & (occurred < record["ends"]) & (prefix == area)
        hit &= (wanted & bits[record["mode"]]) != 0
        hit &= (strength > level) | ((strength == level) & (kind < mode))
        level[hit], mode[hit] = strength, kind
    return ActiveModes(level, mode)


def _relevant(records: pl.DataFrame, occurred_at: pl.Series, modes: Modes) -> pl.DataFrame:
    """Newest versions of the records that overlap the block, times as milliseconds."""
    newest = pl.col("version") == pl.col("version").max().over("mode", "area_code", "valid_from")
    return (
        records.filter(
            newest,
            pl.col("mode").is_in(list(modes.names)),
            pl.col("level").is_in([level.code for level in modes.levels]),
            pl.col("area_code").str.contains(r"^\d{4,15}$"),
            pl.col("valid_from") <= occurred_at.max(),
            pl.col("valid_to").is_null() | (pl.col("valid_to") > occurred_at.min()),
        )
        .with_columns(
            pl.col("valid_from").to_physical().alias("starts"),
            pl.col("valid_to").to_physical().fill_null(_FOREVER).alias("ends"),
        )
        .select("mode", "level", "area_code", "starts", "ends")
    )
