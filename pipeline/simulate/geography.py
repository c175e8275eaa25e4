"""The city's hierarchy on the map: districts, towns, villages, grids, cut from boxes that do not overlap.

Codes of districts and towns are the real ones of `areas.yaml`; village and grid digits are synthetic
(villages 001–199 residents' communities, 200–399 village committees). A grid is a rectangle; neighbours
share the same rounded edge, so grids tile their district without gap or overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from pipeline.errors import ConfigurationError
from pipeline.simulate.published import DISTRICTS, DistrictFacts

Box = tuple[float, float, float, float]
_DECIMALS = 6  # 0.1 m
_METRES_PER_DEGREE_RATIO = float(np.cos(np.radians(22.3)))  # a degree of longitude against one of latitude


def allocate(total: int, weights: npt.ArrayLike, minimum: int = 1) -> npt.NDArray[np.int64]:
    """Split `total` into whole parts in proportion to `weights` (largest remainders), each ≥ `minimum`.

    The parts add up to `total` exactly. Raises ValueError if the minimum alone exceeds the total.
    """
    share = np.asarray(weights, dtype=np.float64)
    rest = total - minimum * len(share)
    if rest < 0:
        raise ValueError(f"{total} cannot give {len(share)} parts of at least {minimum}")
    exact = rest * share / share.sum()
    parts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - parts), kind="stable")
    parts[order[: rest - int(parts.sum())]] += 1
    parts += minimum
    return parts


def cut(box: Box, weights: Sequence[float]) -> list[Box]:
    """Cut `box` into rectangles with areas in proportion to `weights`, in order, by halving."""
    if len(weights) == 1:
        return [box]
    west, south, east, north = box
    sums = np.cumsum(weights)
    half = int(np.searchsorted(sums, sums[-1] / 2, side="left"))
    half = min(max(half if half else 1, 1), len(weights) - 1)
    share = float(sums[half - 1] / sums[-1])
    if (east - west) * _METRES_PER_DEGREE_RATIO >= north - south:
        middle = round(west + (east - west) * share, _DECIMALS)
        first, second = (west, south, middle, north), (middle, south, east, north)
    else:
        middle = round(south + (north - south) * share, _DECIMALS)
        first, second = (west, south, east, middle), (west, middle, east, north)
    return cut(first, weights[:half]) + cut(second, weights[half:])


def read_areas(catalogue_dir: Path) -> dict[str, dict[str, Any]]:
    """Districts of `areas.yaml` by code. Raises ConfigurationError if the file is not there."""
    path = catalogue_dir / "areas.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; check GRIDPIPE_SCHEMAS_DIR"
        ) from error
    return {district["code"]: district for district in document["districts"]}


def _district(facts: DistrictFacts, area: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """One row per grid of a district, in code order."""
    towns = area["towns"]
    is_street = np.array([town["name_zh"].endswith("街道") for town in towns])
    # a street is denser than a town: more villages and grids on less land
    town_weight = np.where(is_street, 2.2, 1.0) * rng.uniform(0.7, 1.3, len(towns))
    villages_per_town = allocate(facts.villages, town_weight, minimum=3)
    communities = np.where(
        is_street, np.ceil(villages_per_town * 0.8), np.maximum(1, villages_per_town // 8)
    ).astype(int)
    village_town = np.repeat(np.arange(len(towns)), villages_per_town)
    grid_weight = rng.uniform(0.5, 1.5, facts.villages) * np.where(is_street[village_town], 1.6, 1.0)
    grids_per_village = allocate(facts.grids, grid_weight, minimum=1)

    rows: list[dict[str, Any]] = []
    land = np.where(is_street, 0.5, 1.0) * villages_per_town * rng.uniform(0.8, 1.2, len(towns))
    for number, (town, town_box) in enumerate(zip(towns, cut(facts.box, land.tolist()), strict=True)):
        mine = np.flatnonzero(village_town == number)
        village_boxes = cut(town_box, (grids_per_village[mine] + 0.5).tolist())
        for order, (village, village_box) in enumerate(zip(mine, village_boxes, strict=True)):
            is_community = order < communities[number]
            digits = order + 1 if is_community else 200 + order - communities[number]
            village_code = f"{town['code']}{digits:03d}"
            village_name = f"{town['name_zh']}第{order + 1}{'社区' if is_community else '村'}"
            grids = int(grids_per_village[village])
            for grid, box in enumerate(cut(village_box, rng.uniform(0.7, 1.3, grids).tolist()), start=1):
                rows.append(
                    {
                        "grid_code": f"{village_code}{grid:03d}",
                        "village_code": village_code,
                        "town_code": town["code"],
                        "district_code": facts.code,
                        "village_kind": "community" if is_community else "village",
                        "grid_name": f"{village_name}第{grid}网格",
                        "west": box[0],
                        "south": box[1],
                        "east": box[2],
                        "north": box[3],
                    }
                )
    return rows


def lay_out(catalogue_dir: Path, seed: int) -> pl.DataFrame:
    """Every grid of the city with its codes and its rectangle (degrees WGS84), in code order per district."""
    areas = read_areas(catalogue_dir)
    rows: list[dict[str, Any]] = []
    for number, facts in enumerate(DISTRICTS):
        if facts.code not in areas:
            raise ConfigurationError(f"{catalogue_dir / 'areas.yaml'}: district {facts.code} is missing")
        rows += _district(facts, areas[facts.code], np.random.default_rng([seed, 1, number]))
    return pl.DataFrame(rows)
