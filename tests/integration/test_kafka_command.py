"""`make kafka`: starts on loopback, says where, and stops cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Producer

from tests.kafka import JARS, need_kafka

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_a_node_and_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    need_kafka()
    for jars in JARS.resolve().glob("jars-*"):
        (tmp_path / jars.name).symlink_to(jars)
    command = [sys.executable, "-m", "infra.kafka", f"--data-dir={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            said = ""
            while not said.startswith("bootstrap servers: "):
                said = process.stdout.readline()
                assert said, "it ended before it served"
            producer = Producer({"bootstrap.servers": said.split(": ")[1].strip()})
            producer.produce("a-topic", b"a record")
            assert producer.flush(30) == 0
            nodes = psutil.Process(process.pid).children()
            assert [node.name() for node in nodes] == ["java"]
            assert {at.laddr.ip for at in nodes[0].net_connections() if at.status == "LISTEN"} <= {
                "127.0.0.1", "::ffff:127.0.0.1",
            }  # fmt: skip
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            limit.cancel()
            process.kill()
    assert psutil.wait_procs(nodes, timeout=1)[1] == []
    # Kafka's own mark: without it the next start reads every log through
    assert list(tmp_path.glob("nodes-1/node-1/data/.kafka_cleanshutdown"))
