"""Persons who were erased on request: their pseudonyms are kept so that no replay brings their data back."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.frames import PERSON, TIMESTAMP
from pipeline.reference.keys import Mask
from pipeline.reference.query import read_frame

#: Announced in `ref_loads` under this name.
ERASURES: Final = "erasures"
#: What every event of a case loses that an erased person reported or that was about it: texts and the place.
#: Who handled the case may have written of the person without naming a key.
WORDS: Final = (
    "title", "description", "address", "void_reason", "attributes", "unit_code", "organisation_name", "level",
    "lon", "lat",
)  # fmt: skip
#: What an event loses whose reporter or person concerned was erased, besides keys, persons and photos: also
#: what links it to what else the person sent, and the fingerprint of reporter and texts.
PERSONAL: Final = (*WORDS, "submission_id", "l2_hi", "l2_lo")
_PERSONS: Final = "SELECT person_key AS key, max(erased_at) AS erased_at FROM ref_erasures GROUP BY key"
_CASES: Final = "SELECT case_id AS key, max(erased_at) AS erased_at FROM ref_erased_cases GROUP BY key"


class Erased:
    """Pseudonyms of erased persons and the cases they reported or were the subject of, and since when."""

    def __init__(self, persons: pl.DataFrame | None = None, cases: pl.DataFrame | None = None) -> None:
        """persons, cases : key (String; of cases their id) and erased_at, one row per key; few."""
        self._persons, self._cases = _listed(persons), _listed(cases)
        self._keys = self._persons["key"]

    @classmethod
    def load(cls, client: Client) -> Erased:
        """Everybody who was erased. Raises UnavailableError."""
        return cls(read_frame(client, _PERSONS), read_frame(client, _CASES))

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, keys: pl.Series) -> Mask:
        """(n,) whether each of `keys` (String, nulls allowed) is of an erased person."""
        if not len(self):
            return np.zeros(len(keys), bool)
        return keys.is_in(self._keys.implode()).fill_null(False).to_numpy()

    def before(self, keys: pl.Series, received: pl.Series) -> Mask:
        """(n,) whether the event received then is of a time before its person was erased.

        What comes later is lawful again: a person who was erased may call tomorrow.
        """
        return _received_before(self._persons, keys, received)

    def of_cases(self, case_ids: pl.Series, received: pl.Series) -> Mask:
        """(n,) whether the event received then is of a case of theirs, of a time before the erasure."""
        return _received_before(self._cases, case_ids, received)


def _listed(rows: pl.DataFrame | None) -> pl.DataFrame:
    if rows is None:
        return pl.DataFrame(schema={"key": pl.String(), "erased_at": TIMESTAMP})
    return rows.select(pl.col("key").cast(pl.String), pl.col("erased_at").cast(TIMESTAMP))


def _received_before(listed: pl.DataFrame, keys: pl.Series, received: pl.Series) -> Mask:
    if listed.is_empty():
        return np.zeros(len(keys), bool)
    asked = pl.DataFrame({"key": keys, "received": received})
    found = asked.join(listed, on="key", how="left", maintain_order="left")
    return (found["received"] <= found["erased_at"]).fill_null(False).to_numpy()


def without_erased(events: pl.DataFrame, erased: Erased) -> pl.DataFrame:
    """`events` (at least DECODED, l2_hi, l2_lo) without what belongs to erased persons, as a deletion leaves
    them; the rows and their facts stay, for the figures count cases and not persons."""
    if not len(erased) or not events.height:
        return events
    persons = events.select(pl.int_range(pl.len()).alias("row"), "ingested_at", pl.col("persons")).explode(
        "persons"
    )
    mine = persons["persons"].struct.field("key")
    concerned = erased.before(mine, persons["ingested_at"])
    reporter = erased.before(events["actor_key"], events["ingested_at"])
    of_case = erased.of_cases(events["case_id"], events["ingested_at"])
    if not concerned.any() and not reporter.any() and not of_case.any():
        return events
    touched = reporter.copy()
    touched[persons["row"].to_numpy()[concerned]] = True
    left = (
        persons.filter(pl.Series(~concerned) & persons["persons"].is_not_null())
        .group_by("row")
        .agg(pl.col("persons"))
    )
    rows = events.select(pl.int_range(pl.len()).alias("row")).join(
        left, on="row", how="left", maintain_order="left"
    )
    kept = rows["persons"].fill_null([]).cast(pl.List(PERSON))
    at, who, about = pl.Series(touched), pl.Series(reporter), pl.Series(touched | of_case)

    def blank(name: str, where: pl.Series) -> pl.Series:
        return events[name].set(where, None)

    return events.with_columns(
        kept.alias("persons"),
        *(blank(name, who) for name in ("actor_key", "actor_name", "actor_phone")),
        *(blank(name, about if name in WORDS else at) for name in PERSONAL),
        pl.when(at)
        .then(pl.lit([], dtype=events.schema["photos"]))
        .otherwise(pl.col("photos"))
        .alias("photos"),
    )
