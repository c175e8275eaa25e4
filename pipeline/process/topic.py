"""What the broker says about the topic: its id, its cluster, where each partition ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from pipeline.errors import ConfigurationError, UnavailableError

_CALL_SECONDS: Final = 30.0
#: The embedded broker tells where its last *batch* begins, which is too low by the batch's other records. Its
#: log ends with its process and comes back under another topic id, so its ends need not be compared at all.
_ENDS_UNKNOWN: Final = "tansu_cluster"


@dataclass(frozen=True)
class TopicFacts:
    """topic_id : changes when the topic is created anew; end_offsets : partition -> next offset written,
    empty if the broker does not tell it right; partitions : how many there are, 0: not known; ends_at_least :
    as end_offsets, too low where the broker does not tell it right; begins : partition -> first offset that
    the log holds."""

    topic_id: str
    cluster_id: str
    end_offsets: Mapping[int, int]
    partitions: int = 0
    ends_at_least: Mapping[int, int] = field(default_factory=dict)
    begins: Mapping[int, int] = field(default_factory=dict)

    def differs(self, now: TopicFacts, read: Mapping[int, int]) -> str | None:
        """Why `now` is not the log that these facts are about, None if it is.

        read : partition -> next offset to be read, taken before `now` was asked for.
        """
        if self.partitions and now.partitions and now.partitions != self.partitions:
            # rows with one id would meet in no partition, and sets of cases be held by nobody as a whole
            return f"the topic has {now.partitions} partitions instead of {self.partitions}"
        if (now.topic_id, now.cluster_id) != (self.topic_id, self.cluster_id):
            return "the topic was replaced by a new one of the same name"
        cut = sorted(part for part, offset in read.items() if now.end_offsets.get(part, offset) < offset)
        return f"the log ends before offsets that were read from it (partitions {cut})" if cut else None


def describe_topic(
    bootstrap: str,
    topic: str,
    *,
    seconds: float = _CALL_SECONDS,
    access: Mapping[str, str] | None = None,
) -> TopicFacts:
    """Ask the broker, `seconds` at most for all questions. access : of `kafka_access.librdkafka_options`.

    Raises UnavailableError (no answer), ConfigurationError (no such topic).
    """
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, **(access or {})})
    deadline = time.monotonic() + seconds

    def left() -> float:
        return max(deadline - time.monotonic(), 0.001)

    try:
        cluster = admin.describe_cluster(request_timeout=left()).result(left())
        found = admin.list_topics(topic, timeout=left()).topics.get(topic)
        if found is None or found.error is not None or not found.partitions:
            raise ConfigurationError(
                f"topic {topic} does not exist on {bootstrap}; create it, or let `gridpipe up` create it"
            )
        described = admin.describe_topics(TopicCollection([topic]), request_timeout=left())
        topic_id = str(described[topic].result(left()).topic_id)
        begins, ends = (
            {
                at.partition: answer.result(left()).offset
                for at, answer in admin.list_offsets(
                    {TopicPartition(topic, part): spec for part in found.partitions}, request_timeout=left()
                ).items()
            }
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
        )
    except (KafkaException, TimeoutError) as error:
        raise UnavailableError(f"Kafka at {bootstrap} does not answer: {error}") from error
    # librdkafka's answer, without an error, for a partition whose leader is away: nothing is known of its end
    if missing := sorted(part for part in ends if min(begins[part], ends[part]) < 0):
        raise UnavailableError(f"Kafka at {bootstrap} does not tell where partitions {missing} begin and end")
    cluster_id = str(cluster.cluster_id or "")
    exact = {} if cluster_id == _ENDS_UNKNOWN else ends
    return TopicFacts(topic_id, cluster_id, exact, len(found.partitions), ends, begins)
