"""Requests that arrive together are written together.

A frame, its blocks and their records cost a fixed time: for a request of one event it is a hundred times that
of the event. While one group is encoded, the requests that arrive make the next: under load groups grow by
themselves, and a quiet gateway makes nobody wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.event import Event
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_batch
from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import Block, encode_sorted, homes
from pipeline.ingest.durability import Durability
from pipeline.ingest.gate import Gate
from pipeline.ingest.producer import BlockProducer, Written

#: What became of an event: safe as promised; with the broker but not confirmed in time; not with the broker.
SAFE: Final = 0
UNCONFIRMED: Final = 1
UNWRITTEN: Final = 2

#: A group takes no further request beyond this: the next waits while it is encoded.
_GROUP_EVENTS: Final = 20_000
#: Up to this many events and bytes are encoded on the loop: milliseconds, less than the change to a
#: thread costs where the loop itself is busy. Few events can be long, and redaction reads all of them.
_INLINE_EVENTS: Final = 64
_INLINE_BYTES: Final = 65_536

States = NDArray[np.uint8]


@dataclass(slots=True)
class _Waiting:
    """The events of one request, and its future answer."""

    events: Sequence[Event]
    size: int
    ingested_at: datetime
    request_id: str
    backfill: bool
    done: asyncio.Future[States]


class GroupWriter:
    """Events to the log in groups of requests. One per gateway, used from its event loop."""

    def __init__(
        self,
        *,
        privacy: Privacy,
        producer: BlockProducer,
        durability: Durability,
        gate: Gate,
        max_block_bytes: int,
    ) -> None:
        self._privacy = privacy
        self.producer = producer
        self.durability = durability
        self._gate = gate
        self._max_block_bytes = max_block_bytes
        self._waiting: deque[_Waiting] = deque()
        self._work: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def write(
        self, events: Sequence[Event], *, size: int, ingested_at: datetime, request_id: str, backfill: bool
    ) -> States:
        """SAFE, UNCONFIRMED or UNWRITTEN for each event, (n,), when all are known.

        size : bytes that the events came in.
        Raises UnavailableError when the log does not answer at all, and what encoding the events raises.
        """
        loop = asyncio.get_running_loop()
        request = _Waiting(events, size, ingested_at, request_id, backfill, loop.create_future())
        self._waiting.append(request)
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._write_groups())
        return await request.done

    async def close(self) -> None:
        """Give up what has no answer yet."""
        tasks = [task for task in (self._work, *self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _fail(list(self._waiting), UnavailableError("the gateway stops; send again"))

    # --- one group after the other is encoded; any number are on their way

    async def _write_groups(self) -> None:
        while self._waiting:
            # what arrives in the same turn of the loop goes along
            await asyncio.sleep(0)
            group = self._next_group()
            try:
                partitions = await self.producer.partitions()
                await self._encode_and_send(group, partitions)
            except asyncio.CancelledError:
                _fail(group, UnavailableError("the gateway stops; send again"))
                raise
            except Exception as error:
                _fail(group, error)

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        events = 0
        while self._waiting and (not group or events + len(self._waiting[0].events) <= _GROUP_EVENTS):
            request = self._waiting.popleft()
            if not request.done.done():  # its caller may have gone away
                events += len(request.events)
                group.append(request)
        return group

    async def _encode_and_send(self, group: Sequence[_Waiting], partitions: int) -> None:
        if not group:
            return
        events = sum(len(request.events) for request in group)
        try:
            if events <= _INLINE_EVENTS and sum(request.size for request in group) <= _INLINE_BYTES:
                blocks = self._encode(group, partitions)
            else:
                blocks = await asyncio.to_thread(self._encode, group, partitions)
        except Exception:
            if len(group) == 1:
                raise
            for request in group:  # one request's fault is no other's
                try:
                    await self._encode_and_send([request], partitions)
                except Exception as error:
                    _fail([request], error)
            return
        task = asyncio.get_running_loop().create_task(self._send(group, blocks, events))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _encode(self, group: Sequence[_Waiting], partitions: int) -> list[Block]:
        """The group's blocks. Its events are sorted by partition first: a block is a slice of the columns."""
        events = [event for request in group for event in request.events]
        home = homes([event.grid_code for event in events], partitions)
        order = np.argsort(home, kind="stable")
        which = np.repeat(np.arange(len(group)), [len(request.events) for request in group])
        batch = to_batch(
            [events[at] for at in order.tolist()],
            ingested_at=[request.ingested_at for request in group],
            request_id=[request.request_id for request in group],
            backfill=[request.backfill for request in group],
            which=which[order].tolist(),
            privacy=self._privacy,
        )
        return encode_sorted(batch, home[order], order, self._max_block_bytes)

    async def _send(self, group: Sequence[_Waiting], blocks: Sequence[Block], events: int) -> None:
        states = np.full(events, UNWRITTEN, np.uint8)
        try:
            async with self._gate:
                since = time.monotonic()
                deliveries = await self.producer.send(blocks)
                written = [
                    (block, delivery)
                    for block, delivery in zip(blocks, deliveries, strict=True)
                    if isinstance(delivery, Written)
                ]
                confirmed = await self.durability.confirm([each for _, each in written], since=since)
        except asyncio.CancelledError:
            _fail(group, UnavailableError("the gateway stops; send again"))
            raise
        except Exception as error:
            _fail(group, error)
            return
        for (block, _), safe in zip(written, confirmed, strict=True):
            states[block.rows] = SAFE if safe else UNCONFIRMED
        first = 0
        for request in group:
            end = first + len(request.events)
            if not request.done.done():
                request.done.set_result(states[first:end])
            first = end


def _fail(group: Sequence[_Waiting], error: Exception) -> None:
    for request in group:
        with contextlib.suppress(asyncio.InvalidStateError):
            request.done.set_exception(error)
