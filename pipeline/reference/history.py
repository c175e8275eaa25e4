"""What a load changes: which rows are new, which change a record, which are known already (type 2 history).

A changed row opens a version from the instant that its source changed it (`updated_at`), else from the load.
A "dated" file says itself when a version begins. A row with a valid_from that is not stored opens that
version: later than the others, or before or between them, where it ends when the next one begins. A row that
ends before the version in force begins, and one of the future, is compared with the version that begins when
it does. The last row of a key that has begun speaks of the present: other attributes than those in force are
a change as above, another valid_to closes the version. A record older than the stored one (`updated_at`)
never replaces it, and no version ends before it begins.
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
    valid_from, valid_to, row_digest, updated_at, instants as above; empty for plain kinds.
    """

    index: HashIndex
    digest: UInt64s
    version: Int64s
    valid_from: Int64s
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
            index.insert(*text_words(last[KEY]))
            newest.append(last.drop(KEY))
            if kind.history != "plain":
                everything.append(rows)
        columns = pl.concat(newest)
        return cls(
            index=index,
            digest=columns["row_digest"].to_numpy(),
            version=columns["version"].to_numpy(),
            valid_from=columns["valid_from"].to_numpy(),
            updated_at=columns["updated_at"].to_numpy(),
            versions=pl.concat(everything) if everything else pl.DataFrame(),
        )


def compare(kind: Kind, rows: pl.DataFrame, stored: Stored, now: datetime) -> pl.DataFrame:
    """What to do with each row: columns `action`, `version`, `valid_from`, `valid_to` added or replaced.

    rows : typed rows with `_key` and `row_digest`; of a dated or numbered kind all rows of the file, so that
    the newest version of each key is known. Rows to write have action new, changed or corrected; a row of a
    dated kind may come twice, as new for a time before what is stored and as a change from now on.
    """
    if kind.history == "plain":
        return _compare_newest(kind, _since_ever(rows), stored, now)
    if kind.history == "dated":
        return _number_versions(_compare_dated(rows, stored, now), stored)
    ordered = rows.sort(KEY, "version", nulls_last=True, maintain_order=True)
    is_last = (ordered[KEY] != ordered[KEY].shift(-1)).fill_null(True)
    newest = _compare_newest(kind, ordered.filter(is_last), stored, now)
    earlier = _compare_earlier(ordered.filter(~is_last), stored)
    return _number_versions(pl.concat([earlier, newest], how="diagonal"), stored)


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

    stored_digest = stored.digest[place] if len(stored.digest) else np.zeros(rows.height, np.uint64)
    same = known & (stored_digest == rows["row_digest"].to_numpy())
    if kind.history == "numbered":
        older = rows["version"].fill_null(2**31).to_numpy() < of(stored.version)
        action = np.select([~known, same, older], [NEW, UNCHANGED, OLDER], CHANGED)
        return rows.with_columns(pl.Series("action", action.tolist(), dtype=pl.String))
    updated = _ms(rows["updated_at"])
    stored_start, stored_updated = of(stored.valid_from), of(stored.updated_at)
    older = (updated >= 0) & (stored_updated >= 0) & (updated < stored_updated)
    action = np.select([~known, same, older], [NEW, UNCHANGED, OLDER], CHANGED)
    # a change counts from the moment the source made it, unless that lies before the stored version or ahead
    moved = np.where(
        (updated > stored_start) & (updated <= now_ms), updated, np.maximum(now_ms, stored_start + 1)
    )
    changed = action == CHANGED
    return rows.with_columns(
        pl.Series("action", action.tolist(), dtype=pl.String),
        pl.Series("valid_from", np.where(changed, moved, _ms(rows["valid_from"]))).cast(TIMESTAMP),
        pl.Series("version", np.where(changed, of(stored.version) + 1, 1)),
    )


def _compare_earlier(rows: pl.DataFrame, stored: Stored) -> pl.DataFrame:
    """Rows that the file itself follows by a higher number of their key: history, kept or corrected."""
    known = stored.versions.select(
        KEY, "version", pl.lit(True).alias("stored"), pl.col("row_digest").alias("stored_digest")
    )
    joined = rows.join(known, on=[KEY, "version"], how="left", maintain_order="left")
    return joined.with_columns(
        pl.when(pl.col("stored").is_null())
        .then(pl.lit(NEW))
        .when(pl.col("stored_digest") == pl.col("row_digest"))
        .then(pl.lit(UNCHANGED))
        .otherwise(pl.lit(CORRECTED))
        .alias("action")
    ).drop("stored", "stored_digest")


def _compare_dated(rows: pl.DataFrame, stored: Stored, now: datetime) -> pl.DataFrame:
    """Rows of a dated file, each against the stored version that begins when it does, or the one in force.

    Of a key's rows the last that has begun speaks of the present, unless it begins after the version in force
    or ends before that one begins. Every other row is a version of its own: history, or planned.
    """
    now_ms = int(now.timestamp() * 1000)
    joined = _beside_stored(rows, stored, now_ms)
    start, end, digest = pl.col("_start"), pl.col("_end"), pl.col("row_digest")
    no_own = pl.col("own_version").is_null()
    current, current_next = pl.col("current_start"), pl.col("current_next")

    past = (start < current) & (end <= current).fill_null(False)
    # the source ends the record as of a time before its last change: no correction of what it was at first
    ended = (pl.col("own_digest") != digest) & (pl.col("current_digest") == digest)
    last = (pl.col(KEY) != pl.col(KEY).shift(-1)).fill_null(True) | (start.shift(-1) > now_ms)
    present = (start <= now_ms) & last & (start <= current) & ~(past & ~ended.fill_null(False))
    joined = joined.with_columns(present.fill_null(False).alias("_present"))

    own_action = (
        pl.when(no_own)
        .then(pl.lit(NEW))
        .when(
            (pl.col("own_digest") == digest)
            & _first(end, pl.col("_next")).eq_missing(_first(pl.col("own_end"), pl.col("_next")))
        )
        .then(pl.lit(UNCHANGED))
        .when((pl.col("_updated") < pl.col("own_updated")).fill_null(False))
        .then(pl.lit(OLDER))
        .otherwise(pl.lit(CORRECTED))
    )
    by_start = joined.filter(~pl.col("_present") | (no_own & (start < current))).with_columns(
        own_action.alias("action"), pl.coalesce("own_version", "version").alias("version")
    )

    # whatever the file says, no version ends before it begins
    now_end = _not_before(current, _first(end, current_next))
    same_end = now_end.eq_missing(_first(pl.col("current_end"), current_next))
    same = pl.col("current_digest") == digest
    updated = pl.col("_updated")
    # history whose end reaches into the version in force: taken for the present it would end that version
    # and with it the record. What a source changed and ended at once begins with all that is stored.
    known_before = (
        pl.when(no_own).then(start > pl.col("current_first")).otherwise(pl.col("own_digest") == digest)
    )
    overlaps = (
        known_before
        & (start < current)
        & (end <= now_ms)
        & ~(updated > pl.col("current_updated")).fill_null(False)
    )
    older = (updated < pl.col("current_updated")).fill_null(False) | (overlaps & ~same).fill_null(False)
    # nothing was ever in force of an empty version: an end that came with a change leaves one, where the
    # successor begins
    empty_own = (start == current) & (pl.col("current_end") == current)
    now_action = (
        pl.when(same & (same_end | older))
        .then(pl.lit(UNCHANGED))
        .when(older)
        .then(pl.lit(OLDER))
        .when(same | (end <= current).fill_null(False) | empty_own.fill_null(False))
        .then(pl.lit(CORRECTED))
        .otherwise(pl.lit(CHANGED))
    )
    moved = (
        pl.when((updated > current) & (updated <= now_ms))
        .then(updated)
        .otherwise(pl.max_horizontal(pl.lit(now_ms), current + 1))
    )
    changed = pl.col("action") == CHANGED
    by_now = (
        joined.filter("_present")
        .with_columns(now_action.alias("action"))
        # a beginning before all that is stored is told as the new version that it is
        .filter(~(no_own & (start < current) & pl.col("action").is_in([UNCHANGED, OLDER])))
        .with_columns(
            pl.when(changed).then(None).otherwise("current_version").alias("version"),
            pl.when(changed).then(_first(moved, end)).otherwise(current).cast(TIMESTAMP).alias("valid_from"),
            pl.when(changed).then(end).otherwise(_not_before(current, end)).cast(TIMESTAMP).alias("valid_to"),
        )
    )
    return pl.concat([by_start, by_now]).select(*rows.columns, "action")


def _beside_stored(rows: pl.DataFrame, stored: Stored, now_ms: int) -> pl.DataFrame:
    """`rows` by key and beginning, with _start, _end and _updated (ms), the beginning of the next stored
    version (_next), and own_* and current_*: the stored version that begins with the row, and the one in
    force; null where there is none. *_first : the beginning of the first stored version."""
    versions = (
        stored.versions.sort(KEY, "valid_from", "version")
        .unique([KEY, "valid_from"], keep="last", maintain_order=True)
        .select(
            KEY,
            "version",
            pl.col("valid_from").alias("start"),
            pl.col("row_digest").alias("digest"),
            pl.col("valid_from").shift(-1).over(KEY).alias("next"),
            pl.col("valid_from").min().over(KEY).alias("first"),
            *(
                pl.when(pl.col(name) != _NONE).then(name).alias(alias)
                for name, alias in (("valid_to", "end"), ("updated_at", "updated"))
            ),
        )
    )
    current = versions.filter(pl.col("start") <= now_ms).unique(KEY, keep="last", maintain_order=True)
    times = (("valid_from", "_start"), ("valid_to", "_end"), ("updated_at", "_updated"))
    return (
        rows.sort(KEY, "valid_from", maintain_order=True)
        .with_columns(pl.col(name).dt.epoch("ms").alias(alias) for name, alias in times)
        .join_asof(
            versions.select(KEY, pl.col("start").alias("_next")),
            left_on="_start",
            right_on="_next",
            by=KEY,
            strategy="forward",
            allow_exact_matches=False,
            coalesce=False,
            check_sortedness=False,  # sorted within a key
        )
        .join(
            versions.select(KEY, pl.all().exclude(KEY).name.prefix("own_")),
            left_on=[KEY, "_start"],
            right_on=[KEY, "own_start"],
            how="left",
            maintain_order="left",
        )
        .join(
            current.select(KEY, pl.all().exclude(KEY).name.prefix("current_")),
            on=KEY,
            how="left",
            maintain_order="left",
        )
    )


def _first(end: pl.Expr, other: pl.Expr) -> pl.Expr:
    """The earlier of two instants, either of which may be null: never."""
    return pl.min_horizontal(end, other)


def _not_before(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """`end`, at least `start`; null stays null."""
    return pl.when(end < start).then(start).otherwise(end)


def _number_versions(rows: pl.DataFrame, stored: Stored) -> pl.DataFrame:
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
