"""Computes the columns that the rules look at: the matter's terms, channel, mode, completeness, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.frames import TIMESTAMP
from pipeline.reference.keys import encode
from pipeline.rules.catalogue import Catalogues
from pipeline.rules.model import REQUIRED_FIELDS, Matter
from pipeline.rules.modes import mode_bits, strongest_active

_SHA256_HEX_DIGITS: Final = 64
_MILLISECONDS: Final = 1_000.0

_MODE_SETS: Final = ("_modes", "_only_modes")

#: Terms of a matter in one version of the catalogue. `_row` numbers the entry; the bit sets are of modes
#: and channels.
_TERMS: Final[dict[str, Any]] = {
    "_row": pl.Int32(),
    "_version": pl.Int32(),
    "matter_code": pl.String(),
    "matter_temporary": pl.Boolean(),
    "matter_effective_from": TIMESTAMP,
    "matter_effective_to": TIMESTAMP,
    "matter_emergency_only": pl.Boolean(),
    "matter_urgency": pl.String(),
    "matter_category": pl.String(),
    "matter_needs_person": pl.Boolean(),
    "matter_lead_department": pl.String(),
    "matter_response_seconds": pl.Float64(),
    "matter_resolution_seconds": pl.UInt32(),
    **{f"requires_{field}": pl.Boolean() for field in REQUIRED_FIELDS},
    "_modes": pl.Int64(),
    "_only_modes": pl.Int64(),
    "_channels": pl.Int64(),
}


class Terms:
    """The catalogues as lookup tables; built once, read by every block."""

    def __init__(self, catalogues: Catalogues) -> None:
        self.catalogues = catalogues
        modes = mode_bits(catalogues.modes)
        channels = {code: 1 << number for number, code in enumerate(catalogues.channels)}
        rows = [
            _terms_row(index, matter, modes, channels)
            for index, version in enumerate(catalogues.versions)
            for matter in version.matters.values()
        ]
        self.matters = pl.DataFrame(rows, schema=_TERMS, orient="row").with_columns(
            pl.int_range(pl.len(), dtype=pl.Int32()).alias("_row")
        )
        self._rows = [
            dict(self.matters.filter(pl.col("_version") == index).select("matter_code", "_row").iter_rows())
            for index in range(len(catalogues.versions))
        ]
        self.channels = pl.DataFrame(
            [
                (code, channels[code], channel.carries_photo, channel.reporter)
                for code, channel in catalogues.channels.items()
            ],
            schema={
                "channel": pl.String(),
                "_channel": pl.Int64(),
                "channel_carries_photo": pl.Boolean(),
                "channel_reporter": pl.String(),
            },
            orient="row",
        )
        self.referrals = pl.DataFrame(
            [(code, referral.reason) for code, referral in catalogues.referrals.items()],
            schema={"matter_code": pl.String(), "referral_reason": pl.String()},
            orient="row",
        )
        self._starts = np.array(
            [int(version.effective_from.timestamp() * _MILLISECONDS) for version in catalogues.versions]
        )
        self.version_names = pl.Series(
            [version.version for version in catalogues.versions], dtype=pl.String()
        )

    def rows(self, matter_codes: pl.Series, version: npt.NDArray[np.int32]) -> pl.Series:
        """Entries of `matters`, Int32, of codes in a version each; null where the code is unknown or null.

        By code, of which there are few: a join costs a small block a millisecond.
        """
        codes, words = encode(matter_codes)
        known = np.full((len(self._rows), len(words) + 1), -1, np.int32)  # the last is that of null
        for index, rows in enumerate(self._rows):
            known[index, :-1] = [rows.get(word, -1) for word in words]
        found = known[version, codes]
        return pl.Series("_row", pa.array(found, mask=found < 0))

    def version_index(self, occurred_at: pl.Series) -> npt.NDArray[np.int32]:
        """Version that decides on each instant; the first one on everything before it."""
        if len(self._starts) == 1:
            return np.zeros(len(occurred_at), np.int32)
        instants = occurred_at.to_physical().fill_null(0).to_numpy()
        index = np.searchsorted(self._starts, instants, side="right") - 1
        return np.asarray(index.clip(0), np.int32)


def _terms_row(
    version: int, matter: Matter, modes: dict[str, int] | Any, channels: dict[str, int]
) -> tuple[Any, ...]:
    return (
        0,
        version,
        matter.code,
        matter.temporary,
        matter.effective_from_instant,
        matter.effective_to_instant,
        bool(matter.active_only_in_modes),
        matter.urgency,
        matter.category,
        matter.needs_person,
        matter.lead_department,
        matter.response_minutes * 60.0,
        matter.resolution_hours * 3_600,
        *(field in matter.required_fields for field in REQUIRED_FIELDS),
        sum(modes[mode] for mode in matter.prioritised_in),
        sum(modes[mode] for mode in matter.active_only_in_modes),
        sum(channels[channel] for channel in matter.allowed_channels),
    )


def add_terms(events: pl.DataFrame, terms: Terms) -> pl.DataFrame:
    """Append `age_seconds`, `_version` and `_row`, the matter's entry in `terms.matters` or null."""
    version = terms.version_index(events["occurred_at"])
    return events.with_columns(
        pl.Series("_version", version),
        ((pl.col("ingested_at") - pl.col("occurred_at")).dt.total_milliseconds() / _MILLISECONDS).alias(
            "age_seconds"
        ),
        terms.rows(events["matter_code"], version),
    )


def matter_terms(events: pl.DataFrame, terms: Terms, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of `terms.matters` for events prepared by `add_terms`; null where the matter is unknown."""
    return terms.matters.select(pl.col(columns).gather(events["_row"]))


def add_features(
    reports: pl.DataFrame, terms: Terms, modes: pl.DataFrame, districts: Sequence[str]
) -> pl.DataFrame:
    """Append `conditions.COMPUTED` to reports that `add_terms` has prepared. Height and order stay.

    modes : rows of frames.MODE; districts : 6-digit codes of the districts that take part.
    Also appends the `mode` that acts, its `mode_level` and `_response_factor`, null where none does.
    """
    names = [name for name in terms.matters.columns if name not in reports.columns]
    reports = pl.concat([reports, matter_terms(reports, terms, names)], how="horizontal")
    reports = reports.join(terms.channels, on="channel", how="left", maintain_order="left").join(
        terms.referrals, on="matter_code", how="left", maintain_order="left"
    )
    reports = reports.with_columns(
        pl.col("_row").is_not_null().alias("matter_known"),
        ((pl.col("_channels") & pl.col("_channel").fill_null(0)) != 0).alias("channel_allowed"),
        pl.col("grid_code").str.slice(0, 6).is_in(list(districts)).alias("grid_in_scope"),
        *(pl.when("grid_found").then(pl.col(name)).otherwise(0).fill_null(0) for name in _MODE_SETS),
        *_reporter(),
        *_completeness(),
        (pl.when(pl.col("persons").list.len() > 0).then(pl.col("persons_found") >= 1)).alias(
            "person_resolved"
        ),
    )
    return reports.with_columns(*_modes(reports, terms, modes), *_evidence(reports))


def _reporter() -> list[pl.Expr]:
    """Rule 7's inputs. Without a key nobody is known; in an unknown grid "own grid" cannot be said."""
    known = pl.when(pl.col("actor_key").is_null()).then(False).otherwise(pl.col("staff_found"))
    grid_known = pl.col("grid_found").fill_null(value=False)
    of_staff = {
        "reporter_in_grid": pl.when(grid_known).then(pl.col("staff_in_grid").fill_null(value=False)),
        "reporter_in_district": pl.when(grid_known).then(pl.col("staff_in_district").fill_null(value=False)),
        "reporter_has_right": pl.col("staff_channel_rights")
        .list.contains(pl.col("channel"), nulls_equal=False)
        .fill_null(value=False),
    }
    # null as long as reference data has not said whether the reporter is staff
    return [
        known.alias("reporter_known"),
        *(
            pl.when(pl.col("staff_found").is_not_null()).then(value).alias(name)
            for name, value in of_staff.items()
        ),
    ]


def _completeness() -> list[pl.Expr]:
    """What each of a matter's required fields means (design, the event)."""
    present = {
        "has_location": pl.col("lon").is_not_null() & pl.col("lat").is_not_null(),
        "has_photo": pl.col("photos").list.len() > 0,
        "has_person": pl.col("persons").list.len() > 0,
        "has_organisation": pl.col("organisation_code").is_not_null()
        | pl.col("organisation_name").is_not_null(),
        "has_description": pl.col("description").str.contains(r"\S"),
    }
    return [value.fill_null(value=False).alias(name) for name, value in present.items()]


def _evidence(reports: pl.DataFrame) -> list[pl.Expr]:
    """Usability of each report's photos: all hashes well formed, and the farthest time taken.

    The photos of all reports lie behind one another; reduceat folds each report's stretch.
    """
    valid = np.zeros(reports.height, bool)
    offset = np.zeros(reports.height)
    has = reports["has_photo"].to_numpy()
    if has.any():
        with_photos = reports.lazy().filter("has_photo").select("occurred_at", "photos").collect()
        sha256, taken_at = (pl.col("photos").struct.field(name) for name in ("sha256", "taken_at"))
        well_formed = (sha256.str.len_bytes() == _SHA256_HEX_DIGITS) & sha256.str.decode(
            "hex", strict=False
        ).is_not_null()
        distance = (taken_at - pl.col("occurred_at")).dt.total_milliseconds().abs()
        photos = (
            with_photos.lazy()
            .explode("photos")
            .select(
                well_formed.fill_null(value=False).alias("well_formed"),
                distance.fill_null(0).alias("distance"),
            )
            .collect()
        )
        counts = with_photos["photos"].list.len().to_numpy().astype(np.int64)
        starts = counts.cumsum() - counts
        valid[has] = np.logical_and.reduceat(photos["well_formed"].to_numpy(), starts)
        offset[has] = np.maximum.reduceat(photos["distance"].to_numpy(), starts) / _MILLISECONDS
    # null without photos: there is nothing to judge
    return [
        pl.when("has_photo").then(pl.Series(valid)).alias("photo_hash_valid"),
        pl.when("has_photo").then(pl.Series(offset)).alias("photo_offset_seconds"),
    ]


def _modes(reports: pl.DataFrame, terms: Terms, modes: pl.DataFrame) -> list[pl.Series]:
    """The mode that acts on each report. In an unknown grid none does: where it lies cannot be said.

    While nobody has looked for the grid, it is unknown whether one does: every matter has its modes.
    """
    catalogue = terms.catalogues.modes
    wanted, only = (reports[name].to_numpy() for name in _MODE_SETS)
    prioritised = strongest_active(reports, wanted, modes, catalogue)
    required = strongest_active(reports, only, modes, catalogue)
    levels = [level.code for level in catalogue.levels]
    factors = [level.response_factor for level in catalogue.levels]
    flags = [
        pl.Series("mode_prioritises", prioritised.active),
        pl.Series("only_mode_active", required.active),
    ]
    if reports["grid_found"].null_count():
        looked_for = reports["grid_found"].is_not_null()
        flags = pl.DataFrame(flags).select(pl.when(looked_for).then(pl.all())).get_columns()
    return [
        *flags,
        _pick("mode", prioritised.mode, pl.Series([None, *catalogue.names], dtype=pl.String())),
        _pick("mode_level", prioritised.level, pl.Series([None, *levels], dtype=pl.String())),
        _pick("_response_factor", prioritised.level, pl.Series([None, *factors], dtype=pl.Float64())),
    ]


def _pick(name: str, index: npt.NDArray[np.int8], table: pl.Series) -> pl.Series:
    """Values of a table behind its first, by position; the first, null, for -1."""
    return table.gather((index + 1).astype(np.uint32)).alias(name)
