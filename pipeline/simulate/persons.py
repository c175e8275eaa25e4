"""Simulated residents, written in slices so that 4.8 million need no more memory than 200,000."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.frames import TIMESTAMP
from pipeline.simulate import published
from pipeline.simulate.names import masked_names
from pipeline.simulate.numbers import id_numbers
from pipeline.simulate.staff import SOURCE_SYSTEM, UPDATED_AT

SLICE_ROWS: Final = 200_000
#: Ages are as of this day, so that the same seed gives the same residents on every day.
CENSUS_DAY: Final = date(2025, 1, 1)
_OLDEST_YEARS: Final = 104
_EPOCH_DAY: Final = (CENSUS_DAY - date(1970, 1, 1)).days

PERSONS: Final[dict[str, pl.DataType]] = {
    "id_number": pl.String(),
    "name_masked": pl.String(),
    "gender": pl.String(),
    "birth_date": pl.Date(),
    "phone_masked": pl.String(),
    "residence_kind": pl.String(),
    "home_grid_code": pl.String(),
    "home_unit_code": pl.String(),
    "building_code": pl.String(),
    "household_key": pl.String(),
    "elderly_alone_flag": pl.Boolean(),
    "disability_flag": pl.Boolean(),
    "hardship_flag": pl.Boolean(),
    "child_care_flag": pl.Boolean(),
    "health_care_flag": pl.Boolean(),
    "pingantong_user_flag": pl.Boolean(),
    "visit_rhythm": pl.String(),
    "last_visit_at": TIMESTAMP,
    "volunteer_flag": pl.Boolean(),
    "grid_worker_kind": pl.String(),
    "consent_basis": pl.String(),
    "updated_at": TIMESTAMP,
    "source_system": pl.String(),
    "deleted_at": TIMESTAMP,
}

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class _Sequences:
    """Hands out the three-digit sequences of id numbers, so that no number is given twice."""

    def __init__(self) -> None:
        self._used = np.zeros((_OLDEST_YEARS * 366 + 1) * 2, dtype=np.int64)

    def take(self, age_days: Ints, male: Bools) -> Ints:
        """Odd sequences for men, even ones for women; at most 500 of each a day."""
        slot = age_days * 2 + male
        order = np.argsort(slot, kind="stable")
        ordered = slot[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.r_[starts, len(ordered)])
        rank = np.empty(len(slot), dtype=np.int64)
        rank[order] = np.arange(len(ordered)) - np.repeat(starts, sizes)
        rank += self._used[slot]
        self._used[ordered[starts]] += sizes
        if rank.max(initial=0) > 499:
            raise ValueError("more than 500 residents of one gender share a birthday; generate fewer persons")
        return rank * 2 + male


def _ages(rng: np.random.Generator, count: int) -> Ints:
    """Age in days; groups 0–14, 15–59 and 60+ by the published shares, tapering off above 60."""
    group = rng.choice(3, count, p=[published.AGE_0_14, published.AGE_15_59, published.AGE_60_UP])
    young = rng.uniform(0, 15, count)
    adult = rng.uniform(15, 60, count)
    elderly = 60 + rng.beta(1.0, 2.6, count) * (_OLDEST_YEARS - 61)
    age: Ints = (np.choose(group, [young, adult, elderly]) * 365.2425).astype(np.int64)
    return age


def _slice(
    rng: np.random.Generator, grids: dict[str, Any], sequences: _Sequences, count: int
) -> pl.DataFrame:
    home = rng.choice(len(grids["code"]), count, p=grids["share"])
    unit = (rng.random(count) * grids["units"][home]).astype(np.int64) + 1
    age_days = _ages(rng, count)
    male = rng.random(count) < 0.512
    birth_dates = pl.Series(_EPOCH_DAY - age_days).cast(pl.Int32).cast(pl.Date)
    years = age_days / 365.2425
    elderly, child = years >= 60, years < 16
    # flags are drawn within their age group at the rate that gives the published share of all residents
    alone = elderly & (rng.random(count) < published.ELDERLY_ALONE_SHARE / published.AGE_60_UP)
    disabled = rng.random(count) < published.DISABILITY_SHARE
    hardship = rng.random(count) < published.HARDSHIP_SHARE
    care = child & (rng.random(count) < published.CHILD_CARE_SHARE / (published.AGE_0_14 * 16 / 15))
    emergency_button = elderly & (rng.random(count) < published.PINGANTONG_SHARE / published.AGE_60_UP)
    kind = np.where(
        rng.random(count) < grids["floating"][home],
        "floating",
        np.where(rng.random(count) < 0.002, "overseas", "registered"),
    )
    visited_days = rng.integers(1, 60, count)
    rhythm = np.where(alone | care, "weekly", np.where(disabled | hardship, "monthly", "quarterly"))
    building = rng.integers(1, 40, count)
    household = rng.integers(1, 60, count)
    phone_tail = rng.integers(0, 10_000, count)
    frame = pl.DataFrame(
        {
            "id_number": id_numbers(birth_dates, sequences.take(age_days, male)),
            "name_masked": masked_names(rng, count),
            "gender": np.where(male, "male", "female"),
            "birth_date": birth_dates,
            "residence_kind": kind,
            "home_grid_code": grids["code"].gather(home),
            "unit": unit,
            "building": building,
            "household": household,
            "phone_tail": phone_tail,
            "adult": years >= 14,
            "elderly_alone_flag": alone,
            "disability_flag": disabled,
            "hardship_flag": hardship,
            "child_care_flag": care,
            "health_care_flag": rng.random(count) < np.where(elderly, 0.12, 0.02),
            "pingantong_user_flag": emergency_button,
            "visit_rhythm": rhythm,
            "visited_days": visited_days,
            "volunteer_flag": ~child & (rng.random(count) < 0.01),
        }
    )
    grid, updated = pl.col("home_grid_code"), pl.lit(UPDATED_AT).dt.convert_time_zone("UTC").cast(TIMESTAMP)
    unit_code = pl.concat_str(grid, pl.lit("-U"), pl.col("unit").cast(pl.String).str.zfill(3))
    return frame.with_columns(
        pl.when("adult")
        .then(pl.concat_str(pl.lit("154****"), pl.col("phone_tail").cast(pl.String).str.zfill(4)))
        .alias("phone_masked"),
        unit_code.alias("home_unit_code"),
        pl.concat_str(unit_code, pl.lit("-B"), pl.col("building").cast(pl.String).str.zfill(2)).alias(
            "building_code"
        ),
        pl.concat_str(unit_code, pl.lit("-H"), pl.col("household").cast(pl.String).str.zfill(3)).alias(
            "household_key"
        ),
        (updated - pl.duration(days="visited_days")).cast(TIMESTAMP).alias("last_visit_at"),
        pl.lit(None, dtype=pl.String).alias("grid_worker_kind"),
        pl.lit("public_duty").alias("consent_basis"),
        updated.alias("updated_at"),
        pl.lit(SOURCE_SYSTEM).alias("source_system"),
        pl.lit(None, dtype=TIMESTAMP).alias("deleted_at"),
    ).select(pl.col(name).cast(dtype) for name, dtype in PERSONS.items())


def settle(grids: pl.DataFrame, seed: int, count: int) -> Iterator[pl.DataFrame]:
    """Residents in slices of at most `SLICE_ROWS` rows, columns `PERSONS`.

    grids : rows of the grids file; a resident lives in a grid in proportion to its population.
    Id numbers have a valid checksum and the unassigned prefix 999999, and are unique over all slices.
    """
    population = (grids["population_registered"] + grids["population_floating"]).to_numpy()
    columns = {
        "code": grids["grid_code"],
        "share": population / population.sum(),
        "units": grids["unit_count"].to_numpy(),
        "floating": (
            grids["population_floating"] / (grids["population_registered"] + grids["population_floating"])
        ).to_numpy(),
    }
    sequences = _Sequences()
    for number, start in enumerate(range(0, count, SLICE_ROWS)):
        rng = np.random.default_rng([seed, 4, number])
        yield _slice(rng, columns, sequences, min(SLICE_ROWS, count - start))
