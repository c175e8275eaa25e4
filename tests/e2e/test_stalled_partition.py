"""A partition that stands still under `gridpipe up`: readiness names it, and another process takes it up."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.e2e.test_up import report

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
#: Imported by every interpreter that starts: an insert of the first store process never returns.
PLANTED = """
import sys, threading
from pathlib import Path

if sys.orig_argv[-1] == "pipeline.runtime.store":
    from tests.fault.worker_process import install

    hung = Path({hung!r})

    def hang():
        if not hung.exists():
            hung.touch()
            threading.Event().wait()

    install("before:insert:rejections", 1, hang)
"""


def test_a_stalled_partition_is_noticed_and_its_process_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = tmp_path / "hung"
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(PLANTED.format(hung=str(hung)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'planted'}:{ROOT}")
    # the event loops are watched by the same limit: on a busy machine they are late without standing still
    stall_seconds = max(20.0, 10 * os.getloadavg()[0] / (os.cpu_count() or 1))
    monkeypatch.setenv("GRIDPIPE_STALL_SECONDS", str(stall_seconds))
    monkeypatch.setenv("GRIDPIPE_INSERT_TIMEOUT_SECONDS", "2")
    service = Service(tmp_path / "data", "--no-simulate", "--http", "127.0.0.1:0")
    try:
        first = service.children()["store"]
        # nobody touches the service but this sender, which goes on until the event is stored
        sender = threading.Thread(target=service.send, args=(report(1),), kwargs={"seconds": 400})
        sender.start()
        said: set[str] = set()
        deadline = time.monotonic() + stall_seconds + 60 * service.busy
        while first.is_running():
            assert time.monotonic() < deadline, service.log("store") + service.log("up")
            answer = service.client.get("/health/ready")
            if answer.status_code == 503:
                said.add(answer.json()["checks"]["worker"]["detail"])
            time.sleep(0.2)
        assert hung.exists()
        assert any("records wait and nothing is committed" in detail for detail in said), said
        sender.join(400)
        assert not sender.is_alive()
        assert service.get("/v1/events/local/report-1")["outcome"] == "rejected"
        assert service.get("/health/ready", seconds=120)["status"] == "ready"
        lines = map(json.loads, (service.data_dir / "log" / "up.log").read_text().splitlines())
        died = [(line["child"], line["exit_code"]) for line in lines if line["event"] == "child_died"]
        assert died == [("store", 1)]
        assert service.children()["store"].pid != first.pid
        assert service.stop() == 0
    finally:
        service.kill()
