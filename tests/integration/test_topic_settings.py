"""The topic on a real Kafka node: created as the settings say, read back, refused if it keeps too little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from structlog.testing import capture_logs

from infra.kafka.cluster import Cluster
from pipeline.errors import ConfigurationError
from pipeline.runtime import broker, topic_settings
from pipeline.runtime.doctor import EXIT_CONFIGURATION, _broker
from pipeline.settings import Settings


@pytest.fixture
def topic() -> str:
    return f"settings-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def admin(kafka_node: Cluster) -> AdminClient:
    return broker.wait_until_up(kafka_node.bootstrap, seconds=20)


def test_a_topic_is_created_as_the_settings_say(admin: AdminClient, topic: str) -> None:
    settings = Settings(topic=topic, topic_replication=1, topic_retention_days=3, partitions=5)
    assert topic_settings.ensure_topic(admin, settings) == 5
    found = topic_settings.read_topic(admin, topic)
    assert found == topic_settings.TopicState(
        5, 1, 1, unclean=False, retention_ms=3 * 24 * 3_600_000, retention_bytes=-1, cleanup="delete",
        timestamps="LogAppendTime",
    )  # fmt: skip
    with capture_logs() as logs:
        topic_settings.check_topic(admin, settings)
    (told,) = [line for line in logs if line["log_level"] == "warning"]
    assert "one disk can lose answered events" in told["what"]


def test_an_old_record_is_as_old_as_its_arrival(admin: AdminClient, kafka_node: Cluster, topic: str) -> None:
    """A writer that repeats a dump with its old times: retention would take it unread, and a copy of it would
    be stored again, for its ids are remembered by when they were received."""
    topic_settings.ensure_topic(admin, Settings(topic=topic, topic_replication=1, partitions=1))
    producer = Producer({"bootstrap.servers": kafka_node.bootstrap})
    began = time.time()
    producer.produce(topic, b"{}", timestamp=1_000)
    assert producer.flush(10) == 0
    consumer = Consumer({"bootstrap.servers": kafka_node.bootstrap, "group.id": topic})
    consumer.assign([TopicPartition(topic, 0, 0)])
    (message,) = consumer.consume(1, timeout=20)
    consumer.close()
    kind, milliseconds = message.timestamp()
    assert kind == TIMESTAMP_LOG_APPEND_TIME
    assert began - 1 <= milliseconds / 1_000 <= time.time() + 1


def test_one_node_cannot_hold_three_copies_and_it_says_what_to_do(admin: AdminClient, topic: str) -> None:
    with pytest.raises(ConfigurationError, match="GRIDPIPE_TOPIC_REPLICATION=1"):
        topic_settings.ensure_topic(admin, Settings(topic=topic))


def test_a_topic_with_one_copy_is_refused_by_who_writes_and_read_by_who_reads(
    admin: AdminClient, kafka_node: Cluster, topic: str
) -> None:
    """Made by hand: the broker's own defaults, as those of a stock Kafka."""
    broker.ensure_topic(admin, topic, 3)
    settings = Settings(topic=topic, kafka=kafka_node.bootstrap, topic_replication=3)
    with pytest.raises(ConfigurationError) as refused:
        topic_settings.check_topic(admin, settings)
    assert [line.split(",")[0] for line in refused.value.problems] == [
        f"topic {topic} has replication 1",
        f"topic {topic} has min.insync.replicas 1",
    ]
    with capture_logs() as logs:
        topic_settings.check_topic(admin, settings, refuse=False)
    assert len([line for line in logs if line["event"] == "topic_differs"]) == 5
    findings = list(_broker(settings))
    assert "3 partitions, replication 1, min.insync.replicas 1" in findings[0].what
    assert "retention for ever" in findings[0].what
    assert [finding.level for finding in findings] == [
        "ok",
        "failed",
        "failed",
        "warning",
        "warning",
        "warning",
    ]
    assert findings[1].exit_code == EXIT_CONFIGURATION
    assert all(finding.do for finding in findings[1:])


def test_up_refuses_a_topic_with_one_copy(kafka_node: Cluster, tmp_path: Path, topic: str) -> None:
    def up(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable, "-m", "pipeline.cli.main", "up", "--kafka", kafka_node.bootstrap,
                "--data-dir", str(tmp_path), "--http", "127.0.0.1:0", "--no-simulate",
            ],
            env=os.environ | {"GRIDPIPE_TOPIC": topic} | more,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    promise = {"GRIDPIPE_TOPIC_REPLICATION": "3"}
    refused = up(**promise)
    assert refused.returncode == 2, refused.stderr
    assert "cannot have 3 copies" in refused.stderr
    assert "GRIDPIPE_TOPIC_REPLICATION=1" in refused.stderr
    broker.ensure_topic(broker.wait_until_up(kafka_node.bootstrap, seconds=20), topic, 3)
    refused = up(**promise)
    assert refused.returncode == 2, refused.stderr
    assert f"topic {topic} has replication 1, the settings promise 3" in refused.stderr


def test_migrate_tells_how_the_topic_differs(
    admin: AdminClient, kafka_node: Cluster, tmp_path: Path, topic: str
) -> None:
    def migrate(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable, "-m", "pipeline.cli.main", "migrate", "--kafka", kafka_node.bootstrap,
                "--data-dir", str(tmp_path), *more,
            ],
            env=os.environ | {"GRIDPIPE_TOPIC": topic} | environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    first = migrate("--json")  # on loopback as many copies as there are nodes, unless the number is set
    assert first.returncode == 0, first.stderr
    done = json.loads(first.stdout)
    assert (done["partitions"], done["replication"], done["min_insync_replicas"]) == (12, 1, 1)
    assert len(done["notes"]) == 1
    for grown in admin.create_partitions([NewPartitions(topic, 15)]).values():
        grown.result(20)
    again = migrate(GRIDPIPE_TOPIC_REPLICATION="3")
    assert again.returncode == 0, again.stderr
    assert f"topic {topic} has replication 1" in again.stderr
    assert "has 15 partitions, GRIDPIPE_PARTITIONS is 12" in again.stderr
