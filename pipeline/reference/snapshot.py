"""What a worker holds of the reference data: one consistent, unchanging snapshot in memory.

Look-ups are pure functions of a snapshot and a frame. Loading one can fail, and then raises
UnavailableError: data that cannot be read are never taken for data that do not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl
import xxhash
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline import frames
from pipeline.reference.erased import ERASURES, Erased
from pipeline.reference.geo import Boundaries, gcj02_to_wgs84
from pipeline.reference.hash_index import Int64s
from pipeline.reference.keys import (
    KeyIndex,
    Mask,
    NumberIndex,
    VersionIndex,
    encode,
    end_ms,
    grid_numbers,
    instant_ms,
    is_given,
    is_true,
    owners,
    take,
    where,
    with_nothing,
)
from pipeline.reference.lists import flatten, rows_of
from pipeline.reference.people import People
from pipeline.reference.query import announced, read_by_keys, read_frame

_GRID_FACTS: Final = {
    "grid_version": pl.UInt32(),
    "grid_name": pl.String(),
    "grid_type": pl.String(),
    "grid_risk_tags": pl.List(pl.String()),
}
_STAFF_FACTS: Final = {
    "staff_kind": pl.String(),
    "staff_department": pl.String(),
    "staff_channel_rights": pl.List(pl.String()),
}
#: A grid code is a district of 6 digits and 9 more.
_GRIDS_PER_DISTRICT: Final = 10**9

_GRIDS_SQL: Final = """
    SELECT grid_code, version AS grid_version, valid_from, valid_to, grid_name,
        toString(grid_type) AS grid_type, risk_tags AS grid_risk_tags, boundary, status = 'active' AS active,
        department_route.category AS route_category, department_route.department AS route_department
    FROM ref_grids FINAL {where} ORDER BY grid_code, valid_from, version"""
_UNITS_SQL: Final = "SELECT DISTINCT unit_code FROM ref_units {where}"
_STAFF_SQL: Final = """
    SELECT worker_key, valid_from, valid_to, toString(kind) AS staff_kind, grid_code,
        toString(district_code) AS district_code, department AS staff_department, active_from, active_to,
        channel_rights AS staff_channel_rights, loans.grid_code AS loan_grid, loans.valid_from AS loan_from,
        loans.valid_to AS loan_to
    FROM ref_staff FINAL {where} ORDER BY worker_key, valid_from, version"""
_ORGANISATIONS_SQL: Final = "SELECT DISTINCT org_code FROM ref_organisations {where}"
_MODES_SQL: Final = """
    SELECT toString(mode) AS mode, toString(level) AS level, toString(area_code) AS area_code, valid_from,
        valid_to, toString(authority) AS authority, version
    FROM (SELECT * FROM ref_modes FINAL ORDER BY version DESC LIMIT 1 BY mode, area_code, valid_from)
    ORDER BY valid_from, mode, area_code"""


class _Grids:
    def __init__(self, rows: pl.DataFrame) -> None:
        """rows : of _GRIDS_SQL, a row per version, ordered by grid_code and valid_from."""
        first, owner = owners(rows["grid_code"])
        self.codes = NumberIndex(grid_numbers(rows["grid_code"].filter(pl.Series(first))))
        self.versions = VersionIndex(owner, rows["valid_from"], rows["valid_to"])
        self.facts = with_nothing(
            rows.select(pl.col(name).cast(dtype) for name, dtype in _GRID_FACTS.items())
        )
        self.active: Mask = rows["active"].cast(pl.Boolean).to_numpy()
        self.boundaries = Boundaries(rows["boundary"].to_numpy().astype(object))
        self._routes(rows)

    def _routes(self, rows: pl.DataFrame) -> None:
        """Department numbers by version and category, with a last row and column for none."""
        category, counts = flatten(rows["route_category"])
        department, _ = flatten(rows["route_department"])
        categories, departments = category.unique().sort().to_list(), department.unique().sort().to_list()
        self.categories = {name: number for number, name in enumerate(categories)}
        self.departments = pl.Series([*departments, None], dtype=pl.String)
        self.routes = np.full((rows.height + 1, len(categories) + 1), len(departments), np.uint32)
        codes, names = encode(category)
        column = np.array([self.categories[name] for name in names], np.int64)
        target, target_names = encode(department)
        value = np.array([departments.index(name) for name in target_names], np.uint32)
        self.routes[rows_of(counts), column[codes] if len(names) else codes] = (
            value[target] if len(names) else 0
        )

    def route(self, matters: pl.Series, version: Int64s, categories: Mapping[str, str]) -> pl.Series:
        """(n,) the department that grid `version` (-1: none) names for a matter's category."""
        codes, names = encode(matters)
        nothing = len(self.categories)
        columns = [self.categories.get(categories.get(name, ""), nothing) for name in names]
        column = np.array([*columns, nothing], np.int64)[codes]  # code -1 takes the last
        return self.departments[self.routes[version, column]]


class _Staff:
    """Who works where.

    A version is valid from when the source made the change. Kind, grid and channel rights change with it;
    service and loans have dates of their own, often recorded afterwards, and hold by these.
    """

    def __init__(self, rows: pl.DataFrame) -> None:
        """rows : of _STAFF_SQL, a row per version, ordered by worker_key and valid_from."""
        first, owner = owners(rows["worker_key"])
        self.keys = KeyIndex(rows["worker_key"].filter(pl.Series(first)))
        self.versions = VersionIndex(owner, rows["valid_from"], rows["valid_to"])
        self.facts = with_nothing(
            rows.select(pl.col(name).cast(dtype) for name, dtype in _STAFF_FACTS.items())
        )
        self.grid = grid_numbers(rows["grid_code"])
        self.district = grid_numbers(rows["district_code"])
        self.active_from, self.active_to = instant_ms(rows["active_from"]), end_ms(rows["active_to"])
        # per version the newest one of the same worker
        self.newest = np.searchsorted(owner, owner, side="right") - 1
        loan_grid, counts = flatten(rows["loan_grid"])
        through = np.cumsum(counts)
        self.loan_first = through - counts
        # versions of a worker lie together, and so do the loans of one version and all later ones
        self.loan_count = through[self.newest] - self.loan_first
        self.loan_grid = grid_numbers(loan_grid)
        self.loan_from = instant_ms(flatten(rows["loan_from"])[0])
        self.loan_to = end_ms(flatten(rows["loan_to"])[0])

    def active(self, version: Int64s, at_ms: Int64s) -> Mask:
        """(n,) whether the worker was in service at `at_ms`; version : the one valid then, no -1 here.

        The newest version whose service had begun by then says so: an earlier one does not know of a leaving
        that was recorded late, a later one speaks of another service, of who came back since.
        """
        deciding = self.newest[version]
        while (not_yet := (self.active_from[deciding] > at_ms) & (deciding > version)).any():
            deciding = deciding - not_yet
        held: Mask = (self.active_from[deciding] <= at_ms) & (at_ms < self.active_to[deciding])
        return held

    def on_loan(self, version: Int64s, grid: Int64s, at_ms: Int64s) -> Mask:
        """(n,) whether `version` (no -1 here) or a later one lends the worker to `grid` at `at_ms`."""
        lent: Mask = np.zeros(len(version), bool)
        asked = np.flatnonzero(self.loan_count[version])
        counts = self.loan_count[version[asked]]
        row = np.repeat(asked, counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        loan = self.loan_first[version[row]] + within
        running = (self.loan_from[loan] <= at_ms[row]) & (at_ms[row] < self.loan_to[loan])
        lent[row[running & (self.loan_grid[loan] == grid[row])]] = True
        return lent


@dataclass(frozen=True)
class _Parts:
    grids: _Grids
    units: KeyIndex
    staff: _Staff
    people: People
    organisations: KeyIndex
    modes: pl.DataFrame
    erased: Erased = field(default_factory=Erased)


class Reference:
    """A snapshot of grids, units, staff, persons, organisations and modes.

    version : short digest of the loads that it holds; equal versions hold equal data.
    counts : rows by kind, for `gridpipe_reference_rows`.
    modes : every mode, newest version each, columns `frames.MODE`.
    """

    def __init__(self, parts: _Parts, loads: dict[str, str], tolerance_m: float) -> None:
        self._parts = parts
        self._loads = loads
        self._tolerance_m = tolerance_m
        self.modes = parts.modes
        self.people = parts.people
        self.erased = parts.erased
        self.version = xxhash.xxh3_64_hexdigest(repr(sorted(loads.items())).encode())
        self.counts = {
            "grids": len(parts.grids.codes),
            "units": len(parts.units),
            "staff": len(parts.staff.keys),
            "persons": len(parts.people),
            "organisations": len(parts.organisations),
            "modes": parts.modes.height,
        }

    @classmethod
    def load(cls, client: Client, *, tolerance_m: float, previous: Reference | None = None) -> Reference:
        """The newest snapshot; kinds that did not change since `previous` are taken from it.

        client : on the gridpipe database. tolerance_m : metres around a grid's polygon (rule 9).
        Returns `previous` itself when nothing changed. Raises UnavailableError.
        """
        loads = announced(client)
        old = previous._loads if previous is not None else {}
        if previous is not None and loads == old and tolerance_m == previous._tolerance_m:
            return previous

        def same(kind: str) -> bool:
            return previous is not None and loads.get(kind) == old.get(kind)

        kept = previous._parts if previous is not None else None
        parts = _Parts(
            grids=kept.grids if kept and same("grids") else _read_grids(client),
            units=kept.units if kept and same("units") else _read_keys(client, _UNITS_SQL),
            staff=kept.staff if kept and same("staff") else _read_staff(client),
            people=kept.people if kept and same("persons") else People.load(client),
            organisations=(
                kept.organisations
                if kept and same("organisations")
                else _read_keys(client, _ORGANISATIONS_SQL)
            ),
            modes=kept.modes if kept and same("modes") else _read_modes(client),
            erased=kept.erased if kept and same(ERASURES) else Erased.load(client),
        )
        return cls(parts, loads, tolerance_m)

    @classmethod
    def for_events(cls, client: Client, events: pl.DataFrame, *, tolerance_m: float) -> Reference:
        """A snapshot of only what `events` (EVENT or DECODED) mention, and every mode.

        Costs one query per kind, whatever the size of the store. Raises UnavailableError.
        """
        loads = announced(client)
        persons = flatten(events["persons"])[0].struct.field("key")
        parts = _Parts(
            grids=_read_grids(client, _mentioned(events["grid_code"])),
            units=_read_keys(client, _UNITS_SQL, "unit_code", _mentioned(events["unit_code"])),
            staff=_read_staff(client, _mentioned(events["actor_key"])),
            people=People.for_keys(client, _mentioned(persons)),
            organisations=_read_keys(
                client, _ORGANISATIONS_SQL, "org_code", _mentioned(events["organisation_code"])
            ),
            modes=_read_modes(client),
            erased=Erased.load(client),
        )
        return cls(parts, loads, tolerance_m)

    def look_up(self, events: pl.DataFrame, categories: Mapping[str, str]) -> pl.DataFrame:
        """What the reference data say about `events` (DECODED): a FEATURES frame of equal height and order.

        categories : of the matters, by code (`Catalogues.matter_categories`).
        Sources: domain 7 (rules 7, 8, 9, 12), design 9.13 and 9.15.
        """
        at_ms = instant_ms(events["occurred_at"])
        grids, grid = self._parts.grids, grid_numbers(events["grid_code"])
        owner = grids.codes.find(grid)
        version = grids.versions.find(owner, at_ms)
        facts = take(grids.facts, version)
        active = (version >= 0) & grids.active[version] if len(grids.active) else version >= 0
        units, organisations = events["unit_code"], events["organisation_code"]
        columns = {
            "grid_found": pl.Series(owner >= 0),
            "grid_active": pl.Series(active),
            **{name: facts[name] for name in facts.columns},
            "unit_found": where(is_given(units), self._parts.units.find(units) >= 0),
            **self._point(events, version),
            **self._staff(events, grid, at_ms),
            **self._persons(events, at_ms),
            "organisation_found": where(
                is_given(organisations), self._parts.organisations.find(organisations) >= 0
            ),
            "route_department": grids.route(events["matter_code"], version, categories),
        }
        return frames.beside(
            [columns[name].cast(dtype).alias(name) for name, dtype in frames.FEATURES.items()]
        )

    def _point(self, events: pl.DataFrame, version: Int64s) -> dict[str, pl.Series]:
        lon, lat = events["lon"].to_numpy(), events["lat"].to_numpy()  # NaN for null
        asked = np.flatnonzero((version >= 0) & np.isfinite(lon) & np.isfinite(lat))
        lon, lat, version_asked = lon[asked], lat[asked], version[asked]
        shifted = is_true(events["crs"] == "gcj02")[asked]
        if shifted.any():
            lon[shifted], lat[shifted] = gcj02_to_wgs84(lon[shifted], lat[shifted])
        distance = np.full(events.height, np.nan)
        distance[asked] = self._parts.grids.boundaries.distance_m(version_asked, lon, lat)
        measured = pl.Series(distance, nan_to_null=True)
        return {"point_in_grid": measured <= self._tolerance_m, "point_distance_m": measured}

    def _staff(self, events: pl.DataFrame, grid: Int64s, at_ms: Int64s) -> dict[str, pl.Series]:
        staff = self._parts.staff
        owner = staff.keys.find(events["actor_key"])
        version = staff.versions.find(owner, at_ms)
        facts = take(staff.facts, version)
        row = np.flatnonzero(version >= 0)
        who, where, when = version[row], grid[row], at_ms[row]
        answers = {
            "staff_active": staff.active(who, when),
            "staff_in_grid": ((staff.grid[who] == where) & (where >= 0)) | staff.on_loan(who, where, when),
            "staff_in_district": staff.district[who] == where // _GRIDS_PER_DISTRICT,
        }
        return {
            "staff_found": pl.Series(owner >= 0),
            **{name: _scattered(answer, row, events.height) for name, answer in answers.items()},
            **{name: facts[name] for name in facts.columns},
        }

    def _persons(self, events: pl.DataFrame, at_ms: Int64s) -> dict[str, pl.Series]:
        persons, given = flatten(events["persons"])
        keys = persons.struct.unnest()["key"]
        row = rows_of(given)
        # whoever was erased was a resident: what is judged again must be judged as before
        known = (self._parts.people.find(keys, at_ms[row]) >= 0) | self.erased.holds(keys)
        found = np.bincount(row[known], minlength=events.height)
        return {"persons_given": pl.Series(given), "persons_found": pl.Series(found)}


def _scattered(values: Mask, rows: NDArray[np.int64], height: int) -> pl.Series:
    """`values` at `rows`, null elsewhere."""
    complete, given = np.zeros(height, bool), np.zeros(height, bool)
    complete[rows], given[rows] = values, True
    return where(given, complete)


def _mentioned(values: pl.Series) -> list[str]:
    return values.drop_nulls().unique().sort().to_list()


def _rows(client: Client, query: str, key: str, keys: Sequence[str] | None) -> pl.DataFrame:
    if keys is None:
        return read_frame(client, query.format(where=""))
    wanted = query.format(where=f"WHERE {key} IN %(keys)s")
    return pl.concat(list(read_by_keys(client, wanted, keys or [""])))


def _read_grids(client: Client, codes: Sequence[str] | None = None) -> _Grids:
    return _Grids(_rows(client, _GRIDS_SQL, "grid_code", codes))


def _read_staff(client: Client, keys: Sequence[str] | None = None) -> _Staff:
    return _Staff(_rows(client, _STAFF_SQL, "worker_key", keys))


def _read_keys(client: Client, query: str, key: str = "", keys: Sequence[str] | None = None) -> KeyIndex:
    return KeyIndex(_rows(client, query, key, keys).to_series())


def _read_modes(client: Client) -> pl.DataFrame:
    modes = read_frame(client, _MODES_SQL)
    return modes.select(pl.col(name).cast(dtype) for name, dtype in frames.MODE.items())
