"""Whether what is told of cases is what is stored of their events: part of the runtime verifier.

Each look takes the cases of the newest committed records. Every stored row of theirs must be in its case's
set (`case_events`), what is stored of the case (`cases`, each column) must be the fold of that set, made
anew, and no id may stand twice in it within the redelivery window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, Protocol, TypeVar

import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.contract.canary import CANARY_SOURCE
from pipeline.sink.retry import Failure, classify
from pipeline.sink.tables import Extent
from pipeline.store.cases import FOLD_SETTINGS
from pipeline.store.fold import ALL, fold

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Records per partition whose cases are looked at.
LAST_RECORDS: Final = 50
_MOST_CASES: Final = 1_000
_EVERY_SECONDS: Final = 60.0
#: A case may be written to between two reads of one look: only what differs twice has drifted.
_AGAIN_SECONDS: Final = 5.0
_MOST_NAMED: Final = 20
#: A whole folded case as one text: a comparison of columns would be unknown where one is NULL.
_WHOLE: Final = f"toString(({', '.join(ALL)}))"


class InThread(Protocol):
    def __call__(self, call: Callable[[Client], T]) -> Awaitable[T]: ...


async def watch_drift(
    in_thread: InThread,
    inc: int,
    newest: Callable[[], Sequence[Extent]],
    fold_again: Callable[[Client, Sequence[Extent]], None],
    window: timedelta,
) -> None:
    """Look each minute until cancelled. window : of redelivery.

    newest : the last records that are committed, by partition. fold_again : gives the cases of such records
    the rows that they lack and the states of their sets; what drifted is told all the same.
    """
    while True:
        await asyncio.sleep(_EVERY_SECONDS)
        extents = newest()
        try:
            found = await in_thread(lambda client, at=extents: drifted(client, inc, at))  # type: ignore[misc]
            if found:
                await asyncio.sleep(_AGAIN_SECONDS)
                again = await in_thread(lambda client, at=extents: drifted(client, inc, at))  # type: ignore[misc]
                found &= again
            if found:
                await in_thread(lambda client, at=extents: fold_again(client, at))  # type: ignore[misc]
                metrics.verifier_drift.inc(len(found))
                log.error("cases_drifted", cases=len(found), case_ids=sorted(found)[:_MOST_NAMED])
            doubled = await in_thread(lambda client, at=extents: stored_twice(client, inc, at, window))  # type: ignore[misc]
            if doubled:
                metrics.verifier_double_ids.inc(len(doubled))
                log.error("ids_stored_twice", ids=len(doubled), events=sorted(doubled)[:_MOST_NAMED])
        except Exception as error:
            if classify(error) is not Failure.TRANSIENT:
                raise
            # the store is away: what cannot be read is not compared


def drifted(client: Client, inc: int, extents: Sequence[Extent]) -> set[str]:
    """Cases of the rows in `extents` whose set lacks one of these rows, or that are stored as anything but
    the fold of their set. Raises what the client raises."""
    if not extents:
        return set()
    rows = _rows(inc, extents)
    ids = _cases_of(client, rows)
    if not ids:
        return set()
    among = "case_id IN {ids:Array(String)}"
    missing = f"""
        SELECT DISTINCT case_id FROM ({rows}) WHERE {among} AND (case_id, _inc, _part, _off, _idx) NOT IN (
            SELECT case_id, e._inc, e._part, e._off, e._idx FROM case_events ARRAY JOIN events AS e
            WHERE {among})"""
    sets = f"""
        SELECT case_id, groupUniqArrayArray(events) AS tuples FROM case_events
        WHERE {among} GROUP BY case_id"""
    stored = f"SELECT {_WHOLE} FROM cases FINAL WHERE {among}"
    wrong = f"SELECT case_id FROM ({fold(sets)}) WHERE {_WHOLE} NOT IN ({stored})"
    found: set[str] = set()
    for query in (missing, wrong):
        found.update(
            row[0] for row in client.query(query, parameters={"ids": ids}, settings=FOLD_SETTINGS).result_rows
        )
    return found


def stored_twice(
    client: Client, inc: int, extents: Sequence[Extent], window: timedelta
) -> set[tuple[str, str]]:
    """(source, event id) that stands at two positions in the set of a case of the rows in `extents`, received
    within `window` of each other. Raises what the client raises.

    Deduplication goes by partition, thus by village code: a copy that names another one is not seen there.
    """
    ids = _cases_of(client, _rows(inc, extents)) if extents else []
    if not ids:
        return set()
    entries = """
        SELECT e.source AS source, e.event_id AS event_id, e._inc, e._part, e._off, e._idx,
            toUnixTimestamp64Milli(any(e.ingested_at)) AS received
        FROM case_events ARRAY JOIN events AS e WHERE case_id IN {ids:Array(String)} GROUP BY ALL"""
    twice = f"""
        SELECT source, event_id FROM ({entries}) GROUP BY source, event_id
        HAVING count() > 1 AND arrayExists(
            apart -> apart <= {window // timedelta(milliseconds=1)},
            arrayPopFront(arrayDifference(arraySort(groupArray(received)))))"""
    return {(row[0], row[1]) for row in client.query(twice, parameters={"ids": ids}).result_rows}


def _rows(inc: int, extents: Sequence[Extent]) -> str:
    """A query of the rows at these positions: case id and position."""
    places = " OR ".join(f"(_part = {e.partition} AND _off BETWEEN {e.lo} AND {e.hi})" for e in extents)
    where = f"_inc = {int(inc)} AND ({places}) AND source != '{CANARY_SOURCE}'"
    return " UNION ALL ".join(
        f"SELECT case_id, _inc, _part, _off, _idx FROM {table} WHERE {where}{more}"
        for table, more in (("events", ""), ("rejections", ""), ("duplicates", " AND level = 'L2'"))
    )


def _cases_of(client: Client, rows: str) -> list[str]:
    found = client.query(f"SELECT DISTINCT case_id FROM ({rows}) LIMIT {_MOST_CASES}").result_rows
    return [row[0] for row in found]
