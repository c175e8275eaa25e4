"""Adds places and persons to judged events: only what the matter at hand may see.

Source: base data section 3 (which flags for which matters), domain 8.4 and 9 (care flags, minimisation).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import frames
from pipeline.reference.erased import without_erased
from pipeline.reference.keys import instant_ms
from pipeline.reference.lists import flatten, regroup, rows_of
from pipeline.reference.people import FLAG_BIT, FLAGS
from pipeline.reference.snapshot import Reference

#: Flags by category of the matter.
_BY_CATEGORY: Final = {
    "PS": ("elderly_alone", "disability", "hardship"),
    "ER": ("elderly_alone", "disability"),
}
#: Flags by single matter, beside those of its category.
_BY_MATTER: Final = {
    "PS-02": ("pingantong_user",),
    "PS-05": ("child_care",),
    "PO-09": ("child_care",),
}
#: Flags that only a report on which an emergency mode acted may have.
EMERGENCY_FLAGS: Final = ("health_care",)
#: They are seen by these categories.
_EMERGENCY_CATEGORIES: Final = ("PS", "ER")

#: Row b holds the names of the bits set in b.
_FLAG_NAMES: Final = pl.Series(
    [[flag for flag in FLAGS if FLAG_BIT[flag] & bits] for bits in range(1 << len(FLAGS))],
    dtype=pl.List(pl.String()),
)


def _bits(flags: tuple[str, ...]) -> int:
    return sum(FLAG_BIT[flag] for flag in flags)


def _visible_flags() -> pl.Expr:
    """`visible`: bits of the flags that a row's matter may see, from its code, category and `mode`, UInt16.

    The category is the catalogue's: the code of a temporary matter does not tell it.
    """
    matter, category = pl.col("matter_code").fill_null(""), pl.col("category").fill_null("")
    bits = pl.lit(0, dtype=pl.UInt16)
    for code, flags in _BY_CATEGORY.items():
        bits |= pl.when(category == code).then(_bits(flags)).otherwise(0).cast(pl.UInt16)
    for code, flags in _BY_MATTER.items():
        bits |= pl.when(matter == code).then(_bits(flags)).otherwise(0).cast(pl.UInt16)
    emergency = pl.col("mode").is_not_null() & category.is_in(_EMERGENCY_CATEGORIES)
    bits |= pl.when(emergency).then(_bits(EMERGENCY_FLAGS)).otherwise(0).cast(pl.UInt16)
    return bits.alias("visible")


#: What a row tells by itself.
_PLACES_AND_FLAGS: Final = (
    pl.col("grid_code").str.head(6).alias("district_code"),
    pl.col("grid_code").str.head(9).alias("town_code"),
    pl.col("grid_code").str.head(12).alias("village_code"),
    _visible_flags(),
)


def enrich(judged: pl.DataFrame, reference: Reference) -> pl.DataFrame:
    """Add the ENRICHMENT columns to `judged` (at least occurred_at, grid_code, matter_code, category, mode
    and persons).

    A fact per person given, in the same order; `found` is false and the rest null for an unknown key. Events
    without a matter, and the matters of special groups (PO-05 to PO-07), see no flags.
    """
    judged = without_erased(judged, reference.erased)
    *places, visible = judged.select(_PLACES_AND_FLAGS).get_columns()
    return judged.hstack([*places, _person_facts(judged, visible.to_numpy(), reference)])


def _person_facts(judged: pl.DataFrame, visible: NDArray[np.uint16], reference: Reference) -> pl.Series:
    """visible : (n,) bits of the flags that a row's matter may see."""
    flat, counts = flatten(judged["persons"])
    persons = flat.struct.unnest()
    positions = reference.people.find(persons["key"], instant_ms(judged["occurred_at"])[rows_of(counts)])
    known = reference.people.facts(positions)
    bits = known["flags"].to_numpy() & np.repeat(visible, counts)
    facts = persons[["key", "role"]].hstack(
        [
            pl.Series("found", positions >= 0),
            *known[["age_band", "gender", "residence_kind", "home_grid_code"]].get_columns(),
            _FLAG_NAMES[bits.astype(np.uint32)].alias("flags"),
        ]
    )
    return regroup(facts.to_struct("person_facts").cast(frames.PERSON_FACT), counts)
