"""What the live page costs: `python -m benchmarks.page --url http://127.0.0.1:8080 --viewers 10`.

Opens that many streams on a running service on this machine and prints, as JSON, the processor time of the
HTTP and of the store process with and without viewers, the bytes of a viewer's stream, and how far the
tables lay behind the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import psutil


def processes(url: str) -> dict[str, psutil.Process]:
    """The HTTP process that listens at `url`, and the store process beside it."""
    port = urlsplit(url).port
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            listener = psutil.Process(connection.pid)
            family = {"http": listener}
            for child in listener.parent().children():
                for role in ("http", "store"):
                    if f"pipeline.runtime.{role}" in " ".join(child.cmdline()):
                        family[role] = child
            return family
    raise SystemExit(f"nothing listens on port {port}")


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measure(found: dict[str, psutil.Process], seconds: float) -> dict[str, float]:
    before = {role: spent(process) for role, process in found.items()}
    await asyncio.sleep(seconds)
    return {role: round((spent(p) - before[role]) / seconds * 100, 2) for role, p in found.items()}


async def watch(client: httpx.AsyncClient, seen: dict[str, Any]) -> None:
    async with client.stream("GET", "/v1/live") as answer:
        async for line in answer.aiter_lines():
            seen["bytes"] += len(line) + 1
            if line.startswith("data: ") and '"current_at"' in line:
                figures = orjson.loads(line.removeprefix("data: "))
                if figures["current_at"]:
                    at, current = (datetime.fromisoformat(figures[name]) for name in ("at", "current_at"))
                    seen["behind"].append((at - current).total_seconds())


async def run(url: str, viewers: int, seconds: float) -> dict[str, Any]:
    found = processes(url)
    without = await measure(found, seconds)
    seen: dict[str, Any] = {"bytes": 0, "behind": []}
    limits = httpx.Limits(max_connections=viewers)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        watching = [asyncio.create_task(watch(client, seen)) for _ in range(viewers)]
        await asyncio.sleep(15)  # the past hour of the trend is read once, by the first viewer
        seen |= {"bytes": 0, "behind": []}
        with_viewers = await measure(found, seconds)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    behind = sorted(seen["behind"])
    return {
        "viewers": viewers,
        "seconds": seconds,
        "cpu_percent_of_a_core": {"without": without, "with": with_viewers},
        "stream_bytes_per_viewer_and_second": round(seen["bytes"] / viewers / seconds),
        "behind_seconds": {
            "median": round(statistics.median(behind), 2),
            "p99": round(behind[int(0.99 * (len(behind) - 1))], 2),
        },
        "load_average": psutil.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--viewers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    found = asyncio.run(run(given.url, given.viewers, given.seconds))
    print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
