"""The worker: takes records from its partitions, cuts blocks, runs the flow, commits what is stored.

The event loop only moves records and decides; polars and ClickHouse run in threads, so that heartbeats never
starve. A round is one block each of several partitions: judged, written, folded and committed together. At
most two rounds are on the way. A partition's next block is judged once its last one is written; its blocks
are folded and committed in offset order (ADR 0023).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from clickhouse_connect.driver.client import Client

from pipeline.collector import spare_collections
from pipeline.contract.privacy import Privacy
from pipeline.errors import WorkerFailedError
from pipeline.kafka_access import librdkafka_options
from pipeline.process.account import Account, Tally
from pipeline.process.brake import Brake
from pipeline.process.buffer import Budget, Owed, PartitionBuffer, Taken
from pipeline.process.case_memory import CaseMemory
from pipeline.process.commits import Commits
from pipeline.process.drift import LAST_RECORDS, watch_drift
from pipeline.process.earlier import complete_earlier_log, tell_cases
from pipeline.process.flow import Block, BlockResult, Rules
from pipeline.process.looks import Helped, Looks
from pipeline.process.membership import Membership
from pipeline.process.order import Round
from pipeline.process.partition import UNFOLDED_BLOCKS, Recovered, recover, stored_of_blocks, stored_offsets
from pipeline.process.records import Record
from pipeline.process.rounds import AbandonedError, Stored, Work, fold_round, store_round
from pipeline.process.rules_in_force import RulesInForce
from pipeline.process.standing import Standing
from pipeline.process.threads import Threads
from pipeline.process.topic import TopicFacts, describe_topic
from pipeline.reference.snapshot import Reference
from pipeline.rules.archive import RuleArchive, keep
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import Settings
from pipeline.sink.retry import Stopping, persist
from pipeline.sink.tables import Extent
from pipeline.store.incarnations import newest, resolve

log = structlog.get_logger(__name__)

T = TypeVar("T")

ROUNDS_IN_FLIGHT: Final = UNFOLDED_BLOCKS
#: A stop must be over within 25 s: blocks on the way, then the group, then the rest.
_DRAIN_SECONDS: Final = 14.0
_GIVE_UP_SECONDS: Final = 2.0
_LEAVE_SECONDS: Final = 6.0
#: A revocation waits this long for the insert on the way; the group would not wait much longer.
_REVOKE_SECONDS: Final = 4.0
_IDLE_SECONDS: Final = 0.5
#: With no block on the way nothing is gained by waiting: what comes meanwhile makes the next block. Just long
#: enough for the partitions of one request to arrive together.
_QUIET_LINGER_SECONDS: Final = 0.01
#: For the answer to a commit of the last assignment: by then the group has given us a new one.
_ANSWER_SECONDS: Final = 60.0
#: Receipt instants of a block that waits for its commit: many of them may wait.
_INSTANTS_OF_OWED: Final = 20
#: Blocks without records that are completed at once; what is done stays done whatever comes in between.
_GONE_AT_ONCE: Final = 200


def _stands(asked: asyncio.Future[bool]) -> bool:
    return asked.done() and not asked.cancelled() and asked.result()


def _part_of(item: Stored, works: Sequence[Work]) -> BlockResult:
    """The rows of these of its blocks."""
    if len(works) == len(item.works):
        return item.result
    return item.result.of({work.block.partition for work in works})


async def run_worker(
    settings: Settings,
    *,
    client_factory: Callable[[], Client],
    bootstrap: str,
    privacy: Privacy,
    stop: asyncio.Event | None = None,
    ready: Callable[[], None] | None = None,
    known_sources: Callable[[], Collection[str]] = tuple,
    braked: Callable[[Mapping[int, str]], None] = lambda _: None,
) -> None:
    """Work until `stop` is set, then drain for at most 25 s.

    client_factory : gives clients on the migrated database; each thread uses its own.
    bootstrap : Kafka bootstrap servers. privacy : pseudonyms for direct records.
    ready : called when the first assignment is recovered. known_sources : label values of received events;
    everything else is counted as "other". braked : told at each change which partitions stand still, and why:
    braked, stalled, or not yet recovered after a rebalance.

    Raises ConfigurationError and UnavailableError before the first event is taken, WorkerFailedError later,
    also where the drain took too long: the caller must then end the process with a non-zero status, so that
    it starts again from the last commit.
    """
    worker = Worker(
        settings, client_factory, bootstrap, privacy, ready=ready, known_sources=known_sources, braked=braked
    )
    await worker.run(stop or asyncio.Event())


class Worker:
    """State of one `run_worker`. Everything runs on the event loop but what is handed to `_in_thread`."""

    def __init__(
        self,
        settings: Settings,
        client_factory: Callable[[], Client],
        bootstrap: str,
        privacy: Privacy,
        *,
        ready: Callable[[], None] | None = None,
        known_sources: Callable[[], Collection[str]] = tuple,
        braked: Callable[[Mapping[int, str]], None] = lambda _: None,
        awaits: Collection[str] = (),
        direct_at: float | None = None,
    ) -> None:
        """As `run_worker`.

        awaits : kinds of reference data without which the worker is not ready. direct_at : when the last
        record came that was not the gateway's, where another worker of this process has read the log until
        now (monotonic seconds).
        """
        self._settings = settings
        self._bootstrap = bootstrap
        self._privacy = privacy
        self._ready = ready
        self._awaits = awaits
        self._completing: set[int] = set()
        self._account = Account(known_sources)
        self._buffers: dict[int, PartitionBuffer] = {}
        self._standing = Standing(self._buffers, braked)
        self._budget = Budget(settings.worker_buffer_bytes)
        self._rounds: set[asyncio.Task[None]] = set()
        self._under_way: list[Round] = []
        self._beside: set[asyncio.Task[None]] = set()  # recoveries, and what is read again
        self._wake = asyncio.Event()
        self._failed = asyncio.Event()
        self._settled = asyncio.Event()
        self._failure: BaseException | None = None
        self._draining = False
        self._closing = False
        self._gave_up = False
        self._stopping = threading.Event()
        # one thread per round, one for recovery and reference data
        self._in_thread = Threads(ROUNDS_IN_FLIGHT + 1, client_factory, self._stopping)
        self._member = Membership(settings, bootstrap, self)
        self._commits = Commits(self._member, returned=self._settled.set)
        self._looks = Looks(
            settings,
            self._buffers,
            self._on_the_way,
            self._budget,
            member=self._member,
            account=self._account,
            standing=self._standing,
            helped=Helped(self._feed, self._complete, self._ask_again, lambda: self._draining),
        )
        self._inc = 0
        self.direct_at = time.monotonic() if direct_at is None else direct_at
        self._topic: TopicFacts | None = None
        self._cases = CaseMemory()
        self._rules: RulesInForce | None = None
        self._earlier_rules = RuleArchive(settings.tmp_dir / "rules")

    # --- life

    async def run(self, stop: asyncio.Event) -> None:
        """See `run_worker`."""
        tasks: list[asyncio.Task[object]] = []
        try:
            self._rules = RulesInForce(
                await self._in_thread(self._open),
                self._in_thread,
                self._account,
                awaits=self._awaits,
                reloaded=self._tell_ready,
            )
            self._in_thread.patient = True
            await self._member.start()
            watches: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
                self._dispatch,
                self._commits.run,
                self._rules.watch,
                self._looks.watch_partitions,
                self._watch_topic,
                self._watch_member,
                self._watch_drift,
            )
            tasks += [asyncio.create_task(self._watched(watch)) for watch in watches]
            ends = [asyncio.create_task(stop.wait()), asyncio.create_task(self._failed.wait())]
            tasks += ends
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            await self._close(tasks)
        if self._failure is not None:
            raise WorkerFailedError(f"the worker cannot go on: {self._failure!r}") from self._failure
        if self._gave_up:
            raise WorkerFailedError("blocks were given up at the end; the next start reads them again")

    def _open(self, client: Client) -> Rules:
        catalogues = load_catalogues(self._settings.catalogue_dir)
        keep(client, catalogues)
        self._account.reasons(catalogues.reason_names_zh)
        self._access = librdkafka_options(self._settings)
        known = newest(client, self._settings.topic)  # before the log's ends: other workers go on storing
        self._topic = topic = describe_topic(self._bootstrap, self._settings.topic, access=self._access)
        self._looks.begins = topic.begins
        self._inc = resolve(client, known, topic.topic_id, topic.cluster_id, topic.end_offsets)
        complete_earlier_log(client, self._settings.topic, self._inc, self._stopping)
        reference = Reference.load(client, tolerance_m=self._settings.grid_tolerance_m)
        self._account.reference(reference.counts)
        log.info("worker_opened", inc=self._inc, rules=catalogues.digest, reference=reference.version)
        return Rules(reference, catalogues, self._privacy, self._settings)

    async def _drain(self) -> None:
        """Finish what is on the way, or give it up: it will be read again after the next start."""
        self._draining = True
        deadline = time.monotonic() + _DRAIN_SECONDS
        if self._failure is not None:
            self._stopping.set()
        if self._rounds:
            _, late = await asyncio.wait(set(self._rounds), timeout=_DRAIN_SECONDS)
            if late:
                self._gave_up = True
                log.error("blocks_given_up", rounds=len(late))
                self._stopping.set()
                await asyncio.wait(late, timeout=_GIVE_UP_SECONDS)
        if self._failure is None:
            await self._commits.finish(list(self._buffers), deadline - time.monotonic())

    async def _close(self, tasks: Sequence[asyncio.Task[object]]) -> None:
        self._draining = self._closing = True
        self._stopping.set()
        await self._member.stop(_LEAVE_SECONDS)
        everything = [*tasks, *self._rounds, *self._beside]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        self._in_thread.close()

    async def _watched(self, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Whatever ends it ends the worker: nobody would notice that it is gone."""
        try:
            await work()
        except Stopping:
            pass  # asked to end: what it left undone is done after the next start
        except asyncio.CancelledError:
            # also what the consumer's thread hands on as its own end
            if not self._closing:
                self._fail(RuntimeError(f"{work!r} was cancelled"))
            raise
        except BaseException as error:  # a panic of polars is no Exception, and must end the process too
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._closing:  # what goes on is cut off
            log.warning("failed_at_the_end", error=repr(error))
            return
        # formatted here: a logger that shows local variables would write event data into the log
        log.error("worker_failed", error=repr(error), trace="".join(traceback.format_exception(error)))
        if self._draining:
            self._gave_up = True  # or the end would be taken for a proof that everything is stored
        elif self._failure is None:
            self._failure = error
        self._failed.set()

    # --- what a roll of the log asks (see runtime.switch)

    def drained(self) -> bool:
        """Whether every record of the log, as far as its end is known, is stored and committed."""
        return (
            not self._rounds
            and bool(self._buffers)
            and all(
                buffer.recovered and not len(buffer) and self._looks.caught_up(buffer)
                for buffer in self._buffers.values()
            )
        )

    def direct_seconds(self) -> float:
        """Seconds since the last record that did not come from the gateway, or since the first worker of this
        process was made: of those before nobody knows here."""
        return time.monotonic() - self.direct_at

    # --- what the group tells (see membership.Partitions)

    def take(self, partition: int, record: Record) -> None:
        """A record arrived."""
        if record.direct:
            self.direct_at = time.monotonic()
        buffer = self._buffers.get(partition)
        if buffer is None or buffer.revoked or buffer.closed or self._draining:
            return  # it will be read again by whoever owns the partition
        taken = buffer.take(record, time.monotonic())
        if taken is Taken.GAP:
            self._read_again(buffer, record)
        elif taken is Taken.KEPT:
            if self._budget.spent:
                self._hold()
            if not buffer.in_flight:
                self._wake.set()

    def damaged(self, partition: int, offset: int, reason: str) -> None:
        """What the broker has at `offset` is not what was written, or was cut on its way. Another copy may be
        sound: nothing is passed over, the partition stands still."""
        buffer = self._buffers.get(partition)
        if buffer is None or buffer.revoked or buffer.closed or self._draining:
            return
        buffer.closed = True
        self._stopped(buffer, reason, offset=offset)

    async def assigned(self, partitions: set[int]) -> None:
        """The group gave us these partitions; each is recovered before its first block."""
        fresh = [
            PartitionBuffer(
                partition,
                max_rows=self._settings.block_max_rows,
                budget=self._budget,
                brake=Brake(self._settings.unreadable_share),
            )
            for partition in sorted(partitions - set(self._buffers))
        ]
        for buffer in fresh:
            self._buffers[buffer.partition] = buffer
            self._member.resume(buffer.partition)
        self._cases.begin(on=self._topic is not None and len(self._buffers) == self._topic.partitions)
        self._standing.changed()
        self._start(partial(self._recover_all, fresh))

    async def revoked(self, partitions: set[int]) -> None:
        """The group takes these partitions away: drop what is not on the way, wait a little for what is."""
        if partitions:
            self._cases.begin(on=False)  # others may add to any case from now on
        gone = [self._buffers[partition] for partition in partitions if partition in self._buffers]
        for buffer in gone:
            buffer.leaving = True
        deadline = time.monotonic() + _REVOKE_SECONDS
        await self._until(
            lambda: not any(one.holds(buffer) for one in self._under_way for buffer in gone), _REVOKE_SECONDS
        )
        await self._commits.finish(partitions, deadline - time.monotonic())
        for buffer in gone:
            buffer.revoked = True
            buffer.drop()
            if self._buffers.get(buffer.partition) is buffer:
                del self._buffers[buffer.partition]
            self._account.forget(buffer.partition)
            self._standing.forget(buffer.partition)
        self._commits.drop_lost()
        self._standing.changed()
        self._feed()

    async def _until(self, settled: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for rounds to end until `settled`, `seconds` at most."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not settled():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._settled.wait()

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(self._watched(work))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def _read_again(self, buffer: PartitionBuffer, record: Record) -> None:
        expected = buffer.next_offset or 0
        log.warning(
            "records_missing_reading_again",
            partition=buffer.partition,
            expected=expected,
            got=record.offset,
        )
        self._ask_again(buffer.partition, expected)

    def _ask_again(self, partition: int, offset: int) -> None:
        self._start(partial(self._rewind, partition, offset))

    async def _rewind(self, partition: int, offset: int) -> None:
        """Ask for the records from `offset` on. If they do not come, they are asked for again."""
        try:
            await self._member.rewind(partition, offset)
        except Exception as error:
            log.warning("records_not_asked_for", partition=partition, offset=offset, error=repr(error))

    # --- recovery

    async def _recover_all(self, buffers: Sequence[PartitionBuffer]) -> None:
        for buffer in buffers:
            await self._recover(buffer)
        await self._in_thread(lambda client: self._cases.know(client, self._until_read))
        self._tell_ready()

    def _until_read(self, call: Callable[[], T], /) -> T:
        return persist(call, stopping=self._stopping, what="the ids of all cases")

    def _tell_ready(self) -> None:
        """Once: when the first assignment is recovered and the reference data that are awaited are there."""
        recovered = self._buffers and all(buffer.recovered for buffer in self._buffers.values())
        known = self._rules is not None and self._rules.knows(self._awaits)
        if self._ready is not None and recovered and known:
            ready, self._ready = self._ready, None
            spare_collections()
            self._standing.ready()
            ready()

    async def _recover(self, buffer: PartitionBuffer) -> None:
        """Rebuild a partition's memory, once nothing of its last assignment is on the way any more."""
        partition = buffer.partition
        await self._until(lambda: partition not in self._on_the_way())
        # granted after we read what is committed, a request of the last assignment would be followed by a
        # lower one
        await self._until(lambda: not self._commits.on_the_way(partition), _ANSWER_SECONDS)
        if self._commits.on_the_way(partition):
            raise WorkerFailedError(f"a commit of partition {partition} has had no answer since it was lost")
        if buffer.lost():
            return
        told = await self._member.committed(partition)
        log_start = self._looks.begins.get(partition, 0)

        def read(client: Client) -> Recovered:
            return persist(
                lambda: recover(
                    client,
                    inc=self._inc,
                    partition=partition,
                    committed=told,
                    settings=self._settings,
                    log_start=log_start,
                ),
                stopping=self._stopping,
                what=f"recovery of partition {partition}",
            )

        found = await self._in_thread(read)
        if buffer.lost():
            return
        committed = found.committed
        if committed is None and told:
            # Rows of this log will lie before that offset, and whoever asks next would take it for one of
            # this log's: what is in between would be passed over.
            stands = await self._commits.ask(partition, 0, ours=lambda: not buffer.revoked)
            if not stands or buffer.lost():
                return
        buffer.state, buffer.committed = found.state, committed
        buffer.spans, buffer.counted_to = deque(found.spans), found.counted_to
        # without a commit everything is read, also what arrived before the buffer was there
        if not buffer.start_at(committed or 0, time.monotonic(), fetched=committed == told):
            self._ask_again(partition, committed or 0)
        self._feed()
        # with nothing committed yet, what is stored tells where the next block must begin
        begins = found.spans[0].lo if committed is None and found.spans else committed
        self._account.starts_at(partition, begins)
        if found.unstored is not None:
            self._account.passed_over(partition, *found.unstored)
        if self._standing.braked(partition):
            self._account.braked(partition)
        buffer.recovered = True
        self._standing.changed()
        log.info(
            "partition_recovered",
            partition=partition,
            committed=committed,
            ids=len(found.state.seen),
            anchors=len(found.state.anchors),
            blocks=len(found.spans),
        )
        self._wake.set()

    def _complete(self, buffer: PartitionBuffer) -> None:
        if buffer.partition in self._completing:
            return
        if buffer.gone:
            work = partial(self._complete_gone, buffer)
        elif (begin := buffer.uncounted) is not None:
            work = partial(self._count_stored, buffer, begin)
        else:
            return
        self._completing.add(buffer.partition)
        self._start(work)

    async def _complete_gone(self, buffer: PartitionBuffer) -> None:
        """Blocks that an earlier process began and whose records retention has deleted: their rows stand as
        they are, and their cases must know them before anything behind is committed."""
        some = buffer.gone[:_GONE_AT_ONCE]
        extents = [Extent(buffer.partition, span.lo, span.hi) for span in some]
        whole = extents[0]._replace(hi=extents[-1].hi)

        def tell(client: Client) -> int:
            persist(
                lambda: tell_cases(
                    client, self._settings.topic, self._inc, extents, self._stopping, told=self._cases.forget
                ),
                stopping=self._stopping,
                what=f"the cases of {whole}",
            )
            return persist(
                lambda: stored_offsets(client, self._inc, whole), stopping=self._stopping, what=str(whole)
            )

        try:
            stored = await self._in_thread(tell)
        finally:
            self._completing.discard(buffer.partition)
        if buffer.revoked:
            return
        del buffer.gone[: len(extents)]
        self._account.stored_before(*whole, stored)
        log.info("blocks_without_records_completed", blocks=len(extents), lo=whole.lo, hi=whole.hi)
        self._complete(buffer)
        self._wake.set()

    async def _count_stored(self, buffer: PartitionBuffer, begin: int) -> None:
        """Blocks that are known to be complete are taken up together, not one by one."""

        def count(client: Client) -> tuple[dict[tuple[int, int], int], int]:
            return persist(
                lambda: stored_of_blocks(client, self._inc, buffer.partition, begin),
                stopping=self._stopping,
                what=f"what is stored of partition {buffer.partition}",
            )

        try:
            buffer.counted(*await self._in_thread(count))
        finally:
            self._completing.discard(buffer.partition)
        self._wake.set()

    # --- rounds

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            wait = _IDLE_SECONDS
            if not self._draining and len(self._rounds) < ROUNDS_IN_FLIGHT:
                works = self._cut_round()
                if works:
                    task = asyncio.create_task(self._round(self._begun(works)))
                    self._rounds.add(task)
                    task.add_done_callback(self._round_ended)
                    continue
                wait = self._next_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _round_ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        self._wake.set()

    def _cut_round(self) -> list[Work]:
        """One block of every partition that has records, as soon as one of them is due."""
        now, linger = time.monotonic(), self._linger
        buffers = [buffer for buffer in self._buffers.values() if buffer.ready]
        if not any(buffer.due(now, linger) for buffer in buffers):
            return []
        works: list[Work] = []
        room = self._settings.block_max_rows
        for buffer in sorted(buffers, key=lambda buffer: buffer.waiting_since):
            if room <= 0:
                break
            records, span, rows = buffer.cut(room)
            room -= rows
            buffer.in_flight = True
            works.append(Work(buffer, Block(buffer.partition, records), span))
        self._feed()
        return works

    def _begun(self, works: Sequence[Work]) -> Round:
        begun = Round(
            works, [one for one in self._under_way if any(one.holds(work.buffer) for work in works)]
        )
        self._under_way.append(begun)
        return begun

    def _on_the_way(self) -> set[int]:
        """Partitions whose blocks rounds hold, revoked ones included."""
        return {work.block.partition for one in self._under_way for work in one.works}

    def _hold(self) -> None:
        """Enough is buffered by all together: fetch no more."""
        for buffer in self._buffers.values():
            if buffer.full and not buffer.paused:
                buffer.paused = True
                self._member.pause(buffer.partition)

    def _feed(self) -> None:
        """Fetch again where it was paused, once there is room."""
        for buffer in self._buffers.values():
            if buffer.paused and buffer.hungry:
                buffer.paused = False
                self._member.resume(buffer.partition)

    def _next_due(self) -> float:
        """Seconds until a block is due by its age."""
        waiting = [buffer.waiting_since for buffer in self._buffers.values() if buffer.ready]
        if not waiting:
            return _IDLE_SECONDS
        age = time.monotonic() - min(waiting)
        return min(max(self._linger - age, 0.001), _IDLE_SECONDS)

    @property
    def _linger(self) -> float:
        configured = self._settings.block_linger_seconds
        return configured if self._rounds else min(configured, _QUIET_LINGER_SECONDS)

    async def _round(self, this: Round) -> None:
        assert self._rules is not None
        rules, works = self._rules.now, this.works
        done = False
        try:
            finished = await self._in_thread(
                lambda client: store_round(
                    works,
                    client,
                    topic=self._settings.topic,
                    inc=self._inc,
                    rules=rules,
                    earlier=self._earlier_rules,
                    stopping=self._stopping,
                    heard=self._member.heard,
                    at_once=self._in_thread.at_once,
                )
            )
            self._brake(works, finished.braked)
            self._let_go(this)
            if not await this.may_commit():
                raise Stopping("a block before is not folded")
            await self._in_thread(
                lambda client: fold_round(
                    finished.stored, client, inc=self._inc, stopping=self._stopping, memory=self._cases
                )
            )
            await self._commit(this, finished.stored)
            for item in finished.stored:
                for work in item.works:
                    work.buffer.settle()
            done = True
        except Stopping:
            pass  # not stored or not folded; the records are read again after the next start
        except AbandonedError:
            log.warning("round_abandoned", blocks=[str(work.extent) for work in works])
            this.in_order.set_result(True)  # to none of them there will be a commit of ours
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # see `_watched`
            self._fail(error)
        finally:
            for work in works:
                if not done:
                    # The next block must not be cut in the moment before the worker ends: it would be stored,
                    # and its commit would pass over this one, which is not.
                    work.buffer.stand_still()
            self._let_go(this)
            self._ended(this)

    def _ended(self, this: Round) -> None:
        self._under_way.remove(this)
        this.end()
        self._settled.set()

    def _let_go(self, this: Round) -> None:
        """Its blocks are written, or never will be: the next ones of its partitions may be cut."""
        if this.written:
            return
        this.written = True
        for work in this.works:
            work.buffer.in_flight = False
        self._wake.set()

    async def _commit(self, this: Round, stored: Sequence[Stored]) -> None:
        """Ask for the commit. Counted is what cannot be read again, once its commit stands, in offset
        order."""
        asked = {work.block.partition: self._ask(work) for item in stored for work in item.works}
        this.in_order.set_result(True)
        await self._commits.wait(asked)
        await this.first()
        for item in stored:
            standing = [work for work in item.works if _stands(asked[work.block.partition])]
            for work in standing:
                self._count_owed(work.buffer)  # what was owed before stands as well
            if standing:
                tally = self._account.tally(_part_of(item, standing), unread=item.unread)
                self._count([(work.buffer, work.extent) for work in standing], tally)
            for work in item.works:
                stands = asked[work.block.partition]
                if not stands.done():
                    tally = self._account.tally(
                        _part_of(item, [work]), instants=_INSTANTS_OF_OWED, unread=item.unread
                    )
                    self._owe(
                        work.buffer, Owed(work.extent, work.block.records[0].timestamp_ms, stands, tally)
                    )

    def _ask(self, work: Work) -> asyncio.Future[bool]:
        buffer = work.buffer  # not the work: what is owed must not hold its records
        return self._commits.ask(buffer.partition, work.extent.hi + 1, ours=lambda: not buffer.revoked)

    def _owe(self, buffer: PartitionBuffer, owed: Owed) -> None:
        """Count a block once its commit stands, which was not granted in time."""
        buffer.owed.append(owed)
        owed.stands.add_done_callback(lambda _: self._count_owed(buffer))

    def _count_owed(self, buffer: PartitionBuffer) -> None:
        """In the order of the offsets, whoever is woken first."""
        try:
            while buffer.owed and buffer.owed[0].stands.done():
                owed = buffer.owed.popleft()
                if _stands(owed.stands):
                    self._count([(buffer, owed.extent)], owed.tally)
        except Exception as error:
            self._fail(error)

    def _count(self, blocks: Sequence[tuple[PartitionBuffer, Extent]], tally: Tally) -> None:
        """Of a partition that was taken away meanwhile the events count, and no offset."""
        ours = [(buffer, extent) for buffer, extent in blocks if not buffer.revoked]
        for buffer, extent in ours:
            buffer.committed = extent.hi + 1
        self._account.committed([extent for _, extent in ours], tally)

    def _brake(self, works: Sequence[Work], braked: Mapping[int, str]) -> None:
        """These partitions stand still, their block is neither stored nor committed; whoever gets them next,
        we after a restart for one, reads it again."""
        for work in works:
            partition, buffer = work.block.partition, work.buffer
            if partition not in braked or buffer.revoked:
                continue
            buffer.stand_still()
            self._stopped(buffer, braked[partition], lo=work.extent.lo, hi=work.extent.hi)
        self._feed()

    def _stopped(self, buffer: PartitionBuffer, reason: str, **where: int | None) -> None:
        """Tell that nothing more of this partition is fetched before its next assignment."""
        partition = buffer.partition
        if not buffer.paused:
            buffer.paused = True
            self._member.pause(partition)
        self._account.braked(partition)
        log.error("partition_braked", reason=reason, partition=partition, **where)
        self._standing.brake(partition, reason)

    # --- watching

    async def _watch_member(self) -> None:
        self._fail(await self._member.failed())

    async def _watch_drift(self) -> None:
        def newest() -> list[Extent]:
            return [
                Extent(buffer.partition, max(buffer.committed - LAST_RECORDS, 0), buffer.committed - 1)
                for buffer in self._buffers.values()
                if buffer.committed
            ]

        def fold_again(client: Client, extents: Sequence[Extent]) -> None:
            tell_cases(
                client,
                self._settings.topic,
                self._inc,
                extents,
                self._stopping,
                told=lambda _: self._cases.forget(),
            )

        window = timedelta(days=self._settings.dedup_window_days)
        await watch_drift(self._in_thread, self._inc, newest, fold_again, window)

    async def _watch_topic(self) -> None:
        assert self._topic is not None
        await self._looks.watch_topic(self._topic, self._bootstrap, self._access)
