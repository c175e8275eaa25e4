"""The broker's in-memory twin: the gateway on a log in this process, for tests and for trying it out."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import Block
from pipeline.ingest.producer import Delivery, Unwritten, Written


class MemoryLog:
    """`BlockProducer` that keeps payloads in a list per partition.

    refused : partitions that cannot be written; down : whether nothing answers.
    """

    def __init__(self, partitions: int = 12) -> None:
        self.records: list[list[bytes]] = [[] for _ in range(partitions)]
        self.refused: set[int] = set()
        self.down = False

    def available(self) -> bool:
        return not self.down

    async def partitions(self) -> int:
        if self.down:
            raise UnavailableError("the log is down")
        return len(self.records)

    async def send(self, blocks: Sequence[Block]) -> list[Delivery]:
        if self.down:
            raise UnavailableError("the log is down")
        deliveries: list[Delivery] = []
        for block in blocks:
            if block.partition in self.refused:
                deliveries.append(Unwritten(block.partition, "refused"))
            else:
                self.records[block.partition].append(block.payload)
                deliveries.append(Written(block.partition, len(self.records[block.partition]) - 1))
        return deliveries

    async def close(self) -> None:
        """Nothing is under way."""
