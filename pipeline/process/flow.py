"""The life of a block: records in, one row with one outcome per event out. Read `process_blocks` downwards.

Pure: no clock, no network. What a block leaves behind (ids, anchors) is remembered by the worker once it is
stored, through `remember`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import numpy as np
import polars as pl

from pipeline.contract.canary import CANARY_REGION, CANARY_SOURCE
from pipeline.contract.privacy import Privacy
from pipeline.errors import ContractError, TransientError
from pipeline.frames import (
    CASE_EVENT,
    CASE_LEVELS,
    DECISION,
    DECODED,
    DUPLICATE,
    FEATURES,
    NO_QUARANTINED,
    POSITION,
    RANK,
    STORED,
    beside,
    expect,
)
from pipeline.process.decode import DATA_ERRORS, MALFORMED, Decoded, decode
from pipeline.process.deduplicate import (
    Entry,
    SeenIds,
    by_partition,
    deduplicate,
    refused_rows,
)
from pipeline.process.hashes import id_hash
from pipeline.process.records import Record
from pipeline.process.resend import Anchors, ResendWindows, anchors_of, drop_resends
from pipeline.reference.enrich import enrich
from pipeline.reference.erased import Erased
from pipeline.reference.snapshot import Reference
from pipeline.rules.admit import admit, matter_facts
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


def remember(states: Mapping[int, PartitionState], result: BlockResult) -> None:
    """Let each partition take in the ids and anchors of its rows, once they are stored."""
    columns = ["_part", "_off", "_idx", "id_hi", "id_lo", "ingested_at", "content_hash", "key_version"]
    tables = [rows[columns] for rows in (result.events, result.rejections)]
    resent = result.duplicates.filter(pl.col("level") == "L2")
    if not resent.is_empty():
        tables.append(resent.hstack(id_hash(resent))[columns])
    kept = pl.concat(tables, rechunk=True)
    kept = kept[np.argsort(kept["_part"].to_numpy(), kind="stable")]
    hi, lo = kept["id_hi"].to_numpy(), kept["id_lo"].to_numpy()
    entries = Entry.of(kept)
    for partition, at in by_partition(kept):
        states[partition].seen.remember(hi[at], lo[at], entries.at(at))
    anchors = anchors_of(result.events)
    for partition, at in by_partition(anchors):
        states[partition].anchors.remember(anchors[at])


#: The frames of a BlockResult.
FRAMES: Final = ("events", "rejections", "duplicates", "quarantined", "case_events")


@dataclass(frozen=True)
class BlockResult:
    """Every event of one or more blocks, once; rows in the order of partition and position.

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

    def of(self, partitions: Collection[int]) -> BlockResult:
        """The part of these partitions; their share of the time is not known."""
        mine = pl.col("_part").is_in(list(partitions))
        parts = {name: getattr(self, name).filter(mine) for name in FRAMES}
        received = sum(parts[name].height for name in FRAMES if name != "case_events")
        return BlockResult(**parts, received=received)


def process_block(block: Block, state: PartitionState, rules: Rules) -> BlockResult:
    """Judge the records of one block; see `process_blocks`."""
    return process_blocks([block], {block.partition: state}, rules)


def process_blocks(
    blocks: Sequence[Block], states: Mapping[int, PartitionState], rules: Rules
) -> BlockResult:
    """Judge one block each of several partitions, all at once: a stage costs a small block nearly as much
    as a large one. No row's judgement depends on rows of another partition.

    states : by partition; not changed.
    Raises TransientError if reference data cannot be read: nothing is rejected for that.
    """
    watch = _Stopwatch()
    settings = rules.settings
    decoded = decode(
        ((block.partition, block.records) for block in sorted(blocks, key=lambda block: block.partition)),
        privacy=rules.privacy,
        backfill_sources=settings.direct_backfill_sources,
    )
    decoded = _without_forged(decoded, rules.reference.erased)
    watch.lap("decode")
    seen = {partition: state.seen for partition, state in states.items()}
    window = timedelta(days=settings.dedup_window_days)
    unique = deduplicate(decoded.events, seen, window, rules.reference.erased)
    watch.lap("deduplicate")
    judged = _judge_all(unique.kept, states, rules, watch)
    copies = _with_matter(unique.duplicates, rules)
    watch.lap("admit")
    rejected = (judged.stored["outcome"] == "rejected").to_numpy()
    some = rejected.any()  # a selection of rows copies every column
    return BlockResult(
        events=judged.stored[np.flatnonzero(~rejected)] if some else judged.stored,
        rejections=judged.stored[np.flatnonzero(rejected)] if some else judged.stored.clear(),
        duplicates=_joined(copies, judged.resent),
        quarantined=_joined(decoded.quarantined, unique.conflicts, judged.unstorable),
        case_events=case_events_of(judged.stored, judged.resent),
        received=decoded.events.height + decoded.quarantined.height,
        stage_seconds=watch.seconds,
    )


def _without_forged(decoded: Decoded, erased: Erased) -> Decoded:
    """Nobody but the gateway writes canaries. Whoever writes to the topic could give anything their source,
    and it would be counted in some figures and not in others."""
    named = decoded.events["source"] == CANARY_SOURCE
    if not named.any():
        return decoded
    real = (pl.col("event_type") == "DISCOVERED") & pl.col("grid_code").str.starts_with(CANARY_REGION)
    forged = named & ~decoded.events.select(real).to_series()
    if not forged.any():
        return decoded
    refused = refused_rows(
        decoded.events.filter(forged), MALFORMED, f"the source {CANARY_SOURCE} is the pipeline's own", erased
    )
    return Decoded(decoded.events.filter(~forged), _joined(decoded.quarantined, refused))


def _joined(*parts: pl.DataFrame) -> pl.DataFrame:
    """Rows of frames, each in position order, in that order; most are empty."""
    rows = [part for part in parts if not part.is_empty()]
    if len(rows) < 2:
        return rows[0] if rows else parts[0]
    return pl.concat(rows).sort(list(POSITION))


_JUDGED: Final = {**DECODED, **FEATURES, **DECISION}


@dataclass(frozen=True)
class _Judged:
    stored: pl.DataFrame
    resent: pl.DataFrame
    unstorable: pl.DataFrame


def _judge(
    kept: pl.DataFrame, states: Mapping[int, PartitionState], rules: Rules, watch: _Stopwatch
) -> _Judged:
    """look_up → admit → drop_resends → enrich: the stages after L1, for rows that are not redeliveries."""
    features = expect(rules.reference.look_up(kept, rules.catalogues.matter_categories), FEATURES, "features")
    watch.lap("look_up")
    judged = admit(
        kept.hstack(features),
        rules.catalogues,
        rules.reference.modes,
        districts=rules.settings.districts_taking_part,
    )
    judged = expect(judged, _JUDGED, "judged")
    if judged.height != kept.height:
        raise ContractError(f"admission gave {judged.height} rows for {kept.height}")
    watch.lap("admit")
    unique = drop_resends(judged, {partition: state.anchors for partition, state in states.items()})
    watch.lap("drop_resends")
    stored = expect(enrich(unique.kept, rules.reference), STORED, "stored")
    watch.lap("enrich")
    return _Judged(stored, unique.duplicates, NO_QUARANTINED)


def _judge_all(
    kept: pl.DataFrame, states: Mapping[int, PartitionState], rules: Rules, watch: _Stopwatch
) -> _Judged:
    """`_judge`; rows that make a stage fail are quarantined alone, so that their partition goes on."""
    try:
        return _judge(kept, states, rules, watch)
    except _NOT_THE_DATA:
        raise
    except DATA_ERRORS as error:
        bad = _failing(kept, states, rules)
        if len(bad) > most_unstorable(kept.height):
            raise
        at = np.zeros(kept.height, bool)
        at[bad] = True
        judged = _judge(kept.filter(~at), states, rules, _Stopwatch())
        detail = f"{type(error).__name__} while it was judged"
        unstorable = refused_rows(kept.filter(at), UNSTORABLE, detail, rules.reference.erased)
        return replace(judged, unstorable=unstorable)


def _failing(
    rows: pl.DataFrame, states: Mapping[int, PartitionState], rules: Rules, first: int = 0
) -> list[int]:
    """Numbers of the rows that fail on their own, found by halving."""
    try:
        _judge(rows, states, rules, _Stopwatch())
    except _NOT_THE_DATA:
        raise
    except DATA_ERRORS:
        if rows.height == 1:
            return [first]
        middle = rows.height // 2
        later = _failing(rows[middle:], states, rules, first + middle)
        return _failing(rows[:middle], states, rules, first) + later
    return []


def _with_matter(copies: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Fill category and lead department of redeliveries: they count where their originals do."""
    if copies.is_empty():
        return copies
    known = matter_facts(copies, rules.catalogues)
    return beside([(known if name in known.columns else copies)[name] for name in DUPLICATE])


def case_events_of(stored: pl.DataFrame, resent: pl.DataFrame) -> pl.DataFrame:
    """CASE_EVENT rows: one per stored event, one per resend (its case is known as a duplicate's).

    stored : the STORED columns named in CASE_EVENT; resent : DUPLICATE, level L2.
    A canary event belongs to no case. Of a level only CASE_LEVELS are kept.
    """
    canaries = stored["source"] == CANARY_SOURCE
    if canaries.any():  # a filter copies every column
        stored = stored.filter(~canaries)
    levels = stored["level"]
    if levels.null_count() < levels.len():  # few events have one
        stored = stored.with_columns(levels.set(~levels.is_in(CASE_LEVELS).fill_null(True), None))
    told = stored.select(_TOLD_ANEW)
    own = beside([(told if name in told.columns else stored)[name] for name in CASE_EVENT])
    if resent.is_empty():
        return own
    given = {
        "rank": _RANK,
        "outcome": pl.lit(RESENT, pl.UInt8),
        "primary_case_id": pl.col("original_case_id"),
        "level": pl.lit(None, CASE_EVENT["level"]),  # of DUPLICATE it is another thing
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


_RANK: Final = pl.col("event_type").replace_strict(RANK, return_dtype=pl.UInt8)
#: The columns of CASE_EVENT that a stored event does not have as they are.
_TOLD_ANEW: Final = (
    pl.when(pl.col("time_adjusted")).then("ingested_at").otherwise("occurred_at").alias("occurred_at"),
    _RANK.alias("rank"),
    pl.col("outcome").replace_strict(_OUTCOMES, return_dtype=pl.UInt8).alias("outcome"),
)


class _Stopwatch:
    """Seconds spent per stage, for metrics; never part of a decision."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
