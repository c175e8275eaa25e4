"""A plain Faust agent doing the common work event by event, as the framework's tutorial leads to."""

from __future__ import annotations

from typing import Any

import faust

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


def main() -> None:
    task = Task.read()
    work, sink, clock = Work(Reference(task.reference)), Sink(task.path), Clock()
    freeze()
    app = faust.App(
        "peer",
        broker=f"kafka://{task.bootstrap}",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        broker_rebalance_timeout=6.0,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        stream_wait_empty=False,
        datadir=str(task.path.parent / "faust"),
    )
    (task.path.parent / "faust").mkdir(exist_ok=True)
    rows: list[tuple[Any, ...]] = []

    @app.agent(app.topic(task.topic, value_serializer="raw"))
    async def handle(stream: Any) -> None:
        async for value in stream:
            clock.start()
            for event in DECODER.decode_lines(value):
                row = work.row(event)
                if row is not None:
                    rows.append(row)
            if len(rows) >= task.insert_rows:
                sink.insert(rows)
                rows.clear()
            if work.taken == task.events:
                sink.insert(rows)
                finish_work(clock, work, sink)

    app.finalize()
    worker = faust.Worker(app, loglevel="ERROR", redirect_stdouts=False)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
