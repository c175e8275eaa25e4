"""Breaks drawn reports on purpose, each in one way that admission must reject with a known first reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Final

import numpy as np
import polars as pl

from pipeline.simulate.numbers import id_numbers
from pipeline.simulate.reports import PHOTOS, dress, points_in
from pipeline.simulate.scene import Scene
from pipeline.simulate.texts import hashes

_DAY_MS: Final = 24 * 3_600_000

#: Primary reason and its share of all rejected reports (assumed).
REASONS: Final = {
    "UNKNOWN_MATTER": 0.12,
    "TEMP_MATTER_EXPIRED": 0.03,
    "CHANNEL_NOT_ALLOWED": 0.10,
    "REPORTER_NOT_AUTHORISED": 0.12,
    "GRID_UNKNOWN": 0.10,
    "LOCATION_GRID_MISMATCH": 0.18,
    "REQUIRED_FIELD_MISSING": 0.15,
    "EVIDENCE_INVALID": 0.06,
    "PERSON_UNRESOLVED": 0.05,
    "REFER_EMERGENCY_SERVICE": 0.04,
    "OUT_OF_ADMIN_SCOPE": 0.04,
    "TIME_IN_FUTURE": 0.01,
}

Spoiler = Callable[[Scene, np.random.Generator, pl.DataFrame, int], pl.DataFrame]


def _with_matter(
    scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, usable: pl.Expr
) -> pl.DataFrame:
    """The same places reported under a matter of `usable` by a patrol, dressed anew."""
    choices = scene.matters.frame.with_row_index("number").filter(
        usable & pl.col("allowed_channels").list.contains("grid_patrol")
    )["number"]
    matter = choices.gather(rng.integers(0, len(choices), len(frame)).astype(np.uint32)).cast(pl.Int64)
    placed = frame.select("district", "grid", "at", matter=matter, channel=pl.lit("grid_patrol"))
    lon, lat = points_in(scene, rng, placed["grid"].to_numpy())
    return dress(scene, rng, placed.with_columns(lon=pl.Series(lon), lat=pl.Series(lat)))


def _unknown_matter(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    return frame.with_columns(
        matter_code=pl.Series(rng.choice(["UE-77", "SA-40", "XX-01"], len(frame)).tolist())
    )


def _expired_matter(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    frame = _with_matter(scene, rng, frame, pl.col("required_fields").list.contains("photo"))
    return frame.with_columns(matter_code=pl.lit("TMP-2023-TYP-01"))


def _wrong_channel(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    frame = _with_matter(scene, rng, frame, ~pl.col("needs_person"))
    # the hand-over desk is open to anyone, so that only the channel is wrong
    barred = scene.matters.frame.filter(~pl.col("allowed_channels").list.contains("dept_transfer"))["code"]
    return frame.with_columns(
        channel=pl.lit("dept_transfer"),
        actor_type=pl.lit("department"),
        actor_key=pl.lit("transfer-desk"),
        matter_code=barred.gather(rng.integers(0, len(barred), len(frame)).astype(np.uint32)),
    )


def _stranger(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    frame = _with_matter(scene, rng, frame, ~pl.col("needs_person"))
    elsewhere = (frame["grid"].to_numpy() + len(scene.grids) // 2) % len(scene.grids)
    chosen = scene.patrol.values[scene.patrol.pick(rng, elsewhere).tolist()]
    return frame.with_columns(chosen["worker_key"].alias("actor_key"), chosen["kind"].alias("actor_type"))


def _unknown_grid(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    codes = scene.grids["grid_code"].gather(frame["grid"].cast(pl.UInt32))
    return frame.with_columns((codes.str.head(12) + "999").alias("grid_code"))


def _far_away(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    # half the city further on there is always another district, kilometres away
    elsewhere = (frame["grid"].to_numpy() + len(scene.grids) // 2) % len(scene.grids)
    lon, lat = points_in(scene, rng, elsewhere)
    return frame.with_columns(lon=pl.Series(lon), lat=pl.Series(lat), crs=pl.lit("wgs84"))


def _field_missing(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    located = pl.Series(scene.matters.requires("location")[frame["matter"].to_numpy()])
    return frame.with_columns(
        pl.when(~located).then("lon").alias("lon"),
        pl.when(~located).then("lat").alias("lat"),
        pl.when(~located).then("crs").alias("crs"),
        pl.when(located).then("description").alias("description"),
    )


def _old_photo(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    frame = _with_matter(scene, rng, frame, pl.col("required_fields").list.contains("photo"))
    photo = pl.struct(hashes(rng, len(frame)).alias("sha256"), (pl.col("at") - 3 * _DAY_MS).alias("taken_ms"))
    return frame.with_columns(pl.concat_list(photo).cast(PHOTOS).alias("photos"))


def _nobody(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    frame = _with_matter(scene, rng, frame, pl.col("needs_person"))
    # nobody in the city is that old
    born = pl.Series([date(1899, 1, 1)] * len(frame))
    return frame.with_columns(person_id=id_numbers(born, rng.integers(0, 1_000, len(frame))))


def _emergency_call(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    codes = rng.choice(["REF-110", "REF-119", "REF-120"], len(frame)).tolist()
    return frame.with_columns(matter_code=pl.Series(codes))


def _other_route(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    return frame.with_columns(
        matter_code=pl.Series(rng.choice(["REF-COURT", "REF-OTHER"], len(frame)).tolist())
    )


def _future(scene: Scene, rng: np.random.Generator, frame: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    at = end_ms + rng.integers(20 * _DAY_MS, 60 * _DAY_MS, len(frame))
    return frame.with_columns(at=pl.Series(at), photos=pl.lit(None, dtype=PHOTOS))


_SPOILERS: Final[dict[str, Spoiler]] = {
    "UNKNOWN_MATTER": _unknown_matter,
    "TEMP_MATTER_EXPIRED": _expired_matter,
    "CHANNEL_NOT_ALLOWED": _wrong_channel,
    "REPORTER_NOT_AUTHORISED": _stranger,
    "GRID_UNKNOWN": _unknown_grid,
    "LOCATION_GRID_MISMATCH": _far_away,
    "REQUIRED_FIELD_MISSING": _field_missing,
    "EVIDENCE_INVALID": _old_photo,
    "PERSON_UNRESOLVED": _nobody,
    "REFER_EMERGENCY_SERVICE": _emergency_call,
    "OUT_OF_ADMIN_SCOPE": _other_route,
    "TIME_IN_FUTURE": _future,
}


def spoil(scene: Scene, rng: np.random.Generator, drawn: pl.DataFrame, end_ms: int) -> pl.DataFrame:
    """Break every report of `drawn` (columns of `reports.draw`); adds matter_code, grid_code and reason.

    matter_code, grid_code : what the report says instead of the truth, null where it says the truth.
    reason : primary reason code that admission must give (domain model, section 7).
    """
    if drawn.is_empty():
        return drawn.with_columns(
            pl.lit(None, dtype=pl.String).alias(name) for name in ("matter_code", "grid_code", "reason")
        )
    reason = rng.choice(list(REASONS), len(drawn), p=np.array(list(REASONS.values())))
    blank = drawn.with_columns(
        matter_code=pl.lit(None, dtype=pl.String), grid_code=pl.lit(None, dtype=pl.String)
    )
    parts = []
    for name, spoiler in _SPOILERS.items():
        mine = blank.filter(pl.Series(reason == name))
        if len(mine):
            parts.append(spoiler(scene, rng, mine, end_ms).with_columns(reason=pl.lit(name)))
    return pl.concat(parts, how="diagonal")
