"""How processes end that are asked to: what is on its way first, at once when they are asked again."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from pipeline.runtime import broker
from pipeline.runtime.process import Child
from pipeline.settings import load_settings
from tests.e2e.service import Service, gridpipe, wait_gone
from tests.e2e.test_up import report
from tests.e2e.test_up_roles import until_ready
from tests.frozen import freeze

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: A drain that waits for a store which does not answer takes 14 s and more.
AT_ONCE_SECONDS = 4.0


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
def test_a_second_signal_ends_a_worker_whose_store_does_not_answer(
    tmp_path: Path, closing: ExitStack
) -> None:
    settings = load_settings(data_dir=tmp_path / "broker")
    settings.run_dir.mkdir(parents=True)
    settings.log_dir.mkdir()
    kafka = f"127.0.0.1:{broker.free_port()}"
    port, token = broker.free_port(), uuid.uuid4().hex
    closing.callback(Child("broker", "pipeline.runtime.broker", settings, {"port": int(kafka[10:])}).kill)
    place = ["--data", str(tmp_path / "store"), "--port", str(port), "--token", token]
    store = subprocess.Popen([sys.executable, "-m", "tests.fault.store_server", *place])
    closing.callback(store.wait)
    closing.callback(store.kill)
    broker.wait_until_up(kafka, seconds=60)
    _until_listens(port)
    servers = ["--kafka", kafka, "--clickhouse", f"http://default:{token}@127.0.0.1:{port}"]
    servers += ["--data-dir", str(tmp_path / "data")]
    done = gridpipe("migrate", *servers)
    assert done.returncode == 0, done.stderr
    admin = f"127.0.0.1:{broker.free_port()}"
    worker = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "worker", *servers, "--admin-http", admin],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    closing.enter_context(worker)
    closing.callback(worker.kill)
    said: list[str] = []
    assert worker.stderr is not None
    reader = threading.Thread(target=said.extend, args=(worker.stderr,))
    reader.start()
    until_ready(admin, worker)
    freeze(store.pid)
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce(settings.topic, b"{broken", partition=0)
    assert producer.flush(30) == 0
    time.sleep(2)  # it is read, and its insert waits
    worker.send_signal(signal.SIGTERM)
    assert _waits(worker, 1.5), "".join(said[-3:])
    worker.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(30) == 1
    assert time.monotonic() - began < AT_ONCE_SECONDS
    reader.join(10)
    assert said[-1].startswith("error: second signal: ended at once"), said
    asked = Consumer({"bootstrap.servers": kafka, "group.id": settings.consumer_group})
    (found,) = asked.committed([TopicPartition(settings.topic, 0)], timeout=30)
    asked.close()
    assert found.offset <= 0, "committed what is not stored"


@pytest.mark.slow
def test_a_second_signal_ends_the_whole_service(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--no-simulate", "--http", "127.0.0.1:0")
    try:
        children = service.children()
        assert set(children) == {"tansu", "store", "http"}
        freeze(children["store"].pid)
        service.process.send_signal(signal.SIGTERM)
        assert _waits(service.process, 1.5), "a first signal lets it finish"
        began = time.monotonic()
        assert service.stop(signal.SIGINT) == 1
        assert time.monotonic() - began < AT_ONCE_SECONDS
        assert wait_gone(list(children.values()), 2) == []
        assert re.match(r"error: second signal: ended at once; .*\n$", service.output[-1])
    finally:
        service.kill()


@pytest.mark.slow
def test_what_could_not_be_finished_in_time_is_told_and_exits_one(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", "--no-simulate", "--http", "127.0.0.1:0")
    try:
        children = service.children()
        freeze(children["store"].pid)
        service.process.send_signal(signal.SIGTERM)
        assert wait_gone([children["http"]], 10) == []
        time.sleep(1)
        began = time.monotonic()
        for path in ("/v1/events", "/health/ready"):
            refused = httpx.get(f"{service.url}{path}", timeout=10, trust_env=False)
            assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
            assert "retry-after" in refused.headers
        assert time.monotonic() - began < 2.0
        assert service.process.wait(40) == 1
        service._reader.join(5)
        assert wait_gone(list(children.values()), 2) == []
        assert re.match(r"error: store ended before all was done; .*\n$", service.output[-1])
    finally:
        service.kill()


def test_while_it_stops_it_is_not_ready_and_finishes_what_it_has(tmp_path: Path) -> None:
    admin = f"127.0.0.1:{broker.free_port()}"
    service = Service(tmp_path / "data", "--no-simulate", "--http", "127.0.0.1:0", "--admin-http", admin)
    body = json.dumps(report(1)).encode()
    head = f"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        with (
            httpx.Client(base_url=f"http://{admin}", timeout=10, trust_env=False) as watching,
            socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0), 30) as sending,
        ):
            assert watching.get("/health/ready").json()["checks"]["process"] == {
                "ok": True,
                "detail": "answers",
            }
            sending.sendall(head.encode() + body[:20])
            time.sleep(0.5)  # the request is in its handler
            service.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 3.5
            while (answer := watching.get("/health/ready")).status_code == 200:
                assert time.monotonic() < deadline, "still ready"
                time.sleep(0.02)
            assert answer.status_code == 503
            assert answer.json()["checks"]["process"] == {"ok": False, "detail": "the process is stopping"}
            sending.sendall(body[20:])
            got = http.client.HTTPResponse(sending)  # head and body may come in two pieces
            got.begin()
            said = got.read()
        assert got.status == 202, said
        assert json.loads(said)["accepted"] == 1
        assert service.process.wait(30) == 0
    finally:
        service.kill()


def _waits(process: subprocess.Popen[str], seconds: float) -> bool:
    time.sleep(seconds)
    return process.poll() is None


def _until_listens(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")
