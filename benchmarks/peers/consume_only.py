"""Floor: librdkafka takes every record off the broker and does nothing with it."""

from __future__ import annotations

from confluent_kafka import Consumer, TopicPartition

from benchmarks.peers.common import Clock, Task, finish

#: `consume` answers when it has all that was asked for, or after this time: the last call waits it out.
WAIT_SECONDS = 0.01


def consumer_of(task: Task) -> Consumer:
    """A tuned consumer on all partitions from their first record."""
    found = Consumer(
        {
            "bootstrap.servers": task.bootstrap,
            "group.id": "floor",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 2,
            "queued.min.messages": 1_000_000,
            "queued.max.messages.kbytes": 262_144,
            "check.crcs": False,
        }
    )
    found.assign([TopicPartition(task.topic, number, 0) for number in range(task.partitions)])
    return found


def main() -> None:
    task, clock = Task.read(), Clock()
    consumer = consumer_of(task)
    block = task.form != "each"
    taken = octets = 0
    while taken < task.events:
        for record in consumer.consume(10_000 if not block else 200, WAIT_SECONDS):
            clock.start()
            value = record.value()
            octets += len(value)
            taken += value.count(b"\n") + 1 if block else 1
    finish(clock.stop(), {"taken": taken}, bytes=octets)


if __name__ == "__main__":
    main()
