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
@pytest.mark.parametrize(("number", "count"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
def test_the_command_starts_nodes_and_stops_them_cleanly(
    tmp_path: Path, number: signal.Signals, count: int
) -> None:
    need_kafka()
    for jars in JARS.resolve().glob("jars-*"):
        (tmp_path / jars.name).symlink_to(jars)
    command = [sys.executable, "-m", "infra.kafka", f"--data-dir={tmp_path}", f"--nodes={count}"]
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
            assert [node.name() for node in nodes] == ["java"] * count
            listened = [at for node in nodes for at in node.net_connections() if at.status == "LISTEN"]
            assert {at.laddr.ip for at in listened} <= {"127.0.0.1", "::ffff:127.0.0.1"}
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            limit.cancel()
            process.kill()
    assert psutil.wait_procs(nodes, timeout=1)[1] == []
    # Kafka's own mark: without it the next start reads every log through
    assert len(list(tmp_path.glob(f"nodes-{count}/node-*/data/.kafka_cleanshutdown"))) == count
