"""Reads a reference file in slices: Parquet as typed columns, CSV and NDJSON as columns of text.

Memory depends on the size of a slice, not of the file. A line that cannot be read is refused by itself, with
its number; the rest of the file goes on. Only what makes the file itself unreadable ends it: a damaged page,
a quotation without an end.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.contract.privacy import redact_head
from pipeline.errors import ContractError
from pipeline.reference.schema import Kind

FORMATS: Final = (".parquet", ".csv", ".ndjson")
SLICE_ROWS: Final = 100_000
_BLOCK_BYTES: Final = 24 << 20
_MAX_LINE_BYTES: Final = 64 << 20
#: Lines at the start of an NDJSON file in which unknown members are looked for.
_SAMPLE_LINES: Final = 1_000


@dataclass(frozen=True)
class Slice:
    """Rows of a file.

    cells : a column per column of the kind, absent ones as nulls; text except in Parquet.
    places : (n,) where each row stands: line in CSV and NDJSON, row in Parquet, from 1.
    broken : places of lines that could not be read at all.
    done, total : bytes (CSV, NDJSON) or rows (Parquet) so far and in all.
    """

    cells: pl.DataFrame
    places: NDArray[np.int64]
    broken: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0


def place_word(path: Path) -> str:
    """What a place in this file is called."""
    return "row" if path.suffix == ".parquet" else "line"


def find_file(directory: Path, kind: Kind) -> Path | None:
    """The kind's file in `directory`, None if there is none. Raises ContractError when there are several."""
    found = [path for suffix in FORMATS if (path := directory / f"{kind.name}{suffix}").is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ContractError(f"{directory} holds {names}: keep one of them")
    return found[0] if found else None


def read_slices(path: Path, kind: Kind) -> Iterator[Slice]:
    """Slices of `path` in file order.

    Raises ContractError when the file is not of this kind (wrong columns), or once it cannot be read on.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".ndjson": _read_ndjson}
    try:
        yield from readers[path.suffix](path, kind)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ContractError(f"{path.name} cannot be read: {_without_values(detail)}") from error


def _without_values(detail: str) -> str:
    """Readers quote the text that they stumble over; it may be personal."""
    return detail.split(":", 1)[0][:120] if "CSV" in detail or "'" in detail else detail[:200]


def _check_columns(path: Path, kind: Kind, names: list[str]) -> None:
    """Names are redacted where they are shown: the first line of a file without a header is a row."""
    problems = []
    if unknown := [name for name in names if name not in kind.names]:
        problems.append(f"unknown column {', '.join(redact_head(name, 60) for name in unknown[:5])}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"column {', '.join(redact_head(name, 60) for name in repeated[:5])} twice")
    if missing := [column.name for column in kind.columns if column.required and column.name not in names]:
        problems.append(f"no column {', '.join(missing)}")
    if problems:
        raise ContractError(
            f"{path.name}: {'; '.join(problems)}; "
            "`gridpipe reference load --template DIR` writes files with the right ones"
        )


def _complete(cells: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    absent = [pl.lit(None, dtype=pl.String).alias(name) for name in kind.names if name not in cells.columns]
    return cells.with_columns(absent).select(kind.names)


def _read_parquet(path: Path, kind: Kind) -> Iterator[Slice]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, kind, file.schema_arrow.names)
        total, done = file.metadata.num_rows, 0
        for batch in file.iter_batches(batch_size=SLICE_ROWS):
            cells = pl.from_arrow(batch)
            assert isinstance(cells, pl.DataFrame)
            places = np.arange(done + 1, done + 1 + cells.height)
            done += cells.height
            yield Slice(_complete(cells, kind), places, done=done, total=total)


def _read_csv(path: Path, kind: Kind) -> Iterator[Slice]:
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(row.number)
        return "skip"

    # what follows the header is read here too, and judged below
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        header = next(csv.reader(text), [])
    _check_columns(path, kind, header)
    total, seen, told = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        reader = pa_csv.open_csv(
            file,
            # one thread: only then are the numbers of broken lines known
            read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=pa_csv.ParseOptions(invalid_row_handler=skip, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                # as text, one byte that is none would end the file
                column_types={name: pa.binary() for name in header},
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=True,
            ),
        )
        for batch in reader:
            cells = pl.from_arrow(batch)
            assert isinstance(cells, pl.DataFrame)
            # the header is line 1; every broken line moves the rows behind it down by one
            skipped = np.array(broken, np.int64)
            order = np.arange(seen, seen + cells.height)
            places = order + 2 + np.searchsorted(skipped - 2 - np.arange(len(skipped)), order, side="right")
            seen += cells.height
            blank = cells.select(pl.all_horizontal(pl.all().is_null())).to_series()
            if blank.any():  # empty lines are nobody's rows
                cells, places = cells.filter(~blank), places[~blank.to_numpy()]
            fresh, told = broken[told:], len(broken)
            cells, unreadable = _texts(cells)
            if unreadable.any():
                fresh += places[unreadable].tolist()
                cells, places = cells.filter(~pl.Series(unreadable)), places[~unreadable]
            yield Slice(_complete(cells, kind), places, broken=fresh, done=file.tell(), total=total)
        if told < len(broken):
            yield Slice(_complete(pl.DataFrame(), kind), np.array([], np.int64), broken[told:], total, total)


def _texts(cells: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
    """Columns of bytes as text, null where they are none, and which rows (n,) have such a cell."""
    try:
        return cells.cast(pl.String), np.zeros(cells.height, bool)
    except pl.exceptions.PolarsError:
        columns = [
            pl.Series(column.name, [_text(cell) for cell in column], dtype=pl.String) for column in cells
        ]
        texts = pl.DataFrame(columns)
        lost = [(column.is_not_null() & texts[column.name].is_null()).to_numpy() for column in cells]
        return texts, np.logical_or.reduce(lost)


def _text(cell: bytes | None) -> str | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return None


def _read_ndjson(path: Path, kind: Kind) -> Iterator[Slice]:
    total, lines_before, rest = path.stat().st_size, 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            if not newline:
                if len(rest) > _MAX_LINE_BYTES:
                    raise ContractError(f"{path.name}: line {lines_before + 1} is too long to be a row")
                continue
            lines = whole.split(b"\n")
            if lines_before == 0:
                _check_columns(path, kind, _members(lines[:_SAMPLE_LINES], kind))
            yield _ndjson_slice(kind, lines, lines_before, file.tell(), total)
            lines_before += len(lines)
    if rest:
        if lines_before == 0:
            _check_columns(path, kind, _members([rest], kind))
        yield _ndjson_slice(kind, [rest], lines_before, total, total)


def _members(lines: list[bytes], kind: Kind) -> list[str]:
    """Names in the first lines, and the required ones, whose absence each row answers for."""
    names = dict.fromkeys(column.name for column in kind.columns if column.required)
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
    return list(names)


def _ndjson_slice(kind: Kind, lines: list[bytes], before: int, done: int, total: int) -> Slice:
    given = [(number, line) for number, line in enumerate(lines, start=before + 1) if line.strip()]
    places = np.array([number for number, _ in given], np.int64)
    broken: list[int] = []
    cells = _parse([line for _, line in given], kind)
    if cells is None or cells.height != len(given):
        readable = [_is_object(line) for _, line in given]
        broken = [number for (number, _), good in zip(given, readable, strict=True) if not good]
        places = places[np.array(readable, bool)]
        cells = _parse([line for (_, line), good in zip(given, readable, strict=True) if good], kind)
        if cells is None or cells.height != len(places):
            raise ContractError(
                f"{kind.name}.ndjson: lines {before + 1} to {before + len(lines)} are unreadable"
            )
    return Slice(cells, places, broken, done, total)


def _parse(lines: list[bytes], kind: Kind) -> pl.DataFrame | None:
    """Every member as text (lists and objects as JSON text), so that values are judged in one place."""
    schema = {name: pl.String() for name in kind.names}
    if not lines:
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=schema)
    except pl.exceptions.PolarsError:
        return None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
