"""What a worker holds of the reference data: one consistent, unchanging snapshot in memory.

Look-ups are pure functions of a snapshot and a frame. Loading one can fail, and then raises
UnavailableError: data that cannot be read are never taken for data that do not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import xxhash
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline import frames
from pipeline.frames import TIMESTAMP
from pipeline.reference.geo import Boundaries, gcj02_to_wgs84
from pipeline.reference.hash_index import Int64s
from pipeline.reference.keys import KeyIndex, VersionIndex, instant_ms, take
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
_LOANS: Final = {
    "staff": pl.Int64(),
    "loan_grid": pl.String(),
    "loan_from": TIMESTAMP,
    "loan_to": TIMESTAMP,
}

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
        self.versions = VersionIndex(rows["grid_code"], rows["valid_from"], rows["valid_to"])
        self.facts = rows.select(pl.col(name).cast(dtype) for name, dtype in _GRID_FACTS.items())
        self.active: NDArray[np.bool_] = rows["active"].cast(pl.Boolean).to_numpy()
        self.boundaries = Boundaries(rows["boundary"].to_numpy().astype(object))
        self.routes = (
            rows.select(
                pl.int_range(pl.len(), dtype=pl.Int64).alias("grid"), "route_category", "route_department"
            )
            .explode("route_category", "route_department", empty_as_null=False)
            .unique(("grid", "route_category"), keep="first", maintain_order=True)
        )


class _Staff:
    def __init__(self, rows: pl.DataFrame) -> None:
        self.versions = VersionIndex(rows["worker_key"], rows["valid_from"], rows["valid_to"])
        self.facts = rows.select(pl.col(name).cast(dtype) for name, dtype in _STAFF_FACTS.items())
        self.place = rows.select("grid_code", "district_code", "active_from", "active_to")
        self.loans = (
            rows.select(
                pl.int_range(pl.len(), dtype=pl.Int64).alias("staff"), "loan_grid", "loan_from", "loan_to"
            )
            .explode("loan_grid", "loan_from", "loan_to", empty_as_null=False)
            .cast(_LOANS)  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class _Parts:
    grids: _Grids
    units: KeyIndex
    staff: _Staff
    people: People
    organisations: KeyIndex
    modes: pl.DataFrame


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
        self.version = xxhash.xxh3_64_hexdigest(repr(sorted(loads.items())).encode())
        self.counts = {
            "grids": len(parts.grids.versions),
            "units": len(parts.units),
            "staff": len(parts.staff.versions),
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
        )
        return cls(parts, loads, tolerance_m)

    def look_up(self, events: pl.DataFrame) -> pl.DataFrame:
        """What the reference data say about `events` (DECODED): a FEATURES frame of equal height and order.

        Sources: domain 7 (rules 7, 8, 9, 12), design 9.13 and 9.15.
        """
        at_ms = instant_ms(events["occurred_at"])
        grid_known, grid = self._parts.grids.versions.find(events["grid_code"], at_ms)
        valid = grid >= 0
        facts = take(self._parts.grids.facts, grid)
        units, organisations = events["unit_code"], events["organisation_code"]
        columns = {
            "grid_found": pl.Series(grid_known),
            "grid_active": pl.Series(valid & _at(self._parts.grids.active, grid, False)),
            **{name: facts[name] for name in facts.columns},
            "unit_found": _where(units.is_not_null(), self._parts.units.find(units) >= 0),
            **self._point(events, grid),
            **self._staff(events, at_ms),
            **self._persons(events),
            "organisation_found": _where(
                organisations.is_not_null(), self._parts.organisations.find(organisations) >= 0
            ),
            "route_department": self._route(events, grid),
        }
        features = pl.DataFrame(columns).with_columns(
            pl.col("grid_risk_tags", "staff_channel_rights").fill_null([])
        )
        return features.select(pl.col(name).cast(dtype) for name, dtype in frames.FEATURES.items())

    def _point(self, events: pl.DataFrame, grid: Int64s) -> dict[str, pl.Series]:
        lon = events["lon"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        lat = events["lat"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        shifted = (events["crs"] == "gcj02").fill_null(False).to_numpy()
        if shifted.any():
            lon, lat = lon.copy(), lat.copy()
            lon[shifted], lat[shifted] = gcj02_to_wgs84(lon[shifted], lat[shifted])
        asked = (grid >= 0) & np.isfinite(lon) & np.isfinite(lat)
        distance = np.full(len(grid), np.nan)
        distance[asked] = self._parts.grids.boundaries.distance_m(grid[asked], lon[asked], lat[asked])
        measured = pl.Series(distance).fill_nan(None)
        return {"point_in_grid": measured <= self._tolerance_m, "point_distance_m": measured}

    def _staff(self, events: pl.DataFrame, at_ms: Int64s) -> dict[str, pl.Series]:
        staff = self._parts.staff
        known, row = staff.versions.find(events["actor_key"], at_ms)
        facts, place = take(staff.facts, row), take(staff.place, row)
        who = place.with_columns(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            pl.Series("staff", row),
            events["occurred_at"],
            events["grid_code"].alias("event_grid"),
            pl.Series("known", known & (row >= 0)),
        )
        lent = (
            who.filter("known")
            .join(staff.loans, left_on=["staff", "event_grid"], right_on=["staff", "loan_grid"])
            .filter(
                pl.col("loan_from") <= pl.col("occurred_at"),
                pl.col("loan_to").is_null() | (pl.col("occurred_at") < pl.col("loan_to")),
            )
        )
        on_loan = np.zeros(events.height, bool)
        on_loan[lent["row"].to_numpy()] = True
        judged = who.select(
            staff_active=pl.when("known").then(
                (pl.col("active_from") <= pl.col("occurred_at"))
                & (pl.col("active_to").is_null() | (pl.col("occurred_at") < pl.col("active_to")))
            ),
            staff_in_grid=pl.when("known").then(
                (pl.col("grid_code") == pl.col("event_grid")).fill_null(False) | pl.Series(on_loan)
            ),
            staff_in_district=pl.when("known").then(
                (pl.col("district_code") == pl.col("event_grid").str.head(6)).fill_null(False)
            ),
        )
        return {
            "staff_found": pl.Series(known),
            **{name: judged[name] for name in judged.columns},
            **{name: facts[name] for name in facts.columns},
        }

    def _persons(self, events: pl.DataFrame) -> dict[str, pl.Series]:
        persons, given = flatten(events["persons"])
        known = self._parts.people.find(persons.struct.field("key")) >= 0
        found = np.bincount(rows_of(given)[known], minlength=events.height)
        return {"persons_given": pl.Series(given), "persons_found": pl.Series(found)}

    def _route(self, events: pl.DataFrame, grid: Int64s) -> pl.Series:
        asked = pl.DataFrame(
            {"grid": grid, "route_category": events["matter_code"].str.split("-").list.first()}
        )
        routed = asked.join(
            self._parts.grids.routes, on=["grid", "route_category"], how="left", maintain_order="left"
        )
        assert routed.height == events.height, "routes are distinct by grid and category"
        return routed["route_department"]


def _at(values: NDArray[np.bool_], positions: Int64s, default: bool) -> NDArray[np.bool_]:
    if not len(values):
        return np.full(len(positions), default)
    return np.where(positions >= 0, values[np.maximum(positions, 0)], default)


def _where(condition: pl.Series, values: NDArray[np.bool_]) -> pl.Series:
    """`values` where `condition`, else null."""
    return pl.Series(values).set(~condition, None)


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
