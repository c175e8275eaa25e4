"""Which partitions stand still, and why: what readiness tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import structlog

from pipeline.process.buffer import PartitionBuffer

log = structlog.get_logger(__name__)


class Standing:
    """Told at each change; lives on the event loop.

    buffers : the worker's partitions, changed by the worker. tell : partition -> reason, of those that stand.
    """

    def __init__(
        self, buffers: Mapping[int, PartitionBuffer], tell: Callable[[Mapping[int, str]], None]
    ) -> None:
        self._buffers = buffers
        self._tell = tell
        self._told: dict[int, str] = {}
        self._braked: dict[int, str] = {}
        self._suspected: list[int] = []
        self._refused: Collection[int] = ()
        self._was_ready = False

    def ready(self) -> None:
        """The first assignment is recovered. Before, the worker is "starting", and no partition is named."""
        self._was_ready = True

    def brake(self, partition: int, reason: str) -> None:
        """Until its next assignment."""
        self._braked[partition] = reason
        self.changed()

    def braked(self, partition: int) -> bool:
        return partition in self._braked

    def forget(self, partition: int) -> None:
        """The partition belongs to somebody else now."""
        self._braked.pop(partition, None)

    def look(self, suspected: list[int], refused: Collection[int]) -> None:
        """suspected : records wait and nothing is committed; refused : the store takes nothing of theirs."""
        if suspected != self._suspected:
            log.error("partitions_stand_still", partitions=suspected)
        self._suspected, self._refused = suspected, refused
        self.changed()

    def changed(self) -> None:
        """A partition came, went, or is recovered."""
        standing = dict.fromkeys(self._suspected, "records wait and nothing is committed")
        standing |= dict.fromkeys(self._refused, "the store does not take its block")
        if self._was_ready:
            recovering = [buffer.partition for buffer in self._buffers.values() if not buffer.recovered]
            standing |= dict.fromkeys(recovering, "it came by a rebalance and is still being recovered")
        standing |= self._braked
        if standing != self._told:
            self._told = standing
            self._tell(standing)
