"""What the broker says about the topic, and what it leaves out."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin._listoffsets import OffsetSpec

from pipeline.errors import UnavailableError
from pipeline.process import topic as module
from pipeline.process.topic import describe_topic


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Admin:
    """Answers as librdkafka does; begins, ends : per partition, -1001 where the leader is away."""

    begins: tuple[int, ...] = (2, 0, 0)
    ends: tuple[int, ...] = ()

    def __init__(self, _: dict[str, object]) -> None: ...

    def describe_cluster(self, **_: Any) -> Any:
        return done(SimpleNamespace(cluster_id="cluster"))

    def list_topics(self, topic: str, **_: Any) -> Any:
        found = SimpleNamespace(error=None, partitions=dict.fromkeys(range(len(self.ends))))
        return SimpleNamespace(topics={topic: found})

    def describe_topics(self, _: Any, **__: Any) -> Any:
        return {"t": done(SimpleNamespace(topic_id="id"))}

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> Any:
        earliest = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        return {
            at: done(SimpleNamespace(offset=(self.begins if spec is earliest else self.ends)[at.partition]))
            for at, spec in asked.items()
        }


def test_an_end_that_is_not_known_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a partition's leader is away librdkafka tells -1001 and no error. Taken for an end, it ended the
    worker, and a start in that moment took the log for a new one."""
    monkeypatch.setattr(module, "AdminClient", Admin)
    monkeypatch.setattr(Admin, "ends", (5, 0, 7))
    found = describe_topic("kafka:9092", "t")
    assert (found.begins, found.end_offsets) == ({0: 2, 1: 0, 2: 0}, {0: 5, 1: 0, 2: 7})
    monkeypatch.setattr(Admin, "ends", (5, -1001, 7))
    with pytest.raises(UnavailableError, match=r"partitions \[1\]"):
        describe_topic("kafka:9092", "t")
