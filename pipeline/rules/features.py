"""Computes the columns that the rules look at: the matter's terms, channel, mode, completeness, evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.frames import TIMESTAMP
from pipeline.reference.keys import encode, hex_words, integers, is_given, is_true, where, with_nothing
from pipeline.reference.lists import flatten
from pipeline.rules.catalogue import Catalogues
from pipeline.rules.model import REQUIRED_FIELDS, Matter
from pipeline.rules.modes import Record, known_records, mode_bits, strongest_active

_MILLISECONDS: Final = 1_000.0

#: Terms of a matter in one version of the catalogue; the bit sets are of modes and channels.
_TERMS: Final[dict[str, Any]] = {
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
            _terms_row(matter, modes, channels)
            for version in catalogues.versions
            for matter in version.matters.values()
        ]
        #: By `_row`; the last row, of nulls, is that of unknown matters.
        self.matters = with_nothing(pl.DataFrame(rows, schema=_TERMS, orient="row"))
        self._rows: list[dict[str, int]] = []
        for version in catalogues.versions:
            first = sum(map(len, self._rows))
            self._rows.append({code: first + place for place, code in enumerate(version.matters)})
        self.channels = _ByCode(
            catalogues.channels,
            [
                (channels[code], channel.carries_photo, channel.reporter)
                for code, channel in catalogues.channels.items()
            ],
            {
                "_channel": pl.Int64(),
                "channel_carries_photo": pl.Boolean(),
                "channel_reporter": pl.String(),
            },
        )
        self.referrals = _ByCode(
            catalogues.referrals,
            [(referral.reason,) for referral in catalogues.referrals.values()],
            {"referral_reason": pl.String()},
        )
        #: Behind a first of null, for what is at -1, the modes and the levels from the weakest.
        self.mode_names = pl.Series("mode", [None, *catalogues.modes.names], dtype=pl.String())
        self.levels = pl.DataFrame(
            [(None, None), *((level.code, level.response_factor) for level in catalogues.modes.levels)],
            schema={"mode_level": pl.String(), "_response_factor": pl.Float64()},
            orient="row",
        )
        self._records: tuple[pl.DataFrame, list[Record]] = (pl.DataFrame(), [])
        self._starts = np.array(
            [int(version.effective_from.timestamp() * _MILLISECONDS) for version in catalogues.versions]
        )
        self.version_names = pl.Series(
            [version.version for version in catalogues.versions], dtype=pl.String()
        )

    def rows(self, matter_codes: pl.Series, version: npt.NDArray[np.uint32]) -> pl.Series:
        """`_row`, UInt32, of codes in a version each.

        By code, of which there are few: a join costs a small block a millisecond.
        """
        codes, words = encode(matter_codes)
        unknown = self.matters.height - 1
        rows = [[*(known.get(word, unknown) for word in words), unknown] for known in self._rows]
        return pl.Series("_row", np.array(rows, np.uint32)[version, codes])  # code -1, null, takes the last

    def records(self, modes: pl.DataFrame) -> list[Record]:
        """Of rows of frames.MODE; read once as long as the same frame is given, which a snapshot holds."""
        of, records = self._records
        if of is not modes:
            records = known_records(modes, self.catalogues.modes)
            self._records = (modes, records)
        return records

    def version_index(self, occurred_at: pl.Series) -> npt.NDArray[np.uint32]:
        """Version that decides on each instant; the first one on everything before it."""
        if len(self._starts) == 1:
            return np.zeros(len(occurred_at), np.uint32)
        index = np.searchsorted(self._starts, integers(occurred_at, 0), side="right") - 1
        return np.asarray(index.clip(0), np.uint32)


class _ByCode:
    """A small table by code."""

    def __init__(self, codes: Iterable[str], rows: Sequence[tuple[Any, ...]], schema: dict[str, Any]) -> None:
        self._places = {code: place for place, code in enumerate(codes)}
        self._rows = with_nothing(pl.DataFrame(rows, schema=schema, orient="row"))

    def of(self, words: pl.Series) -> list[pl.Series]:
        """Its columns for `words` (String, nulls allowed), null where a word is unknown."""
        codes, distinct = encode(words)
        unknown = len(self._places)
        places = [*(self._places.get(word, unknown) for word in distinct), unknown]
        return self._rows[np.array(places, np.uint32)[codes]].get_columns()  # code -1, null, takes the last


def _terms_row(matter: Matter, modes: dict[str, int] | Any, channels: dict[str, int]) -> tuple[Any, ...]:
    return (
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
    """Append `age_seconds`, `_version` and `_row`, the matter's entry in `terms.matters`."""
    version = terms.version_index(events["occurred_at"])
    age = (events["ingested_at"].cast(pl.Int64) - events["occurred_at"].cast(pl.Int64)) / _MILLISECONDS
    return events.hstack(
        [
            age.alias("age_seconds"),
            pl.Series("_version", version),
            terms.rows(events["matter_code"], version),
        ]
    )


def matter_terms(events: pl.DataFrame, terms: Terms, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of `terms.matters` for events prepared by `add_terms`; null where the matter is unknown."""
    return terms.matters[list(columns)][events["_row"]]


def add_features(
    reports: pl.DataFrame, terms: Terms, modes: pl.DataFrame, districts: Sequence[str]
) -> pl.DataFrame:
    """Append `conditions.COMPUTED` to reports that `add_terms` has prepared. Height and order stay.

    modes : rows of frames.MODE; districts : 6-digit codes of the districts that take part.
    Also appends the `mode` that acts, its `mode_level` and `_response_factor`, null where none does.
    """
    reports = reports.hstack(
        [
            *matter_terms(reports, terms, list(_TERMS)).get_columns(),
            *terms.channels.of(reports["channel"]),
            *terms.referrals.of(reports["matter_code"]),
            pl.Series("matter_known", reports["_row"].to_numpy() < terms.matters.height - 1),
            *_evidence(reports),
        ]
    )
    return reports.hstack(_modes(reports, terms, modes)).with_columns(
        pl.col("grid_code").str.slice(0, 6).is_in(list(districts)).alias("grid_in_scope"), *_FEATURES
    )


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
    """What each of a matter's required fields means (design, the event), but for `has_photo`."""
    present = {
        "has_location": pl.col("lon").is_not_null() & pl.col("lat").is_not_null(),
        "has_person": pl.col("persons").list.len() > 0,
        "has_organisation": pl.col("organisation_code").is_not_null()
        | pl.col("organisation_name").is_not_null(),
        "has_description": pl.col("description").str.contains(r"\S"),
    }
    return [value.fill_null(value=False).alias(name) for name, value in present.items()]


#: Features that follow from a row. Built once: that costs as much as evaluating them on a small block.
_FEATURES: Final = (
    ((pl.col("_channels") & pl.col("_channel").fill_null(0)) != 0).alias("channel_allowed"),
    *_reporter(),
    *_completeness(),
    pl.when(pl.col("persons").list.len() > 0).then(pl.col("persons_found") >= 1).alias("person_resolved"),
)
#: The columns of events, prepared by `add_terms`, that all features are made of.
FEATURES_FROM: Final = frozenset(
    {"_row", "channel", "matter_code", "photos", "occurred_at", "grid_code", "grid_found"}
).union(*(feature.meta.root_names() for feature in _FEATURES))


def _evidence(reports: pl.DataFrame) -> list[pl.Series]:
    """`has_photo`, and the usability of each report's photos: all hashes well formed, and the farthest time
    taken.

    The photos of all reports lie behind one another; reduceat folds each report's stretch.
    """
    photos, counts = flatten(reports["photos"])
    has = counts > 0
    valid, offset = np.zeros(reports.height, bool), np.zeros(reports.height)
    if len(photos):
        photo = photos.struct.unnest()
        well_formed, _ = hex_words(photo["sha256"])
        # with a null the numbers are floats, NaN among them
        taken, occurred = (
            time.cast(pl.Int64).to_numpy() for time in (photo["taken_at"], reports["occurred_at"])
        )
        distance = np.nan_to_num(np.abs(taken - np.repeat(occurred, counts)), nan=0)
        starts = (counts.cumsum() - counts)[has]
        valid[has] = np.logical_and.reduceat(well_formed, starts)
        offset[has] = np.maximum.reduceat(distance, starts) / _MILLISECONDS
    # null without photos: there is nothing to judge
    return [
        pl.Series("has_photo", has),
        where(has, valid).alias("photo_hash_valid"),
        where(has, offset).alias("photo_offset_seconds"),
    ]


def _modes(reports: pl.DataFrame, terms: Terms, modes: pl.DataFrame) -> list[pl.Series]:
    """The mode that acts on each report. In an unknown grid none does: where it lies cannot be said.

    While nobody has looked for the grid, it is unknown whether one does: every matter has its modes.
    """
    grid_found = is_true(reports["grid_found"])
    wanted, only = (np.where(grid_found, integers(reports[name], 0), 0) for name in ("_modes", "_only_modes"))
    records = terms.records(modes)
    prioritised = strongest_active(reports, wanted, records)
    required = strongest_active(reports, only, records)
    looked_for = is_given(reports["grid_found"])
    return [
        where(looked_for, prioritised.active).alias("mode_prioritises"),
        where(looked_for, required.active).alias("only_mode_active"),
        terms.mode_names[(prioritised.mode + 1).astype(np.uint32)],
        *terms.levels[(prioritised.level + 1).astype(np.uint32)].get_columns(),
    ]
