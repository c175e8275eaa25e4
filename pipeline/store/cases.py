"""Case events in, folded case states out. The rules of the fold are SQL: `pipeline.store.fold`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.frames import CASE_EVENT, expect
from pipeline.store.fold import HISTORY, STATE, TUPLE_TYPES, fold

_TABLE: Final = "cases"

#: For every query that folds. Merging the fold's steps into one expression, and comparing every pair of its
#: conditions, cost a quarter of the analysis each and gain nothing.
FOLD_SETTINGS: Final = {
    "query_plan_merge_expressions": 0,
    "optimize_and_compare_chain": 0,
    # The steps are many and the rows few: handing them between threads cost twice the work itself.
    "max_threads": 1,
    # Machine code for an expression of this size takes longer to make than it saves.
    "compile_expressions": 0,
    "compile_aggregate_expressions": 0,
    "compile_sort_description": 0,
}

#: A refresh repeats safely, so it needs no token; it must be seen by the next read, so it is not queued.
_SETTINGS: Final = {"async_insert": 0, "insert_deduplicate": 0, "optimize_on_insert": 0, **FOLD_SETTINGS}


def pack_case_events(frame: pl.DataFrame, inc: int) -> pl.DataFrame:
    """Rows of `case_events`: one per case, its events packed into one list of tuples.

    frame : (n, CASE_EVENT); inc : topic incarnation of the block, unix ms.
    Returns (cases, {case_id: String, events: List[Struct]}), sorted by case_id, so that the same block gives
    the same bytes under the same insert token.
    Raises ContractError if a column is missing or has another dtype.
    """
    expect(frame, CASE_EVENT, "case events")
    tuples = frame.select(
        "case_id",
        pl.struct(
            pl.lit(inc, pl.UInt64).alias(name)
            if name == "_inc"
            else pl.col(name).fill_null(False)
            if kind == "Bool"
            else pl.col(name)
            for name, kind in TUPLE_TYPES.items()
        ).alias("events"),
    )
    return tuples.group_by("case_id", maintain_order=True).agg("events").sort("case_id")


def refresh_cases(client: Client, inc: int, ranges: Sequence[tuple[int, int, int]]) -> None:
    """Fold again the cases touched by the rows of `ranges`, and store their states.

    inc : topic incarnation, unix ms.
    ranges : (partition, first offset, last offset), both ends included; the rows of `events`, `rejections`
        and `duplicates` (L2) at these positions name the cases.
    Idempotent: a state is a function of the case's events, and of two folds the one of more events wins.
    """
    if not ranges:
        return
    positions = " OR ".join(
        f"(_part = {int(part)} AND _off BETWEEN {int(low)} AND {int(high)})" for part, low, high in ranges
    )
    where = f"_inc = {int(inc)} AND ({positions})"
    client.command(
        f"INSERT INTO {_TABLE} ({', '.join((*HISTORY, *STATE))}) "
        + fold(
            f"""
            SELECT case_id, groupUniqArrayArray(events) AS tuples FROM case_events
            WHERE case_id IN (
                SELECT case_id FROM events WHERE {where}
                UNION ALL SELECT case_id FROM rejections WHERE {where}
                UNION ALL SELECT case_id FROM duplicates WHERE {where} AND level = 'L2'
            )
            GROUP BY case_id"""
        ),
        settings=_SETTINGS,
    )
