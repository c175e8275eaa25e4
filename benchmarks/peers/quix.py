"""quixstreams: a StreamingDataFrame that decodes and judges, a batching sink that inserts.

Tuned: no changelog topics, no state store (a Python set does for ids), large commits, inserts in a thread
beside decoding, expansion of a record
inside one function, so that the framework's cost falls on records, not on events, where records are blocks.
"""

from __future__ import annotations

import logging
from typing import Any

from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

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


class ClickHouse(BatchingSink):
    """Keeps rows until there are enough for an insert; the last insert ends the run. Batches come partition
    by partition: when all events are judged, those of other partitions may be still to come."""

    def __init__(self, task: Task, work: Work, clock: Clock) -> None:
        super().__init__()
        self.task, self.work, self.clock = task, work, clock
        self.sink = Sink(task.path)
        self.rows: list[tuple[Any, ...]] = []
        self.written = 0

    def write(self, batch: SinkBatch) -> None:
        for item in batch:
            self.rows.extend(item.value)
            self.written += len(item.value)
        last = self.work.taken == self.task.events and self.written == self.work.stored
        if len(self.rows) >= self.task.insert_rows or last:
            self.sink.insert_beside(self.rows)
            self.rows = []
        if last:
            self.sink.wait()
            finish_work(self.clock, self.work, self.sink)


def main() -> None:
    logging.disable(logging.CRITICAL)
    task = Task.read()
    work, clock = Work(Reference(task.reference)), Clock()
    app = Application(
        broker_address=task.bootstrap,
        consumer_group="peer",
        auto_offset_reset="earliest",
        auto_create_topics=False,
        use_changelog_topics=False,
        processing_guarantee="at-least-once",
        state_dir=str(task.path.parent / "quix"),
        commit_interval=0.2,  # the run ends at a commit: a long interval would be counted as work
        commit_every=task.insert_rows if task.form == "each" else max(1, task.insert_rows // 500),
        consumer_extra_config={"fetch.queue.backoff.ms": 2, "queued.min.messages": 1_000_000},
        loglevel=None,
    )
    topic = app.topic(task.topic, value_deserializer="bytes", key_deserializer="bytes")
    row = work.row

    def judge(value: bytes) -> list[tuple[Any, ...]]:
        clock.start()
        return [found for event in DECODER.decode_lines(value) if (found := row(event)) is not None]

    app.dataframe(topic).apply(judge).sink(ClickHouse(task, work, clock))
    freeze()
    app.run()


if __name__ == "__main__":
    main()
