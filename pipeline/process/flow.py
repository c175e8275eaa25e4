"""The life of a block: records in, one row with one outcome per event out. Read `process_block` downwards.

Pure: no clock, no network. What a block leaves behind (ids, anchors) is remembered by the worker only
after the commit, through `PartitionState.remember`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import numpy as np
import polars as pl

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
from pipeline.process.decode import DATA_ERRORS, decode
from pipeline.process.deduplicate import SeenIds, deduplicate, milliseconds, positions, refused_rows
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

    state : not changed.
    Raises TransientError if reference data cannot be read: nothing is rejected for that.
    """
    watch = _Stopwatch()
    settings = rules.settings
    decoded = decode(
        block.records,
        partition=block.partition,
        privacy=rules.privacy,
        backfill_sources=settings.direct_backfill_sources,
    )
    watch.lap("decode")
    fresh = deduplicate(decoded.events, state.seen, timedelta(days=settings.dedup_window_days))
    watch.lap("deduplicate")
    judged = _judge_all(fresh.kept, state, rules, watch)
    duplicates = pl.concat([_with_matter(fresh.duplicates, rules), judged.resent]).sort("_off", "_idx")
    stored = judged.stored
    rejected = stored["outcome"] == "rejected"
    return BlockResult(
        events=stored.filter(~rejected),
        rejections=stored.filter(rejected),
        duplicates=duplicates,
        quarantined=pl.concat([decoded.quarantined, fresh.conflicts, judged.unstorable]).sort("_off", "_idx"),
        case_events=case_events_of(stored, judged.resent),
        received=decoded.events.height + decoded.quarantined.height,
        stage_seconds=watch.seconds,
    )


@dataclass(frozen=True)
class _Judged:
    stored: pl.DataFrame
    resent: pl.DataFrame
    unstorable: pl.DataFrame


def _judge(kept: pl.DataFrame, state: PartitionState, rules: Rules, watch: _Stopwatch) -> _Judged:
    """look_up → admit → drop_resends → enrich: the stages after L1, for rows that are not redeliveries."""
    features = expect(rules.reference.look_up(kept), FEATURES, "features")
    watch.lap("look_up")
    judged = admit(
        pl.concat([kept, features], how="horizontal"),
        rules.catalogues,
        rules.reference.modes,
        districts=rules.settings.districts_taking_part,
    )
    judged = expect(judged, {**DECODED, **FEATURES, **DECISION}, "judged")
    watch.lap("admit")
    unique = drop_resends(judged, state.anchors)
    watch.lap("drop_resends")
    stored = expect(enrich(unique.kept, rules.reference), STORED, "stored")
    watch.lap("enrich")
    return _Judged(stored, unique.duplicates, pl.DataFrame(schema=QUARANTINED))


def _judge_all(kept: pl.DataFrame, state: PartitionState, rules: Rules, watch: _Stopwatch) -> _Judged:
    """`_judge`; a row that makes a stage fail is quarantined alone, so that its partition goes on."""
    try:
        return _judge(kept, state, rules, watch)
    except (TransientError, MemoryError):
        raise
    except DATA_ERRORS as error:
        bad = _failing(kept, state, rules)
        if not bad or len(bad) > max(_MOST_UNSTORABLE, _UNSTORABLE_SHARE * kept.height):
            raise
        at = np.zeros(kept.height, bool)
        at[bad] = True
        judged = _judge(kept.filter(~at), state, rules, watch)
        detail = f"{type(error).__name__} while it was judged"
        return _Judged(judged.stored, judged.resent, refused_rows(kept.filter(at), UNSTORABLE, detail))


def _failing(rows: pl.DataFrame, state: PartitionState, rules: Rules, first: int = 0) -> list[int]:
    """Numbers of the rows that fail on their own, found by halving."""
    try:
        _judge(rows, state, rules, _Stopwatch())
    except (TransientError, MemoryError):
        raise
    except DATA_ERRORS:
        if rows.height == 1:
            return [first]
        middle = rows.height // 2
        later = _failing(rows[middle:], state, rules, first + middle)
        return _failing(rows[:middle], state, rules, first) + later
    return []


def _with_matter(duplicates: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """Fill category and lead department of redeliveries: they count where their originals do."""
    if duplicates.is_empty():
        return duplicates
    absent = {**DECODED, **FEATURES}
    rows = duplicates.select(
        [
            pl.col(name) if name in DUPLICATE else pl.lit(_FILLER.get(name), dtype).alias(name)
            for name, dtype in absent.items()
        ]
    )
    judged = admit(
        rows, rules.catalogues, rules.reference.modes, districts=rules.settings.districts_taking_part
    )
    return duplicates.with_columns(judged["category"], judged["lead_department"])


_FILLER: Final[dict[str, object]] = {"backfill": False, "persons": [], "photos": [], "id_hi": 0, "id_lo": 0}


def case_events_of(stored: pl.DataFrame, resent: pl.DataFrame) -> pl.DataFrame:
    """CASE_EVENT rows: one per stored event, one per resend (its case is known as a duplicate's).

    stored : the STORED columns named in CASE_EVENT; resent : DUPLICATE, level L2.
    """
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
