"""bytewax: a Kafka source, a batched flat_map that decodes and judges, a sink that inserts.

Tuned: large source batches, `flat_map_batch` (one Python call per batch, not per record), one worker, no
recovery store, inserts in a thread beside decoding. The source ends at the last record, then the flow does.
"""

from __future__ import annotations

from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

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


class _Partition(StatelessSinkPartition[Any]):
    def __init__(self, sink: Sink, insert_rows: int) -> None:
        self.sink, self.insert_rows = sink, insert_rows
        self.rows: list[tuple[Any, ...]] = []

    def write_batch(self, items: list[Any]) -> None:
        self.rows.extend(items)
        if len(self.rows) >= self.insert_rows:
            self.sink.insert_beside(self.rows)
            self.rows = []

    def close(self) -> None:
        self.sink.insert_beside(self.rows)
        self.sink.wait()


class ClickHouse(DynamicSink[Any]):
    def __init__(self, sink: Sink, insert_rows: int) -> None:
        self.sink, self.insert_rows = sink, insert_rows

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Partition:
        return _Partition(self.sink, self.insert_rows)


def main() -> None:
    task = Task.read()
    work, sink, clock = Work(Reference(task.reference)), Sink(task.path), Clock()
    row = work.row

    def judge(messages: list[KafkaSourceMessage[Any, Any]]) -> list[tuple[Any, ...]]:
        clock.start()
        return [
            found
            for message in messages
            for event in DECODER.decode_lines(message.value)
            if (found := row(event)) is not None
        ]

    flow = Dataflow("peer")
    source = KafkaSource(
        [task.bootstrap],
        [task.topic],
        tail=False,
        add_config={"fetch.queue.backoff.ms": "2"},
        batch_size=5_000 if task.form == "each" else 20,
    )
    messages = op.input("topic", flow, source)
    rows = op.flat_map_batch("judge", messages, judge)
    op.output("clickhouse", rows, ClickHouse(sink, task.insert_rows))
    freeze()
    run_main(flow)
    finish_work(clock, work, sink)


if __name__ == "__main__":
    main()
