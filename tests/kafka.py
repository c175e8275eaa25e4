"""Brokers for tests: Kafka's own server from `infra/kafka`, and the embedded one as a process of the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.kafka.cluster import Cluster, _end_with_parent
from infra.kafka.jars import fetch
from pipeline.errors import UnavailableError
from pipeline.runtime import broker

JARS = Path(__file__).parent.parent / "var" / "kafka"


def need_kafka() -> None:
    """Skip the test where Kafka's jars cannot be had."""
    try:
        fetch(JARS)
    except UnavailableError as error:
        pytest.skip(f"needs a real Kafka (make kafka): {error}")


@pytest.fixture(scope="session")
def kafka_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One Kafka node for the whole session; each test makes topics and groups of its own.

    It keeps everything: records of tests carry old timestamps, and Kafka deletes by those.
    """
    need_kafka()
    with Cluster(tmp_path_factory.mktemp("kafka-node"), jars=JARS, retention_ms=-1) as running:
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
