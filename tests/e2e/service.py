"""`gridpipe up` as a user starts it: a process of its own, watched from outside only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

#: Generous: the promise of 15 s is checked on its own, against the best start of the run.
START_SECONDS = 120.0


def gridpipe(*arguments: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Service:
    """A running `gridpipe up`. `ready_seconds`: from its start to its own word that it is ready."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.output: list[str] = []
        #: Processes per core that wanted to run when this one came: it gets that share of the machine.
        self.busy = max(1.0, (os.getloadavg()[0] + 2) / (os.cpu_count() or 1))
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", "up", "--data-dir", str(data_dir), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._until(r'(?:gridpipe is ready: |"url":")(http://[^\s"]+)')
        self.ready_seconds = time.monotonic() - started
        self.key = (data_dir / "local.key").read_text().strip()
        self.client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=40,
            trust_env=False,
            # A killed child takes its connections along.
            transport=httpx.HTTPTransport(retries=3),
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.output.extend(lines)

    def _until(self, pattern: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if found := re.search(pattern, "".join(self.output)):
                return found.group(1)
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.kill()
        raise AssertionError("".join(self.output) + self.log("up") + self.log("store") + self.log("http"))

    def log(self, role: str) -> str:
        path = self.data_dir / "log" / f"{role}.log"
        return f"\n--- {role}\n" + path.read_text()[-3000:] if path.exists() else ""

    def children(self) -> dict[str, psutil.Process]:
        """Living children by role, as their command lines tell."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            line = " ".join(child.cmdline())
            for role in ("store", "http", "city", "tansu"):
                if f"pipeline.runtime.{role}" in line or f"/{role} broker" in line:
                    found[role] = child
        return found

    def send(self, *events: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
        """Send until answered 2xx, as a client that honours 503 and broken connections does."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.client.post("/v1/events", json=list(events))
                if answer.status_code == 202 and not answer.json()["errors"]:
                    result: dict[str, Any] = answer.json()
                    return result
                assert answer.status_code in {202, 503}, answer.text
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "not answered in time" + self.log("store") + self.log("http")
            time.sleep(0.1)

    def get(self, path: str, *, seconds: float = 60, **parameters: str) -> Any:
        """GET until 200, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = self.client.get(path, params=parameters)
                if answer.status_code == 200:
                    return answer.json()
                last = answer.text
            except httpx.TransportError as error:
                last = repr(error)
            assert time.monotonic() < deadline, last + self.log("store") + self.log("http")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM, *, seconds: float = 30) -> int:
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        if hasattr(self, "client"):
            self.client.close()


def wait_gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that are still alive after `seconds`."""
    return psutil.wait_procs(processes, timeout=seconds)[1]
