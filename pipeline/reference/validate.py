"""Judges the rows of a slice: good ones come back typed, the others with the reason why they are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl
import shapely
from numpy.typing import NDArray

from pipeline.contract.privacy import (
    CANDIDATE,
    ID_CANDIDATE,
    holds_personal_number,
    mask_name,
    mask_phone,
    redact,
    redact_head,
)
from pipeline.reference.columns import DTYPES, OPEN_END, ROUTE, Mask, convert
from pipeline.reference.lists import flatten, rows_of
from pipeline.reference.schema import AGE_BANDS, Column, Kind

Reason = Literal[
    "unreadable", "missing", "wrong_type", "out_of_range", "not_allowed", "bad_pattern", "too_long",
    "bad_geometry", "bad_id_number", "no_identity", "bad_interval", "contradiction", "duplicate_key",
    "personal_number", "unknown_parent",
]  # fmt: skip

EXAMPLES_PER_REASON: Final = 5
_PLACE: Final = "_place"

#: Already masked: at most two characters of the name, or the ends of a phone, around stars.
_MASKED: Final = {"name": r"^[^*]{0,2}\*+$", "phone": r"^\d{0,4}\*+\d{0,4}$"}
_MASKS: Final[dict[str, Callable[[str], str]]] = {"name": mask_name, "phone": mask_phone}

#: A region that no grid of the country lies outside of; catches swapped coordinates.
_LON: Final = (73.0, 136.0)
_LAT: Final = (3.0, 54.0)

_AGE_LIMITS: Final = (6, 14, 18, 60, 70, 80)
_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


class Example(NamedTuple):
    """A refused cell: where it stands, and what it says unless it is personal."""

    place: int
    value: str | None


@dataclass
class Marked:
    """Cells of one column that are taken with a mark in the place of a number; where the first stand."""

    cells: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass
class Refusals:
    """Refused rows of one file by reason and column. A row with two faults counts once in `rows`.

    marked : by column, what was not refused but redacted.
    """

    rows: int = 0
    counts: dict[tuple[Reason, str | None], int] = field(default_factory=dict)
    examples: dict[tuple[Reason, str | None], list[Example]] = field(default_factory=dict)
    marked: dict[str, Marked] = field(default_factory=dict)

    def add(self, reason: Reason, column: str | None, count: int, examples: list[Example]) -> None:
        key = (reason, column)
        self.counts[key] = self.counts.get(key, 0) + count
        kept = self.examples.setdefault(key, [])
        kept.extend(examples[: EXAMPLES_PER_REASON - len(kept)])

    def mark(self, column: str, places: list[int]) -> None:
        marked = self.marked.setdefault(column, Marked())
        marked.cells += len(places)
        fresh = places[: EXAMPLES_PER_REASON - len(marked.examples)]
        marked.examples += [Example(place, None) for place in fresh]

    def unreadable(self, places: list[int]) -> None:
        if places:
            self.rows += len(places)
            self.add("unreadable", None, len(places), [Example(place, None) for place in places[:5]])


class Judge:
    """Collects the faults of one slice and, at the end, drops the rows that have any."""

    def __init__(self, places: NDArray[np.int64], refusals: Refusals) -> None:
        self._places = places
        self._refusals = refusals
        self._refused = np.zeros(len(places), bool)

    def refuse(
        self, reason: Reason, column: Column | None, faulty: Mask, cells: pl.Series | None = None
    ) -> None:
        """Refuse rows `faulty` (n,); `cells` are quoted in the report unless the column is personal.

        What is quoted is redacted: a number can stand in the wrong column.
        """
        if not faulty.any():
            return
        self._refused |= faulty
        at = np.flatnonzero(faulty)[:EXAMPLES_PER_REASON]
        quoted = cells is not None and column is not None and not column.personal
        examples = [
            Example(int(self._places[row]), _quote(cells[int(row)]) if quoted and cells is not None else None)
            for row in at
        ]
        self._refusals.add(reason, column.name if column else None, int(faulty.sum()), examples)

    def redact(self, column: Column, texts: pl.Series) -> pl.Series:
        """`texts` (n,) with marks in the place of personal numbers; what is too long is refused and stays.

        The few distinct texts that may hold one are looked at once each.
        """
        doubtful = (texts.str.contains(CANDIDATE) & (texts.str.len_chars() <= column.max_length)).fill_null(
            False
        )
        if not doubtful.any():
            return texts
        clean = {text: redact(text) for text in texts.filter(doubtful).unique().to_list()}
        held = pl.Series([text for text in clean if clean[text] != text], dtype=pl.String)
        if held.is_empty():
            return texts
        self._refusals.mark(column.name, self._places[_true(texts.is_in(held.implode()))].tolist())
        return texts.replace(held, pl.Series([clean[text] for text in held], dtype=pl.String))

    def good(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows without a fault, with their place in column `_place`."""
        self._refusals.rows += int(self._refused.sum())
        return rows.with_columns(pl.Series(_PLACE, self._places)).filter(pl.Series(~self._refused))


def _quote(cell: object) -> str:
    return redact_head(str(cell), 80)


def typed_schema(kind: Kind) -> dict[str, pl.DataType]:
    """Columns of `check_cells`'s frame, without the place."""
    return {column.name: DTYPES[column.type] for column in kind.columns}


def check_cells(
    kind: Kind, cells: pl.DataFrame, places: NDArray[np.int64], refusals: Refusals, today: date
) -> pl.DataFrame:
    """Rows of `cells` that are well formed in themselves, typed, masked, with `_place`.

    cells : the kind's columns as read; places : (n,) line or row numbers; refusals : added to.
    today : the day that ages are counted on.
    """
    judge = Judge(places, refusals)
    values: dict[str, pl.Series] = {}
    for column in kind.columns:
        raw = cells[column.name]
        converted, bad = convert(column, raw)
        judge.refuse("wrong_type", column, bad, raw)
        if column.required:
            judge.refuse("missing", column, converted.is_null().to_numpy() & ~bad)
        values[column.name] = _check_values(column, converted, judge)
    rows = pl.DataFrame(values)
    _check_intervals(kind, rows, judge)
    if kind.name == "staff":
        outside = rows["grid_code"].str.head(6) != rows["district_code"]
        judge.refuse("contradiction", kind.column("district_code"), _true(outside), rows["district_code"])
    if "id_number" in kind.names:
        rows = _check_identity(kind, rows, judge)
    if kind.name == "persons":
        rows = _age_bands(rows, today, judge, kind)
    return judge.good(rows)


def check_keys(kind: Kind, rows: pl.DataFrame, repeated: Mask, refusals: Refusals) -> pl.DataFrame:
    """Refuse rows `repeated` (n,): their key stood before in the file."""
    judge = Judge(rows[_PLACE].to_numpy(), refusals)
    column = kind.column(kind.key[0])
    judge.refuse("duplicate_key", column, repeated, rows[column.name])
    return judge.good(rows.drop(_PLACE))


def check_parents(kind: Kind, rows: pl.DataFrame, known_grids: pl.Series, refusals: Refusals) -> pl.DataFrame:
    """Refuse rows whose grid (of a unit, a worker, a loan, an organisation) was never loaded."""
    judge = Judge(rows[_PLACE].to_numpy(), refusals)
    for name, _ in kind.parents:
        column, cells = kind.column(name), rows[name]
        if column.type == "loans":
            missing = ~rows.select(
                pl.col(name)
                .list.eval(pl.element().struct.field("grid_code").is_in(known_grids.implode()))
                .list.all()
            ).to_series()
        else:
            missing = ~cells.str.head(15).is_in(known_grids.implode())
        judge.refuse("unknown_parent", column, _true(missing), cells)
    return judge.good(rows.drop(_PLACE))


def _true(condition: pl.Series) -> Mask:
    mask: Mask = condition.fill_null(False).to_numpy()
    return mask


def _check_values(column: Column, values: pl.Series, judge: Judge) -> pl.Series:
    if column.mask is not None:
        values = _masked(column, values)
    if column.type in ("text", "polygon"):
        judge.refuse("too_long", column, _true(values.str.len_chars() > column.max_length))
        if column.pattern:
            judge.refuse("bad_pattern", column, _true(~values.str.contains(column.pattern)), values)
        if column.values:
            judge.refuse("not_allowed", column, _true(~values.is_in(column.values)), values)
    if column.on_number == "refused":
        judge.refuse("personal_number", column, _personal_numbers(values))
    elif column.on_number == "redacted":
        values = judge.redact(column, values)
    if column.type == "polygon":
        judge.refuse("bad_geometry", column, _bad_polygons(values), values)
    if column.type in ("integer", "number"):
        low, high = column.minimum, column.maximum
        outside = _true(values < low) if low is not None else np.zeros(len(values), bool)
        if high is not None:
            outside = outside | _true(values > high)
        judge.refuse("out_of_range", column, outside, values)
    if column.type == "list":
        if column.values:
            known = values.list.eval(pl.element().is_in(column.values)).list.all()
            judge.refuse("not_allowed", column, _true(~known), values)
        if column.pattern:
            formed = values.list.eval(pl.element().str.contains(column.pattern)).list.all()
            judge.refuse("bad_pattern", column, _true(~formed), values)
    if column.type == "instant":
        if column.name.endswith("_to"):
            return values.set(_open(values), None)
        judge.refuse("out_of_range", column, _open(values).to_numpy(), values)
    return values


def _personal_numbers(values: pl.Series) -> Mask:
    """(n,) which keys, codes, lists of keys or routes hold an identity or mobile number.

    They are kept and shown in clear.
    """
    if values.dtype == pl.List(ROUTE):
        return _numbers_in_routes(values)
    texts = values.list.join("\n") if isinstance(values.dtype, pl.List) else values
    mask: Mask = np.zeros(len(texts), bool)
    doubtful = texts.str.contains(ID_CANDIDATE).fill_null(False).arg_true()
    mask[doubtful.to_numpy()] = [
        any(map(holds_personal_number, text.split("\n"))) for text in texts.gather(doubtful)
    ]
    return mask


def _numbers_in_routes(routes: pl.Series) -> Mask:
    """Their words have no form: a number is looked for as in free text."""
    flat, counts = flatten(routes)
    mask: Mask = np.zeros(len(routes), bool)
    for words in flat.struct.unnest():
        doubtful = words.filter(words.str.contains(CANDIDATE).fill_null(False)).unique().to_list()
        held = pl.Series([word for word in doubtful if redact(word) != word], dtype=pl.String)
        mask[rows_of(counts)[_true(words.is_in(held.implode()))]] = True
    return mask


def _open(values: pl.Series) -> pl.Series:
    return (values >= OPEN_END).fill_null(False)


def _masked(column: Column, values: pl.Series) -> pl.Series:
    """Masks what a source sends unmasked; the few distinct values are masked once each."""
    mask = _MASKS[column.mask or ""]
    clear = values.filter(~values.str.contains(_MASKED[column.mask or ""]).fill_null(True)).unique()
    if clear.is_empty():
        return values
    return values.replace(clear, pl.Series([mask(text) for text in clear.to_list()], dtype=pl.String))


def _bad_polygons(wkt: pl.Series) -> Mask:
    given = wkt.is_not_null().to_numpy()
    shapes = shapely.from_wkt(wkt.to_numpy().astype(object), on_invalid="ignore")
    kinds = shapely.get_type_id(shapes)
    west, south, east, north = shapely.bounds(shapes).T
    fine = (
        np.isin(kinds, (3, 6))  # Polygon, MultiPolygon
        & shapely.is_valid(shapes)
        & ~shapely.is_empty(shapes)
        & (west >= _LON[0]) & (east <= _LON[1]) & (south >= _LAT[0]) & (north <= _LAT[1])
    )  # fmt: skip
    bad: Mask = given & ~fine
    return bad


def _check_intervals(kind: Kind, rows: pl.DataFrame, judge: Judge) -> None:
    for start, end in (("valid_from", "valid_to"), ("active_from", "active_to")):
        if end in kind.names:
            judge.refuse("bad_interval", kind.column(end), _true(rows[end] < rows[start]), rows[end])


def _check_identity(kind: Kind, rows: pl.DataFrame, judge: Judge) -> pl.DataFrame:
    """Fold id numbers to one spelling and check them; a person needs a number or a key with its version."""
    folded = rows["id_number"].str.normalize("NFKC").str.to_uppercase().str.replace_all(r"[^\p{L}\p{N}]", "")
    foreign = pl.Series([False]).new_from_index(0, rows.height)
    if "residence_kind" in rows.columns:  # passports and permits carry no checksum
        foreign = (rows["residence_kind"] == "overseas").fill_null(False) & folded.str.contains(
            r"^[A-Z0-9]{5,20}$"
        ).fill_null(False)
    column = kind.column("id_number")
    judge.refuse("bad_id_number", column, _true(~(_valid_id_numbers(folded) | foreign)))
    keyed = rows["person_key"].is_not_null()
    judge.refuse(
        "no_identity",
        kind.column("key_version"),
        _true(keyed & rows["key_version"].is_null() & folded.is_null()),
    )
    if kind.name == "persons":
        judge.refuse("no_identity", column, _true(folded.is_null() & ~keyed))
    return rows.with_columns(folded.alias("id_number"))


def _valid_id_numbers(numbers: pl.Series) -> pl.Series:
    """18 characters with a real date and the checksum of GB 11643 (MOD 11-2), or the old 15 digits."""
    frame = pl.DataFrame({"n": numbers})
    total: pl.Expr = sum(
        (
            pl.col("n").str.slice(place, 1).cast(pl.Int32, strict=False) * weight
            for place, weight in enumerate(_ID_WEIGHTS)
        ),
        start=pl.lit(0),
    )
    born = (
        pl.when(pl.col("n").str.len_chars() == 15)
        .then(pl.concat_str(pl.lit("19"), pl.col("n").str.slice(6, 6)))
        .otherwise(pl.col("n").str.slice(6, 8))
        .str.to_date("%Y%m%d", strict=False)
    )
    check = pl.lit("10X98765432").str.slice(total % 11, 1)
    return frame.select(
        pl.when(pl.col("n").is_not_null()).then(
            born.is_not_null()
            & (
                pl.col("n").str.contains(r"^[1-9]\d{14}$")
                | (pl.col("n").str.contains(r"^[1-9]\d{16}[\dX]$") & (check == pl.col("n").str.slice(17, 1)))
            ).fill_null(False)
        )
    ).to_series()


def _age_bands(rows: pl.DataFrame, today: date, judge: Judge, kind: Kind) -> pl.DataFrame:
    """Band of the age in whole years on `today`; the date of birth goes no further."""
    born = rows["birth_date"]
    column = kind.column("birth_date")
    judge.refuse("out_of_range", column, _true((born > today) | (born < date(1850, 1, 1))))
    had_birthday = (born.dt.month().cast(pl.Int32) * 100 + born.dt.day()) <= today.month * 100 + today.day
    years = today.year - born.dt.year() - (~had_birthday).cast(pl.Int32)
    place = np.searchsorted(_AGE_LIMITS, years.fill_null(0).to_numpy(), side="right")
    band = pl.Series(AGE_BANDS).gather(pl.Series(place)).set(born.is_null(), None)
    return rows.with_columns(pl.coalesce(band, "age_band").alias("age_band"))


def as_values(examples: list[Example], word: str) -> list[dict[str, Any]]:
    """Examples as the report prints them."""
    return [
        {word: example.place} | ({"value": example.value} if example.value is not None else {})
        for example in examples
    ]
