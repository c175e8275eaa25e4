"""Simulated events as the JSON objects of the event contract, one a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from pipeline.simulate.events import Simulation
from pipeline.simulate.scene import Scene

_SLICE_ROWS: Final = 50_000
_TIME: Final = "%Y-%m-%dT%H:%M:%S%.3f%:z"
#: A null member is left out. Strings cannot match: a quotation mark inside them is escaped.
_NULL_MEMBER: Final = r'"\w+":null,'
_LAST_NULL_MEMBER: Final = r',?"\w+":null\}'


def _time(ms: pl.Expr) -> pl.Expr:
    """RFC 3339 in local time, as the sources write it."""
    return pl.from_epoch(ms, time_unit="ms").dt.convert_time_zone("Asia/Shanghai").dt.to_string(_TIME)


def to_json(scene: Scene, events: pl.DataFrame, source: str) -> pl.Series:
    """(n,) JSON texts of the rows of `Simulation.events`, without line ends."""
    grid_codes = scene.grids["grid_code"].gather(events["grid"].cast(pl.UInt32))
    unit_counts = scene.grids["unit_count"].gather(events["grid"].cast(pl.UInt32))
    codes = scene.matters.frame["code"].gather(events["matter"].cast(pl.UInt32))
    missing = [
        pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in {"grid_code": pl.String(), "matter_code": pl.String()}.items()
        if name not in events.columns
    ]
    frame = events.with_columns(missing).with_columns(
        grid_codes.alias("own_grid"), unit_counts.alias("unit_count"), codes.alias("own_matter")
    )
    # two reports in five name the minimal unit, too
    with_unit = pl.concat_str(
        "own_grid", pl.lit("-U"), (pl.col("unit") % pl.col("unit_count") + 1).cast(pl.String).str.zfill(3)
    )
    grid = pl.coalesce("grid_code", pl.when(pl.col("unit") % 5 < 2).then(with_unit).otherwise("own_grid"))
    located = pl.col("lon").is_not_null()
    photo = pl.element().struct
    photos = pl.col("photos").list.eval(
        pl.struct(taken_at=_time(photo.field("taken_ms")), sha256=photo.field("sha256"))
    )
    attributes = pl.struct(
        due_at=_time(pl.col("due_ms")), primary_case_id="primary_case_id", reason="reason_text",
        rating="rating", department="department", level="level", self_handled="own",
    )  # fmt: skip
    given = pl.any_horizontal(
        pl.col(
            "due_ms", "primary_case_id", "reason_text", "rating", "department", "level", "own"
        ).is_not_null()
    )
    event = pl.struct(
        pl.col("event_id"),
        pl.lit(source).alias("source"),
        pl.col("case_id"),
        pl.col("submission_id"),
        _time(pl.col("at")).alias("occurred_at"),
        pl.col("channel"),
        pl.coalesce("matter_code", "own_matter").alias("matter_code"),
        grid.alias("grid_code"),
        pl.struct(key="actor_key", id_number="actor_id", phone="actor_phone", type="actor_type").alias(
            "actor"
        ),
        pl.when(pl.col("person_id").is_not_null())
        .then(pl.concat_list(pl.struct(id_number="person_id", role="person_role")))
        .alias("persons"),
        pl.when(located).then(pl.struct("lon", "lat", "crs")).alias("location"),
        photos.alias("photos"),
        pl.col("title"),
        pl.col("description"),
        pl.when(pl.col("org_name").is_not_null())
        .then(pl.struct(code="org_code", name="org_name"))
        .alias("organisation"),
        pl.when(given).then(attributes).alias("attributes"),
        pl.col("event_type"),
    )
    return (
        frame.select(event.struct.json_encode().alias("json"))["json"]
        .str.replace_all(_NULL_MEMBER, "")
        .str.replace_all(_LAST_NULL_MEMBER, "}")
    )


def lines(scene: Scene, simulation: Simulation) -> Iterator[pl.Series]:
    """The events' JSON texts in order of arrival, in slices."""
    for part in simulation.events.iter_slices(_SLICE_ROWS):
        yield to_json(scene, part, simulation.plan.source)


def write_ndjson(scene: Scene, simulation: Simulation, path: Path) -> int:
    """Write the events to `path`, one a line, by arrival. Returns bytes written."""
    written = 0
    with path.open("wb") as file:
        for texts in lines(scene, simulation):
            written += file.write(("\n".join(texts.to_list()) + "\n").encode())
    return written
