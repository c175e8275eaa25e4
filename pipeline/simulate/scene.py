"""What a simulated report can draw from: places, staff, residents, organisations and matters, as arrays.

Read from the reference files and the catalogue, so that an event agrees with what the pipeline will look up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from pipeline.errors import ConfigurationError
from pipeline.simulate.geography import read_areas

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_FEWEST_PERSONS = 20  # per district, or reports about persons would repeat the same few


@dataclass(frozen=True)
class Groups:
    """Values in groups, one behind the other: group `g` is `values[start[g] : start[g] + size[g]]`."""

    values: pl.DataFrame
    start: Ints
    size: Ints

    def pick(self, rng: np.random.Generator, group: Ints) -> Ints:
        """(n,) rows of `values`, one drawn evenly from each given group. No given group may be empty."""
        size = self.size[group]
        if len(size) and size.min() == 0:
            raise ConfigurationError(
                "the simulated city lacks staff or residents in some grid; generate it anew"
            )
        chosen: Ints = self.start[group] + (rng.random(len(group)) * size).astype(np.int64)
        return chosen


def group_by_code(rows: pl.DataFrame, column: str, codes: pl.Series) -> Groups:
    """Group `rows` by `column`, groups numbered as `codes` lists them; rows of other codes are left out."""
    numbers = pl.DataFrame({column: codes, "group": np.arange(len(codes))})
    ordered = rows.join(numbers, on=column, how="inner", maintain_order="left").sort(
        "group", maintain_order=True
    )
    size = np.bincount(ordered["group"].to_numpy(), minlength=len(codes)).astype(np.int64)
    return Groups(ordered, np.r_[0, np.cumsum(size)[:-1]].astype(np.int64), size)


@dataclass(frozen=True)
class Matters:
    """The regular matters in force, one row each, in catalogue order.

    frame : code, name_zh, category, lead_department, response_seconds, resolution_seconds, urgency,
            needs_person, allowed_channels and required_fields as lists.
    """

    frame: pl.DataFrame
    channel_kinds: dict[str, str]
    photo_channels: frozenset[str]

    def allowed(self, channel: str) -> npt.NDArray[np.bool_]:
        """Which matters the channel may report."""
        return self.frame["allowed_channels"].list.contains(channel).to_numpy()

    def requires(self, field: str) -> npt.NDArray[np.bool_]:
        return self.frame["required_fields"].list.contains(field).to_numpy()


def load_matters(catalogue_dir: Path) -> Matters:
    """The newest version of the catalogue. Raises ConfigurationError if there is none."""
    versions = sorted((catalogue_dir / "matters").glob("*.yaml"))
    if not versions:
        raise ConfigurationError(f"no catalogue in {catalogue_dir / 'matters'}; check GRIDPIPE_SCHEMAS_DIR")
    matters = [
        {
            "code": matter["code"],
            "name_zh": matter["name_zh"],
            "category": matter["category"],
            "lead_department": matter["lead_department"],
            "response_seconds": int(matter["response_minutes"]) * 60,
            "resolution_seconds": int(matter["resolution_hours"]) * 3_600,
            "urgency": matter["urgency"],
            "needs_person": bool(matter["needs_person"]),
            "allowed_channels": list(matter["allowed_channels"]),
            "required_fields": list(matter["required_fields"]),
        }
        for matter in yaml.safe_load(versions[-1].read_text(encoding="utf-8"))["matters"]
        if matter["effective_to"] is None and not matter.get("active_only_in_modes")
    ]
    channels: list[dict[str, Any]] = yaml.safe_load(
        (catalogue_dir / "channels.yaml").read_text(encoding="utf-8")
    )["channels"]
    return Matters(
        pl.DataFrame(matters),
        {channel["code"]: channel["kind"] for channel in channels},
        frozenset(channel["code"] for channel in channels if channel["carries_photo"]),
    )


@dataclass(frozen=True)
class Scene:
    """The city as arrays. Grids are numbered as in `grids`, districts as in `districts`."""

    districts: pl.Series
    grids: pl.DataFrame  # grid_code, grid_name, district (number), unit_count, west, south, east, north
    grid_range: Ints  # (districts + 1,): the grids of district d are grid_range[d] … grid_range[d + 1] - 1
    patrol: Groups  # full- and part-time workers by grid
    full_time: Groups  # by grid
    riders: Groups  # by district
    clerks: Groups  # by district
    adults: Groups  # residents of 18 and over by district
    residents: Groups  # by district
    button_users: Groups  # Ping'antong users by district, residents of 60 and over where there is none
    organisations: Groups  # by grid
    matters: Matters

    @classmethod
    def load(cls, city_dir: Path, catalogue_dir: Path) -> Scene:
        """Read a generated city. Raises ConfigurationError if it is missing or too small for events."""
        try:
            grids = _read_grids(city_dir)
            staff = pl.read_parquet(
                city_dir / "staff.parquet",
                columns=["worker_key", "kind", "grid_code", "district_code", "channel_rights"],
            )
            organisations = pl.read_parquet(
                city_dir / "organisations.parquet", columns=["org_code", "name", "grid_code"]
            )
            # 400,000 residents are plenty to draw from; a city of 4.8 million need not be held in memory
            persons = (
                pl.scan_parquet(city_dir / "persons.parquet")
                .select("id_number", "birth_date", "home_grid_code", "pingantong_user_flag")
                .head(400_000)
                .collect()
            )
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ConfigurationError(
                f"{city_dir} holds no simulated city; make one with `gridpipe simulate city --out {city_dir}`"
            ) from error
        codes = pl.Series(list(read_areas(catalogue_dir)))
        grids = grids.with_columns(
            district=pl.col("grid_code")
            .str.head(6)
            .replace_strict(codes, np.arange(len(codes)), return_dtype=pl.Int64)
        ).sort("district", maintain_order=True)
        grid_range = np.searchsorted(grids["district"].to_numpy(), np.arange(len(codes) + 1)).astype(np.int64)
        persons = persons.with_columns(district_code=pl.col("home_grid_code").str.head(6)).with_row_index(
            "number"
        )
        born = pl.col("birth_date").dt.year()
        elderly = persons.filter(born < 1965)
        users = persons.filter("pingantong_user_flag")
        users = pl.concat([users, elderly.join(users, on="district_code", how="anti", maintain_order="left")])
        scene = cls(
            districts=codes,
            grids=grids,
            grid_range=grid_range,
            patrol=group_by_code(
                staff.filter(pl.col("kind").is_in(["full_time", "part_time"])),
                "grid_code",
                grids["grid_code"],
            ),
            full_time=group_by_code(
                staff.filter(pl.col("kind") == "full_time"), "grid_code", grids["grid_code"]
            ),
            riders=group_by_code(
                staff.filter(pl.col("channel_rights").list.contains("rider_qrcode")), "district_code", codes
            ),
            clerks=group_by_code(staff.filter(pl.col("kind") == "clerk"), "district_code", codes),
            adults=group_by_code(persons.filter(born < 2006), "district_code", codes),
            residents=group_by_code(persons, "district_code", codes),
            button_users=group_by_code(users, "district_code", codes),
            organisations=group_by_code(organisations, "grid_code", grids["grid_code"]),
            matters=load_matters(catalogue_dir),
        )
        if scene.adults.size.min() < _FEWEST_PERSONS or scene.button_users.size.min() == 0:
            raise ConfigurationError(
                f"{city_dir} has too few residents for events; "
                f"make it anew with `gridpipe simulate city --out {city_dir} --persons 20000`"
            )
        return scene


def _read_grids(city_dir: Path) -> pl.DataFrame:
    """Grids with the rectangle that their boundary describes (corners south-west and north-east)."""
    grids = pl.read_parquet(
        city_dir / "grids.parquet", columns=["grid_code", "grid_name", "unit_count", "boundary"]
    )
    corners = pl.col("boundary").str.extract_all(r"-?\d+\.?\d*").cast(pl.List(pl.Float64))
    return grids.with_columns(
        west=corners.list.get(0),
        south=corners.list.get(1),
        east=corners.list.get(4),
        north=corners.list.get(5),
    ).drop("boundary")
