"""aiokafka + msgspec: the best Python row program that we know how to write, tuned as ours is.

Typed decoding of a whole record at once, dictionaries for look-ups, a set of ids, large Arrow inserts in a
thread that overlap with decoding, uvloop, the garbage collector frozen over the register.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.peers.common import (
    DECODER,
    Clock,
    Reference,
    Sink,
    Task,
    Work,
    finish_work,
    freeze,
)


async def run(task: Task) -> None:
    work, sink, clock = Work(Reference(task.reference)), Sink(task.path), Clock()
    freeze()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.bootstrap,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4_000_000,
        fetch_max_bytes=50_000_000,
        check_crcs=False,
    )
    await consumer.start()
    consumer.assign([TopicPartition(task.topic, number) for number in range(task.partitions)])
    await consumer.seek_to_beginning()
    loop = asyncio.get_running_loop()
    inserting: asyncio.Future[None] | None = None
    rows: list[tuple[Any, ...]] = []
    row, append, decode, lines = work.row, rows.append, DECODER.decode, DECODER.decode_lines
    one = task.form == "each"
    taken = 0
    while taken < task.events:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            clock.start()
            for record in records:
                events = (decode(record.value),) if one else lines(record.value)
                taken += len(events)
                for event in events:
                    found = row(event)
                    if found is not None:
                        append(found)
            if len(rows) >= task.insert_rows:
                if inserting is not None:
                    await inserting
                inserting = loop.run_in_executor(None, sink.insert, rows)
                rows = []
                append = rows.append
    if inserting is not None:
        await inserting
    sink.insert(rows)
    finish_work(clock, work, sink)


if __name__ == "__main__":
    uvloop.run(run(Task.read()))
