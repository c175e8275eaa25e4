"""The part of a round that runs in a thread: judge each block, write it, fold the cases touched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from clickhouse_connect.driver.client import Client

from pipeline.process.buffer import PartitionBuffer
from pipeline.process.flow import Block, BlockResult, Rules, process_blocks
from pipeline.process.partition import Span, stored_case_events, stored_positions, without
from pipeline.sink.retry import persist
from pipeline.sink.tables import Sink
from pipeline.store.cases import refresh_cases

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Work:
    """A block on its way, and the assignment that it belongs to. span : the recovered block it rebuilds."""

    buffer: PartitionBuffer
    block: Block
    span: Span | None

    @property
    def lo(self) -> int:
        return self.span.lo if self.span else self.block.lo

    @property
    def hi(self) -> int:
        return self.span.hi if self.span else self.block.hi


@dataclass(frozen=True)
class Stored:
    """A block that is in ClickHouse.

    result : every event of the block; added : those that were not stored before (all, unless recovered).
    """

    work: Work
    result: BlockResult
    added: BlockResult


def run_round(
    works: Sequence[Work], client: Client, *, topic: str, inc: int, rules: Rules, stopping: threading.Event
) -> list[Stored]:
    """Store the blocks of a round; those whose partition was taken away meanwhile are left out.

    Raises Stopping when asked to end before a passing failure passed, or whatever cannot be classified.
    """
    runner = _Runner(client, Sink(client, topic, stopping), inc, rules, stopping)
    done = runner.store(works)
    ranges = [(stored.work.block.partition, stored.work.lo, stored.work.hi) for stored in done]
    if ranges:
        persist(lambda: refresh_cases(client, inc, ranges), stopping=stopping, what=f"{topic}:{inc} cases")
    return done


@dataclass(frozen=True)
class _Runner:
    client: Client
    sink: Sink
    inc: int
    rules: Rules
    stopping: threading.Event

    def store(self, works: Sequence[Work]) -> list[Stored]:
        """Judge the blocks together, write them one by one."""
        ours = [(work, work.buffer.state) for work in works if not work.buffer.lost()]
        blocks = [work.block for work, state in ours if state is not None]
        states = [state for _, state in ours if state is not None]
        if not blocks:
            return []
        results = persist(
            lambda: process_blocks(blocks, states, self.rules), stopping=self.stopping, what="judging"
        )
        done: list[Stored] = []
        for (work, _), result in zip(ours, results, strict=True):
            if not work.buffer.lost():
                done.append(self._store_one(work, result))
        return done

    def _store_one(self, work: Work, result: BlockResult) -> Stored:
        place = _Place(self.inc, work.block.partition, work.lo, work.hi)
        if work.span is None:
            stored = self._write(result, place)
            return Stored(work, stored, stored)
        name = self.sink.token(**place._asdict())
        log.info("rebuilding_block", block=name, same_rules=work.span.rules == self.rules.digest)
        return Stored(work, result, self._complete(result, place, name))

    def _complete(self, result: BlockResult, place: _Place, name: str) -> BlockResult:
        """Finish a block that an earlier process began, whatever part of it arrived; returns what was added.

        What is missing goes out under the block's own token, which still stops an insert of the earlier
        process that arrives only now. That token also refuses rows for a part that did arrive: if reference
        data have changed since, rows can be missing there, and go out under a token of their own.
        """
        added = self._without_stored(result, place)
        if added.received:
            added = self._write(added, place)
            left = self._without_stored(added, place)
            if left.received:
                digest = hashlib.sha256(repr(_positions(left)).encode()).hexdigest()[:16]
                self._write(left, place, suffix=f":rest-{digest}")
        cases = persist(
            lambda: stored_case_events(self.client, **place._asdict()), stopping=self.stopping, what=name
        )
        self.sink.write_case_events(cases, self.inc, f"{name}:again-{cases.height}")
        return added

    def _write(self, result: BlockResult, place: _Place, suffix: str = "") -> BlockResult:
        return self.sink.write(result, **place._asdict(), rules=self.rules.digest, suffix=suffix)

    def _without_stored(self, result: BlockResult, place: _Place) -> BlockResult:
        present = persist(
            lambda: stored_positions(self.client, **place._asdict()), stopping=self.stopping, what=str(place)
        )
        return without(result, present)


class _Place(NamedTuple):
    inc: int
    partition: int
    lo: int
    hi: int


def _positions(result: BlockResult) -> list[tuple[int, int]]:
    frames = (result.events, result.rejections, result.duplicates, result.quarantined)
    return sorted(row for frame in frames for row in frame.select("_off", "_idx").iter_rows())
