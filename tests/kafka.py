"""Brokers for tests: Kafka's own server from `infra/kafka`, and the embedded one as a process of the test."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from infra.kafka.cluster import Cluster, _end_with_parent
from infra.kafka.jars import fetch
from pipeline.errors import UnavailableError
from pipeline.runtime import broker

ROOT: Final = Path(__file__).parent.parent
JARS: Final = ROOT / "var" / "kafka"
#: Less than a test may take, so that one without its Kafka is skipped and does not fail. `make kafka` waits
#: longer, and leaves the jars where tests find them.
FETCH_SECONDS: Final = 120.0
#: Names the file in which the processes of this session keep why there is no Kafka.
_REFUSED: Final = "KAFKA_REFUSED"
#: The group is on its way to another node.
_MOVING: Final = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # its processes inherit the name
        refused = ROOT / "var" / "tmp" / f"kafka-refused-{os.getpid()}"
        refused.parent.mkdir(parents=True, exist_ok=True)
        refused.unlink(missing_ok=True)
        os.environ[_REFUSED] = str(refused)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        Path(os.environ[_REFUSED]).unlink(missing_ok=True)


def need_kafka() -> None:
    """Skip the test where Kafka's jars cannot be had. A session tries once, whatever its processes."""
    with Path(os.environ[_REFUSED]).open("a+") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)  # whoever comes meanwhile waits for the answer of the first
        kept.seek(0)
        reason = kept.read()
        if not reason:
            try:
                fetch(JARS, seconds=FETCH_SECONDS)
            except UnavailableError as error:
                reason = str(error)
                kept.write(reason)
    if reason:
        pytest.skip(f"needs a real Kafka (make kafka): {reason}")


class GroupOffsets:
    """What a consumer group has committed of one topic, asked by a consumer that never joins the group.

    `AdminClient.list_consumer_group_offsets` must not be asked: where the group has just moved to another
    coordinator, or its first one is still loading, librdkafka (2.16, issue 5040) ends the process by SIGSEGV.
    """

    def __init__(self, bootstrap: str, group: str, topic: str, partitions: int) -> None:
        self._asked = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})

    def __call__(self) -> list[int]:
        """By partition; below 0 where nothing is committed.

        Raises KafkaException after 10 s without an answer, or after 30 s without a coordinator of the group:
        that there is none is told at once, while librdkafka goes on looking for one.
        """
        deadline = time.monotonic() + 30
        while True:
            try:
                found = self._consumer.committed(self._asked, timeout=10)
                break
            except KafkaException as error:
                if error.args[0].code() not in _MOVING or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        assert not any(part.error for part in found), found
        return [part.offset for part in found]

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture(scope="session")
def kafka_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One Kafka node for the whole session; each test makes topics and groups of its own.

    It keeps everything: records of tests carry old timestamps, and Kafka deletes by those.
    """
    need_kafka()
    with Cluster(tmp_path_factory.mktemp("kafka-node"), jars=JARS, retention_ms=-1) as running:
        yield running


@pytest.fixture(scope="session")
def kafka_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three Kafka nodes: three copies of each record, two before it is confirmed."""
    need_kafka()
    with Cluster(tmp_path_factory.mktemp("kafka-three"), nodes=3, jars=JARS, retention_ms=-1) as running:
        yield running


@contextmanager
def embedded_broker(port: int | None = None, advertised: int | None = None) -> Iterator[str]:
    """Bootstrap address of an embedded broker that nobody else uses.

    advertised : the port that it tells its clients, of a proxy before it.
    """
    port = port or broker.free_port()
    command = broker.command(port)
    if advertised is not None:
        command[command.index("--advertised-listener-url") + 1] = f"tcp://127.0.0.1:{advertised}"
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_end_with_parent,  # noqa: PLW1509  a killed test leaves nothing running
    )
    try:
        address = f"127.0.0.1:{port}"
        broker.wait_until_up(address, seconds=20)
        yield address
    finally:
        process.kill()
        process.wait(10)
