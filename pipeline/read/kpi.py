"""The KPI call: rows of the `kpi_cohort` and `kpi_flow` views with names, in the shape of the interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

from clickhouse_connect.driver.client import Client

from pipeline.errors import ContractError
from pipeline.read.times import aware, instant
from pipeline.store.client import at_once
from pipeline.store.kpi_views import (
    BY,
    CITY_AND_DISTRICT,
    COHORT_RATES,
    DURATIONS,
    LOOK,
    PERCENTILES,
    RATES,
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


#: The queries are short of rows and long of expressions: the passes that compare every pair of conditions and
#: that merge expressions cost half of the analysis.
_SETTINGS: Final = {"query_plan_merge_expressions": 0, "optimize_and_compare_chain": 0}
#: Thousands of keys with arrays each: to join the halves of two threads costs more than a thread saves.
_MANY_KEYS: Final = frozenset({"grid", "village"})
#: Columns that say which parts have a key; not in the answer.
_PARTS: Final = ("has_cases", "has_reports")


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
) -> dict[str, Any]:
    """Every metric per key.

    by : one of BY; view : cohort (cases reported in [from_, to), state as of `as_of`) or flow (events there).
    Returns {"from", "to", "as_of", "view", "rows"}: times RFC 3339 in UTC; rates 0–1, or None when the
    denominator is 0; percentiles in whole seconds. `city` and `district` list their every key and no other,
    the rest the keys that have a report or a case, sorted.
    parts : of a cohort, add to each row `parts`: rate → [numerator, denominator].
    Raises ContractError for an unknown `by` or `view`.
    Source: docs/metrics.md.
    """
    if by not in BY:
        raise ContractError(f"by must be one of {', '.join(BY)}")
    if view not in VIEWS:
        raise ContractError(f"view must be one of {', '.join(VIEWS)}")
    window = {"from_": from_, "to": to, "as_of": as_of}
    by_key = {row["key"]: row for row in _rows(client, view, by, names, **window)}
    return _answer(by_key, by, view, names, parts=parts, **window)


def kpi_of_city_and_districts(
    client: Client, *, from_: datetime, to: datetime, as_of: datetime, names: Names
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `kpi` answers for `by=city` and for `by=district` (cohort, with parts), for the price of one."""
    window = {"from_": from_, "to": to, "as_of": as_of}
    by_key = {row["key"]: row for row in _rows(client, "cohort", CITY_AND_DISTRICT, names, **window)}
    city, districts = (
        _answer(by_key, by, "cohort", names, parts=True, **window) for by in ("city", "district")
    )
    return city, districts


def _answer(
    by_key: Mapping[str, dict[str, Any]],
    by: str,
    view: str,
    names: Names,
    *,
    from_: datetime,
    to: datetime,
    as_of: datetime,
    parts: bool,
) -> dict[str, Any]:
    keys = names.listed_keys(by) or sorted(key for key, row in by_key.items() if row["listed"])
    shaped = [_row(key, names.name_zh(by, key), by_key.get(key, {}), view) for key in keys]
    if parts and view == "cohort":
        for row in shaped:
            found = by_key.get(row["key"], {})
            row["parts"] = {
                rate: [found.get(part) or 0, found.get(whole) or 0]
                for rate, (part, whole) in COHORT_RATES.items()
            }
    return {
        "from": instant(from_),
        "to": instant(to),
        "as_of": instant(as_of),
        "view": view,
        "rows": shaped,
    }


def _rows(
    client: Client, view: str, by: str, names: Names, *, from_: datetime, to: datetime, as_of: datetime
) -> list[dict[str, Any]]:
    """The view's rows for one `by`: its parts, asked for at once and joined by key.

    Where nothing happened after `as_of` the stored states suffice; whether that still holds is asked again
    afterwards, for a case may have moved on meanwhile.
    """
    parameters: dict[str, Any] = {
        "from": _parameter(from_),
        "to": _parameter(to),
        "as_of": _parameter(as_of),
    }
    of_cases = {
        "citizen_channels": sorted(
            channel for channel, kind in names.channel_kinds.items() if kind in CITIZEN_KINDS
        )
    }
    settings = {**_SETTINGS, "max_threads": 1} if by in _MANY_KEYS else _SETTINGS

    def read(query: str) -> list[dict[str, Any]]:
        asked = parameters | (of_cases if "citizen_channels" in query else {})
        return list(client.query(query, parameters=asked, settings=settings).named_results())

    def look() -> tuple[bool, bool]:
        past, orphans = client.query(LOOK, parameters=parameters).result_rows[0]
        return bool(past), bool(orphans)

    def cases(past: bool) -> list[dict[str, Any]]:
        rows = read(cases_query(view, by, past=past))
        if not past and look()[0]:
            return read(cases_query(view, by))
        return rows

    past, orphans = look()
    beside = [reports_query(by)] + ([orphans_query(by)] if orphans else [])
    return _joined(*at_once(client, partial(cases, past), *(partial(read, query) for query in beside)))


def _joined(*parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts' rows by key: what `kpi_cohort` and `kpi_flow` join. A rate of two parts is made here."""
    by_key: dict[str, dict[str, Any]] = {}
    for part in parts:
        for row in part:
            by_key.setdefault(row["key"], {}).update(row)
    for row in by_key.values():
        duplicates = sum(row.get(name, 0) for name in ("duplicates_l1", "duplicates_l2", "merged"))
        row["duplicate_rate"] = duplicates / row["reports"] if row.get("reports") else None
        row["listed"] = any(row.pop(part, 0) for part in _PARTS)
    return list(by_key.values())


def _parameter(at: datetime) -> str:
    """A time as ClickHouse reads a DateTime64(3, 'UTC') parameter."""
    return aware(at).strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"


#: Duration → pairs of its percentile's name and the column that holds it.
_PERCENTILE_COLUMNS: Final = tuple(
    (duration, tuple((f"p{p}", f"{duration}_p{p}") for p in PERCENTILES)) for duration in DURATIONS
)


def _row(key: str, name_zh: str | None, found: Mapping[str, Any], view: str) -> dict[str, Any]:
    """One row of the answer; a listed key without any report counts zero. Plain loops: a city has thousands
    of grids, and a row must cost microseconds."""
    get = found.get
    row: dict[str, Any] = {"key": key, "name_zh": name_zh}
    for name in _COUNTS:
        row[name] = get(name) or 0
    row["duplicates"] = {
        "L1": get("duplicates_l1") or 0, "L2": get("duplicates_l2") or 0, "L3": row["merged"],
    }  # fmt: skip
    for rate in RATES:
        row[rate] = get(rate)
    for duration, columns in _PERCENTILE_COLUMNS:
        row[duration] = {percentile: get(column) for percentile, column in columns}
    if view == "flow":
        row |= _BLANK_IN_FLOW
    return row


#: What a flow has no answer for: states, and every rate but one.
_BLANK_IN_FLOW: Final = dict.fromkeys((*_STATES, *(rate for rate in RATES if rate != "closure_rate")))
