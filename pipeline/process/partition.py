"""What a partition finds in ClickHouse when it is assigned: ids, anchors, and the blocks that a crash left.

A block whose rows are partly stored but not committed is rebuilt with exactly its old bounds and completed
under its old token. Positions that are already stored, in whichever table, are never written again: reference
data or rules may have changed since, and the first answer stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now
from pipeline.frames import CASE_EVENT, DUPLICATE, POSITION, TIMESTAMP
from pipeline.process.deduplicate import Entry, positions
from pipeline.process.flow import BlockResult, PartitionState, case_events_of
from pipeline.process.hashes import id_hash
from pipeline.process.records import MAX_EVENTS_PER_RECORD
from pipeline.process.resend import anchors_of
from pipeline.settings import Settings
from pipeline.sink.tables import Extent

log = structlog.get_logger(__name__)

OUTCOME_TABLES: Final = ("events", "rejections", "duplicates", "quarantine")

#: Of a partition so many blocks may be written and not folded yet: the rounds that may be on the way.
UNFOLDED_BLOCKS: Final = 2
#: Receipts of several gateways interleave; look this much further back than the oldest row to come.
_SLACK: Final = timedelta(hours=1)
#: Of so many offsets at a time it is counted what is stored of each block.
COUNTED_OFFSETS: Final = 20_000
_STORED_FOR_CASES: Final = (
    "case_id", "occurred_at", "ingested_at", "time_adjusted", "event_type", "event_id", "source", "_part",
    "_off", "_idx", "outcome", "response_limit_seconds", "resolution_limit_seconds", "due_at",
    "primary_case_id", "self_handled", "rating", "department", "level", "evidence_pending", "backfill",
    "channel", "matter_code", "grid_code", "category", "lead_department",
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Offsets lo … hi that some rows say were one block. rules : the rule set that judged it; rows : stored
    positions that name these bounds, -1 where they were not counted or bounds overlap."""

    lo: int
    hi: int
    rules: str
    rows: int = -1


@dataclass(frozen=True)
class Recovered:
    """committed : next offset to process, None: wherever the log begins;
    spans : blocks to rebuild, ascending, disjoint, from there on. unstored : first and last of the offsets
    right before `committed` of which nothing is stored: the tables are older than the commit. counted_to : up
    to here the rows of blocks were counted."""

    committed: int | None
    spans: tuple[Span, ...]
    state: PartitionState
    unstored: tuple[int, int] | None = None
    counted_to: int = 0


def recover(
    client: Client,
    *,
    inc: int,
    partition: int,
    committed: int | None,
    settings: Settings,
    log_start: int = 0,
) -> Recovered:
    """Rebuild a partition's state and the bounds of its unfinished blocks.

    committed : the group's committed offset, None if none. It is not believed, and everything is read, where
    nothing before it is stored from this incarnation: it is an offset of an earlier log then.
    log_start : the first offset that the log still holds; where nothing is committed the blocks from there on
    are taken for unfinished, and the last ones before them.
    Raises what the client raises.
    """
    if committed is not None and not _any_before(client, inc, partition, committed):
        if committed > 0:
            log.warning("committed_offset_is_of_another_log", partition=partition, committed=committed)
        committed = None
    unstored = None if committed is None else _unstored_before(client, inc, partition, committed)
    begin = _begin(client, inc, partition, log_start) if committed is None else committed
    state = PartitionState.empty(settings)
    since = _since(client, inc, partition, begin)
    if since is not None:
        since -= timedelta(days=settings.dedup_window_days) + _SLACK
        _load_ids(client, state, inc, partition, since)
        _load_anchors(client, state, inc, partition, since)
    spans = _spans(client, inc, partition, begin)
    return Recovered(committed, spans, state, unstored, begin + COUNTED_OFFSETS)


def _begin(client: Client, inc: int, partition: int, log_start: int) -> int:
    """Where the last blocks begin that lie before `log_start`, in part at least, and may not be folded. Those
    before them are whole, and their cases know them."""
    each = " UNION ALL ".join(
        f"SELECT maxOrNull(_blk_lo) AS last FROM {table} WHERE _inc = {{inc:UInt64}} "
        "AND _part = {part:UInt16} AND _off < {offset:UInt64} AND _blk_lo < {begin:UInt64}"
        for table in OUTCOME_TABLES
    )
    begin = log_start
    for _ in range(UNFOLDED_BLOCKS):  # one after the other: a log of weeks has more blocks than memory holds
        parameters = {"inc": inc, "part": partition, "offset": log_start, "begin": begin}
        last = client.query(f"SELECT max(last) FROM ({each})", parameters=parameters).result_rows[0][0]
        if last is None:
            break
        begin = int(last)
    return begin


def _any_before(client: Client, inc: int, partition: int, offset: int) -> bool:
    """Whether any row of this incarnation is stored before `offset`: every stored record left one."""
    each = " UNION ALL ".join(
        f"(SELECT 1 FROM {table} "
        "WHERE _inc = {inc:UInt64} AND _part = {part:UInt16} AND _off < {offset:UInt64} LIMIT 1)"
        for table in OUTCOME_TABLES
    )
    return bool(client.query(each, parameters={"inc": inc, "part": partition, "offset": offset}).result_rows)


def _unstored_before(client: Client, inc: int, partition: int, committed: int) -> tuple[int, int] | None:
    """Offsets right before `committed` of which no row is stored, None where its last record left one.

    So it is after a restore of an older backup, and where somebody moved the group's offset. The commit is
    believed all the same, for that may have been done to pass over what nobody can read.
    """

    def newest(offsets: str) -> int | None:
        each = " UNION ALL ".join(
            f"SELECT maxOrNull(_off) AS last FROM {table} "
            f"WHERE _inc = {{inc:UInt64}} AND _part = {{part:UInt16}} AND _off {offsets}"
            for table in OUTCOME_TABLES
        )
        parameters = {"inc": inc, "part": partition, "offset": committed}
        last = client.query(f"SELECT max(last) FROM ({each})", parameters=parameters).result_rows[0][0]
        return None if last is None else int(last)

    if newest("= {offset:UInt64} - 1") is not None:  # almost always, and one granule a table
        return None
    last = newest("< {offset:UInt64}")
    return None if last is None else (last + 1, committed - 1)


def _spans(client: Client, inc: int, partition: int, committed: int) -> tuple[Span, ...]:
    each = " UNION ALL ".join(
        f"SELECT DISTINCT _blk_lo, _blk_hi, _rules FROM {table} "
        "WHERE _inc = {inc:UInt64} AND _part = {part:UInt16} AND _off >= {from:UInt64}"
        for table in OUTCOME_TABLES
    )
    rows = client.query(
        f"SELECT _blk_lo, _blk_hi, any(_rules) FROM ({each}) "
        "GROUP BY _blk_lo, _blk_hi ORDER BY _blk_lo, _blk_hi",
        parameters={"inc": inc, "part": partition, "from": committed},
    ).result_rows
    counts = stored_of_blocks(client, inc, partition, committed)[0] if rows else {}
    spans: list[Span] = []
    first = committed
    for lo, hi, rules in rows:
        # two owners may have cut differently before one was fenced off: make the rest disjoint
        stored = counts.get((lo, hi), -1) if lo >= first else -1
        span = Span(max(int(lo), first), int(hi), str(rules), stored)
        if span.lo <= span.hi:
            spans.append(span)
            first = span.hi + 1
    return tuple(spans)


def stored_of_blocks(
    client: Client, inc: int, partition: int, begin: int
) -> tuple[dict[tuple[int, int], int], int]:
    """Stored positions by the bounds that they name, of the blocks that lie between `begin` and an offset,
    which is returned, too: of a group that lost its commits they are all there are."""
    end = begin + COUNTED_OFFSETS
    each = " UNION ALL ".join(
        f"SELECT _blk_lo, _blk_hi, _off, _idx FROM {table} "
        "WHERE _inc = {inc:UInt64} AND _part = {part:UInt16} "
        "AND _off >= {from:UInt64} AND _off < {to:UInt64} AND _blk_hi < {to:UInt64}"
        for table in OUTCOME_TABLES
    )
    rows = client.query(
        f"SELECT _blk_lo, _blk_hi, uniqExact(_off * {MAX_EVENTS_PER_RECORD} + _idx) FROM ({each}) "
        "GROUP BY _blk_lo, _blk_hi",
        parameters={"inc": inc, "part": partition, "from": begin, "to": end},
    ).result_rows
    return {(int(lo), int(hi)): int(stored) for lo, hi, stored in rows}, end


def _since(client: Client, inc: int, partition: int, committed: int) -> datetime | None:
    """Receipt from which on rows can meet a row to come, None when the partition has no rows."""
    each = " UNION ALL ".join(
        "SELECT maxOrNullIf(ingested_at, _inc < {inc:UInt64} OR _off < {from:UInt64}) AS before, "
        "minOrNullIf(ingested_at, _inc = {inc:UInt64} AND _off >= {from:UInt64}) AS after "
        f"FROM {table} WHERE _part = {{part:UInt16}}"
        for table in OUTCOME_TABLES
    )
    before, after = client.query(
        f"SELECT max(before), min(after) FROM ({each})",
        parameters={"inc": inc, "part": partition, "from": committed},
    ).result_rows[0]
    # The driver gives UTC columns without a zone.
    known = [moment.replace(tzinfo=UTC) for moment in (before, after) if moment is not None]
    return min(*known, utc_now()) if known else None


def _rows(client: Client, query: str, parameters: dict[str, Any]) -> pl.DataFrame:
    frame = pl.from_arrow(client.query_arrow(query, parameters=parameters, use_strings=True))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def _ordered_positions(rows: pl.DataFrame, inc: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of rows sorted by (_inc, _off, _idx); those of earlier incarnations come before offset 0."""
    own = rows["_inc"].to_numpy() == inc
    earlier = np.arange(len(own), dtype=np.int64) - int((~own).sum())
    return np.where(own, positions(rows), earlier)


def _load_ids(client: Client, state: PartitionState, inc: int, partition: int, since: datetime) -> None:
    columns = "_inc, _off, _idx, ingested_at, content_hash, key_version"
    where = "_part = {part:UInt16} AND ingested_at >= {since:DateTime64(3)}"
    parameters = {"part": partition, "since": since}
    kept = " UNION ALL ".join(
        f"SELECT id_hi, id_lo, {columns} FROM {table} WHERE {where}" for table in ("events", "rejections")
    )
    resent = _rows(
        client,
        f"SELECT source, event_id, {columns} FROM duplicates WHERE {where} AND level = 'L2'",
        parameters,
    ).with_columns(pl.col("source").cast(pl.String), pl.col("event_id").cast(pl.String))
    ids = [_rows(client, kept, parameters), resent.with_columns(*id_hash(resent))]
    names = ["id_hi", "id_lo", "_inc", "_off", "_idx", "ingested_at", "content_hash", "key_version"]
    rows = pl.concat([_typed(frame).select(names) for frame in ids]).sort("_inc", "_off", "_idx")
    state.seen.remember(
        rows["id_hi"].to_numpy(),
        rows["id_lo"].to_numpy(),
        Entry.of(rows)._replace(position=_ordered_positions(rows, inc)),
    )


def _load_anchors(client: Client, state: PartitionState, inc: int, partition: int, since: datetime) -> None:
    rows = _rows(
        client,
        "SELECT _inc, _part, _off, _idx, occurred_at, ingested_at, l2_hi, l2_lo, source, event_id, case_id, "
        "submission_id, outcome FROM events WHERE _part = {part:UInt16} AND event_type = 'REPORTED' "
        "AND outcome = 'admitted' AND l2_hi IS NOT NULL AND ingested_at >= {since:DateTime64(3)} "
        "ORDER BY _inc, _off, _idx LIMIT 1 BY _inc, _off, _idx",
        {"part": partition, "since": since},
    )
    rows = _typed(rows)
    anchors = anchors_of(rows).with_columns(position=pl.Series(_ordered_positions(rows, inc)))
    state.anchors.remember(anchors)


_TYPES: Final[dict[str, Any]] = {
    **DUPLICATE,
    **{name: dtype for name, dtype in CASE_EVENT.items() if name not in {"rank", "outcome"}},
    **POSITION,
    "_inc": pl.UInt64(),
    "id_hi": pl.UInt64(),
    "id_lo": pl.UInt64(),
    "l2_hi": pl.UInt64(),
    "l2_lo": pl.UInt64(),
    "submission_id": pl.String(),
    "event_type": pl.String(),
    "outcome": pl.String(),
    "time_adjusted": pl.Boolean(),
    "ingested_at": TIMESTAMP,
}


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    """ClickHouse's Arrow types back to those of the frames."""
    return rows.with_columns(pl.col(name).cast(_TYPES[name]) for name in rows.columns)


_STORED_OF_BLOCK: Final = " UNION ALL ".join(
    f"SELECT _off, _idx FROM {table} "
    "WHERE _inc = {inc:UInt64} AND _part = {part:UInt16} AND _off BETWEEN {lo:UInt64} AND {hi:UInt64}"
    for table in OUTCOME_TABLES
)


def _of_block(inc: int, block: Extent) -> dict[str, int]:
    return {"inc": inc, "part": block.partition, "lo": block.lo, "hi": block.hi}


def stored_positions(client: Client, inc: int, block: Extent) -> pl.DataFrame:
    """Positions of rows stored in any outcome table, (n, {_off, _idx}), sorted, distinct."""
    query = f"SELECT DISTINCT _off, _idx FROM ({_STORED_OF_BLOCK}) ORDER BY _off, _idx"
    return _typed(_rows(client, query, _of_block(inc, block)))


def stored_offsets(client: Client, inc: int, block: Extent) -> int:
    """Of how many offsets from `lo` to `hi` any row is stored: every stored record left one."""
    query = f"SELECT uniqExact(_off) FROM ({_STORED_OF_BLOCK})"
    return int(client.query(query, parameters=_of_block(inc, block)).result_rows[0][0])


def without(result: BlockResult, present: pl.DataFrame) -> BlockResult:
    """`result`, of one partition, without the rows at the positions `present`."""
    if present.is_empty():
        return result
    left = {
        name: getattr(result, name).join(present, on=["_off", "_idx"], how="anti", maintain_order="left")
        for name in ("events", "rejections", "duplicates", "quarantined", "case_events")
    }
    received = sum(frame.height for name, frame in left.items() if name != "case_events")
    return replace(result, **left, received=received)


def stored_case_events(client: Client, inc: int, block: Extent) -> pl.DataFrame:
    """CASE_EVENT rows of what is stored of a block: what the fold must know whoever judged the rows."""
    where = "_inc = {inc:UInt64} AND _part = {part:UInt16} AND _off BETWEEN {lo:UInt64} AND {hi:UInt64}"
    parameters = _of_block(inc, block)
    columns = ", ".join(_STORED_FOR_CASES)
    kept = _rows(
        client,
        " UNION ALL ".join(
            f"SELECT {columns} FROM {table} WHERE {where}" for table in ("events", "rejections")
        ),
        parameters,
    )
    resent = _rows(
        client, f"SELECT {', '.join(DUPLICATE)} FROM duplicates WHERE {where} AND level = 'L2'", parameters
    )
    unique: Sequence[str] = ("_off", "_idx")
    return case_events_of(
        _typed(kept).unique(unique, maintain_order=True).sort(unique),
        _typed(resent).unique(unique, maintain_order=True).sort(unique),
    )
