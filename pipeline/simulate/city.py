"""Writes the whole simulated city as reference files: grids, units, staff, organisations, persons, modes.

The same seed gives the same data, whatever the day. Cardinalities of the described districts are those of
the newspapers; those of Xinhui, Taishan and Kaiping, and every attribute of a grid or person, are
assumptions, marked by `source_system = simulated-city`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import polars as pl
import pyarrow.parquet as pq

from pipeline.clock import LOCAL_ZONE
from pipeline.errors import ConfigurationError
from pipeline.frames import TIMESTAMP
from pipeline.simulate import published
from pipeline.simulate.geography import allocate, lay_out
from pipeline.simulate.modes import mode_calendar
from pipeline.simulate.numbers import credit_codes
from pipeline.simulate.persons import PERSONS, settle
from pipeline.simulate.published import DISTRICTS
from pipeline.simulate.staff import SOURCE_SYSTEM, UPDATED_AT, hire

VALID_FROM: Final = datetime(2020, 1, 1, tzinfo=LOCAL_ZONE)
#: Written last; says that the directory is complete and what it was made from.
MANIFEST: Final = "city.json"
#: Grows when the generator gives other data for the same seed, so that a cached city is made anew.
GENERATOR_VERSION: Final = 1

#: Department that a grid whistles for first, by category of matter.
_ROUTES: Final = {
    "BI": "public_security", "SA": "emergency_management", "DM": "justice", "PO": "public_security",
    "UE": "urban_management", "PS": "civil_affairs", "ER": "emergency_management",
}  # fmt: skip
_RISKS: Final = ("flood_prone", "landslide", "waterfront", "forest", "old_buildings", "hazardous_source")
_INDUSTRIES: Final = (
    "catering",
    "retail",
    "hardware",
    "electronics",
    "textile",
    "logistics",
    "property",
    "education",
)

Progress = Callable[[str, int, int], None]  # what, done, of how many


def _instant(moment: datetime) -> pl.Expr:
    return pl.lit(moment).dt.convert_time_zone("UTC").cast(TIMESTAMP)


def _grids(layout: pl.DataFrame, staff: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One valid version of every grid, with counts in proportion to its residents."""
    parts = []
    for number, facts in enumerate(DISTRICTS):
        rng = np.random.default_rng([seed, 5, number])
        mine = layout.filter(pl.col("district_code") == facts.code)
        count = len(mine)
        residents = allocate(facts.residents, rng.lognormal(0, 0.25, count), minimum=200)
        floating = np.round(
            residents * np.clip(rng.normal(facts.floating_share, 0.04, count), 0.01, 0.8)
        ).astype(np.int64)
        urban = (mine["village_kind"] == "community").to_numpy()
        draw = rng.random(count)
        grid_type = np.select(
            [draw < 0.78, draw < 0.88, draw < 0.96],
            [
                np.where(urban, "residential", "rural"),
                np.where(urban, "commercial", "residential"),
                "industrial",
            ],
            "special",
        )
        # where grids exceed party organisations, the last ones have none of their own
        has_party = np.ones(count, dtype=bool)
        has_party[rng.permutation(count)[: facts.grids - facts.party_organisations]] = False
        risks = rng.random((count, len(_RISKS))) < np.array([0.10, 0.04, 0.12, 0.08, 0.10, 0.05])
        parts.append(
            mine.with_columns(
                unit_count=pl.Series(_even_units(facts.units, count, rng)),
                population_registered=pl.Series(residents - floating),
                population_floating=pl.Series(floating),
                building_count=pl.Series(np.round(residents * 580_000 / 4_800_000).astype(np.int64)),
                dwelling_count=pl.Series(np.round(residents * 1_790_000 / 4_800_000).astype(np.int64)),
                rental_count=pl.Series(np.round(floating / 2.5).astype(np.int64)),
                household_count=pl.Series(np.round(residents / 2.9).astype(np.int64)),
                elderly_60_count=pl.Series(rng.binomial(residents, published.AGE_60_UP)),
                elderly_alone_count=pl.Series(rng.binomial(residents, published.ELDERLY_ALONE_SHARE)),
                disabled_count=pl.Series(rng.binomial(residents, published.DISABILITY_SHARE)),
                hardship_count=pl.Series(rng.binomial(residents, published.HARDSHIP_SHARE)),
                children_care_count=pl.Series(rng.binomial(residents, published.CHILD_CARE_SHARE)),
                enterprise_count=pl.Series(rng.poisson(np.where(grid_type == "industrial", 40, 8))),
                shop_count=pl.Series(rng.poisson(np.where(grid_type == "commercial", 120, 30))),
                school_count=pl.Series(rng.poisson(0.5, count)),
                medical_count=pl.Series(rng.poisson(0.4, count)),
                grid_type=pl.Series(grid_type.tolist()),
                has_party=pl.Series(has_party),
                risk_tags=pl.Series(
                    [[tag for tag, on in zip(_RISKS, row, strict=True) if on] for row in risks],
                    dtype=pl.List(pl.String),
                ),
            )
        )
    return _describe(pl.concat(parts), staff)


def _even_units(total: int, grids: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Units per grid, as even as whole numbers allow: Jianghai's 2,590 are 120 grids of 14 and 70 of 13."""
    units = np.full(grids, total // grids, dtype=np.int64)
    units[rng.permutation(grids)[: total % grids]] += 1
    return units


def _describe(grids: pl.DataFrame, staff: pl.DataFrame) -> pl.DataFrame:
    """Add polygon, staff keys and bookkeeping; columns and order of the grids file."""
    west, south, east, north = (pl.col(side) for side in ("west", "south", "east", "north"))

    def point(lon: pl.Expr, lat: pl.Expr) -> pl.Expr:
        return pl.concat_str(lon.round(6).cast(pl.String), pl.lit(" "), lat.round(6).cast(pl.String))

    ring = pl.concat_str(
        [point(west, south), point(east, south), point(east, north), point(west, north), point(west, south)],
        separator=", ",
    )
    columns = {
        "full_time": "lead_worker_key",
        "leader": "leader_in_residence_key",
        "police_deputy": "police_deputy_key",
    }
    of_kind = [
        staff.filter(pl.col("kind") == kind)
        .group_by("grid_code")
        .agg(pl.col("worker_key").first().alias(name))
        for kind, name in columns.items()
    ]
    workers = (
        staff.filter(pl.col("kind").is_in(["full_time", "part_time"]))
        .group_by("grid_code", maintain_order=True)
        .agg(pl.col("worker_key").alias("worker_keys"))
    )
    width = (east - west) * 111.32 * (((south + north) / 2).radians().cos())
    frame = grids
    for extra in (*of_kind, workers):
        frame = frame.join(extra, on="grid_code", how="left", maintain_order="left")
    return frame.with_columns(
        pl.lit(1).alias("version"),
        _instant(VALID_FROM).alias("valid_from"),
        pl.lit(None, dtype=TIMESTAMP).alias("valid_to"),
        pl.concat_str(pl.lit("POLYGON (("), ring, pl.lit("))")).alias("boundary"),
        ((west + east) / 2).round(6).alias("centroid_lon"),
        ((south + north) / 2).round(6).alias("centroid_lat"),
        (width * (north - south) * 110.574).round(4).alias("area_km2"),
        pl.concat_str(pl.lit("S"), "village_code").alias("shelter_code"),
        pl.when("has_party").then(pl.concat_str(pl.lit("P"), "grid_code")).alias("party_org_code"),
        pl.struct([pl.lit(department).alias(category) for category, department in _ROUTES.items()]).alias(
            "department_route"
        ),
        pl.lit("active").alias("status"),
        _instant(UPDATED_AT).alias("updated_at"),
        pl.lit(SOURCE_SYSTEM).alias("source_system"),
    ).select(
        "grid_code", "version", "valid_from", "valid_to", "grid_name", "grid_type", "village_kind",
        "boundary", "centroid_lon", "centroid_lat", "area_km2", "unit_count", "building_count",
        "dwelling_count", "rental_count", "household_count", "population_registered",
        "population_floating", "elderly_60_count",
        "elderly_alone_count", "disabled_count", "hardship_count", "children_care_count", "enterprise_count",
        "shop_count", "school_count", "medical_count", "risk_tags", "shelter_code", "party_org_code",
        "lead_worker_key", "worker_keys", "leader_in_residence_key", "police_deputy_key", "department_route",
        "status", "updated_at", "source_system",
    )  # fmt: skip


def _units(grids: pl.DataFrame, staff: pl.DataFrame) -> pl.DataFrame:
    """Minimal units; their heads are the grid's unit head, else its part-time workers in turn."""
    heads = (
        staff.filter(pl.col("kind").is_in(["unit_head", "part_time", "full_time"]))
        .with_columns(order=pl.col("kind").replace_strict({"unit_head": 0, "part_time": 1, "full_time": 2}))
        .sort("grid_code", "order", "worker_key")
        .group_by("grid_code", maintain_order=True)
        .agg(pl.col("worker_key").alias("heads"))
    )
    units = (
        grids.select("grid_code", "grid_name", number=pl.int_ranges(1, pl.col("unit_count") + 1))
        .explode("number")
        .join(heads, on="grid_code", how="left", maintain_order="left")
    )
    return units.select(
        pl.concat_str("grid_code", pl.lit("-U"), pl.col("number").cast(pl.String).str.zfill(3)).alias(
            "unit_code"
        ),
        pl.lit(1).alias("version"),
        _instant(VALID_FROM).alias("valid_from"),
        pl.lit(None, dtype=TIMESTAMP).alias("valid_to"),
        pl.concat_str("grid_name", "number", pl.lit("号单元")).alias("unit_name"),
        pl.col("heads").list.get((pl.col("number") - 1) % pl.col("heads").list.len()).alias("unit_head_key"),
        _instant(UPDATED_AT).alias("updated_at"),
        pl.lit(SOURCE_SYSTEM).alias("source_system"),
    )


def _organisations(grids: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Three firms or shops a grid, and a village committee, property manager or school for some."""
    rng = np.random.default_rng([seed, 6])
    kinds = rng.choice(
        ["enterprise", "shop", "property_manager", "social_organisation", "school", "medical"],
        len(grids) * 3, p=[0.30, 0.50, 0.08, 0.04, 0.05, 0.03],
    )  # fmt: skip
    label = {
        "enterprise": "企业", "shop": "商铺", "property_manager": "物业服务",
        "social_organisation": "社会组织", "school": "学校", "medical": "诊所",
    }  # fmt: skip
    grid = np.repeat(np.arange(len(grids)), 3)
    unit = (rng.random(len(grid)) * grids["unit_count"].to_numpy()[grid]).astype(np.int64) + 1
    frame = pl.DataFrame(
        {
            "org_code": credit_codes(np.arange(1, len(grid) + 1)),
            "kind": kinds.tolist(),
            "number": np.tile(np.arange(1, 4), len(grids)),
            "grid_code": grids["grid_code"].gather(grid),
            "grid_name": grids["grid_name"].gather(grid),
            "unit": unit,
            "industry": rng.choice(_INDUSTRIES, len(grid)).tolist(),
            "staff_band": rng.choice(
                ["1-9", "10-49", "50-299", "300+"], len(grid), p=[0.7, 0.2, 0.08, 0.02]
            ).tolist(),
            "key_industry_flag": rng.random(len(grid)) < 0.05,
        }
    )
    return frame.select(
        "org_code",
        "kind",
        pl.concat_str("grid_name", pl.col("kind").replace_strict(label), "number", pl.lit("（模拟）")).alias(
            "name"
        ),
        "grid_code",
        pl.concat_str("grid_code", pl.lit("-U"), pl.col("unit").cast(pl.String).str.zfill(3)).alias(
            "unit_code"
        ),
        "industry",
        "staff_band",
        "key_industry_flag",
        _instant(UPDATED_AT).alias("updated_at"),
        pl.lit(SOURCE_SYSTEM).alias("source_system"),
    )


def _write_persons(path: Path, grids: pl.DataFrame, seed: int, count: int, progress: Progress | None) -> None:
    schema = pl.DataFrame(schema=PERSONS).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    done = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for residents in settle(grids, seed, count):
            writer.write_table(residents.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema))
            done += len(residents)
            if progress:
                progress("persons", done, count)


def generate_city(
    out: Path, *, catalogue_dir: Path, seed: int, persons: int, progress: Progress | None = None
) -> dict[str, int]:
    """Write the reference files of the city into `out` (created). Returns rows per file.

    persons : residents to simulate, 0 to 5 million; memory stays that of 200,000.
    The files appear under their names only when they are complete. Raises ConfigurationError if `out`
    cannot be written.
    """
    work = out.with_name(f".{out.name}.partial")
    try:
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        layout = lay_out(catalogue_dir, seed)
        staff = hire(layout, seed)
        grids = _grids(layout, staff, seed)
        frames = {
            "grids": grids,
            "units": _units(grids, staff),
            "staff": staff,
            "organisations": _organisations(grids, seed),
            "modes": mode_calendar(),
        }
        for name, frame in frames.items():
            frame.write_parquet(work / f"{name}.parquet", compression="zstd")
        _write_persons(work / "persons.parquet", grids, seed, persons, progress)
        counts = {name: len(frame) for name, frame in frames.items()} | {"persons": persons}
        (work / MANIFEST).write_bytes(
            orjson.dumps(_manifest(seed, persons, counts), option=orjson.OPT_INDENT_2)
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        for path in sorted(work.iterdir(), key=lambda path: path.name == MANIFEST):
            path.replace(out / path.name)
        work.rmdir()
    except OSError as error:
        raise ConfigurationError(f"cannot write the city to {out}: {error.strerror or error}") from error
    return counts


def _manifest(seed: int, persons: int, counts: dict[str, int] | None = None) -> dict[str, Any]:
    manifest: dict[str, Any] = {"generator": GENERATOR_VERSION, "seed": seed, "persons": persons}
    return manifest | {"rows": counts} if counts is not None else manifest


def read_manifest(city_dir: Path) -> dict[str, Any] | None:
    """What a complete city directory was made from; None if there is none."""
    try:
        manifest = orjson.loads((city_dir / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def ensure_city(
    out: Path, *, catalogue_dir: Path, seed: int, persons: int, progress: Progress | None = None
) -> Path:
    """The cached city in `out`, generated if it is missing or was made from other values. Returns `out`."""
    manifest = read_manifest(out)
    wanted = _manifest(seed, persons)
    if manifest is None or any(manifest.get(name) != value for name, value in wanted.items()):
        generate_city(out, catalogue_dir=catalogue_dir, seed=seed, persons=persons, progress=progress)
    return out
