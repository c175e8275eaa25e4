"""The end of an earlier log. A log that is gone is never read again, so nothing recovers its last blocks.

A worker that died with the log may have stored a block's rows, but not handed them to their cases. Their ids
are known, so that copies sent again are redeliveries: without this step such events would never reach their
cases. Runs before the first block of a new incarnation; repeating it changes nothing.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline.process.partition import UNFOLDED_BLOCKS, stored_case_events
from pipeline.sink.retry import Stopping
from pipeline.sink.tables import Extent, Sink
from pipeline.store.cases import refresh_cases

log = structlog.get_logger(__name__)

#: Tables whose rows the cases must know.
_TABLES: Final = ("events", "rejections", "duplicates")


def complete_earlier_log(client: Client, topic: str, inc: int, stopping: threading.Event) -> int:
    """Hand the last stored blocks of each partition of the log before `inc` to their cases; returns how many.

    Of a partition only the last one can be incomplete, and only the last UNFOLDED_BLOCKS may not be folded.
    Rows of `inc` itself prove that this was done before. Raises Stopping as `tell_cases`.
    """
    if _latest(client, "_inc = {inc:UInt64}", inc):
        return 0
    earlier = _latest(client, "_inc < {inc:UInt64}", inc)
    if not earlier:
        return 0
    blocks = _last_blocks(client, earlier)
    tell_cases(client, topic, earlier, blocks, stopping)
    log.info("earlier_log_completed", inc=earlier, blocks=len(blocks))
    return len(blocks)


def _last_blocks(client: Client, inc: int) -> list[Extent]:
    """The last UNFOLDED_BLOCKS of each partition, by one query each: a log of weeks has more than memory
    holds."""
    each = " UNION ALL ".join(
        f"SELECT _part, _blk_lo, _blk_hi FROM {table} WHERE _inc = {{inc:UInt64}}" for table in _TABLES
    )
    blocks: list[Extent] = []
    for _ in range(UNFOLDED_BLOCKS):
        known = ", ".join(f"({block.partition}, {block.lo})" for block in blocks)
        rows = client.query(
            f"SELECT _part, max(_blk_lo), argMax(_blk_hi, (_blk_lo, _blk_hi)) FROM ({each}) "
            + (f"WHERE (_part, _blk_lo) NOT IN ({known}) " if known else "")
            + "GROUP BY _part ORDER BY _part",
            parameters={"inc": inc},
        ).result_rows
        blocks += [Extent(*row) for row in rows]
    return sorted(blocks)


def tell_cases(
    client: Client,
    topic: str,
    inc: int,
    extents: Sequence[Extent],
    stopping: threading.Event,
    *,
    told: Callable[[pl.Series], None] = lambda _: None,
) -> None:
    """Hand the stored rows of blocks to their cases, for blocks whose records the log no longer holds.

    told : called with the ids of a block's cases once they hold its rows, and before they are folded: who
    remembers sets of cases must read those anew from then on.
    Raises Stopping when asked to end before the store took them.
    """
    sink = Sink(client, topic, stopping)
    for extent in extents:
        if stopping.is_set():
            raise Stopping
        events = stored_case_events(client, inc, extent)
        token = sink.token(inc=inc, blocks=[extent])
        sink.write_case_events(events, inc, f"{token}:again-{uuid.uuid4()}")
        told(events["case_id"].unique())
    refresh_cases(client, inc, extents)


def _latest(client: Client, where: str, inc: int) -> int:
    """The greatest incarnation with rows, 0 without any."""
    found = client.query(
        "SELECT max(latest) FROM ("
        + " UNION ALL ".join(f"SELECT max(_inc) AS latest FROM {table} WHERE {where}" for table in _TABLES)
        + ")",
        parameters={"inc": inc},
    ).result_rows
    return int(found[0][0] or 0)
