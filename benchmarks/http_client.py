"""A load client that costs little: requests are bytes made beforehand, answers are read by their length.

    python -m benchmarks.http_client TASK

TASK : JSON file: address, key, connections, seconds or requests, rate (events/s, 0: as fast as answered),
bodies (file of length-prefixed bodies), events (per body), headers, first_pass (number that marks the ids of
the first pass over the bodies; absent: ids repeat). Prints one JSON object: requests, events
accepted and rejected as the answers say, statuses, latencies (ms), own CPU share, how far it fell behind its
pace (a connection sends its next request when the last one is answered: with none free, the load is no longer
what was asked), and when it began to send, by the clock that all processes of a machine share
(`time.perf_counter`).
"""

from __future__ import annotations

import asyncio
import re
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

from benchmarks.load_bodies import MARK

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_ACCEPTED = re.compile(rb'"accepted":(\d+)')
_REJECTED = re.compile(rb'"rejected":(\d+)')


def write_bodies(path: Path, bodies: list[bytes]) -> None:
    path.write_bytes(b"".join(struct.pack("<I", len(body)) + body for body in bodies))


def read_bodies(path: Path) -> list[bytes]:
    raw, at, bodies = path.read_bytes(), 0, []
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        bodies.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return bodies


class Load:
    """What all connections share."""

    def __init__(self, task: dict[str, Any]) -> None:
        head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                "Host": task["address"],
                "Authorization": f"Bearer {task['key']}",
                **task["headers"],
            }.items()
        )
        self.requests = [
            f"POST /v1/events HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            for body in read_bodies(Path(task["bodies"]))
        ]
        # with a first pass, every pass over the bodies gets ids of its own
        self.first_pass: int | None = task.get("first_pass")
        self.limit: int = task.get("requests") or 2**62
        self.until = time.perf_counter() + (task.get("seconds") or 1e9)
        self.gap = task["events"] / task["rate"] if task.get("rate") else 0.0
        self.begin = time.perf_counter()
        self.sent = self.accepted = self.rejected = 0
        self.statuses: Counter[bytes] = Counter()
        self.latencies: list[float] = []
        self.last = 0.0
        self.late = 0.0
        self.live = 0
        self.done = asyncio.Event()

    def next(self) -> bytes | None:
        if self.sent >= self.limit or time.perf_counter() >= self.until:
            return None
        self.sent += 1
        passes, number = divmod(self.sent - 1, len(self.requests))
        request = self.requests[number]
        if self.first_pass is None:
            return request
        return request.replace(MARK, b"pass%05d." % (self.first_pass + passes))

    def due(self) -> float:
        """When the next request must be sent (open loop): latency counts from then, not from sending."""
        return self.begin + self.sent * self.gap


class Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load = load
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.load.live += 1
        self.send()

    def send(self) -> None:
        load = self.load
        self.started = time.perf_counter()
        if load.gap:
            self.started = load.due()
            wait = self.started - time.perf_counter()
            # a request that is due behind the end is not sent at all
            request = load.next() if self.started < load.until else None
            if request is not None and wait > 0:
                self.loop.call_later(wait, self.transport.write, request)
                return
            if request is not None:
                load.late = max(load.late, -wait)
        else:
            request = load.next()
        if request is None:
            self.transport.close()
            return
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        found = _LENGTH.search(self.buffer, 0, head)
        size = head + 4 + (int(found[1]) if found else 0)
        if len(self.buffer) < size:
            return
        load, answer, self.buffer = self.load, self.buffer[:size], self.buffer[size:]
        load.last = time.perf_counter()
        load.latencies.append(load.last - self.started)
        load.statuses[answer[9:12]] += 1
        if accepted := _ACCEPTED.search(answer, head):
            load.accepted += int(accepted[1])
        if rejected := _REJECTED.search(answer, head):
            load.rejected += int(rejected[1])
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.live -= 1
        if not self.load.live:
            self.load.done.set()


async def run(task: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    load = Load(task)
    begin_cpu = time.process_time()
    host, port = task["address"].rsplit(":", 1)
    for _ in range(task["connections"]):
        await loop.create_connection(lambda: Connection(load), host, int(port))
    await load.done.wait()
    seconds = max(load.last - load.begin, 1e-9)
    latencies = np.array(load.latencies or [0.0]) * 1_000
    return {
        "began": load.begin,
        "seconds": seconds,
        "client_cpu_share": (time.process_time() - begin_cpu) / seconds,
        "requests": len(load.latencies),
        "unanswered": load.sent - len(load.latencies),
        "late_seconds": load.late,
        "accepted": load.accepted,
        "rejected": load.rejected,
        "statuses": {status.decode(): number for status, number in load.statuses.items()},
        "latency_ms": {
            name: float(np.percentile(latencies, at)) for name, at in (("p50", 50), ("p99", 99), ("max", 100))
        },
    }


if __name__ == "__main__":
    found = uvloop.run(run(orjson.loads(Path(sys.argv[1]).read_bytes())))
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
