"""The seeded workload that every benchmark runs: JSON events and the exact ledger of what must come out.

About 420 bytes of JSON an event, Chinese text, all 65 matters, 2,756 grids, one person concerned each. Of
all events 5 % are redeliveries (byte for byte) and 3 % are reports that cannot be admitted (2 % unknown
matter, 1 % unknown grid); the rest are cases of eight events, REPORTED to CLOSED. Every refusal is one that
the peers can see, too: their common work and ours end with the same three counts and checksums.

Computed as columns, a chunk of at most a million events at a time; a chunk depends on seed and number alone.
Instants lie in the day before the workload's `base`, so that no event is too old for admission.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.simulate.scene import Groups, Matters, group_by_code, load_matters
from pipeline.simulate.texts import descriptions, hashes

#: Grows when the same seed gives other events: cached files are made anew.
VERSION: Final = 3
SEED: Final = 20260101
SOURCE: Final = "bench"
CHUNK_EVENTS: Final = 1_000_000
REDELIVERED, UNKNOWN_MATTER, UNKNOWN_GRID = 0.05, 0.02, 0.01
#: The matter that there is none of, and how a grid ends that there is none of.
NO_MATTER: Final = "XX-99"
NO_GRID: Final = "999"
LIFE: Final = ("REPORTED", "ACCEPTED", "DISPATCHED", "SIGNED", "ARRIVED", "HANDLING", "RESOLVED", "CLOSED")
_ACTORS: Final = ("full_time", "clerk", "clerk", *["department"] * 4, "clerk")
#: Mean distance of two steps of a case, and of a redelivery from its original, as shares of a chunk.
_STEP_SHARE: Final = 0.01
_COPY_SHARE: Final = 0.005
_DAY_MS: Final = 86_400_000
_PHOTOS: Final = 4_096
#: Digits of the number that ends an event id; checksums are sums of these numbers.
ID_DIGITS: Final = 7

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ledger:
    """What must come out. Checksums are sums of the numbers in the event ids.

    sent = stored + rejected + duplicates; stored = admitted + recorded. All rejected are reports.
    """

    sent: int = 0
    admitted: int = 0
    recorded: int = 0
    rejected: int = 0
    unknown_matter: int = 0
    unknown_grid: int = 0
    duplicates: int = 0
    quarantined: int = 0
    stored_checksum: int = 0
    rejected_checksum: int = 0
    cases: int = 0

    @property
    def stored(self) -> int:
        return self.admitted + self.recorded

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Chunk:
    """Events in order of arrival. frame : `json` (String), `grid_code`, `number` (of the id)."""

    frame: pl.DataFrame
    ledger: Ledger


class City:
    """What events draw from: the places, residents and workers of a generated city."""

    def __init__(self, city_dir: Path, catalogue_dir: Path) -> None:
        grids = pl.read_parquet(city_dir / "grids.parquet", columns=["grid_code", "grid_name", "boundary"])
        corners = pl.col("boundary").str.extract_all(r"-?\d+\.?\d*").cast(pl.List(pl.Float64))
        self.grids = grids.select(
            "grid_code",
            "grid_name",
            west=corners.list.get(0),
            south=corners.list.get(1),
            east=corners.list.get(4),
            north=corners.list.get(5),
        )
        staff = pl.read_parquet(
            city_dir / "staff.parquet", columns=["worker_key", "kind", "grid_code", "channel_rights"]
        ).filter(pl.col("kind") == "full_time")
        self.staff: Groups = group_by_code(staff, "grid_code", self.grids["grid_code"])
        organisations = pl.read_parquet(
            city_dir / "organisations.parquet", columns=["org_code", "name", "grid_code"]
        )
        self.organisations: Groups = group_by_code(organisations, "grid_code", self.grids["grid_code"])
        self.persons = pl.read_parquet(city_dir / "persons.parquet", columns=["id_number"])["id_number"]
        self.matters: Matters = load_matters(catalogue_dir)


class Workload:
    """Chunks of one workload. `base` : no event is later; `city` : reference data it agrees with;
    `salt` : begins all ids and ends the texts of reports."""

    def __init__(self, city: City, *, base: datetime, seed: int = SEED, salt: str = "w") -> None:
        self.city, self.base, self.seed, self.salt = city, base, seed, salt

    def chunks(self, events: int) -> Iterator[Chunk]:
        for number, start in enumerate(range(0, events, CHUNK_EVENTS)):
            yield self.chunk(number, min(CHUNK_EVENTS, events - start))

    def chunk(self, number: int, events: int) -> Chunk:
        """`events` events, at most a million. The ids of different chunks differ."""
        if not 0 < events <= CHUNK_EVENTS:
            raise ValueError(f"a chunk holds 1 to {CHUNK_EVENTS:,} events, not {events:,}")
        rng = np.random.default_rng([self.seed, number, events])
        rows = _lives(rng, events)
        ledger = _ledger(rows)
        rows = self._places(rng, rows)
        texts = self._json(rng, rows, number)
        return Chunk(_with_copies(rng, rows, texts), ledger)

    def _places(self, rng: np.random.Generator, rows: pl.DataFrame) -> pl.DataFrame:
        """Draw grid, worker, matter, channel, person and organisation per case, point per event."""
        city, cases = self.city, int(rows["case"].max() or 0) + 1  # type: ignore[operator]
        matters = city.matters.frame
        grid = rng.integers(0, len(city.grids), cases)
        matter = rng.integers(0, len(matters), cases)
        choices = [_channels(list(allowed)) for allowed in matters["allowed_channels"]]
        width = max(map(len, choices))
        # padded by repetition: every matter offers `width` channels
        channels = pl.Series([names[at % len(names)] for names in choices for at in range(width)])
        drawn_channel = matter * width + rng.integers(0, width, cases)
        case = rows["case"].to_numpy()
        of_grid = _rows(city.grids, grid[case])
        inside = rng.uniform(0.2, 0.8, (2, len(rows)))
        worker = city.staff.values["worker_key"].gather(city.staff.pick(rng, grid).astype(np.uint32))
        firm = _rows(city.organisations.values, city.organisations.pick(rng, grid))
        drawn = pl.DataFrame(
            {
                "matter": matter,
                "channel": channels.gather(drawn_channel.astype(np.uint32)),
                "worker": worker,
                "person": city.persons.gather(rng.integers(0, len(city.persons), cases).astype(np.uint32)),
                "org_code": firm["org_code"],
                "org_name": firm["name"],
            }
        )
        of_case = _rows(drawn, case)
        terms = matters.select(
            "code",
            "name_zh",
            needs_photo=pl.col("required_fields").list.contains("photo"),
            needs_firm=pl.col("required_fields").list.contains("organisation"),
        )
        matter_rows = _rows(terms, of_case["matter"].to_numpy())
        west, south = of_grid["west"].to_numpy(), of_grid["south"].to_numpy()
        wide, high = of_grid["east"].to_numpy() - west, of_grid["north"].to_numpy() - south
        return pl.concat(
            [rows, of_grid.select("grid_code", "grid_name"), of_case.drop("matter"), matter_rows],
            how="horizontal",
        ).with_columns(
            lon=pl.Series((west + inside[0] * wide).round(6)),
            lat=pl.Series((south + inside[1] * high).round(6)),
            grid_code=pl.when(pl.col("fault") == 2)
            .then(pl.concat_str(pl.col("grid_code").str.head(12), pl.lit(NO_GRID)))
            .otherwise("grid_code"),
            code=pl.when(pl.col("fault") == 1).then(pl.lit(NO_MATTER)).otherwise("code"),
        )

    def _json(self, rng: np.random.Generator, rows: pl.DataFrame, chunk: int) -> pl.Series:
        """(n,) JSON texts. Put together by hand: nothing in them needs escaping."""
        count = len(rows)
        is_report = pl.col("step") == 0
        span = min(_DAY_MS, max(count, 60_000) * 10)
        last = int(self.base.timestamp() * 1_000)
        at = np.arange(count) * (span // max(count, 1)) + last - span
        # a few thousand photos seen again and again: drawing 64 digits an event is most of the time
        photo = hashes(rng, _PHOTOS).gather(rng.integers(0, _PHOTOS, count).astype(np.uint32)).alias("photo")
        text = descriptions(rng, rows["grid_name"], rows["name_zh"])
        tag = f"{self.salt}{chunk:03d}"

        def of(prefix: str, column: str) -> pl.Expr:
            number = pl.col(column).cast(pl.String).str.zfill(ID_DIGITS)
            return pl.concat_str(pl.lit(f"{tag}{prefix}-"), number)

        time = (
            pl.from_epoch(pl.col("at"), time_unit="ms")
            .dt.convert_time_zone("Asia/Shanghai")
            .dt.to_string("%Y-%m-%dT%H:%M:%S%.3f%:z")
        )
        photos = pl.when(is_report & pl.col("needs_photo")).then(
            pl.concat_str(pl.lit(',"photos":[{"sha256":"'), "photo", pl.lit('"}]'))
        )
        # reports, arrivals and resolutions tell where they were made
        location = pl.when(pl.col("step").is_in([0, 4, 6])).then(
            pl.concat_str(
                pl.lit(',"location":{"lon":'),
                pl.col("lon").cast(pl.String),
                pl.lit(',"lat":'),
                pl.col("lat").cast(pl.String),
                pl.lit(',"crs":"wgs84"}'),
            )
        )
        firm = pl.when(is_report & pl.col("needs_firm")).then(
            pl.concat_str(
                pl.lit(',"organisation":{"code":"'),
                "org_code",
                pl.lit('","name":"'),
                "org_name",
                pl.lit('"}'),
            )
        )
        return rows.with_columns(pl.Series("at", at), photo, text.alias("text")).select(
            pl.concat_str(
                pl.lit('{"event_id":"'),
                of("e", "number"),
                pl.lit(f'","source":"{SOURCE}","event_type":"'),
                pl.col("step").replace_strict(dict(enumerate(LIFE))),
                pl.lit('","case_id":"'),
                of("c", "case"),
                pl.lit('","occurred_at":"'),
                time,
                pl.lit('","channel":"'),
                "channel",
                pl.lit('","matter_code":"'),
                "code",
                pl.lit('","grid_code":"'),
                "grid_code",
                pl.lit('","actor":{"type":"'),
                pl.col("step").replace_strict(dict(enumerate(_ACTORS))),
                pl.lit('","key":"'),
                "worker",
                pl.lit('"},"persons":[{"id_number":"'),
                "person",
                pl.lit('","role":"subject"}]'),
                location.fill_null(""),
                photos.fill_null(""),
                firm.fill_null(""),
                pl.lit(',"description":"'),
                # a report tells at length, a later step in a few words; with the salt, a report that is sent
                # again under another id is another report, not a resend
                pl.when(is_report)
                .then(pl.concat_str("text", pl.lit(self.salt)))
                .otherwise(pl.col("text").str.head(10)),
                pl.lit('"}'),
            ).alias("json")
        )["json"]


def _rows(frame: pl.DataFrame, numbers: Ints) -> pl.DataFrame:
    return frame.select(pl.all().gather(pl.Series(numbers).cast(pl.UInt32)))


def _channels(allowed: list[str]) -> list[str]:
    """Those whose reporter is in order: a grid's own worker, or anybody."""
    good = ("grid_patrol", "hotline_12345", "yueshengshi", "pingantong")
    return [channel for channel in good if channel in allowed]


def _lives(rng: np.random.Generator, events: int) -> pl.DataFrame:
    """Distinct events in order of arrival: `number`, `case`, `step`, `fault` (0, 1 matter, 2 grid), `key`."""
    copies = round(events * REDELIVERED)
    bad_matter, bad_grid = round(events * UNKNOWN_MATTER), round(events * UNKNOWN_GRID)
    good = events - copies - bad_matter - bad_grid
    lives, singles = divmod(good, len(LIFE))
    cases = lives + singles + bad_matter + bad_grid
    length = np.r_[np.full(lives, len(LIFE)), np.ones(cases - lives, np.int64)]
    fault = np.r_[np.zeros(lives + singles, np.int64), np.full(bad_matter, 1), np.full(bad_grid, 2)]
    start = rng.random(cases)
    pace = rng.uniform(0.5, 1.5, cases) * _STEP_SHARE
    case = np.repeat(np.arange(cases), length)
    step = np.arange(len(case)) - np.repeat(np.cumsum(length) - length, length)
    key = start[case] + step * pace[case]
    frame = pl.DataFrame({"case": case, "step": step, "fault": fault[case], "key": key}).sort("key")
    return frame.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))


def _ledger(rows: pl.DataFrame) -> Ledger:
    number, good = rows["number"].to_numpy(), (rows["fault"] == 0).to_numpy()
    reports = (rows["step"] == 0).to_numpy()
    return Ledger(
        admitted=int((good & reports).sum()),
        recorded=int((good & ~reports).sum()),
        rejected=int((~good).sum()),
        unknown_matter=int((rows["fault"] == 1).sum()),
        unknown_grid=int((rows["fault"] == 2).sum()),
        stored_checksum=int(number[good].sum()),
        rejected_checksum=int(number[~good].sum()),
        cases=int((good & reports).sum()),
    )


def _with_copies(rng: np.random.Generator, rows: pl.DataFrame, texts: pl.Series) -> pl.DataFrame:
    """Add the redeliveries, each some way behind its original, and bring all in order of arrival."""
    frame = rows.select("grid_code", "number", "key").with_columns(texts)
    copies = round(len(rows) / (1 - REDELIVERED) * REDELIVERED)
    again = np.sort(rng.choice(len(rows), copies, replace=False))
    later = pl.Series(rng.exponential(_COPY_SHARE, copies) + 1e-9)
    copied = _rows(frame, again).with_columns(pl.col("key") + later)
    return pl.concat([frame, copied]).sort("key", maintain_order=True).select("json", "grid_code", "number")


def feedback(cases: pl.DataFrame, *, tag: str, at: datetime) -> pl.DataFrame:
    """One more event, FEEDBACK at `at`, for each of `cases`: `json`, `grid_code`, `number`.

    cases : `json` of an event of the case other than its report, `grid_code`. tag : begins the ids.
    """
    ids = pl.concat_str(pl.lit(f'"event_id":"{tag}f-'), pl.col("number").cast(pl.String).str.zfill(ID_DIGITS))
    return (
        cases.drop("number", strict=False)
        .with_row_index("number")
        .select(
            pl.col("json")
            .str.replace(r'"event_id":"[^"]*', ids)
            .str.replace(r'"event_type":"[^"]*', '"event_type":"FEEDBACK')
            .str.replace(r'"occurred_at":"[^"]*', f'"occurred_at":"{at.isoformat()}'),
            "grid_code",
            pl.col("number").cast(pl.Int64),
        )
    )


def expected(chunks: list[Ledger], frames: list[int]) -> Ledger:
    """Sum of chunk ledgers with what was sent and redelivered filled in."""
    total = Ledger()
    for ledger, height in zip(chunks, frames, strict=True):
        distinct = ledger.stored + ledger.rejected
        total += Ledger(**{**asdict(ledger), "sent": height, "duplicates": height - distinct})
    return total


def today() -> datetime:
    """Base of a workload made now: the last full hour."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def as_dict(ledger: Ledger) -> dict[str, Any]:
    return asdict(ledger) | {"stored": ledger.stored}
