"""Commits while the group takes them, refuses them, hangs, or takes the partitions away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import CommitFailedError, KafkaTimeoutError

from pipeline.process import commits
from pipeline.process.commits import Commits


class Group:
    """A coordinator that answers as it is told to."""

    def __init__(self) -> None:
        self.owned = {0, 1, 2}
        self.offsets: dict[int, int] = {}
        self.history: list[dict[int, int]] = []
        self.refuses: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()
        self.tried = 0

    def owns(self, partition: int) -> bool:
        return partition in self.owned

    async def commit(self, offsets: Mapping[int, int]) -> None:
        self.tried += 1
        await self.answers.wait()
        if self.refuses is not None:
            raise self.refuses
        self.history.append(dict(offsets))
        self.offsets |= offsets

    def assert_never_backward(self) -> None:
        for partition in self.owned:
            told = [offsets[partition] for offsets in self.history if partition in offsets]
            assert told == sorted(told)


@asynccontextmanager
async def running(group: Group) -> AsyncIterator[Commits]:
    made = Commits(group)
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def yes() -> bool:
    return True


async def test_what_is_asked_for_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    async with running(group) as made, asyncio.timeout(5):
        asked = {0: made.ask(0, 10, yes), 1: made.ask(1, 20, yes)}
        await made.wait(asked)
        assert [asked[0].result(), asked[1].result()] == [True, True]
    assert group.offsets == {0: 10, 1: 20}
    assert len(group.history) == 1, "one request for both"


async def test_a_group_that_refuses_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.2)
    group = Group()
    group.refuses = KafkaTimeoutError("injected")
    loop = asyncio.get_running_loop()
    async with running(group) as made, asyncio.timeout(20):
        began = loop.time()
        first = {0: made.ask(0, 10, yes)}
        await made.wait(first)
        assert 0.15 < loop.time() - began < 2
        began = loop.time()
        later = [made.ask(0, offset, yes) for offset in (20, 30)]
        for asked in later:
            await made.wait({0: asked})
        assert loop.time() - began < 0.15, "only the first one waits"
        assert not any(asked.done() for asked in (first[0], *later))
        told: list[int] = []
        for number, asked in enumerate((first[0], *later)):
            asked.add_done_callback(lambda _, number=number: told.append(number))
        group.refuses = None
        assert await later[-1]
        await asyncio.sleep(0)
        assert told == [0, 1, 2]
        # it is waited for again from now on
        again = made.ask(0, 40, yes)
        await made.wait({0: again})
        assert again.done()
    assert group.history == [{0: 30}, {0: 40}]


async def test_commits_never_go_backward_while_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.05)
    group = Group()
    group.answers.clear()
    async with running(group) as made, asyncio.timeout(10):
        asked = [made.ask(0, offset, yes) for offset in (10, 20, 30)]
        await made.wait({0: asked[-1]})
        other = made.ask(1, 5, yes)
        await asyncio.sleep(0.05)
        asked.append(made.ask(0, 40, yes))
        assert group.tried == 1
        group.answers.set()
        assert await asyncio.gather(*asked, other) == [True] * 5
    assert group.offsets == {0: 40, 1: 5}
    group.assert_never_backward()


async def test_what_was_asked_for_behind_a_request_does_not_stand_with_it() -> None:
    """The request was sent before the later block was stored, and the next one is refused: a block that
    counted as committed with the first one would be counted again by whoever reads it again."""
    group = Group()
    group.answers.clear()

    def refuse_the_next() -> None:
        if group.tried == 1:
            group.refuses = KafkaTimeoutError("injected")

    made = Commits(group, returned=refuse_the_next)
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(5):
            first = made.ask(0, 10, yes)
            while group.tried < 1:  # noqa: ASYNC110  its requests are counted, not told
                await asyncio.sleep(0)
            behind = made.ask(0, 20, yes)
            group.answers.set()
            while group.tried < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert first.result() is True
            assert group.offsets == {0: 10}
            assert not behind.done()
            group.refuses = None
            assert await behind is True
        assert group.history == [{0: 10}, {0: 20}]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("error", [KafkaTimeoutError("injected"), CommitFailedError("injected")])
async def test_what_is_taken_away_is_not_committed(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.05)
    group = Group()
    group.refuses = error
    revoked = False
    async with running(group) as made, asyncio.timeout(10):
        gone = made.ask(0, 10, lambda: not revoked)
        lost = made.ask(1, 10, yes)
        kept = made.ask(2, 10, yes)
        await made.wait({0: gone, 1: lost, 2: kept})
        revoked = True
        group.owned.discard(1)
        assert await gone is False
        assert await lost is False
        # the partition comes back by another assignment, which is committed for itself
        fresh = made.ask(0, 5, yes)
        group.refuses = None
        assert await fresh is True
        assert await kept is True
    assert group.offsets == {0: 5, 2: 10}


async def test_a_partition_that_owes_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(commits, "MOST_OWED", 3)
    group = Group()
    group.refuses = KafkaTimeoutError("injected")
    async with running(group) as made, asyncio.timeout(10):
        for offset in (1, 2, 3):
            await made.wait({0: made.ask(0, offset, yes)})
        last = made.ask(0, 4, yes)
        waiting = asyncio.create_task(made.wait({0: last}))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        group.refuses = None
        await waiting
        assert last.result() is True


async def test_what_an_earlier_assignment_owed_is_no_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request hangs while the partition goes and comes back."""
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(commits, "MOST_OWED", 3)
    group = Group()
    group.answers.clear()
    revoked = False
    async with running(group) as made, asyncio.timeout(10):
        earlier = [made.ask(0, offset, lambda: not revoked) for offset in range(10, 60, 10)]
        await asyncio.sleep(0)
        later = [made.ask(0, offset, lambda: not revoked) for offset in (60, 70)]
        waiting = asyncio.create_task(made.wait({0: later[-1]}))
        await asyncio.sleep(0.2)
        assert not waiting.done(), "seven blocks are owed"
        assert made.on_the_way(0)
        revoked = True
        made.drop_lost()
        await waiting
        assert [stands.done() and stands.result() for stands in later] == [False, False]
        assert all(stands.done() for stands in later)
        # what the request covers may still be granted, and nobody else would count it
        assert not any(stands.done() for stands in earlier)
        fresh = made.ask(0, 30, yes)
        await made.wait({0: fresh})
        group.answers.set()
        assert await asyncio.gather(*earlier) == [True] * 5
        assert await fresh is True
        assert not made.on_the_way(0)


async def test_an_end_asks_once_more_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(commits, "_FIRST_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(commits, "_LONGEST_WAIT_SECONDS", 60.0)
    group = Group()
    group.refuses = KafkaTimeoutError("injected")
    async with running(group) as made, asyncio.timeout(10):
        asked = made.ask(0, 10, yes)
        await made.wait({0: asked})
        began = asyncio.get_running_loop().time()
        await made.finish([0, 1], 0.3)
        assert 0.2 < asyncio.get_running_loop().time() - began < 3
        assert not asked.done()
        group.refuses = None
        await made.finish([0, 1], 5)
        assert asked.result() is True
    assert group.offsets == {0: 10}


async def test_what_is_no_refusal_ends_the_worker() -> None:
    group = Group()
    group.refuses = RuntimeError("a fault of ours")
    made = Commits(group)
    made.ask(0, 1, yes)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        async with asyncio.timeout(5):
            await made.run()
