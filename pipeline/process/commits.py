"""Commits what is stored: in order, the newest offset of each partition, asked for until it stands.

A group that refuses commits for a while holds nothing up: the next blocks are stored meanwhile, and one later
commit covers them all. Until then a crash only makes the next owner rebuild more of them.

Source: reliability c.6 (monotone, retried, from one place), fault 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

log = structlog.get_logger(__name__)

#: How long a round waits for its commit; longer than one that works takes, less than a revocation waits.
PATIENCE_SECONDS: Final = 2.0
#: Blocks of one partition that may be stored and not committed; the next one waits. The store remembers the
#: tokens of many more.
MOST_OWED: Final = 200
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 5.0


class Member(Protocol):
    """What is asked of the group; see membership.Membership."""

    def owns(self, partition: int) -> bool: ...
    async def commit(self, offsets: Mapping[int, int]) -> None: ...


@dataclass(frozen=True)
class _Asked:
    offset: int  # the next one to be read
    ours: Callable[[], bool]
    stands: asyncio.Future[bool]


class Commits:
    """The commits of one worker; lives on the event loop."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._asked: dict[int, deque[_Asked]] = {}
        self._wake = asyncio.Event()
        self._refused = False

    def ask(self, partition: int, offset: int, ours: Callable[[], bool]) -> asyncio.Future[bool]:
        """Commit this next offset of a partition, above those asked for before.

        ours : whether the assignment that read the records still holds.
        The future becomes True once the commit stands, and False when the partition was taken away: its new
        owner finds the rows. Those of a partition come true in order.
        """
        stands: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(partition, deque()).append(_Asked(offset, ours, stands))
        self._wake.set()
        return stands

    async def wait(self, asked: Mapping[int, asyncio.Future[bool]]) -> None:
        """Until these came out, or the group has refused for long enough to go on without."""
        while left := {part: stands for part, stands in asked.items() if not stands.done()}:
            crowded = any(len(self._asked.get(part, ())) > MOST_OWED for part in left)
            patience = 0.0 if self._refused else PATIENCE_SECONDS
            await asyncio.wait(left.values(), timeout=None if crowded else patience)
            if not crowded and not all(stands.done() for stands in left.values()):
                self._refused = True
                return

    async def run(self) -> None:
        """Commit what is asked for, until cancelled. Raises what is no refusal of the group."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            self._wake.clear()
            self._drop_lost()
            newest = {partition: asked[-1].offset for partition, asked in self._asked.items()}
            if not newest:
                await self._wake.wait()
                continue
            try:
                await self._member.commit(newest)
            except KafkaError as error:
                moved_on = isinstance(error, (CommitFailedError, IllegalStateError))
                log.log(
                    logging.INFO if moved_on else logging.WARNING,
                    "the group moved on before the commit" if moved_on else "commit failed; trying again",
                    partitions=sorted(newest),
                    blocks=sum(len(asked) for asked in self._asked.values()),
                    error=f"{type(error).__name__}: {error}",
                )
                await self._pause(wait)
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                self._refused = False
                wait = _FIRST_WAIT_SECONDS
                for partition, offset in newest.items():
                    self._settle(partition, up_to=offset)

    async def _pause(self, seconds: float) -> None:
        """Meanwhile a partition may be taken away, and somebody waits to hear that."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while True:
                    await asyncio.sleep(min(seconds, _FIRST_WAIT_SECONDS))
                    self._drop_lost()

    def _drop_lost(self) -> None:
        for partition, asked in list(self._asked.items()):
            owned = self._member.owns(partition)
            lost = [one for one in asked if not (owned and one.ours())]
            if lost:
                self._replace(partition, deque(one for one in asked if owned and one.ours()))
                _tell(lost, stands=False)

    def _settle(self, partition: int, *, up_to: int) -> None:
        asked = self._asked.get(partition, deque())
        done = [one for one in asked if one.offset <= up_to]
        self._replace(partition, deque(one for one in asked if one.offset > up_to))
        _tell(done, stands=True)

    def _replace(self, partition: int, left: deque[_Asked]) -> None:
        if left:
            self._asked[partition] = left
        else:
            self._asked.pop(partition, None)


def _tell(asked: Collection[_Asked], *, stands: bool) -> None:
    for one in asked:
        if not one.stands.done():  # cancelled with its round
            one.stands.set_result(stands)
