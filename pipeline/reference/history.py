"""What a load changes: which rows are new, which change a record, which are known already (type 2 history).

A changed row opens a version from the instant that its source changed it (`updated_at`), else from the load.
A "dated" file says itself when a version begins; a row with a later valid_from opens that version, one with
the same valid_from and other attributes is a change as above, one that only sets valid_to closes the version.
A record older than the stored one (`updated_at`) never replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import polars as pl
import polars_hash as plh
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline.frames import TIMESTAMP
from pipeline.reference.hash_index import HashIndex, Int64s, UInt64s
from pipeline.reference.keys import text_words
from pipeline.reference.query import read_frame
from pipeline.reference.schema import Kind

#: valid_from of a first version whose file does not say when it begins: since ever.
SINCE_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
KEY: Final = "_key"
_NONE: Final = np.int64(-1)

UNCHANGED, OLDER, NEW, CHANGED, CORRECTED = "unchanged", "older", "new", "changed", "corrected"

#: First hex digit of a person key: 4.8 million stored versions are read in sixteen portions.
PERSON_PORTIONS: Final = tuple(
    f"person_key >= '{low}'" + (f" AND person_key < '{high}'" if high else "")
    for low, high in zip("0123456789abcdef", [*"123456789abcdef", ""], strict=True)
)


def portions(kind: Kind) -> tuple[str, ...]:
    """SQL conditions that split a kind's table into parts of moderate size."""
    return PERSON_PORTIONS if kind.name == "persons" else ("1",)


def key_text(kind: Kind) -> pl.Expr:
    """The key of a row as one text."""
    parts = [
        pl.col(name).dt.epoch("ms").cast(pl.String) if name == "valid_from" else pl.col(name)
        for name in kind.key
    ]
    return pl.concat_str(parts, separator="|").alias(KEY)


def row_digest(kind: Kind) -> pl.Expr:
    """64 bits of a row's attributes, stable over releases: UInt64, column `row_digest`."""
    parts = [_canonical(kind, name).fill_null("\x00") for name in kind.attributes]
    text = plh.concat_str(*parts, separator="\x1e")
    digest: pl.Expr = text.nchash.xxhash64()
    return digest.alias("row_digest")


def _canonical(kind: Kind, name: str) -> pl.Expr:
    value, column_type = pl.col(name), kind.column(name).type
    if column_type == "instant":
        return value.dt.epoch("ms").cast(pl.String)
    if column_type == "number":  # nine decimals as an integer: no library decides how a float is printed
        return (value * 1e9).round(0).cast(pl.Int64).cast(pl.String)
    if column_type == "list":
        return value.list.join("\x1f")
    if column_type == "routes":
        return value.list.eval(
            pl.concat_str(
                pl.element().struct.field("category"), pl.lit("="), pl.element().struct.field("department")
            )
        ).list.join("\x1f")
    if column_type == "loans":
        start, end = (
            pl.element().struct.field(f).dt.epoch("ms").cast(pl.String) for f in ("valid_from", "valid_to")
        )
        return value.list.eval(
            pl.concat_str(pl.element().struct.field("grid_code"), start, end.fill_null(""), separator="/")
        ).list.join("\x1f")
    return value.cast(pl.String)


@dataclass
class Stored:
    """The newest stored version of each key, and for files with a history every version.

    All arrays (k,): digests, versions, instants in ms (-1 for null). versions: columns _key, version,
    valid_from, valid_to, row_digest; empty for plain kinds.
    """

    index: HashIndex
    digest: UInt64s
    version: Int64s
    valid_from: Int64s
    valid_to: Int64s
    updated_at: Int64s
    versions: pl.DataFrame

    @classmethod
    def load(cls, client: Client, kind: Kind) -> Stored:
        """Read what is stored of `kind`. Raises UnavailableError."""
        key = ", '|', ".join(
            f"toString(toUnixTimestamp64Milli({name}))" if name == "valid_from" else f"toString({name})"
            for name in kind.key
        )
        # a mode's valid_from and valid_to belong to the declaration; its versions only have numbers
        dated = kind.history != "numbered"
        start = "toUnixTimestamp64Milli(valid_from)" if dated else "toInt64(0)"
        end = "ifNull(toUnixTimestamp64Milli(valid_to), -1)" if dated else "toInt64(-1)"
        updated = (
            "ifNull(toUnixTimestamp64Milli(updated_at), -1)" if "updated_at" in kind.names else "toInt64(-1)"
        )
        frames = [
            read_frame(
                client,
                # aliases of their own: in ClickHouse an alias hides the column that it is named after
                f"SELECT concat({key}, '') AS {KEY}, toInt64(version) AS number, {start} AS start_ms, "
                f"{end} AS end_ms, row_digest, {updated} AS updated_ms FROM {kind.table} FINAL "
                f"WHERE {portion} ORDER BY {KEY}, start_ms, number",
            ).rename(
                {
                    "number": "version",
                    "start_ms": "valid_from",
                    "end_ms": "valid_to",
                    "updated_ms": "updated_at",
                }
            )
            for portion in portions(kind)
        ]
        return cls._of(kind, frames)

    @classmethod
    def _of(cls, kind: Kind, frames: Iterable[pl.DataFrame]) -> Stored:
        index = HashIndex()
        newest: list[pl.DataFrame] = []
        everything: list[pl.DataFrame] = []
        for rows in frames:
            last = rows.group_by(KEY, maintain_order=True).last()
            start = len(index)
            index.insert(*text_words(last[KEY]), np.arange(start, start + last.height, dtype=np.int64))
            newest.append(last.drop(KEY))
            if kind.history != "plain":
                everything.append(rows)
        columns = pl.concat(newest)
        return cls(
            index=index,
            digest=columns["row_digest"].to_numpy(),
            version=columns["version"].to_numpy(),
            valid_from=columns["valid_from"].to_numpy(),
            valid_to=columns["valid_to"].to_numpy(),
            updated_at=columns["updated_at"].to_numpy(),
            versions=pl.concat(everything) if everything else pl.DataFrame(),
        )


def compare(kind: Kind, rows: pl.DataFrame, stored: Stored, now: datetime) -> pl.DataFrame:
    """What to do with each row: columns `action`, `version`, `valid_from`, `valid_to` added or replaced.

    rows : typed rows with `_key` and `row_digest`; of a dated or numbered kind all rows of the file, so that
    the newest version of each key is known. Rows to write have action new, changed or corrected.
    """
    if kind.history == "plain":
        return _compare_newest(kind, _since_ever(rows), stored, now)
    order = "valid_from" if kind.history == "dated" else "version"
    ordered = rows.sort(KEY, order, nulls_last=True, maintain_order=True)
    last = ordered[KEY] != ordered[KEY].shift(-1)
    is_last = last.fill_null(True)
    newest = _compare_newest(kind, ordered.filter(is_last), stored, now)
    earlier = _compare_earlier(kind, ordered.filter(~is_last), stored)
    return _number_versions(kind, pl.concat([earlier, newest], how="diagonal"), stored)


def _since_ever(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        pl.lit(None, dtype=pl.Int64).alias("version"),
        pl.lit(SINCE_EVER).cast(TIMESTAMP).alias("valid_from"),
        pl.lit(None, dtype=TIMESTAMP).alias("valid_to"),
    )


def _ms(times: pl.Series) -> Int64s:
    return times.dt.epoch("ms").fill_null(_NONE).to_numpy()


def _compare_newest(kind: Kind, rows: pl.DataFrame, stored: Stored, now: datetime) -> pl.DataFrame:
    """Rows, one per key, against the newest stored version of their key."""
    at = stored.index.find(*text_words(rows[KEY]))
    known = at >= 0
    place = np.maximum(at, 0)
    now_ms = int(now.timestamp() * 1000)

    def of(values: NDArray[np.generic]) -> NDArray[np.int64]:
        return values[place].astype(np.int64) if len(values) else np.full(rows.height, _NONE)

    dated = kind.history == "dated"
    start, end = _ms(rows["valid_from"]), _ms(rows["valid_to"])
    updated = _ms(rows["updated_at"]) if "updated_at" in rows.columns else np.full(rows.height, _NONE)
    stored_digest = stored.digest[place] if len(stored.digest) else np.zeros(rows.height, np.uint64)
    same = known & (stored_digest == rows["row_digest"].to_numpy())
    stored_start, stored_end, stored_updated = (
        of(stored.valid_from),
        of(stored.valid_to),
        of(stored.updated_at),
    )

    later = known & (start > stored_start) if dated else np.zeros(rows.height, bool)
    older = (updated >= 0) & (stored_updated >= 0) & (updated < stored_updated)
    if kind.history == "numbered":
        number = rows["version"].fill_null(2**31).to_numpy()
        older = number < of(stored.version)
    closed = same & (end != stored_end) if dated else np.zeros(rows.height, bool)
    not_begun = dated & (stored_start >= now_ms)
    action = np.select(
        [~known, later, closed & ~older, same, older, not_begun],
        [NEW, NEW, CORRECTED, UNCHANGED, OLDER, CORRECTED],
        CHANGED,
    )
    # a change counts from the moment the source made it, unless that lies before the stored version or ahead
    moved = np.where(
        (updated > stored_start) & (updated <= now_ms), updated, np.maximum(now_ms, stored_start + 1)
    )
    valid_from = np.select([action == CHANGED, action == CORRECTED], [moved, stored_start], start)
    version = np.select(
        [action == CHANGED, action == CORRECTED], [of(stored.version) + 1, of(stored.version)], _NONE
    )
    result = rows.with_columns(pl.Series("action", action.tolist(), dtype=pl.String))
    if kind.history == "numbered":
        return result
    assigned = pl.Series(version)
    result = result.with_columns(
        pl.Series("valid_from", valid_from).cast(TIMESTAMP),
        pl.when(assigned >= 0).then(assigned).otherwise(pl.col("version")).alias("version"),
    )
    if kind.history == "plain":
        return result.with_columns(pl.col("version").fill_null(1))
    return result


def _compare_earlier(kind: Kind, rows: pl.DataFrame, stored: Stored) -> pl.DataFrame:
    """Rows that the file itself follows by a newer version of their key: history, kept or corrected."""
    on = "valid_from" if kind.history == "dated" else "version"
    known = stored.versions.select(
        KEY,
        pl.col("valid_from").cast(TIMESTAMP) if on == "valid_from" else pl.col("version"),
        pl.col("version").alias("stored_version"),
        pl.col("valid_to").alias("stored_end"),
        pl.col("row_digest").alias("stored_digest"),
    )
    joined = rows.join(known, on=[KEY, on], how="left", maintain_order="left")
    end = pl.col("valid_to").dt.epoch("ms").fill_null(_NONE) if kind.history == "dated" else pl.lit(_NONE)
    same_end = (end == _NONE) | (end == pl.col("stored_end"))
    return joined.with_columns(
        pl.when(pl.col("stored_version").is_null())
        .then(pl.lit(NEW))
        .when((pl.col("stored_digest") == pl.col("row_digest")) & same_end)
        .then(pl.lit(UNCHANGED))
        .otherwise(pl.lit(CORRECTED))
        .alias("action"),
        pl.coalesce("stored_version", "version").alias("version"),
    ).drop("stored_version", "stored_end", "stored_digest")


def _number_versions(kind: Kind, rows: pl.DataFrame, stored: Stored) -> pl.DataFrame:
    """Give new and changed rows a number of their own: the file's where it is free, else the next one."""
    taken = stored.versions.group_by(KEY).agg(
        pl.col("version").max().alias("top"), pl.col("version").alias("taken")
    )
    fresh = pl.col("action").is_in([NEW, CHANGED])
    rows = rows.join(taken, on=KEY, how="left", maintain_order="left")
    free = (
        fresh
        & pl.col("version").is_not_null()
        & ~pl.col("taken").list.contains(pl.col("version")).fill_null(False)
        & (pl.col("version").cum_count().over(KEY, "version", "action") == 1)
    )
    rows = rows.with_columns(free.alias("free"))
    top = pl.max_horizontal("top", pl.col("version").filter("free").max().over(KEY)).fill_null(0)
    counted = (fresh & ~pl.col("free")).cum_sum().over(KEY)
    return rows.with_columns(
        pl.when(fresh & ~pl.col("free")).then(top + counted).otherwise("version").alias("version")
    ).drop("top", "taken", "free")
