"""The delivery protocol against crashes: nothing lost, nothing twice, whatever dies when. By random histories
(HISTORIES of them), and by half as many of a hypothesis state machine, which chooses who dies when. A history
that breaks it is told as it was found: making it shorter takes longer than reading it.

A log of several partitions whose blocks are stored in rounds, in random company. The real buffer,
deduplication, runner and block arithmetic run on a store in memory that behaves like ClickHouse: the inserts
of a round reach their monthly parts one by one, in whatever order, each part drops a token that it has seen,
and the process dies between any two steps. A round may be judged and written before the one before it is
folded and committed. Mutants show that the model can fail. All but one leave wrong rows in the store. "Dedup
ignores offsets" leaves the store right, since what is stored is not stored again: wrong are the counts that
are told of a rebuilt block, which `check_judgement` alone sees.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.process import rounds
from pipeline.process.buffer import Budget, PartitionBuffer
from pipeline.process.case_memory import CaseMemory, ExistingCases
from pipeline.process.decode import decode
from pipeline.process.deduplicate import Entry, Int64s, SeenIds, deduplicate
from pipeline.process.flow import Block, BlockResult
from pipeline.process.partition import UNFOLDED_BLOCKS, Span
from pipeline.process.records import Record
from pipeline.process.rounds import Finished, Stored, Work, fold_round, store_round
from pipeline.rules.archive import RuleArchive
from pipeline.sink.tables import Extent
from tests.integration.worker_world import PRIVACY, event, record

WINDOW = timedelta(days=7)
PARTITIONS = 3
#: Of each test. `make test-fault` plays more; a night's run plays 50,000.
HISTORIES = int(os.environ.get("HISTORIES") or (600 if os.environ.get("FAULT") == "1" else 60))
#: The first of the random ones: a night's 50,000 may be played in parts.
FIRST = int(os.environ.get("FIRST_HISTORY") or 0)
pytestmark = pytest.mark.timeout(max(180, HISTORIES))
#: Of the state machine.
EXAMPLES = HISTORIES // 2
MOST_CRASHES = 25
_ROWS = "every position exactly once|a position twice"
#: Mutants, and how each is noticed.
MUTANTS = {
    "arbitrary boundaries": _ROWS,
    "stored rows again": _ROWS,
    "commit before insert": f"{_ROWS}|the cases know exactly what is stored",
    "token without blocks": f"{_ROWS}|judged ",
    "dedup ignores offsets": "judged ",
}
TABLES = ("events", "rejections", "duplicates", "quarantine")
FRAMES = {
    "events": "events",
    "rejections": "rejections",
    "duplicates": "duplicates",
    "quarantine": "quarantined",
}


class Crash(BaseException):
    """The process is gone."""


@cache
def decoded(ids: int) -> pl.DataFrame:
    """One DECODED row per id; cut and repeated to make logs."""
    return decode([(0, [record(number, event(number)) for number in range(ids)])], privacy=PRIVACY).events


class Forgetful(SeenIds):
    """Mutant: every known id counts as seen before, whatever its offset."""

    def entry(self, numbers: Int64s) -> Entry:
        return super().entry(numbers)._replace(position=np.full(len(numbers), -1))


class World:
    """One log, one store, and the processes that come and go."""

    def __init__(self, seed: int, *, mutant: str | None = None) -> None:
        self.chance = random.Random(seed)
        self.mutant = mutant
        #: of each partition: the row at an offset is that of the offset
        self.parts = self._make_parts()
        self.log = pl.concat(self.parts)
        #: per table: partition, offset, event id, the bounds of the row's block
        self.rows: dict[str, list[tuple[int, int, str, int, int]]] = {table: [] for table in TABLES}
        self.tokens: set[tuple[str, str, int]] = set()
        self.cases: set[tuple[int, int, str]] = set()
        self.committed = [0] * PARTITIONS
        self.rule_version = 0
        self.rules_change = self.chance.random() < 0.3
        #: in an outage of commits block after block is complete, and the next process finds them so
        self.commits_stand = self.chance.choice((0.8, 0.8, 0.1))
        self.counted: dict[str, int] = dict.fromkeys(TABLES, 0)
        self.budget = self.chance.randint(3, 25)
        self.crashes = 0
        #: how far each partition's log is written by now
        self.ends = [part.height for part in self.parts]

    def _make_parts(self) -> list[pl.DataFrame]:
        """Rows of every partition; an id comes in one partition only."""
        parts: list[pl.DataFrame] = []
        for partition in range(PARTITIONS):
            size = self.chance.randint(8, 40)
            numbers: list[int] = []
            for offset in range(size):
                repeat = numbers and self.chance.random() < 0.2
                numbers.append(self.chance.choice(numbers) if repeat else 40 * partition + offset)
            other = pl.Series([self.chance.random() < 0.05 for _ in range(size)])
            parts.append(
                decoded(40 * PARTITIONS)[numbers].with_columns(
                    _part=pl.lit(partition, pl.UInt16),
                    _off=pl.int_range(size, dtype=pl.UInt64),
                    content_hash=pl.when(other).then(pl.lit(7, pl.UInt64)).otherwise("content_hash"),
                )
            )
        return parts

    def log_of(self, block: Block | Extent) -> pl.DataFrame:
        return self.parts[block.partition].slice(block.lo, block.hi - block.lo + 1)

    def log_at(self, partition: int, offsets: Iterable[int]) -> pl.DataFrame:
        # picked and cut, not filtered: a query over a frame of eighty columns takes longer than all else here
        return self.parts[partition][pl.Series(sorted(set(offsets)), dtype=pl.UInt32)]

    def step(self) -> None:
        """A moment at which the process may die."""
        self.budget -= 1
        if self.budget <= 0:
            raise Crash

    # --- what the store does

    def insert(self, result: BlockResult, token: str, blocks: Sequence[Extent]) -> None:
        """Into all tables beside each other."""
        bounds = {block.partition: (block.lo, block.hi) for block in blocks}
        rows = {
            table: list(getattr(result, name).select("_part", "_off", "event_id").iter_rows())
            for table, name in FRAMES.items()
        }
        parts = sorted({(table, off % 3) for table in rows for _, off, _ in rows[table]})
        for table, month in self.chance.sample(parts, len(parts)):
            self.step()
            if (token, table, month) not in self.tokens:
                self.tokens.add((token, table, month))
                self.rows[table] += [
                    (partition, off, event_id, *bounds[partition])
                    for partition, off, event_id in rows[table]
                    if off % 3 == month
                ]
        self.step()

    def stored(self, block: Extent) -> Iterable[tuple[str, tuple[int, int, str, int, int]]]:
        for table in TABLES:
            for row in self.rows[table]:
                if row[0] == block.partition and block.lo <= row[1] <= block.hi:
                    yield table, row

    # --- what replaces the edges of the runner

    def judge(self, blocks: list[Block], states: dict[int, Any], _rules: Any) -> BlockResult:
        part = pl.concat([self.log_of(block) for block in blocks])
        fresh = deduplicate(part, {at: state.seen for at, state in states.items()}, WINDOW)
        shifted = fresh.kept["id_lo"].to_numpy() % 5 < self.rule_version % 5
        return BlockResult(
            events=fresh.kept.filter(~shifted),
            rejections=fresh.kept.filter(shifted),
            duplicates=fresh.duplicates,
            quarantined=fresh.conflicts,
            case_events=fresh.kept,
            received=part.height,
        )

    def positions(self, _client: Any, _inc: int, block: Extent) -> pl.DataFrame:
        present = sorted({row[1] for _, row in self.stored(block)})
        return pl.DataFrame(
            {"_off": present, "_idx": [0] * len(present)}, schema={"_off": pl.UInt64, "_idx": pl.UInt32}
        )

    def case_events(self, _client: Any, _inc: int, block: Extent) -> pl.DataFrame:
        offsets = [row[1] for table, row in self.stored(block) if table in {"events", "rejections"}]
        return self.log_at(block.partition, offsets)

    def token(self, *, inc: int, blocks: Sequence[Extent]) -> str:
        named = [] if self.mutant == "token without blocks" else blocks
        return f"t:{inc}:{'+'.join(map(str, named))}"

    def write(
        self,
        result: BlockResult,
        *,
        inc: int,
        blocks: Sequence[Extent],
        rules: str,
        whole: BlockResult | None = None,
        suffix: str = "",
    ) -> BlockResult:
        """Under the blocks alone; a real token names what they hold in a table, too, and refuses less."""
        token = self.token(inc=inc, blocks=blocks) + suffix
        attempts = 0
        while True:
            self.insert(result, token, blocks)
            self.write_case_events(result.case_events, inc, token)
            attempts += 1
            if attempts >= 3 or self.chance.random() >= 0.1:
                return result  # otherwise: the reply was lost, the same blocks go out again

    def write_case_events(self, frame: pl.DataFrame, _inc: int, _token: str) -> None:
        self.step()
        self.cases |= set(frame.select("_part", "_off", "event_id").iter_rows())

    # --- a process

    def recover(self, partition: int) -> PartitionBuffer:
        """As `pipeline.process.partition.recover` reads it from ClickHouse."""
        committed = self.committed[partition]
        buffer = PartitionBuffer(partition, max_rows=self.chance.randint(1, 16), budget=Budget(10**9))
        seen = (Forgetful if self.mutant == "dedup ignores offsets" else SeenIds)(WINDOW)
        kept = self.stored(Extent(partition, 0, 10**9))
        offsets = [row[1] for table, row in kept if table in {"events", "rejections"}]
        self.remember(seen, self.log_at(partition, offsets))
        bounds = Counter(row[3:] for _, row in self.stored(Extent(partition, committed, 10**9)))
        spans, first = [], committed
        for (lo, hi), rows in sorted(bounds.items()):
            if max(lo, first) <= hi:
                spans.append(Span(max(lo, first), hi, "r", rows if lo >= first else -1))
                first = hi + 1
        buffer.spans = deque([] if self.mutant == "arbitrary boundaries" else spans)
        buffer.state = SimpleNamespace(seen=seen)  # type: ignore[assignment]
        buffer.recovered = True
        buffer.start_at(committed, 0.0)
        for offset in range(committed, self.ends[partition]):
            buffer.take(Record(offset, 0, None, b""), now=0.0)
        return buffer

    @staticmethod
    def remember(seen: SeenIds, kept: pl.DataFrame) -> None:
        seen.remember(kept["id_hi"].to_numpy(), kept["id_lo"].to_numpy(), Entry.of(kept))

    def process(self, owned: Iterable[int] = range(PARTITIONS)) -> None:
        """From assignment to the end of the log; partitions meet in rounds as chance will."""
        buffers = [self.recover(partition) for partition in owned]
        memory, written = CaseMemory(), deque[Finished]()
        while waiting := [buffer for buffer in buffers if len(buffer)]:
            works = []
            for buffer in self.chance.sample(waiting, self.chance.randint(1, len(waiting))):
                buffer.max_rows = self.chance.randint(1, 16)
                assert buffer.ready, "a recovered block lies wholly in the log, so it can always be completed"
                records, span, _ = buffer.cut(buffer.max_rows)
                works.append(Work(buffer, Block(buffer.partition, records), span))
                if self.mutant == "commit before insert":
                    self.committed[buffer.partition] = records[-1].offset + 1
            finished = store_round(
                works,
                None,  # type: ignore[arg-type]
                topic="t",
                inc=1,
                rules=SimpleNamespace(digest="r"),  # type: ignore[arg-type]
                earlier=RuleArchive(Path("never-asked")),
                stopping=threading.Event(),
                heard=lambda: True,
            )
            if not self.rules_change:
                for done in finished.stored:
                    self.check_judgement(done)
            written.append(finished)
            while len(written) >= UNFOLDED_BLOCKS or (written and self.chance.random() < 0.5):
                self.finish(written.popleft(), memory)
        while written:
            self.finish(written.popleft(), memory)

    def finish(self, round_: Finished, memory: CaseMemory) -> None:
        fold_round(round_.stored, None, inc=1, stopping=threading.Event(), memory=memory)  # type: ignore[arg-type]
        for done in round_.stored:
            if self.chance.random() < self.commits_stand:  # otherwise a later one covers it
                self.step()
                for work in done.works:
                    self.committed[work.block.partition] = work.extent.hi + 1

    def remember_all(self, states: dict[int, Any], added: BlockResult) -> None:
        kept = pl.concat([added.events, added.rejections])
        for partition, state in states.items():
            self.remember(state.seen, kept.filter(pl.col("_part") == partition))

    def check_judgement(self, done: Stored) -> None:
        """A rebuilt block is judged as it was the first time: the counts told to Prometheus rest on it."""
        judged = {
            (table, at)
            for table, name in FRAMES.items()
            for at in getattr(done.result, name).select("_part", "_off").iter_rows()
        }
        stored = {(table, row[:2]) for work in done.works for table, row in self.stored(work.extent)}
        assert judged == stored, f"judged {sorted(judged - stored)}, stored {sorted(stored - judged)}"

    def run(self) -> None:
        while True:
            try:
                self.process()
            except Crash:
                self.crashes += 1
                self.budget = self.chance.randint(3, 25) if self.crashes < MOST_CRASHES else 10**9
                self.rule_version += self.rules_change and self.chance.random() < 0.5
            else:
                return

    # --- what must hold

    def check_so_far(self) -> None:
        """At any moment: no position and no id is there twice."""
        rows = [(table, row) for table in TABLES for row in self.rows[table]]
        at = [row[:2] for _, row in rows]
        assert len(at) == len(set(at)), "a position twice"
        ids = [row[2] for table, row in rows if table in {"events", "rejections"}]
        assert len(ids) == len(set(ids)), "an id twice"

    def check(self) -> None:
        """At the end."""
        rows = [(table, row) for table in TABLES for row in self.rows[table]]
        log = sorted(self.log.select("_part", "_off").iter_rows())
        assert sorted(row[:2] for _, row in rows) == log, "every position exactly once"
        kept = [row for table, row in rows if table in {"events", "rejections"}]
        ids = [row[2] for row in kept]
        assert len(ids) == len(set(ids)), "an id is kept once"
        assert set(ids) == set(self.log["event_id"]), "no id is lost"
        assert self.cases == {row[:3] for row in kept}, "the cases know exactly what is stored"


def stand_in(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """The world in place of the runner's edges."""
    monkeypatch.setattr(rounds, "process_blocks", world.judge)
    monkeypatch.setattr(rounds, "remember", world.remember_all)
    monkeypatch.setattr(rounds, "stored_positions", world.positions)
    monkeypatch.setattr(rounds, "stored_case_events", world.case_events)
    monkeypatch.setattr(rounds, "refresh_cases", lambda *_: world.step())
    monkeypatch.setattr(rounds, "Sink", lambda *_: world)
    # made anew for each worker that starts: to touch 32 MB for a few cases was a fifth of a history
    monkeypatch.setattr(ExistingCases, "_BITS", 16)
    if world.mutant == "stored rows again":
        monkeypatch.setattr(rounds, "without", lambda result, _present: result)


def play(monkeypatch: pytest.MonkeyPatch, seed: int, mutant: str | None = None) -> World:
    world = World(seed, mutant=mutant)
    stand_in(monkeypatch, world)
    world.run()
    world.check()
    return world


def test_nothing_is_lost_or_doubled_whatever_dies_when(monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = changes = 0
    for seed in range(FIRST, FIRST + HISTORIES):
        world = play(monkeypatch, seed)
        crashes += world.crashes
        changes += world.rules_change
        if (played := seed + 1 - FIRST) % 1_000 == 0:
            print(f"model: {played:,} of {HISTORIES:,} histories, {crashes:,} crashes", flush=True)
    print(
        f"model: histories {FIRST} to {FIRST + HISTORIES - 1}, {crashes} crashes, {changes} changes of rules"
    )
    assert crashes > HISTORIES
    assert changes > 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_catches_a_broken_protocol(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    caught = 0
    for seed in range(HISTORIES):
        try:
            play(monkeypatch, seed, mutant)
        except AssertionError as error:
            assert re.match(MUTANTS[mutant], str(error)), error
            caught += 1
            if caught >= 5:
                return
    pytest.fail(f"{mutant}: caught in {caught} of {HISTORIES} histories")


class Protocol(RuleBasedStateMachine):
    """Processes that come, own some partitions, and die after some steps, while the log grows."""

    mutant: str | None = None

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.world = World(seed, mutant=self.mutant)
        self.whole = list(self.world.ends)
        self.world.ends = [0] * PARTITIONS
        stand_in(self.patch, self.world)

    @rule(partition=st.integers(0, PARTITIONS - 1), records=st.integers(1, 20))
    def grow(self, partition: int, records: int) -> None:
        ends = self.world.ends
        ends[partition] = min(ends[partition] + records, self.whole[partition])

    @rule(steps=st.integers(1, 40), owned=st.sets(st.integers(0, PARTITIONS - 1), min_size=1))
    def work(self, steps: int, owned: set[int]) -> None:
        """A process with these partitions; it ends, or dies after so many steps."""
        self.world.budget = steps
        with contextlib.suppress(Crash):
            self.world.process(sorted(owned))

    @precondition(lambda self: self.world.rules_change)
    @rule()
    def change_the_rules(self) -> None:
        self.world.rule_version += 1

    @invariant()
    def nothing_twice(self) -> None:
        self.world.check_so_far()

    def teardown(self) -> None:
        """Whoever comes last finishes everything."""
        if hasattr(self, "world"):
            self.world.ends, self.world.budget = self.whole, 10**9
            try:
                self.world.process()
                self.world.check()
            finally:
                self.patch.undo()


def explore(machine: type[Protocol]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_history_that_hypothesis_finds_breaks_it() -> None:
    explore(Protocol)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_hypothesis_finds_a_history_that_breaks_a_mutant(mutant: str) -> None:
    with pytest.raises(AssertionError, match=f"^({MUTANTS[mutant]})"):
        explore(type("Mutant", (Protocol,), {"mutant": mutant}))
