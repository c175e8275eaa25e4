"""The parts of a round that run in a thread: judge its blocks and write them; fold the cases touched."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

import polars as pl
import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.errors import ConfigurationError
from pipeline.frames import POSITION
from pipeline.process.buffer import PartitionBuffer
from pipeline.process.case_memory import CaseMemory
from pipeline.process.flow import Block, BlockResult, Rules, process_blocks, remember
from pipeline.process.partition import (
    Span,
    stored_case_events,
    stored_offsets,
    stored_positions,
    without,
)
from pipeline.rules.archive import RuleArchive
from pipeline.sink.retry import Stopping, persist
from pipeline.sink.tables import AtOnce, Extent, Sink, in_turn
from pipeline.store.cases import case_sets, refresh_cases, store_cases

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How often a silent group is asked about while an insert waits for it.
_ASK_AGAIN_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Work:
    """A block on its way, and the assignment that it belongs to. span : the recovered block it rebuilds."""

    buffer: PartitionBuffer
    block: Block
    span: Span | None

    @property
    def extent(self) -> Extent:
        """The bounds under which the block is stored."""
        bounds = self.span or self.block
        return Extent(self.block.partition, bounds.lo, bounds.hi)


@dataclass(frozen=True)
class Stored:
    """Blocks that are in ClickHouse, of different partitions.

    result : every event of the blocks; added : those that were not stored before (all, unless recovered);
    rebuilt : of a recovered block, the ids of its cases; unread : how many of its offsets the log no longer
    holds, and nothing is stored of them.
    """

    works: Sequence[Work]
    result: BlockResult
    added: BlockResult
    rebuilt: pl.Series | None = None
    unread: int = 0


@dataclass(frozen=True)
class Finished:
    """What became of a round. stored : blocks in ClickHouse; braked : partition -> why its block was left out
    (see brake.Brake)."""

    stored: Sequence[Stored]
    braked: Mapping[int, str]


class AbandonedError(Exception):
    """The round's partitions belong to others now, who rebuild what is stored of it."""


def store_round(
    works: Sequence[Work],
    client: Client,
    *,
    topic: str,
    inc: int,
    rules: Rules,
    earlier: RuleArchive,
    stopping: threading.Event,
    heard: Callable[[], bool],
    at_once: AtOnce = in_turn,
) -> Finished:
    """Store the blocks of a round; left out are those whose partition was taken away meanwhile or must stop.

    What is stored is remembered by its partition: positions tell what is read again from what is sent again,
    so that the next block can be judged while the cases of this one are folded and its commit is asked for.

    rules : in force; earlier : those that blocks to be rebuilt were begun with.
    heard : whether the group has lately said that we belong to it. Until it does, nothing is inserted.
    at_once : see Sink.
    Raises Stopping when asked to end before a passing failure passed, AbandonedError when every partition of
    the round was taken away before its last insert, or whatever cannot be classified.
    """

    def still_ours() -> None:
        # A process that was frozen finds itself here with rows in its hands that others stored meanwhile.
        # While one partition is left the round goes on as it began: under another token its rows could be
        # stored twice.
        while True:
            if all(work.buffer.lost() for work in works):
                raise AbandonedError
            if heard():
                return
            if all(work.buffer.leaving for work in works):
                raise AbandonedError
            if stopping.wait(_ASK_AGAIN_SECONDS):
                raise Stopping("the group does not answer")

    runner = _Runner(
        client, Sink(client, topic, stopping, still_ours, at_once), inc, rules, earlier, stopping
    )
    done = runner.store(works)
    for stored in done:
        _remember(stored)
    return Finished(done, runner.braked)


def fold_round(
    done: Sequence[Stored], client: Client, *, inc: int, stopping: threading.Event, memory: CaseMemory
) -> None:
    """Fold the cases again that the stored blocks touched.

    memory : the sets of recent cases; what is stored is added to them. Raises Stopping as `store_round`.
    """

    def read(call: Callable[[], T], /) -> T:
        return persist(call, stopping=stopping, what=f"{inc} cases")

    started = time.perf_counter()
    left: list[Extent] = []
    for stored in done:
        sets = None
        if stored.rebuilt is not None:
            memory.forget(stored.rebuilt)  # an earlier process had stored some of its entries
        elif memory.on:
            sets = memory.sets(client, case_sets(stored.result.case_events, inc), read)
        if sets is None:
            left += [work.extent for work in stored.works]
        else:
            read(partial(store_cases, client, sets))
    if left:
        read(lambda: refresh_cases(client, inc, left))
    metrics.stage_seconds.labels("fold").observe(time.perf_counter() - started)


def _remember(stored: Stored) -> None:
    works = [work for work in stored.works if work.buffer.state is not None and not work.buffer.revoked]
    states = {work.block.partition: work.buffer.state for work in works if work.buffer.state is not None}
    if not states:
        return
    remember(states, stored.added if len(works) == len(stored.works) else stored.added.of(states))
    for work in works:
        work.buffer.brake.remember(work.block, stored.result)


@dataclass(frozen=True)
class _Runner:
    client: Client
    sink: Sink
    inc: int
    rules: Rules
    earlier: RuleArchive
    stopping: threading.Event
    braked: dict[int, str] = field(default_factory=dict)

    def store(self, works: Sequence[Work]) -> list[Stored]:
        """New blocks are judged and written together, recovered ones (or several complete ones) apart."""
        works = sorted(works, key=lambda work: work.block.partition)
        fresh = [[work for work in works if work.span is None]]
        rebuilt = [[work] for work in works if work.span is not None]
        done = [self._store(together) for together in fresh + rebuilt]
        return [stored for stored in done if stored is not None]

    def _store(self, works: Sequence[Work]) -> Stored | None:
        states = {
            work.block.partition: work.buffer.state
            for work in works
            if work.buffer.state is not None and not work.buffer.lost()
        }
        if not states:
            return None
        blocks = [work.block for work in works if work.block.partition in states]
        span = works[0].span
        rules = self.rules if span is None else self._rules_of(span)
        result = persist(
            lambda: process_blocks(blocks, states, rules), stopping=self.stopping, what="judging"
        )
        ours = [work for work in works if work.block.partition in states and not work.buffer.lost()]
        for work in ours:
            # a recovered block is in the tables already, in part: it is finished whatever it holds
            why = None if work.span is not None else work.buffer.brake.stops(work.block, result)
            if why is not None:
                self.braked[work.block.partition] = why
        ours = [work for work in ours if work.block.partition not in self.braked]
        if not ours:
            return None
        if len(ours) < len(blocks):
            result = result.of({work.block.partition for work in ours})
        if span is not None:
            return self._rebuild(ours[0], rules, result)
        stored = self._write(result, [work.extent for work in ours], rules)
        return Stored(ours, stored, stored)

    def _rules_of(self, span: Span) -> Rules:
        """Those that judged what is stored of a block: the rest of it is judged alike."""
        if span.rules == self.rules.digest:
            return self.rules
        try:
            catalogues = persist(
                lambda: self.earlier.get(self.client, span.rules),
                stopping=self.stopping,
                what=f"rule set {span.rules}",
            )
        except ConfigurationError as error:
            log.warning("earlier_rules_not_read", rules=span.rules, problems=error.problems)
            return self.rules
        return replace(self.rules, catalogues=catalogues)

    def _rebuild(self, work: Work, rules: Rules, result: BlockResult) -> Stored:
        """Finish a block that an earlier process began, whatever part of it arrived.

        What is missing goes out under the token of all that the block holds, which still stops an insert of
        the earlier process that arrives only now, if it held nothing else. That token also refuses rows for a
        part that did arrive: if some are missing there (a torn insert, or one that was taken out again), they
        go out under a token of their own.
        """
        extent = work.extent
        name = self.sink.token(inc=self.inc, blocks=[extent])
        log.info("rebuilding_block", block=name, rules=rules.digest, by_earlier_rules=rules is not self.rules)
        added = self._without_stored(result, extent)
        if added.received:
            added = self._write(added, [extent], rules, result)
            left = self._without_stored(added, extent)
            if left.received:
                digest = hashlib.sha256(repr(_positions(left)).encode()).hexdigest()[:16]
                self._write(left, [extent], rules, result, suffix=f":rest-{digest}")
                # refused as well where an earlier rebuild stored them so, and they were taken out since
                left = self._without_stored(left, extent)
                if left.received:
                    self._write(left, [extent], rules, result, suffix=f":rest-{uuid.uuid4()}")
        cases = persist(
            lambda: stored_case_events(self.client, self.inc, extent), stopping=self.stopping, what=name
        )
        # a set takes its entries twice; under a token that comes again they might be refused and missing
        self.sink.write_case_events(cases, self.inc, f"{name}:again-{uuid.uuid4()}")
        return Stored([work], result, added, cases["case_id"].unique(), self._unread(work))

    def _unread(self, work: Work) -> int:
        """See Stored; once what the log holds is stored."""
        extent = work.extent
        offsets = extent.hi - extent.lo + 1
        if len(work.block.records) == offsets:
            return 0
        unread = offsets - persist(
            lambda: stored_offsets(self.client, self.inc, extent), stopping=self.stopping, what=str(extent)
        )
        if unread:
            log.error("offsets_passed_over", **extent._asdict(), offsets=unread)
        return unread

    def _write(
        self,
        result: BlockResult,
        blocks: Sequence[Extent],
        rules: Rules,
        whole: BlockResult | None = None,
        suffix: str = "",
    ) -> BlockResult:
        return self.sink.write(
            result, inc=self.inc, blocks=blocks, rules=rules.digest, whole=whole, suffix=suffix
        )

    def _without_stored(self, result: BlockResult, extent: Extent) -> BlockResult:
        present = persist(
            lambda: stored_positions(self.client, self.inc, extent), stopping=self.stopping, what=str(extent)
        )
        return without(result, present)


def _positions(result: BlockResult) -> list[tuple[int, ...]]:
    frames = (result.events, result.rejections, result.duplicates, result.quarantined)
    return sorted(row for frame in frames for row in frame.select(list(POSITION)).iter_rows())
