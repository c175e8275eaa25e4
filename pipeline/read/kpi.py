"""The KPI call: rows of the `kpi_cohort` and `kpi_flow` views with names, in the shape of the interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.errors import ContractError
from pipeline.read.held.figures import HeldFigures
from pipeline.read.times import instant, parameter
from pipeline.store.client import at_once
from pipeline.store.kpi_views import (
    BY,
    COHORT_RATES,
    DURATIONS,
    LOOK,
    MOST_NAMED,
    PERCENTILES,
    RATES,
    TOGETHER,
    cases_query,
    orphans_query,
    reports_query,
)

__all__ = ["BY", "VIEWS", "Names", "kpi"]

VIEWS: Final = ("cohort", "flow")
#: Kinds of channels through which people bring demands (诉求).
CITIZEN_KINDS: Final = frozenset({"public", "care", "desk"})

#: Counts of a row, and those among them that describe states or case sets: the flow view has none of these.
_COUNTS: Final = (
    "reports", "admitted_reports", "rejected_reports", "cases", "voided", "merged", "orphans",
    "orphans_overdue", "closed", "responded", "ratings", "open", "overdue", "unproven",
    "illegal_events", "late_events", "negative_durations",
)  # fmt: skip
_STATES: Final = frozenset(
    {"open", "overdue", "unproven", "illegal_events", "late_events", "negative_durations"}
)


#: What a flow has no answer for: states, and every rate but one.
_BLANK_IN_FLOW: Final = {*_STATES, *RATES} - {"closure_rate"}

#: The queries are short of rows and long of expressions: the passes that compare every pair of conditions and
#: that merge expressions cost half of the analysis. A second thread doubles the cost of FINAL, and the states
#: of thousands of keys are joined faster in one piece than in 256.
_SETTINGS: Final = {
    "query_plan_merge_expressions": 0,
    "optimize_and_compare_chain": 0,
    "max_final_threads": 1,
    "group_by_two_level_threshold": 0,
    "group_by_two_level_threshold_bytes": 0,
}


class Names(Protocol):
    """What the call needs to know of the catalogue."""

    @property
    def channel_kinds(self) -> Mapping[str, str]:
        """Channel code → kind (public, care, desk, staff, device, system)."""

    def listed_keys(self, by: str) -> Sequence[str]:
        """Keys that have a row even without a report, in the order of reports: all of `city` and `district`,
        none of the others."""

    def name_zh(self, by: str, key: str) -> str | None:
        """Chinese name of a key, None if it is not known."""


def kpi(
    client: Client,
    *,
    by: str,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    view: str,
    names: Names,
    parts: bool = False,
    held: HeldFigures | None = None,
) -> dict[str, Any]:
    """Every metric per key.

    by : one of BY; view : cohort (cases reported in [from_, to), state as of `as_of`) or flow (events there).
    Returns {"from", "to", "as_of", "view", "rows"}: times RFC 3339 in UTC; rates 0–1, or None when the
    denominator is 0; percentiles in whole seconds. `city` and `district` list their every key and no other,
    the rest the keys that have a report or a case, sorted.
    parts : of a cohort, add to each row `parts`: rate → [numerator, denominator].
    held : answers where it can, in place of the store.
    Raises ContractError for an unknown `by` or `view`.
    Source: docs/metrics.md.
    """
    if by not in BY:
        raise ContractError(f"by must be one of {', '.join(BY)}")
    if view not in VIEWS:
        raise ContractError(f"view must be one of {', '.join(VIEWS)}")
    window: dict[str, Any] = {"from_": from_, "to": to, "as_of": as_of}
    of_held = _held_rows(client, view, (by,), names, held, **window)
    found = _rows(client, view, by, names, **window) if of_held is None else of_held[0]
    return _answer(found, by, view, names, parts=parts, **window)


def kpi_together(
    client: Client,
    by: tuple[str, ...] = TOGETHER,
    *,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    names: Names,
    held: HeldFigures | None = None,
) -> dict[str, dict[str, Any]]:
    """What `kpi` answers for each of `by` (cohort, with parts): four cost half of what they do one by one.

    by : the first so many of TOGETHER, two or more. held : answers where it can, in place of the store.
    """
    window: dict[str, Any] = {"from_": from_, "to": to, "as_of": as_of}
    alone = _held_rows(client, "cohort", by, names, held, whole=True, **window)
    if alone is not None:
        return {
            name: _answer(rows, name, "cohort", names, parts=True, **window)
            for name, rows in zip(by, alone, strict=True)
        }
    found = _rows(client, "cohort", by, names, **window)
    answers = {}
    for name in by:
        mine = found.filter(pl.col("key").str.starts_with(f"{name}:"))
        rows = mine.with_columns(pl.col("key").str.strip_prefix(f"{name}:")).filter(pl.col("key") != "")
        answers[name] = _answer(rows, name, "cohort", names, parts=True, **window)
    return answers


def _answer(
    found: pl.DataFrame,
    by: str,
    view: str,
    names: Names,
    *,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    parts: bool,
) -> dict[str, Any]:
    """The rows of `found` (see `_rows`) for the keys of `by`; a listed key that it lacks counts zero."""
    listed = names.listed_keys(by) or found.filter("listed")["key"].sort().to_list()
    keys = pl.DataFrame(
        {"key": listed, "name_zh": [names.name_zh(by, key) for key in listed]},
        schema={"key": pl.String, "name_zh": pl.String},
    )
    blank = _BLANK_IN_FLOW if view == "flow" else frozenset()

    def count(name: str) -> pl.Expr:
        return pl.col(name).fill_null(0) if name in found.columns else pl.lit(0)

    columns: dict[str, pl.Expr] = {"key": pl.col("key"), "name_zh": pl.col("name_zh")}
    columns |= {name: count(name) for name in _COUNTS}
    copies = {"L1": "duplicates_l1", "L2": "duplicates_l2", "L3": "merged"}
    columns["duplicates"] = pl.struct(count(name).alias(level) for level, name in copies.items())
    columns |= {rate: pl.col(rate) for rate in RATES if rate not in blank}
    columns |= {name: pl.lit(None) for name in (*_COUNTS, *RATES) if name in blank}
    for duration in DURATIONS:
        columns[duration] = pl.struct(pl.col(f"{duration}_p{p}").alias(f"p{p}") for p in PERCENTILES)
    if parts and view == "cohort":
        columns["parts"] = pl.struct(
            pl.concat_list(count(part), count(whole)).alias(rate)
            for rate, (part, whole) in COHORT_RATES.items()
        )
    return {
        "from": instant(from_),
        "to": instant(to),
        "as_of": instant(as_of),
        "view": view,
        "rows": keys.join(found, on="key", how="left", maintain_order="left").select(**columns).to_dicts(),
    }


def _rows(
    client: Client,
    view: str,
    by: str | tuple[str, ...],
    names: Names,
    *,
    from_: datetime,
    to: datetime,
    as_of: datetime,
) -> pl.DataFrame:
    """The view's rows for one `by`, or for several: its parts, asked for at once and joined.

    Where nothing happened after `as_of` the stored states suffice; whether that still holds is asked again
    afterwards, for a case may have moved on meanwhile.
    """
    store = _Store(client, names, from_, to, as_of)
    past, orphans = store.look()
    beside = [reports_query(by)] + ([orphans_query(by)] if orphans else [])
    asked = (partial(store.cases, view, by, past), *(partial(store.read, query) for query in beside))
    return _joined(*at_once(client, *asked))


class _Store:
    """What a call asks the store."""

    def __init__(self, client: Client, names: Names, from_: datetime, to: datetime, as_of: datetime) -> None:
        self._client = client
        self._parameters: dict[str, Any] = {
            "from": parameter(from_), "to": parameter(to), "as_of": parameter(as_of)
        }  # fmt: skip
        self._of_cases = {"citizen_channels": _citizen_channels(names)}

    def read(self, query: str, **more: Any) -> pl.DataFrame:
        """more : parameters of this query."""
        asked = self._parameters | more | (self._of_cases if "citizen_channels" in query else {})
        frame = pl.from_arrow(self._client.query_arrow(query, parameters=asked, settings=_SETTINGS))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def look(self) -> tuple[bool, bool]:
        """What LOOK says."""
        past, orphans = self._client.query(LOOK, parameters=self._parameters).result_rows[0]
        return bool(past), bool(orphans)

    def cases(self, view: str, by: str | tuple[str, ...], past: bool) -> pl.DataFrame:
        rows = self.read(cases_query(view, by, past=past))
        if not past and self.look()[0]:
            return self.read(cases_query(view, by))
        return rows


def _citizen_channels(names: Names) -> list[str]:
    return sorted(channel for channel, kind in names.channel_kinds.items() if kind in CITIZEN_KINDS)


def _held_rows(
    client: Client,
    view: str,
    by: Sequence[str],
    names: Names,
    held: HeldFigures | None,
    *,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    whole: bool = False,
) -> list[pl.DataFrame] | None:
    """The view's rows for each of `by` with what is held; None where that is nothing.

    whole : None also where the cases are left to the store.
    """
    window = {"from_": from_, "to": to, "as_of": as_of}
    found = None if held is None else held.parts(client, view, by, _citizen_channels(names), **window)
    if found is None or (whole and any(parts.cases is None for parts in found)):
        return None
    store = _Store(client, names, **window)
    rows = []
    for name, (cases, reports, orphans) in zip(by, found, strict=True):
        joined = [store.cases(view, name, past=True) if cases is None else cases, reports]
        if orphans is None or len(orphans) > MOST_NAMED:
            joined.append(store.read(orphans_query(name)))
        elif orphans:
            joined.append(store.read(orphans_query(name, named=True), orphans=orphans))
        rows.append(_joined(*joined))
    return rows


def _joined(*parts: pl.DataFrame) -> pl.DataFrame:
    """The parts by key: what `kpi_cohort` and `kpi_flow` join. A rate of two parts is made here.

    What a part that lacks a key would say of it is null.
    """
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part, on="key", how="full", coalesce=True)
    copies = pl.sum_horizontal("duplicates_l1", "duplicates_l2", "merged")
    return joined.with_columns(
        duplicate_rate=pl.when(pl.col("reports") > 0).then(copies / pl.col("reports")),
        listed=pl.sum_horizontal("has_cases", "has_reports") > 0,
    )
