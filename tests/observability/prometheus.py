"""A real Prometheus of the test's own, from `make prometheus` (var/prometheus) or from PATH."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipeline.runtime.broker import free_port

ROOT = Path(__file__).parents[2]
RULES = ROOT / "infra" / "prometheus"


def binary(name: str) -> str:
    """Path of prometheus or promtool; skips the test where there is none."""
    own = ROOT / "var" / "prometheus" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; `make prometheus` unpacks Debian's")
    return found


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """text : for its standard input."""
    return subprocess.run(
        [binary("promtool"), *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def rule_groups() -> list[dict[str, Any]]:
    return [
        group
        for path in sorted((RULES / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rule_groups() for rule in group["rules"] if "alert" in rule}


def records() -> dict[str, str]:
    return {
        rule["record"]: rule["expr"] for group in rule_groups() for rule in group["rules"] if "record" in rule
    }


def branches(expression: str) -> list[str]:
    """The parts that `or` joins outside of brackets."""
    parts, depth = [""], 0
    for word in re.split(r"(\bor\b|[()])", expression):
        depth += (word == "(") - (word == ")")
        if word == "or" and not depth:
            parts.append("")
        else:
            parts[-1] += word
    return parts


class Prometheus:
    """Our configuration as it is, but for the target, and scraping every other second.

    It begins with the blocks that lie in `directory / "data"` already.
    """

    def __init__(self, directory: Path, target: str) -> None:
        config = yaml.safe_load((RULES / "prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "2s", "evaluation_interval": "2s", "scrape_timeout": "2s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        config["rule_files"] = [str(RULES / "rules" / "*.yml")]
        directory.mkdir(exist_ok=True)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    binary("prometheus"),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(base_url=f"http://{address}/api/v1", timeout=20, trust_env=False)
        self._wait_ready(f"http://{address}/-/ready")

    def _wait_ready(self, url: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get(url).status_code == 200:
                    return
            assert self.process.poll() is None, "prometheus ended"
            assert time.monotonic() < deadline, "prometheus is not ready"
            time.sleep(0.2)

    def get(self, path: str, **parameters: str | float) -> Any:
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Samples of an instant query now, each {"metric": labels, "value": [time, text]}."""
        result: list[dict[str, Any]] = self.get("/query", query=expression)["result"]
        return result

    def curves(
        self, expression: str, *, seconds: float = 60, step: float = 2, end: float | None = None
    ) -> list[dict[str, Any]]:
        """Series of a range query, each {"metric": labels, "values": [[time, text], …]}.

        end : None is now.
        """
        end = time.time() if end is None else end
        found = self.get("/query_range", query=expression, start=end - seconds, end=end, step=step)
        result: list[dict[str, Any]] = found["result"]
        return result

    def wait_for(self, expression: str, seconds: float = 60) -> list[dict[str, Any]]:
        """Its samples as soon as there are any."""
        deadline = time.monotonic() + seconds
        while True:
            if found := self.query(expression):
                return found
            assert time.monotonic() < deadline, f"no data within {seconds} s: {expression}"
            time.sleep(0.3)

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(20)
