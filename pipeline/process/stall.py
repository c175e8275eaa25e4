"""Notices partitions that stand still though nothing outside holds them back.

A thread that never returns, a fetch that brings nothing any more: the process looks alive, and the events of
its partition are shown nowhere. Starting again from the last commit costs nothing, so the worker first says
that it is not ready, then ends.

Source: reliability F10 (stalls of Faust and its consumer, all open), c.8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.process.buffer import PartitionBuffer


class Look(NamedTuple):
    """Where a partition is now: `committed` and `received` are the next offsets, `end` is the log's, as
    far as anybody told."""

    committed: int
    received: int
    end: int
    waiting: bool  # records were received and are not committed

    @classmethod
    def at(cls, buffer: PartitionBuffer, end: int) -> Look:
        """end : of the log."""
        owed = (buffer.next_offset or 0) > (buffer.committed or 0)
        waiting = owed or bool(len(buffer)) or buffer.in_flight
        return cls(buffer.committed or 0, buffer.next_offset or 0, end, waiting)


@dataclass
class _Since:
    """A look, and since when nothing has moved."""

    look: Look
    seconds: float


class StallWatch:
    """Looks at partitions again and again.

    seconds : a partition that has not moved for so long is stalled; 0: none ever is.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[int, _Since] = {}

    def still(self, looks: Iterable[tuple[int, Look]], now: float, *, excused: bool) -> dict[int, float]:
        """partition -> for how many seconds it has stood still, of those that do.

        looks : every partition that should move, with where it is. now : monotonic seconds.
        excused : store or group hold everything up, so that this time does not count.
        """
        before, self._since = self._since, {}
        found = {}
        for partition, look in looks:
            since = before.get(partition)
            if since is None or excused or not _stands(since.look, look):
                since = _Since(look, now)
            self._since[partition] = since
            if now > since.seconds:
                found[partition] = now - since.seconds
        return found

    def suspected(self, still: dict[int, float]) -> list[int]:
        """Stand still for half the time: not ready."""
        return self._longer(still, self._seconds / 2)

    def stalled(self, still: dict[int, float]) -> list[int]:
        """Stand still for the whole time: start again."""
        return self._longer(still, self._seconds)

    def _longer(self, still: dict[int, float], seconds: float) -> list[int]:
        return sorted(part for part, lasts in still.items() if lasts >= seconds) if self._seconds else []


def _stands(before: Look, now: Look) -> bool:
    """Whether there is something to do, and nothing was done.

    What the log holds beyond what was received may be the mark of a transaction, which brings no record; but
    no log grows by marks alone, and two are more than one transaction leaves.
    """
    if now.committed != before.committed or now.waiting != before.waiting:
        return False
    if now.waiting:
        return True  # more may have come meanwhile: that moves nothing
    return now.received == before.received and now.end >= before.end + 2 > now.received
