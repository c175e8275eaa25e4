"""Case events in, folded case states out. The rules of the fold: `pipeline.store.fold_frames`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from clickhouse_connect.driver.client import Client
from numpy.typing import NDArray

from pipeline.errors import ContractError
from pipeline.frames import CASE_EVENT, expect
from pipeline.reference.lists import by_number, regroup
from pipeline.store.client import insert_table
from pipeline.store.entries import IS_UNSAFE, pack_entries, storable, unpack_entries
from pipeline.store.fold_frames import fold

_TABLE: Final = "cases"
_FLAGS: Final = pl.col(pl.Boolean).fill_null(False)
#: The contract's, in the words of polars. What it lets through needs no escaping in SQL.
_ID_PATTERN: Final = r"^[A-Za-z0-9._:-]{1,64}$"

#: For a query that folds in SQL. Merging the fold's steps into one expression, and comparing every pair of
#: its conditions, cost a quarter of the analysis each and gain nothing.
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

#: A refresh must be seen by the next read, so it is not queued.
_INSERT_SETTINGS: Final = {
    "async_insert": 0,
    "optimize_on_insert": 0,
    "max_threads": 1,
}
#: Blocks whose cases are folded together: the engine refuses a condition of 1,500 of them, and the sets of
#: all their cases are held in memory.
_MOST_RANGES: Final = 50
#: Rows scattered over the key: a second thread doubles the processor time.
_READ_SETTINGS: Final = {"max_threads": 1}


def case_sets(frame: pl.DataFrame, inc: int) -> pl.DataFrame:
    """CASE_EVENT rows as entries of their cases' sets (CASE_SET), as the store gives them back.

    inc : topic incarnation of their block, unix ms.
    Raises ContractError if a column is missing or has another dtype.
    """
    events = expect(frame, CASE_EVENT, "case events")
    return storable(events.with_columns(_FLAGS, IS_UNSAFE, _inc=pl.lit(inc, pl.UInt64)))


def pack_case_events(frame: pl.DataFrame, inc: int) -> pl.DataFrame:
    """Rows of `case_events`: one per case, its events packed into one list of texts (`store.entries`).

    frame : (n, CASE_EVENT); inc : topic incarnation of the block, unix ms.
    Returns (cases, {case_id: String, entries: List[String]}), sorted by case_id, so that the same block gives
    the same bytes under the same insert token.
    Raises ContractError if a column is missing or has another dtype.
    """
    sets = case_sets(frame, inc)
    # ids are few, and sorted once each: as groups polars gathers the entries twice
    encoded = sets["case_id"].to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
    case_ids = pl.Series("case_id", encoded.dictionary, dtype=pl.String())
    ascending = case_ids.arg_sort().to_numpy()
    place = np.empty(len(ascending), np.int64)
    place[ascending] = np.arange(len(ascending))
    its = place[encoded.indices.to_numpy()]
    entries = pack_entries(sets)[by_number(its)]
    return pl.DataFrame(
        [case_ids[ascending], regroup(entries, np.bincount(its, minlength=len(ascending)).astype(np.int64))]
    )


def refresh_cases(client: Client, inc: int, ranges: Sequence[tuple[int, int, int]]) -> None:
    """Fold again the cases touched by the rows of `ranges`, and store their states.

    inc : topic incarnation, unix ms.
    ranges : (partition, first offset, last offset), both ends included; the rows of `events`, `rejections`
        and `duplicates` (L2) at these positions name the cases.
    Idempotent: a state is a function of the case's events, and of two folds the one of more events wins.
    """
    for first in range(0, len(ranges), _MOST_RANGES):
        positions = " OR ".join(
            f"(_part = {int(part)} AND _off BETWEEN {int(low)} AND {int(high)})"
            for part, low, high in ranges[first : first + _MOST_RANGES]
        )
        where = f"_inc = {int(inc)} AND ({positions})"
        touched = f"""
            SELECT case_id FROM events WHERE {where}
            UNION ALL SELECT case_id FROM rejections WHERE {where}
            UNION ALL SELECT case_id FROM duplicates WHERE {where} AND level = 'L2'"""
        store_cases(client, _read_sets(client, f"case_id IN ({touched})"))


def read_sets(client: Client, case_ids: pl.DataFrame) -> pl.DataFrame:
    """All entries of the sets of some cases, CASE_SET, in no order.

    case_ids : (n, {case_id}), some thousands at most.
    Raises ContractError if an id is none of the contract's: it would be part of a statement.
    """
    if not case_ids["case_id"].str.contains(_ID_PATTERN).all():
        raise ContractError("a case id breaks the contract")
    named = ", ".join(f"'{case_id}'" for case_id in case_ids["case_id"])
    return _read_sets(client, f"case_id IN ({named})")


def refold(client: Client, most: int = 10_000) -> Iterator[int]:
    """Fold every case again from its stored set, at most so many at a time in the order of their ids, and
    store the states; yields how many cases are done so far.

    Idempotent, and sound beside workers: a state's version is the number of its set's entries, so that what a
    worker stores of a case that grew meanwhile wins, whichever is written last.
    """
    done, last = 0, ""
    while True:
        # rows lie in the order of ids: the first ones are found without a look at the rest
        ahead = client.query(
            """
            SELECT max(case_id) FROM (
                SELECT case_id FROM case_events WHERE case_id > {last:String}
                ORDER BY case_id LIMIT {most:UInt32})
            """,
            parameters={"last": last, "most": most},
        )
        upto = str(ahead.result_rows[0][0])
        if not upto:
            return
        span = {"last": last, "upto": upto}
        sets = _read_sets(client, "case_id > {last:String} AND case_id <= {upto:String}", span)
        store_cases(client, sets)
        done += sets["case_id"].n_unique()
        last = upto
        yield done


def _read_sets(client: Client, where: str, parameters: dict[str, Any] | None = None) -> pl.DataFrame:
    table = client.query_arrow(
        f"SELECT case_id, entry AS entries FROM case_events ARRAY JOIN entries AS entry WHERE {where}",
        parameters=parameters,
        use_strings=True,
        settings=_READ_SETTINGS,
    )
    # a block that was handed over twice is told by its texts: two columns are compared instead of 26
    return unpack_entries(pl.DataFrame(pl.from_arrow(table)).unique())


def known_cases(client: Client) -> Iterator[NDArray[np.uint64]]:
    """xxh3 of the ids of all cases that have events, some of them more than once."""
    with client.query_arrow_stream("SELECT xxh3(case_id) AS hash FROM case_events") as stream:
        for batch in stream:
            yield batch.column(0).to_numpy()


def store_cases(client: Client, sets: pl.DataFrame) -> None:
    """Fold cases and store their states. sets : CASE_SET, all entries of each case that occurs in it."""
    if sets.is_empty():
        return
    # A refresh repeats safely, and must not be swallowed for being like an earlier one: that may be what it
    # mends. A token of its own says so to every engine; newer ones do not heed `insert_deduplicate = 0` here.
    settings = {**_INSERT_SETTINGS, "insert_deduplication_token": f"refresh-{uuid.uuid4()}"}
    insert_table(client, _TABLE, fold(sets), settings=settings)
