"""The roles alone, against a Kafka and a ClickHouse address: what `up` does in one place, in four processes.

The addresses are the embedded broker's and the bridge's; nothing in the roles knows.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.client import Client

from pipeline.runtime import broker
from pipeline.runtime.process import Child
from pipeline.settings import load_settings
from pipeline.store.bridge import Bridge
from pipeline.store.engine import EmbeddedEngine
from tests.conftest import embedded_only

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), embedded_only]

TOKEN = uuid.uuid4().hex
START_SECONDS = 120.0


class _SessionEngine(EmbeddedEngine):
    """The test session's engine, already open in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path


@dataclass
class Site:
    """Two servers and a data directory."""

    environment: dict[str, str]
    data_dir: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", *arguments, "--data-dir", str(self.data_dir)],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        text, _ = process.communicate(timeout=START_SECONDS)
        return process.returncode, text


@pytest.fixture
def site(open_client: Client, engine_path: Path, tmp_path: Path) -> Iterator[Site]:
    settings = load_settings(data_dir=tmp_path / "broker")
    settings.run_dir.mkdir(parents=True)
    settings.log_dir.mkdir()
    port = broker.free_port()
    kafka = Child("broker", "pipeline.runtime.broker", settings, {"port": port})
    bridge = Bridge(_SessionEngine(engine_path), TOKEN).start()
    database = f"test_{uuid.uuid4().hex[:12]}"
    try:
        broker.wait_until_up(f"127.0.0.1:{port}", seconds=60)
        environment = {
            "GRIDPIPE_KAFKA": f"127.0.0.1:{port}",
            "GRIDPIPE_TOPIC_REPLICATION": "1",
            "GRIDPIPE_CLICKHOUSE": f"http://default:{TOKEN}@127.0.0.1:{bridge.port}",
            "GRIDPIPE_DATABASE": database,
        }
        yield Site(environment, tmp_path / "data")
    finally:
        kafka.kill()
        bridge.close()
        open_client.command(f"DROP DATABASE IF EXISTS {database}")


def until_ready(address: str, process: subprocess.Popen[str]) -> dict[str, object]:
    deadline = time.monotonic() + START_SECONDS
    last = ""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = httpx.get(f"http://{address}/health/ready", timeout=5, trust_env=False)
            last = answer.text
            if answer.status_code == 200:
                checks: dict[str, object] = answer.json()["checks"]
                return checks
        except httpx.HTTPError as error:
            last = repr(error)
        time.sleep(0.1)
    raise AssertionError(f"{address} is not ready: {last}")


def figures_of(address: str) -> dict[str, Any]:
    """As the stream of the page first tells them."""
    with httpx.stream("GET", f"http://{address}/v1/live", timeout=30, trust_env=False) as stream:
        lines = stream.iter_lines()
        for line in lines:
            if line == "event: figures":
                told: dict[str, Any] = json.loads(next(lines).removeprefix("data: "))
                return told
    raise AssertionError("the stream ended")


def test_gateway_worker_and_api_run_apart_on_servers(site: Site) -> None:
    assert site.run("migrate")[0] == 0
    code, text = site.run("migrate", "--json")
    assert code == 0
    done = json.loads(text)
    assert done["before"] == done["after"]
    assert done["partitions"] == 12
    strict = Site({**site.environment, "GRIDPIPE_TOPIC_REPLICATION": "3"}, site.data_dir)
    code, _ = strict.run("gateway", "--http", f"127.0.0.1:{broker.free_port()}")
    assert code == 2, "a gateway promises no three copies where there is one"
    key = re.search(r"gp_\S+", site.run("keys", "add", "--source", "handset")[1])
    assert key is not None
    gateway_at, gateway_admin, api_at, worker_admin = (f"127.0.0.1:{broker.free_port()}" for _ in range(4))
    watching = Site({**site.environment, "GRIDPIPE_WATCH": f"{gateway_admin},{worker_admin}"}, site.data_dir)
    roles = {
        "gateway": site.start("gateway", "--http", gateway_at, "--admin-http", gateway_admin),
        "api": watching.start("api", "--http", api_at),
        "worker": site.start("worker", "--admin-http", worker_admin),
    }
    try:
        http = {"store", "catalogue", "keys", "process"}
        assert set(until_ready(gateway_admin, roles["gateway"])) == http | {"broker"}
        assert set(until_ready(api_at, roles["api"])) == http
        assert set(until_ready(worker_admin, roles["worker"])) == {"worker"}
        event = {
            "event_id": "e1",
            "source": "handset",
            "event_type": "REPORTED",
            "case_id": "c1",
            "occurred_at": "2026-01-01T08:00:00+08:00",
            "channel": "grid_patrol",
            "matter_code": "SA-07",
            "grid_code": "440704001001003",
            "actor": {"type": "full_time", "key": "GW-0001"},
        }
        headers = {"Authorization": f"Bearer {key.group(0)}"}
        answer = httpx.post(f"http://{gateway_at}/v1/events", json=event, headers=headers, timeout=30)
        assert (answer.status_code, answer.json()["durability"]) == (202, "replicated"), answer.text
        deadline = time.monotonic() + 60
        while (found := httpx.get(f"http://{api_at}/v1/events/handset/e1", timeout=30)).status_code == 404:
            assert time.monotonic() < deadline, found.text
            time.sleep(0.1)
        assert found.json()["outcome"] == "rejected"
        # Each page shows what its own role counts, and only where it was asked for.
        # An outcome counts once it is committed, a moment after its row can be read.
        counted = 'gridpipe_events_total{outcome="rejected"} 1.0'
        while counted not in (page := httpx.get(f"http://{worker_admin}/metrics").text):
            assert time.monotonic() < deadline, page
            time.sleep(0.1)
        # and the page of the api, which counts neither, shows both
        figures = figures_of(api_at)
        assert (figures["worker"], figures["gateway"], figures["takes_events"]) == (True, True, False)
        assert (figures["missing"], figures["unwatched"]) == ([], [])
        assert figures["totals"]["rejected"] == 1
        assert figures["flow"]["topic"]["known"] is True
        gateway_page = httpx.get(f"http://{gateway_admin}/metrics").text
        assert "gridpipe_gateway_events_total" in gateway_page
        assert "gridpipe_business_as_of_timestamp_seconds" not in gateway_page  # it reads nothing
        assert "gridpipe_business_as_of_timestamp_seconds" in httpx.get(f"http://{api_at}/metrics").text
        # A worker's listener is on the wire as the gateway's is.
        for admin in (worker_admin, gateway_admin):
            refused = httpx.get(f"http://{admin}/metrics", headers={"X-A": "a" * 20_000})
            assert (refused.status_code, refused.json()["code"]) == (431, "head_too_large")
        live_page = httpx.get(f"http://{api_at}/", timeout=30)
        assert live_page.status_code == 200
        assert "<title>江门市网格治理 · 实时监测</title>" in live_page.text
        assert live_page.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert httpx.get(f"http://{gateway_at}/metrics").status_code == 404
        assert httpx.post(f"http://{api_at}/v1/events", json=event).status_code in {404, 405}
    finally:
        for process in roles.values():
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(40) for name, process in roles.items()}
        for process in roles.values():
            if process.stdout is not None:
                process.stdout.close()
    assert codes == {"gateway": 0, "api": 0, "worker": 0}
