"""Which emergency mode acts on a report: the strongest one active in the grid's area when it happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.reference.keys import grid_numbers, integers
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


class Record(NamedTuple):
    """A declaration of a mode: active from `starts` to before `ends` (ms) in each grid whose code begins with
    its area code."""

    level: int  # index in the catalogue, as is `mode`
    mode: int
    bit: int
    area: int
    digits: int
    starts: int
    ends: int


def known_records(records: pl.DataFrame, modes: Modes) -> list[Record]:
    """What can act of rows of frames.MODE: of those with one mode, area and valid_from the highest version.

    Unknown modes and levels are left out: they belong to a newer catalogue. valid_to null: open.
    """
    levels = {entry.code: number for number, entry in enumerate(modes.levels)}
    order = {code: number for number, code in enumerate(modes.names)}
    bits = mode_bits(modes)
    newest = pl.col("version") == pl.col("version").max().over("mode", "area_code", "valid_from")
    found = records.filter(
        newest,
        pl.col("mode").is_in(list(order)),
        pl.col("level").is_in(list(levels)),
        pl.col("area_code").str.contains(r"^\d{4,15}$"),
        pl.col("valid_from").is_not_null(),
    ).select(
        "level",
        "mode",
        "area_code",
        pl.col("valid_from").to_physical(),
        pl.col("valid_to").to_physical().fill_null(_FOREVER),
    )
    return [
        Record(levels[level], order[mode], bits[mode], int(area), len(area), starts, ends)
        for level, mode, area, starts, ends in found.iter_rows()
    ]


def strongest_active(
    reports: pl.DataFrame, wanted: npt.NDArray[np.int64], records: Sequence[Record]
) -> ActiveModes:
    """The strongest active mode among those that each report's matter wants.

    reports : (n, ..) with occurred_at and grid_code (15 digits); wanted : n bit sets of `mode_bits`. At equal
    level the mode that the catalogue lists first is taken.

    Loops over the records in force during the block, of which there are few; every step is vectorised.
    """
    level = np.full(reports.height, -1, np.int8)
    mode = np.full(reports.height, -1, np.int8)
    if not records or not wanted.any():
        return ActiveModes(level, mode)
    occurred = integers(reports["occurred_at"], np.iinfo(np.int64).min)
    earliest, latest = occurred.min(), occurred.max()
    relevant = [record for record in records if record.starts <= latest and earliest < record.ends]
    if not relevant:
        return ActiveModes(level, mode)
    grid = grid_numbers(reports["grid_code"])
    areas: dict[int, npt.NDArray[np.int64]] = {}
    for record in relevant:
        prefix = areas.setdefault(record.digits, grid // 10 ** (_GRID_CODE_DIGITS - record.digits))
        hit = (occurred >= record.starts) & (occurred < record.ends) & (prefix == record.area)
        hit &= (wanted & record.bit) != 0
        hit &= (record.level > level) | ((record.level == level) & (record.mode < mode))
        level[hit], mode[hit] = record.level, record.mode
    return ActiveModes(level, mode)
