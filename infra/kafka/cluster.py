"""A Kafka cluster on loopback: KRaft, every node broker and controller. For tests and for `make kafka`."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.kafka.jars import HERE, fetch, java
from pipeline.errors import UnavailableError
from pipeline.runtime.broker import free_port

_READY_SECONDS = 90.0
_STOP_SECONDS = 15.0
_FORMAT_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_MEGABYTE = 1024 * 1024
#: Three nodes share a test machine with everything else: small heaps, a collector and a compiler that start
#: fast. Kafka reads its log through the page cache, so that the heap holds requests only.
_JVM = ("-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


@dataclass
class Node:
    """One broker and controller. port, controller_port : on 127.0.0.1, kept over restarts."""

    number: int
    directory: Path
    port: int
    controller_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Cluster:
    """`nodes` Kafka nodes below `directory`; a formatted directory is used again.

    jars : where the jars are kept. ports : of the nodes' listeners (default: free ones).
    retention_ms, segment_bytes : of topics that say nothing else; -1 keeps everything. Kafka goes by the
    timestamps of the records, not by their arrival. heap_mb : of each node.
    settings : further lines of each node's server.properties.

    With three nodes every topic has three copies, two of which must have a record before it is confirmed.

    >>> with Cluster(directory, nodes=3, jars=Path("var/kafka")) as kafka:  # doctest: +SKIP
    ...     kafka.bootstrap
    ...     kafka.kill(2)
    ...     kafka.start_node(2)

    Raises UnavailableError without Java or Maven, or when a node does not come up.
    """

    directory: Path
    nodes: int = 1
    jars: Path = Path("var/kafka")
    ports: Sequence[int] = ()
    retention_ms: int = 7 * 24 * 3600 * 1000
    segment_bytes: int = 64 * _MEGABYTE
    heap_mb: int = 320
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes not in {1, 3}:
            raise ValueError("a cluster has one node or three")
        ports = list(self.ports) or [free_port() for _ in range(self.nodes)]
        self.members = [
            Node(number, self.directory / f"node-{number}", ports[number - 1], free_port())
            for number in range(1, self.nodes + 1)
        ]
        self._classpath = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(seconds=0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        return ",".join(node.address for node in self.members)

    def start(self) -> None:
        """Start every node; returns when all of them serve."""
        jars = fetch(self.jars)
        self._classpath = f"{jars}/*"
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._format()
        for node in self.members:
            self._launch(node)
        self.wait_ready()

    def start_node(self, number: int) -> None:
        """Start a node that was stopped or killed; returns when all running ones serve."""
        self._launch(self.members[number - 1])
        self.wait_ready()

    def wait_ready(self, seconds: float = _READY_SECONDS) -> None:
        """Return when the running nodes know of each other. Raises UnavailableError."""
        deadline = time.monotonic() + seconds
        running = [node for node in self.members if node.running]
        admins = [
            AdminClient({"bootstrap.servers": node.address, "log_level": 0, "reconnect.backoff.max.ms": 200})
            for node in running
        ]
        missing = list(admins)
        while missing:
            missing = [admin for admin in missing if _known_brokers(admin) < len(running)]
            dead = [node for node in running if not node.running]
            if dead or (missing and time.monotonic() > deadline):
                node = (dead or running)[0]
                raise UnavailableError(
                    f"Kafka node {node.number} does not serve; see {node.directory / 'server.log'}"
                )
            if missing:
                time.sleep(0.1)

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """SIGTERM to every node, SIGKILL to what is left after `seconds`."""
        for node in self.members:
            if node.running:
                self.signal(node.number, signal.SIGCONT)
                self.signal(node.number, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for node in self.members:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(max(deadline - time.monotonic(), 0))
                if node.process.poll() is None:
                    node.process.kill()
                node.process.wait()
                node.process = None

    def kill(self, number: int) -> None:
        """SIGKILL one node."""
        node = self.members[number - 1]
        if node.process is not None:
            node.process.kill()
            node.process.wait()
            node.process = None

    def signal(self, number: int, sent: signal.Signals) -> None:
        """Send a signal to one node, SIGSTOP for example."""
        process = self.members[number - 1].process
        if process is not None:
            process.send_signal(sent)

    # --- nodes

    def _properties(self, node: Node) -> dict[str, str]:
        copies = min(self.nodes, 3)
        in_sync = 2 if self.nodes == 3 else 1
        voters = ",".join(f"{one.number}@127.0.0.1:{one.controller_port}" for one in self.members)
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{node.address},CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{node.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(node.directory / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": str(copies),
            "min.insync.replicas": str(in_sync),
            "unclean.leader.election.enable": "false",
            "offsets.topic.replication.factor": str(copies),
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": str(in_sync),
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": str(in_sync),
            # a group of workers begins at once, not after three seconds of waiting for more of them
            "group.initial.rebalance.delay.ms": "0",
            # a dead node is noticed within seconds, as a test needs it
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "4000",
            "replica.lag.time.max.ms": "5000",
            "log.retention.ms": str(self.retention_ms),
            "log.retention.check.interval.ms": "1000",
            "log.segment.bytes": str(self.segment_bytes),
            "log.cleaner.dedupe.buffer.size": str(2 * _MEGABYTE),
            "num.network.threads": "2",
            "num.io.threads": "2",
            **self.settings,
        }

    def _format(self) -> None:
        """Name the cluster and its nodes in directories that are new."""
        marker = self.directory / "cluster.id"
        if not marker.exists():
            for node in self.members:  # a start that was broken off may have left some of them
                shutil.rmtree(node.directory, ignore_errors=True)
            name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            marker.write_text(name.replace("-", "A"))  # at its beginning it would be taken for an option
        running = []
        for node in self.members:
            node.directory.mkdir(mode=0o700, exist_ok=True)
            lines = [f"{name}={value}" for name, value in self._properties(node).items()]
            (node.directory / "server.properties").write_text("\n".join(lines) + "\n")
            if not (node.directory / "data" / "meta.properties").exists():
                arguments = ["kafka.tools.StorageTool", "format", "-t", marker.read_text()]
                arguments += ["-c", str(node.directory / "server.properties"), "--ignore-formatted"]
                running.append((node, self._java(node, arguments, heap_mb=64, log="format.log")))
        for node, process in running:
            if process.wait(_FORMAT_SECONDS) != 0:
                raise UnavailableError(
                    f"Kafka node {node.number} cannot be formatted; see {node.directory / 'format.log'}"
                )

    def _launch(self, node: Node) -> None:
        assert self._classpath, "the cluster was not started"
        arguments = ["kafka.Kafka", str(node.directory / "server.properties")]
        node.process = self._java(node, arguments, heap_mb=self.heap_mb, log="server.log")

    def _java(
        self, node: Node, arguments: Sequence[str], *, heap_mb: int, log: str
    ) -> subprocess.Popen[bytes]:
        output = os.open(node.directory / log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        logging = f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"
        command = [java(), f"-Xmx{heap_mb}m", *_JVM, logging, "-cp", self._classpath, *arguments]
        try:
            return subprocess.Popen(  # noqa: S603  jars of our own pom
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  one system call, no lock is taken
            )
        finally:
            os.close(output)


_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _known_brokers(admin: AdminClient) -> int:
    # not describe_cluster: librdkafka aborts the process when a node that is starting names no brokers
    try:
        return len(admin.list_topics(timeout=2.0).brokers)
    except KafkaException:
        return 0
