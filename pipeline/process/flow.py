"""The life of a block: records in, one row with one outcome per event out. Read `process_block` downwards.

Pure: no clock, no network. What a block leaves behind (ids, anchors) is remembered by the worker only
after the commit, through `PartitionState.remember`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import accumulate
from typing import Final

import numpy as np
import polars as pl

from pipeline.contract.canary import CANARY_SOURCE
from pipeline.contract.privacy import Privacy
from pipeline.errors import ContractError, TransientError
from pipeline.frames import (
    CASE_EVENT,
    DECISION,
    DECODED,
    DUPLICATE,
    FEATURES,
    QUARANTINED,
    RANK,
    STORED,
    expect,
)
from pipeline.process.decode import DATA_ERRORS, Decoded, decode
from pipeline.process.deduplicate import (
    SeenIds,
    Unique,
    deduplicate,
    milliseconds,
    positions,
    refused_rows,
)
from pipeline.process.hashes import id_hash
from pipeline.process.records import Record
from pipeline.process.resend import Anchors, ResendWindows, anchors_of, drop_resends
from pipeline.reference.enrich import enrich
from pipeline.reference.snapshot import Reference
from pipeline.rules.admit import admit
from pipeline.rules.catalogue import Catalogues
from pipeline.settings import Settings

UNSTORABLE: Final = "UNSTORABLE"
#: A block in which more rows than this fail one by one points at our code, not at the data: stop and tell.
_MOST_UNSTORABLE: Final = 50
_UNSTORABLE_SHARE: Final = 0.2


def most_unstorable(rows: int) -> float:
    """Rows of so many that may be quarantined because a stage or the store fails on them."""
    return max(_MOST_UNSTORABLE, _UNSTORABLE_SHARE * rows)


#: What a stage may raise for want of memory, files or a service: no row is at fault.
_NOT_THE_DATA: Final = (TransientError, MemoryError, OSError)

ADMITTED: Final = 1
REJECTED: Final = 2
RECORDED: Final = 0
RESENT: Final = 3
_OUTCOMES: Final = {"recorded": RECORDED, "admitted": ADMITTED, "rejected": REJECTED}


@dataclass(frozen=True)
class Block:
    """A contiguous range of record offsets, `lo` … `hi`, of one partition."""

    partition: int
    records: Sequence[Record]

    @property
    def lo(self) -> int:
        return self.records[0].offset

    @property
    def hi(self) -> int:
        return self.records[-1].offset


@dataclass(frozen=True)
class Rules:
    """All that a decision depends on beside the row itself. Exchanged as a whole when one part changes."""

    reference: Reference
    catalogues: Catalogues
    privacy: Privacy
    settings: Settings

    @property
    def digest(self) -> str:
        """Names the rule set that judged a row (`_rules`)."""
        return self.catalogues.digest


@dataclass
class PartitionState:
    """What a partition knows of its past; changed by `remember` alone."""

    seen: SeenIds
    anchors: Anchors

    @classmethod
    def empty(cls, settings: Settings) -> PartitionState:
        window = timedelta(days=settings.dedup_window_days)
        windows = ResendWindows(
            content=timedelta(seconds=settings.resend_window_seconds),
            submission=timedelta(hours=settings.submission_window_hours),
            kept=window,
        )
        return cls(SeenIds(window), Anchors(windows))

    def remember(self, result: BlockResult) -> None:
        """Take in the ids and anchors of a block that is stored and committed."""
        resent = result.duplicates.filter(pl.col("level") == "L2").with_columns(*id_hash())
        for rows in (result.events, result.rejections, resent):
            self.seen.remember(
                rows["id_hi"].to_numpy(),
                rows["id_lo"].to_numpy(),
                positions(rows),
                milliseconds(rows["ingested_at"]),
                rows["content_hash"].to_numpy(),
            )
        self.anchors.remember(anchors_of(result.events))


@dataclass(frozen=True)
class BlockResult:
    """Every event of a block, once.

    events : STORED, admitted or recorded; rejections : STORED; duplicates : DUPLICATE;
    quarantined : QUARANTINED;
    case_events : CASE_EVENT, what the case fold must learn. received : events that the records held.
    """

    events: pl.DataFrame
    rejections: pl.DataFrame
    duplicates: pl.DataFrame
    quarantined: pl.DataFrame
    case_events: pl.DataFrame
    received: int
    stage_seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = sum(
            frame.height for frame in (self.events, self.rejections, self.duplicates, self.quarantined)
        )
        if stored != self.received:
            raise ContractError(f"a block of {self.received} events gave {stored} rows, must be as many")

    @property
    def rows(self) -> int:
        return self.received


def process_block(block: Block, state: PartitionState, rules: Rules) -> BlockResult:
    """Judge the records of a block.

    state : of the block's partition; not changed.
    Raises TransientError if reference data cannot be read: nothing is rejected for that.
    """
    return process_blocks([block], [state], rules)[0]


def process_blocks(
    blocks: Sequence[Block], states: Sequence[PartitionState], rules: Rules
) -> list[BlockResult]:
    """Judge one block each of several partitions, row by row as `process_block` does.

    What looks at one row only (look-ups, rules, enrichment) runs over all blocks at once, because a small
    block costs a stage nearly as much as a large one; what looks at a partition's past runs block by block.
    """
    watch = _Stopwatch()
    settings = rules.settings
    decoded = [
        decode(
            block.records,
            partition=block.partition,
            privacy=rules.privacy,
            backfill_sources=settings.direct_backfill_sources,
        )
        for block in blocks
    ]
    watch.lap("decode")
    window = timedelta(days=settings.dedup_window_days)
    fresh = [deduplicate(one.events, state.seen, window) for one, state in zip(decoded, states, strict=True)]
    watch.lap("deduplicate")
    judged = _judge_all([unique.kept for unique in fresh], states, rules, watch)
    copies = _with_matter([unique.duplicates for unique in fresh], rules)
    watch.lap("admit")
    return [
        _result(one, unique, copied, of_block, watch.seconds if number == 0 else {})
        for number, (one, unique, copied, of_block) in enumerate(
            zip(decoded, fresh, copies, judged, strict=True)
        )
    ]


def _result(
    decoded: Decoded, fresh: Unique, copies: pl.DataFrame, judged: _Judged, stage_seconds: dict[str, float]
) -> BlockResult:
    stored = judged.stored
    rejected = stored["outcome"] == "rejected"
    return BlockResult(
        events=stored.filter(~rejected),
        rejections=stored.filter(rejected),
        duplicates=pl.concat([copies, judged.resent]).sort("_off", "_idx"),
        quarantined=pl.concat([decoded.quarantined, fresh.conflicts, judged.unstorable]).sort("_off", "_idx"),
        case_events=case_events_of(stored, judged.resent),
        received=decoded.events.height + decoded.quarantined.height,
        stage_seconds=stage_seconds,
    )


@dataclass(frozen=True)
class _Judged:
    stored: pl.DataFrame
    resent: pl.DataFrame
    unstorable: pl.DataFrame


def _judge(
    kept: Sequence[pl.DataFrame], states: Sequence[PartitionState], rules: Rules, watch: _Stopwatch
) -> list[_Judged]:
    """look_up → admit → drop_resends → enrich: the stages after L1, for rows that are not redeliveries."""
    rows = pl.concat(kept)
    features = expect(rules.reference.look_up(rows), FEATURES, "features")
    watch.lap("look_up")
    judged = admit(
        pl.concat([rows, features], how="horizontal"),
        rules.catalogues,
        rules.reference.modes,
        districts=rules.settings.districts_taking_part,
    )
    judged = expect(judged, {**DECODED, **FEATURES, **DECISION}, "judged")
    watch.lap("admit")
    unique = [
        drop_resends(part, state.anchors)
        for part, state in zip(_split(judged, [part.height for part in kept]), states, strict=True)
    ]
    watch.lap("drop_resends")
    stored = expect(enrich(pl.concat([part.kept for part in unique]), rules.reference), STORED, "stored")
    watch.lap("enrich")
    none = pl.DataFrame(schema=QUARANTINED)
    return [
        _Judged(part, one.duplicates, none)
        for part, one in zip(_split(stored, [one.kept.height for one in unique]), unique, strict=True)
    ]


def _split(rows: pl.DataFrame, heights: Sequence[int]) -> list[pl.DataFrame]:
    """Consecutive parts of these heights."""
    if rows.height != sum(heights):
        raise ContractError(f"a stage gave {rows.height} rows for {sum(heights)}")
    ends = accumulate(heights)
    return [rows[end - height : end] for end, height in zip(ends, heights, strict=True)]


def _judge_all(
    kept: Sequence[pl.DataFrame], states: Sequence[PartitionState], rules: Rules, watch: _Stopwatch
) -> list[_Judged]:
    """`_judge`; rows that make a stage fail are quarantined alone, so that their partition goes on."""
    try:
        return _judge(kept, states, rules, watch)
    except _NOT_THE_DATA:
        raise
    except DATA_ERRORS as error:
        return [_judge_around(part, state, rules, error) for part, state in zip(kept, states, strict=True)]


def _judge_around(kept: pl.DataFrame, state: PartitionState, rules: Rules, error: BaseException) -> _Judged:
    bad = _failing(kept, state, rules)
    if len(bad) > most_unstorable(kept.height):
        raise error
    at = np.zeros(kept.height, bool)
    at[bad] = True
    judged = _judge([kept.filter(~at)], [state], rules, _Stopwatch())[0]
    detail = f"{type(error).__name__} while it was judged"
    return replace(judged, unstorable=refused_rows(kept.filter(at), UNSTORABLE, detail))


def _failing(rows: pl.DataFrame, state: PartitionState, rules: Rules, first: int = 0) -> list[int]:
    """Numbers of the rows that fail on their own, found by halving."""
    try:
        _judge([rows], [state], rules, _Stopwatch())
    except _NOT_THE_DATA:
        raise
    except DATA_ERRORS:
        if rows.height == 1:
            return [first]
        middle = rows.height // 2
        later = _failing(rows[middle:], state, rules, first + middle)
        return _failing(rows[:middle], state, rules, first) + later
    return []


def _with_matter(duplicates: Sequence[pl.DataFrame], rules: Rules) -> list[pl.DataFrame]:
    """Fill category and lead department of redeliveries: they count where their originals do."""
    copies = pl.concat(duplicates)
    if copies.is_empty():
        return list(duplicates)
    rows = copies.select(
        [
            pl.col(name) if name in DUPLICATE else pl.lit(_FILLER.get(name), dtype).alias(name)
            for name, dtype in {**DECODED, **FEATURES}.items()
        ]
    )
    judged = admit(
        rows, rules.catalogues, rules.reference.modes, districts=rules.settings.districts_taking_part
    )
    return _split(
        copies.with_columns(judged["category"], judged["lead_department"]),
        [part.height for part in duplicates],
    )


_FILLER: Final[dict[str, object]] = {"backfill": False, "persons": [], "photos": [], "id_hi": 0, "id_lo": 0}


def case_events_of(stored: pl.DataFrame, resent: pl.DataFrame) -> pl.DataFrame:
    """CASE_EVENT rows: one per stored event, one per resend (its case is known as a duplicate's).

    stored : the STORED columns named in CASE_EVENT; resent : DUPLICATE, level L2.
    A canary event belongs to no case.
    """
    stored = stored.filter(pl.col("source") != CANARY_SOURCE)
    rank = pl.col("event_type").replace_strict(RANK, return_dtype=pl.UInt8)
    own = stored.select(
        "case_id",
        pl.when(pl.col("time_adjusted")).then("ingested_at").otherwise("occurred_at").alias("occurred_at"),
        rank.alias("rank"),
        pl.col("outcome").replace_strict(_OUTCOMES, return_dtype=pl.UInt8).alias("outcome"),
        *[name for name in CASE_EVENT if name not in {"case_id", "occurred_at", "rank", "outcome"}],
    ).select(list(CASE_EVENT))
    if resent.is_empty():
        return own
    given = {
        "rank": rank,
        "outcome": pl.lit(RESENT, pl.UInt8),
        "primary_case_id": pl.col("original_case_id"),
        "evidence_pending": pl.lit(False),
        "backfill": pl.lit(False),
    }
    copies = resent.select(
        [
            given[name].alias(name)
            if name in given
            else pl.col(name)
            if name in DUPLICATE
            else pl.lit(None, dtype).alias(name)
            for name, dtype in CASE_EVENT.items()
        ]
    )
    return pl.concat([own, copies])


class _Stopwatch:
    """Seconds spent per stage, for metrics; never part of a decision."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
