"""Loads a directory of reference files into ClickHouse: checked, pseudonymised, as versions of records.

A load is repeatable: it compares with what is stored and writes only differences, so that one that was cut
off is completed by running it again. Workers look for a kind's new data once its row in `ref_loads` is there,
which is written last.
"""

from __future__ import annotations

import csv
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import polars as pl
import xxhash
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from numpy.typing import NDArray

from pipeline.clock import LOCAL_ZONE, utc_now
from pipeline.contract.privacy import first_line
from pipeline.errors import ConfigurationError, ContractError, UnavailableError
from pipeline.frames import TIMESTAMP
from pipeline.reference import history
from pipeline.reference.erased import Erased
from pipeline.reference.hash_index import HashIndex
from pipeline.reference.keys import text_words
from pipeline.reference.query import read_frame
from pipeline.reference.read import FORMATS, Slice, find_file, place_word, read_slices
from pipeline.reference.report import FileReport, LoadReport
from pipeline.reference.schema import KINDS, Kind
from pipeline.reference.validate import check_cells, check_keys, check_parents, typed_schema
from pipeline.store.erase import entomb
from pipeline.store.erasure_list import stored_erasures
from pipeline.store.retention import WITHDRAWN_KEPT

#: Every insert names its token, also for small tables: the driver may send one twice (reliability C1, C13).
_INSERT_SETTINGS: Final[dict[str, object]] = {"async_insert": 0, "insert_deduplicate": 1}
#: Columns whose ClickHouse type is narrower than the frame's; the schema's ranges were checked before.
_INSERT_TYPES: Final[dict[str, pl.DataType]] = {"version": pl.UInt32(), "key_version": pl.UInt16()}
_TICK: Final = timedelta(milliseconds=1)
_PLACE: Final = "_place"


class Pseudonyms(Protocol):
    """The part of `pipeline.contract.privacy.Privacy` that loading needs."""

    key_version: int

    def person_keys(self, id_numbers: list[str | None]) -> list[str | None]: ...


class Progress(Protocol):
    """Told after every slice: bytes (CSV, NDJSON) or rows (Parquet) done of a kind's file, and in all."""

    def __call__(self, kind: str, done: int, total: int) -> None: ...


def load_directory(
    client: Client,
    directory: Path,
    privacy: Pseudonyms,
    *,
    strict: bool = False,
    progress: Progress | None = None,
    kinds: Collection[str] | None = None,
    needed: bool = True,
    others: Sequence[Pseudonyms] = (),
) -> LoadReport:
    """Load every reference file in `directory`, parents first. Good rows are stored, refused ones reported.

    What was stored is announced at the end, all kinds at once: a worker that takes it over never has grids
    without the staff who report from them. What a load that was cut off had stored, the next one announces.

    client : on the migrated gridpipe database. strict : a file with a refused row stores nothing.
    kinds : only these; unset: all. needed : whether to miss a file is an error.
    Id numbers are replaced by `privacy` and reach neither the store nor the report. others : pseudonyms under
    the other versions of the key: whoever was erased under one of these is put on the list under this one,
    for only now, with the number here, can anybody tell.
    Raises ConfigurationError (no such directory, no file, two files of one kind), UnavailableError.
    """
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory")
    try:
        files = [
            (kind, path)
            for kind in KINDS.values()
            if (kinds is None or kind.name in kinds) and (path := find_file(directory, kind)) is not None
        ]
    except ContractError as error:
        raise ConfigurationError(str(error)) from None
    if not files and needed:
        names = ", ".join(KINDS)
        raise ConfigurationError(
            f"{directory} holds no reference file: {names}, each as {', '.join(FORMATS)}; "
            "`gridpipe reference load --template DIR` writes empty ones"
        )
    started, now = time.monotonic(), utc_now()
    report = LoadReport(load_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}")
    announcements: list[Announcement] = []
    for kind, path in files:
        load = _Load(client, kind, path, privacy, report.load_id, now, strict, progress, others)
        report.files.append(load.run())
        announcements += load.announcements
    if announcements:
        with _reaching_clickhouse():
            _announce(client, announcements, report.load_id)
    report.seconds = time.monotonic() - started
    return report


def write_templates(directory: Path) -> list[Path]:
    """Write an empty CSV file with the right header for every kind; files that exist stay as they are.

    Returns the files written. Raises ConfigurationError if the directory cannot be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for kind in KINDS.values():
            path = directory / f"{kind.name}.csv"
            if find_file(directory, kind) is None:
                with path.open("x", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerow(kind.names)
                written.append(path)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write templates to {directory}: {error.strerror or error}"
        ) from error
    except ContractError as error:
        raise ConfigurationError(str(error)) from None
    return written


@dataclass(frozen=True)
class Announcement:
    """What a worker is told of a load: `rows` of `kind` are new."""

    kind: str
    load_id: str
    rows: int
    digest: str


@dataclass
class _Load:
    """One file on its way into its table."""

    client: Client
    kind: Kind
    path: Path
    privacy: Pseudonyms
    load_id: str
    now: datetime
    strict: bool
    progress: Progress | None
    others: Sequence[Pseudonyms] = ()
    #: After `run`: of this load, and of those that were cut off.
    announcements: list[Announcement] = field(default_factory=list)
    _erased: Erased | None = None
    #: The last line or row that was read.
    _read_to: int = 0
    #: Pseudonyms of erased persons that are not on the list, and those of other versions that are.
    _carried: dict[str, str] = field(default_factory=dict)

    def run(self) -> FileReport:
        report = self._fresh_report()
        if self.strict:
            try:
                for _ in self._checked(report):
                    pass
            except ContractError as error:
                report.problem = str(error)
                return report
            if report.refused:
                report.held_back = True
                return report
            report = self._fresh_report()
        self._store(report)
        self._list_carried()
        if "person_key" in self.kind.names:
            self._look_for_erased(report)
        return report

    def _look_for_erased(self, report: FileReport) -> None:
        """Whoever was erased while this ran may be stored again: the list was read when it began."""
        count = f"""
            SELECT uniqExact(person_key) AS n FROM {self.kind.table}
            WHERE load_id = '{self.load_id}' AND person_key IN (SELECT person_key FROM ref_erasures)"""
        if back := int(read_frame(self.client, count).item()):
            report.problem = (f"{report.problem}; " if report.problem else "") + (
                f"{back:,} persons were erased while this ran and are stored again: run `gridpipe migrate`, "
                "which deletes them (docs/privacy.md)"
            )

    def _list_carried(self) -> None:
        if not self._carried:
            return
        # of several erasures of one person the last: what came before it is gone
        by_key = {erasure.person_key: erasure for erasure in sorted(stored_erasures(self.client))}
        for key, listed in self._carried.items():
            erasure = by_key[listed]
            entomb(self.client, {key: self.privacy.key_version}, erasure.request_id, erasure.erased_at)

    def _fresh_report(self) -> FileReport:
        return FileReport(self.kind.name, self.path.name, place_word(self.path))

    def _checked(self, report: FileReport) -> Iterator[pl.DataFrame]:
        """Good rows, slice by slice; kinds with a history as one frame, since versions must be compared."""
        seen = HashIndex()
        grids = _known_grids(self.client) if self.kind.parents else None
        slices = self._good_slices(report, seen, grids)
        if self.kind.history == "plain":
            yield from slices
        else:
            whole = list(slices)
            if whole:
                yield pl.concat(whole)

    def _good_slices(
        self, report: FileReport, seen: HashIndex, grids: pl.Series | None
    ) -> Iterator[pl.DataFrame]:
        today = self.now.astimezone(LOCAL_ZONE).date()
        for piece in read_slices(self.path, self.kind):
            self._read_to = max([*piece.places[-1:].tolist(), *piece.broken, self._read_to])
            report.rows += len(piece.places) + len(piece.broken)
            report.refusals.unreadable(piece.broken)
            rows = check_cells(self.kind, piece.cells, piece.places, report.refusals, today)
            if "id_number" in self.kind.names:
                rows = self._without_erased(self._pseudonyms(rows), report)
            rows = check_keys(self.kind, rows, _repeated(self.kind, rows, seen), report.refusals)
            if grids is not None:
                rows = check_parents(self.kind, rows, grids, report.refusals)
            self._tell(piece)
            if rows.height:
                yield rows

    def _tell(self, piece: Slice) -> None:
        if self.progress is not None:
            self.progress(self.kind.name, piece.done, piece.total)

    def _pseudonyms(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The number becomes a key and is gone; a key that came without a number stays."""
        numbers = rows["id_number"]
        keys = pl.Series(self.privacy.person_keys(numbers.to_list()), dtype=pl.String)
        version = pl.when(keys.is_not_null()).then(self.privacy.key_version).otherwise("key_version")
        self._carry(numbers, keys)
        return rows.with_columns(
            pl.coalesce(keys, "person_key").alias("person_key"), version.alias("key_version")
        ).with_columns(pl.lit(None, dtype=pl.String).alias("id_number"))

    def _carry(self, numbers: pl.Series, keys: pl.Series) -> None:
        """Find who was erased under another version of the key."""
        for other in self.others if len(self._listed) else ():
            theirs = pl.Series(other.person_keys(numbers.to_list()), dtype=pl.String)
            new = pl.Series(self._listed.holds(theirs)) & ~pl.Series(self._listed.holds(keys))
            self._carried |= dict(zip(keys.filter(new), theirs.filter(new), strict=True))

    @property
    def _listed(self) -> Erased:
        if self._erased is None:
            self._erased = Erased.load(self.client)
        return self._erased

    def _without_erased(self, rows: pl.DataFrame, report: FileReport) -> pl.DataFrame:
        """Persons who were erased on request do not come back; staff stay, without the link to a person."""
        keys = rows["person_key"]
        gone = pl.Series(self._listed.holds(keys)) | keys.is_in(list(self._carried)).fill_null(False)
        if self.kind.name != "persons":
            return rows.with_columns(rows["person_key"].set(gone, None))
        report.erased += int(gone.sum())
        return rows.filter(~gone)

    def _store(self, report: FileReport) -> None:
        # the clock may have been set back: what this load writes must be newer than what it found
        at = max(self.now, _newest_row(self.client, self.kind) + _TICK)
        digest = xxhash.xxh3_64()
        try:
            self._store_differences(report, at, digest)
        except ContractError as error:
            report.problem = str(error)
            if report.rows:
                # what stands before a fault is good: it would come into force at a worker's next start anyway
                before = "is loaded" if self.kind.history == "plain" else "is not loaded either"
                report.problem += f"; what stands up to {report.place_word} {self._read_to:,} {before}"
        if waiting := _waiting(self.client, self.kind):
            self._close_superseded(list(waiting), at)
            waiting = _waiting(self.client, self.kind)
        own = waiting.pop(self.load_id, 0)
        if own or report.rows:
            self.announcements.append(Announcement(self.kind.name, self.load_id, own, digest.hexdigest()))
        self.announcements += [
            Announcement(self.kind.name, load_id, rows, "") for load_id, rows in sorted(waiting.items())
        ]

    def _store_differences(self, report: FileReport, at: datetime, digest: xxhash.xxh3_64) -> None:
        stored: history.Stored | None = None
        chunk = 0
        for rows in self._checked(report):
            stored = stored or history.Stored.load(self.client, self.kind)
            keyed = rows.with_columns(history.key_text(self.kind), history.row_digest(self.kind))
            compared = history.compare(self.kind, keyed, stored, at)
            if self.kind.name == "persons":
                compared = self._without_long_withdrawn(compared)
            actions = compared["action"]
            report.unchanged += int((actions == history.UNCHANGED).sum())
            report.older += int((actions == history.OLDER).sum())
            fresh = compared.filter(~actions.is_in([history.UNCHANGED, history.OLDER]))
            if fresh.height:
                self._insert(fresh, at, chunk)
                digest.update(fresh["row_digest"].to_numpy().tobytes())
                chunk += 1
                # a row of a dated file may open two versions
                report.stored += fresh[_PLACE].n_unique()

    def _without_long_withdrawn(self, compared: pl.DataFrame) -> pl.DataFrame:
        """A file may go on naming residents of whom nothing is stored any more: that is no change."""
        gone = (pl.col("action") == history.NEW) & (pl.col("deleted_at") <= self.now - WITHDRAWN_KEPT)
        action = pl.when(gone).then(pl.lit(history.UNCHANGED)).otherwise("action")
        return compared.with_columns(action.alias("action"))

    def _insert(self, rows: pl.DataFrame, at: datetime, chunk: int) -> None:
        columns = [
            pl.col(name).cast(_INSERT_TYPES.get(name, dtype))
            for name, dtype in typed_schema(self.kind).items()
            if self.kind.column(name).stored
        ]
        if self.kind.history == "plain":
            columns += [pl.col("version").cast(pl.UInt32), pl.col("valid_from"), pl.col("valid_to")]
        frame = rows.select(
            *columns,
            "row_digest",
            pl.lit(self.load_id).alias("load_id"),
            pl.lit(at).cast(TIMESTAMP).alias("loaded_at"),
        )
        self._write(self.kind.table, frame, str(chunk))

    def _write(self, table: str, rows: pl.DataFrame, part: str) -> None:
        with _reaching_clickhouse():
            self.client.insert_arrow(
                table,
                rows.to_arrow(compat_level=pl.CompatLevel.oldest()),
                settings=self._insert_settings(part),
            )

    def _insert_settings(self, part: str) -> dict[str, object]:
        token = f"reference:{self.load_id}:{self.kind.name}:{part}"
        return _INSERT_SETTINGS | {"insert_deduplication_token": token}

    def _close_superseded(self, loads: list[str], at: datetime) -> None:
        """Write the end of versions that a newer one of `loads` follows; else the rows stay as they are.

        What is written counts as this load's, so that what an announced load has stored only gets fewer.
        """
        if self.kind.history == "numbered":
            return
        of_loads = "load_id IN {loads:Array(String)}"
        if self.kind.history == "plain":  # millions of persons, whose first versions follow nothing
            later = f"SELECT count() FROM {self.kind.table} WHERE {of_loads} AND version > 1"
            with _reaching_clickhouse():
                if not self.client.query(later, parameters={"loads": loads}).result_rows[0][0]:
                    return
        names = [column.name for column in self.kind.columns if column.stored and column.name != "valid_to"]
        names += [name for name in ("version", "valid_from") if name not in names]
        names += ["row_digest"]
        columns, key = ", ".join(names), self.kind.key[0]
        for number, portion in enumerate(history.portions(self.kind)):
            statement = f"""
                INSERT INTO {self.kind.table} ({columns}, valid_to, load_id, loaded_at)
                SELECT {columns}, next_from, '{self.load_id}',
                    fromUnixTimestamp64Milli({_epoch_ms(at + _TICK)}, 'UTC')
                FROM
                (
                    SELECT {columns}, valid_to, leadInFrame(toNullable(valid_from)) OVER (
                        PARTITION BY {key} ORDER BY valid_from, version
                        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS next_from
                    FROM {self.kind.table} FINAL
                    WHERE {portion} AND {key} IN (
                        SELECT {key} FROM {self.kind.table}
                        WHERE {portion} AND {key} IN (
                            SELECT {key} FROM {self.kind.table} WHERE {portion} AND {of_loads})
                        GROUP BY {key} HAVING uniqExact(version) > 1)
                )
                WHERE next_from IS NOT NULL AND (valid_to IS NULL OR valid_to > next_from)
            """
            with _reaching_clickhouse():
                self.client.command(
                    statement,
                    parameters={"loads": loads},
                    settings=self._insert_settings(f"close:{number}"),
                )


def _announce(client: Client, announcements: Sequence[Announcement], load_id: str) -> None:
    """One insert, so that a worker sees all of them or none; dated now, when the rows are all there."""
    rows = pl.DataFrame(
        [
            {"kind": a.kind, "load_id": a.load_id, "rows": a.rows, "digest": a.digest}
            for a in announcements
        ],
        schema={
            "kind": pl.String(), "load_id": pl.String(), "rows": pl.UInt64(), "digest": pl.String(),
        },
    ).with_columns(pl.lit(utc_now()).cast(TIMESTAMP).alias("loaded_at"))  # fmt: skip
    client.insert_arrow(
        "ref_loads",
        rows.to_arrow(compat_level=pl.CompatLevel.oldest()),
        settings=_INSERT_SETTINGS | {"insert_deduplication_token": f"reference:{load_id}:announce"},
    )


@contextmanager
def _reaching_clickhouse() -> Iterator[None]:
    """Failures to write become UnavailableError, one line."""
    try:
        yield
    except (ClickHouseError, OSError) as error:
        reason = first_line(error, 200)
        raise UnavailableError(f"reference data cannot be written to ClickHouse: {reason}") from error


def _repeated(kind: Kind, rows: pl.DataFrame, seen: HashIndex) -> NDArray[np.bool_]:
    """Rows (n,) whose key stood before in the file; the others are remembered in `seen`."""
    parts = [history.key_text(kind)]
    if kind.history == "dated":
        parts.append(pl.col("valid_from").dt.epoch("ms").cast(pl.String))
    elif kind.history == "numbered":
        parts.append(pl.col("version").cast(pl.String).fill_null(""))
    keys = rows.select(pl.concat_str(parts, separator="|")).to_series()
    hi, lo = text_words(keys)
    repeated = ~keys.is_first_distinct().to_numpy() | (seen.find(hi, lo) >= 0)
    fresh = ~repeated
    seen.insert(hi[fresh], lo[fresh])
    result: NDArray[np.bool_] = repeated
    return result


def _known_grids(client: Client) -> pl.Series:
    return read_frame(client, "SELECT DISTINCT grid_code FROM ref_grids").to_series()


def _newest_row(client: Client, kind: Kind) -> datetime:
    """When the newest row of `kind` was written, 1970 if there is none."""
    query = f"SELECT toUnixTimestamp64Milli(max(loaded_at)) AS at FROM {kind.table}"
    return datetime.fromtimestamp(max(int(read_frame(client, query).item() or 0), 0) / 1000, UTC)


def _waiting(client: Client, kind: Kind) -> dict[str, int]:
    """Rows by load that stored more than was announced of it: this one, one that was cut off, one that runs.

    By name, not by time: a load that began first may be announced last.
    """
    counted = read_frame(
        client,
        f"""
        SELECT load_id, sum(stored) AS n FROM
        (
            SELECT load_id, count() AS stored, toUInt64(0) AS told FROM {kind.table} GROUP BY load_id
            UNION ALL
            SELECT load_id, toUInt64(0), max(rows) FROM ref_loads WHERE kind = '{kind.name}' GROUP BY load_id
        )
        GROUP BY load_id HAVING sum(stored) > sum(told)
        """,
    )
    return dict(zip(counted["load_id"].to_list(), counted["n"].to_list(), strict=True))


def _epoch_ms(time_: datetime) -> int:
    return round(time_.timestamp() * 1000)
