"""Draws reports: who reports which matter through which channel, where, when, with what attached.

A drawn report is one that admission lets in: the matter allows the channel, staff are in their own grid or
hold the right, the point lies in the grid, required fields are there, persons resolve. `spoil.py` breaks
reports on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl

from pipeline.reference.geo import wgs84_to_gcj02
from pipeline.simulate.numbers import phones
from pipeline.simulate.scene import Groups, Ints, Scene
from pipeline.simulate.texts import descriptions, hashes, tokens

_HOUR_MS: Final = 3_600_000
_LOCAL_OFFSET_MS: Final = 8 * _HOUR_MS  # Asia/Shanghai, no daylight saving
PHOTOS: Final = pl.List(pl.Struct({"sha256": pl.String(), "taken_ms": pl.Int64()}))

#: Shares of channels, by what kind of reports a district's volume is made of (assumed).
CHANNEL_MIXES: Final[Mapping[str, Mapping[str, float]]] = {
    "general": {
        "grid_patrol": 0.62, "yuepingan": 0.06, "yueshengshi": 0.11, "hotline_12345": 0.11,
        "iot_sensor": 0.03, "dept_transfer": 0.03, "petition_market": 0.02,
        "rider_qrcode": 0.01, "pingantong": 0.01,
    },
    "public": {"hotline_12345": 0.45, "yueshengshi": 0.42, "petition_market": 0.10, "pingantong": 0.03},
    "rider": {"rider_qrcode": 1.0},
}  # fmt: skip
_FREQUENT: Final = {
    "UE-01": 5.0, "UE-03": 4.0, "UE-06": 4.0, "UE-04": 2.0, "UE-11": 2.0, "UE-09": 2.0, "SA-01": 3.0,
    "SA-03": 4.0, "SA-04": 2.0, "DM-01": 2.0, "DM-03": 2.0, "BI-01": 1.5, "BI-02": 1.5, "PS-01": 2.0,
    "PS-07": 2.0, "PS-02": 6.0, "UE-08": 1.5,
}  # fmt: skip
_BY_URGENCY: Final = {"routine": 1.0, "urgent": 0.6, "emergency": 0.12}

#: Reports by local hour, 0–23: patrols keep office hours, citizens the day, devices all hours.
_HOURS: Final = {
    "staff": [1, 1, 1, 1, 1, 1, 2, 6, 14, 16, 15, 11, 6, 8, 14, 15, 13, 9, 6, 5, 4, 3, 2, 1],
    "public": [2, 1, 1, 1, 1, 2, 4, 7, 10, 11, 11, 10, 8, 8, 9, 10, 10, 9, 9, 10, 9, 7, 5, 3],
    "device": [6, 6, 6, 6, 6, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 8, 8, 7, 7],
}  # fmt: skip


def _hour_profile(kind: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    weights = np.asarray(
        _HOURS.get(kind, _HOURS["public" if kind in {"care", "desk"} else "staff"]), dtype=float
    )
    profile: np.ndarray[Any, np.dtype[np.float64]] = weights / weights.sum()
    return profile


def draw_times(rng: np.random.Generator, kinds: pl.Series, start_ms: int, end_ms: int) -> Ints:
    """(n,) instants in [start_ms, end_ms), unix ms, by the hour profile of each kind; fewer on weekends."""
    count = len(kinds)
    first_day = (start_ms + _LOCAL_OFFSET_MS) // (24 * _HOUR_MS)
    days = np.arange(first_day, (end_ms + _LOCAL_OFFSET_MS) // (24 * _HOUR_MS) + 1)
    weight = np.where((days + 3) % 7 >= 5, 0.7, 1.0)  # day 0 of the epoch was a Thursday
    at = np.empty(count, dtype=np.int64)
    for kind in kinds.unique(maintain_order=True).to_list():
        mine = np.flatnonzero((kinds == kind).to_numpy())
        day = rng.choice(days, len(mine), p=weight / weight.sum())
        hour = rng.choice(24, len(mine), p=_hour_profile(kind))
        at[mine] = (day * 24 + hour) * _HOUR_MS + rng.integers(0, _HOUR_MS, len(mine)) - _LOCAL_OFFSET_MS
    outside = np.flatnonzero((at < start_ms) | (at >= end_ms))
    at[outside] = rng.integers(start_ms, end_ms, len(outside))
    return at


def draw(
    scene: Scene, rng: np.random.Generator, *, district: int, count: int, mix: str, start_ms: int, end_ms: int
) -> pl.DataFrame:
    """`count` reports of one district, in [start_ms, end_ms). Columns: those of `place` and `dress`."""
    placed = place(scene, rng, district=district, count=count, mix=mix, start_ms=start_ms, end_ms=end_ms)
    return dress(scene, rng, placed)


def place(
    scene: Scene, rng: np.random.Generator, *, district: int, count: int, mix: str, start_ms: int, end_ms: int
) -> pl.DataFrame:
    """Columns district, grid, matter (numbers), channel, at (unix ms), lon, lat (WGS84, inside the grid)."""
    low, high = scene.grid_range[district : district + 2]
    hot = np.random.default_rng([district, 17]).lognormal(0, 0.6, int(high - low))  # hot spots stay the same
    grid = low + rng.choice(len(hot), count, p=hot / hot.sum())
    shares = CHANNEL_MIXES[mix]
    channels = list(shares)
    channel = rng.choice(len(channels), count, p=np.array(list(shares.values())) / sum(shares.values()))
    matter = np.empty(count, dtype=np.int64)
    for number, code in enumerate(channels):
        mine = np.flatnonzero(channel == number)
        weight = _matter_weights(scene) * scene.matters.allowed(code)
        matter[mine] = rng.choice(len(weight), len(mine), p=weight / weight.sum())
    names = pl.Series(channels).gather(channel.astype(np.uint32))
    lon, lat = points_in(scene, rng, grid)
    return pl.DataFrame(
        {
            "district": np.full(count, district, dtype=np.int64),
            "grid": grid,
            "matter": matter,
            "channel": names,
            "at": draw_times(rng, names.replace_strict(scene.matters.channel_kinds), start_ms, end_ms),
            "lon": lon,
            "lat": lat,
        }
    )


def _matter_weights(scene: Scene) -> np.ndarray[Any, np.dtype[np.float64]]:
    frame = scene.matters.frame
    urgency = frame["urgency"].replace_strict(_BY_URGENCY, return_dtype=pl.Float64).to_numpy()
    frequent: np.ndarray[Any, np.dtype[np.float64]] = urgency * np.array(
        [_FREQUENT.get(code, 1.0) for code in frame["code"].to_list()]
    )
    return frequent


def points_in(scene: Scene, rng: np.random.Generator, grid: Ints) -> tuple[Any, Any]:
    """(n,) points inside each grid's rectangle, degrees WGS84, 6 decimals."""
    box = scene.grids.select("west", "south", "east", "north").to_numpy()[grid]
    at = rng.uniform(0.02, 0.98, (len(grid), 2))
    lon = box[:, 0] + (box[:, 2] - box[:, 0]) * at[:, 0]
    lat = box[:, 1] + (box[:, 3] - box[:, 1]) * at[:, 1]
    return np.round(lon, 6), np.round(lat, 6)


def dress(scene: Scene, rng: np.random.Generator, placed: pl.DataFrame) -> pl.DataFrame:
    """Add reporter, person, organisation, photos, texts and submission id to placed reports, same height.

    Adds actor_type, actor_key, actor_id, actor_phone, person_id, person_role, org_code, org_name, photos,
    title, description, submission_id, crs; lon and lat become GCJ-02 where crs says so.
    """
    count = len(placed)
    grid, district = placed["grid"].to_numpy(), placed["district"].to_numpy()
    matter = placed["matter"].to_numpy()
    names = scene.matters.frame["name_zh"].gather(placed["matter"].cast(pl.UInt32))
    frame = placed.with_columns(
        *_reporters(scene, rng, placed),
        descriptions(rng, scene.grids["grid_name"].gather(placed["grid"].cast(pl.UInt32)), names).alias(
            "description"
        ),
        pl.when(pl.col("channel") == "hotline_12345").then(names).alias("title"),
        tokens(rng.integers(0, 23**8, count)).alias("submission"),
    )
    # persons concerned: on the emergency button it is its owner who calls
    needed = scene.matters.requires("person")[matter]
    anyone = scene.residents.values["id_number"].gather(scene.residents.pick(rng, district))
    category = scene.matters.frame["category"].gather(placed["matter"].cast(pl.UInt32))
    org = scene.organisations.pick(rng, grid)
    org_wanted = scene.matters.requires("organisation")[matter] | (rng.random(count) < 0.03)
    frame = frame.with_columns(
        pl.when(pl.Series(needed))
        .then(pl.when(pl.col("channel") == "pingantong").then("actor_id").otherwise(anyone))
        .alias("person_id"),
        pl.when(category == "DM").then(pl.lit("party")).otherwise(pl.lit("subject")).alias("person_role"),
        pl.when(pl.Series(org_wanted))
        .then(scene.organisations.values["org_code"].gather(org))
        .alias("org_code"),
        pl.when(pl.Series(org_wanted)).then(scene.organisations.values["name"].gather(org)).alias("org_name"),
        pl.when(pl.col("channel").is_in(["grid_patrol", "yueshengshi", "rider_qrcode"]))
        .then(pl.concat_str(pl.lit("sub-"), "submission"))
        .alias("submission_id"),
        _photos(scene, rng, placed),
    )
    return _coordinates(rng, frame.drop("submission"))


def _reporters(scene: Scene, rng: np.random.Generator, placed: pl.DataFrame) -> list[pl.Series]:
    """Columns actor_type, actor_key, actor_id, actor_phone."""
    count = len(placed)
    grid, district, channel = placed["grid"].to_numpy(), placed["district"].to_numpy(), placed["channel"]
    columns: dict[str, list[str | None]] = {
        name: [None] * count for name in ("actor_type", "actor_key", "actor_id", "actor_phone")
    }

    def assign(mine: Ints, **values: pl.Series | str) -> None:
        for name, value in values.items():
            given = [value] * len(mine) if isinstance(value, str) else value.to_list()
            column = columns[name]
            for row, item in zip(mine.tolist(), given, strict=True):
                column[row] = item

    def staff(mine: Ints, groups: Groups, group: Ints) -> None:
        chosen = groups.values[groups.pick(rng, group[mine]).tolist()]
        assign(mine, actor_type=chosen["kind"], actor_key=chosen["worker_key"])

    def rows(*codes: str) -> Ints:
        found: Ints = np.flatnonzero(channel.is_in(list(codes)).to_numpy())
        return found

    staff(rows("grid_patrol"), scene.patrol, grid)
    staff(rows("yuepingan"), scene.full_time, grid)
    staff(rows("rider_qrcode"), scene.riders, district)
    mine = rows("yueshengshi", "petition_market")
    citizens = scene.adults.values[scene.adults.pick(rng, district[mine]).tolist()]
    assign(mine, actor_type="citizen", actor_id=citizens["id_number"])
    mine = rows("hotline_12345")
    callers = (
        scene.adults.values["number"]
        .gather(scene.adults.pick(rng, district[mine]))
        .to_numpy()
        .astype(np.int64)
    )
    firm = pl.Series(np.where(rng.random(len(mine)) < 0.08, "firm", "citizen").tolist(), dtype=pl.String)
    assign(mine, actor_type=firm, actor_phone=phones(callers * 7_919 + 10_000_019))
    mine = rows("pingantong")
    users = scene.button_users.values[scene.button_users.pick(rng, district[mine]).tolist()]
    assign(mine, actor_type="citizen", actor_id=users["id_number"])
    mine = rows("iot_sensor")
    cameras = (
        "cam-"
        + scene.grids["grid_code"].gather(grid[mine])
        + pl.Series(rng.choice(["-a", "-b", "-c"], len(mine)).tolist(), dtype=pl.String)
    )
    assign(mine, actor_type="device", actor_key=cameras)
    assign(rows("dept_transfer"), actor_type="department", actor_key="transfer-desk")
    return [pl.Series(name, values, dtype=pl.String) for name, values in columns.items()]


def _photos(scene: Scene, rng: np.random.Generator, placed: pl.DataFrame) -> pl.Series:
    """Column photos: one or two where the channel carries them and the matter asks, sometimes else."""
    carries = placed["channel"].is_in(list(scene.matters.photo_channels)).to_numpy()
    wanted = scene.matters.requires("photo")[placed["matter"].to_numpy()] | (rng.random(len(placed)) < 0.25)
    number = np.where(carries & wanted, 1 + (rng.random(len(placed)) < 0.2), 0)
    total = int(number.sum())
    row = np.repeat(np.arange(len(placed)), number)
    photos = pl.DataFrame(
        {
            "row": row,
            "sha256": hashes(rng, total),
            "taken_ms": placed["at"].to_numpy()[row] - rng.integers(1_000, 600_000, total),
        }
    )
    lists = photos.group_by("row", maintain_order=True).agg(pl.struct("sha256", "taken_ms").alias("photos"))
    return (
        pl.DataFrame({"row": np.arange(len(placed))})
        .join(lists, on="row", how="left", maintain_order="left")["photos"]
        .cast(PHOTOS)
    )


def _coordinates(rng: np.random.Generator, frame: pl.DataFrame) -> pl.DataFrame:
    """Citizens' phones give GCJ-02, as Chinese maps do, in two of three reports; handsets give WGS84."""
    shifted = frame["channel"].is_in(["yueshengshi", "hotline_12345"]).to_numpy() & (
        rng.random(len(frame)) < 0.67
    )
    lon, lat = frame["lon"].to_numpy(), frame["lat"].to_numpy()
    gcj_lon, gcj_lat = wgs84_to_gcj02(lon, lat)
    return frame.with_columns(
        lon=pl.Series(np.round(np.where(shifted, gcj_lon, lon), 6)),
        lat=pl.Series(np.round(np.where(shifted, gcj_lat, lat), 6)),
        crs=pl.Series(np.where(shifted, "gcj02", "wgs84").tolist()),
    )
