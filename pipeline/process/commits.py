"""Commits what is stored: in order, the newest offset of each partition, asked for until it stands.

A group that refuses commits, or does not answer, holds nothing up: the next blocks are stored meanwhile, and
one later commit covers them all. Until then a crash only makes the next owner rebuild more of them.

Source: reliability c.6 (monotone, retried, from one place), fault 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

log = structlog.get_logger(__name__)

#: How long a round waits for its commit; longer than one that works takes, less than a revocation waits.
PATIENCE_SECONDS: Final = 2.0
#: Blocks of one partition that may be stored and not committed; the round of the next one waits.
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
    """The commits of one worker; lives on the event loop.

    returned : called whenever a request has come back.
    """

    def __init__(self, member: Member, returned: Callable[[], None] = lambda: None) -> None:
        self._member = member
        self._returned = returned
        self._asked: dict[int, list[_Asked]] = {}
        self._on_the_way: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._refused = False

    def ask(self, partition: int, offset: int, ours: Callable[[], bool]) -> asyncio.Future[bool]:
        """Commit this next offset of a partition, above those asked for before.

        ours : whether the assignment that read the records still holds.
        The future becomes True once the commit stands, and False when the partition was taken away: its new
        owner finds the rows. Those of a partition come true in order.
        """
        stands: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(partition, []).append(_Asked(offset, ours, stands))
        self._wake.set()
        return stands

    def on_the_way(self, partition: int) -> bool:
        """Whether a request for this partition is out, be it of an earlier assignment: it may be granted."""
        return partition in self._on_the_way

    async def wait(self, asked: Mapping[int, asyncio.Future[bool]]) -> None:
        """Until these came out, or the group has not granted them for long enough to go on without."""
        while left := {part: stands for part, stands in asked.items() if not stands.done()}:
            crowded = any(self._owed(part) > MOST_OWED for part in left)
            await asyncio.wait(
                left.values(), timeout=PATIENCE_SECONDS if crowded or not self._refused else 0.0
            )
            if not crowded and not all(stands.done() for stands in left.values()):
                self._refused = True
                return

    async def finish(self, partitions: Iterable[int], seconds: float) -> None:
        """Ask at once for what is owed of these partitions; until it came out, or for `seconds`."""
        left = [one.stands for partition in partitions for one in self._asked.get(partition, ())]
        if left:
            self._hurry.set()
            await asyncio.wait(left, timeout=max(seconds, 0.0))

    def drop_lost(self) -> None:
        """Partitions were taken away: tell who waits. What a request on the way covers may still be granted,
        and nobody else would count it; that request tells."""
        for partition, asked in list(self._asked.items()):
            owned = self._member.owns(partition)
            up_to = self._on_the_way.get(partition, -1)
            lost = [one for one in asked if one.offset > up_to and not (owned and one.ours())]
            if lost:
                self._keep(partition, [one for one in asked if one not in lost])
                _tell(lost, stands=False)

    async def run(self) -> None:
        """Commit what is asked for, until cancelled. Raises what is no refusal of the group."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            self._wake.clear()
            self.drop_lost()
            newest = {partition: asked[-1].offset for partition, asked in self._asked.items()}
            if not newest:
                await self._wake.wait()
                continue
            if await self._commit(newest):
                self._refused = False
                wait = _FIRST_WAIT_SECONDS
            else:
                self.drop_lost()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._hurry.wait()
                wait = _FIRST_WAIT_SECONDS if self._hurry.is_set() else min(2 * wait, _LONGEST_WAIT_SECONDS)
                self._hurry.clear()

    async def _commit(self, newest: dict[int, int]) -> bool:
        self._on_the_way = newest
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
            return False
        else:
            for partition, offset in newest.items():
                asked = self._asked.get(partition, [])
                self._keep(partition, [one for one in asked if one.offset > offset])
                _tell([one for one in asked if one.offset <= offset], stands=True)
            return True
        finally:
            self._on_the_way = {}
            self._returned()

    def _owed(self, partition: int) -> int:
        return sum(one.ours() for one in self._asked.get(partition, ()))

    def _keep(self, partition: int, left: list[_Asked]) -> None:
        if left:
            self._asked[partition] = left
        else:
            self._asked.pop(partition, None)


def _tell(asked: Collection[_Asked], *, stands: bool) -> None:
    for one in asked:
        if not one.stands.done():  # cancelled with its round
            one.stands.set_result(stands)
