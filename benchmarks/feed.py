"""Prepared Arrow blocks onto a topic at an asked rate, as a process of its own.

    python -m benchmarks.feed BOOTSTRAP EVENTS_PER_SECOND EVENTS PERSONS

Open loop: a record goes out when its instant has come, whatever became of the ones before. Prints a line
`sending` before the first, then one JSON object: events, seconds, and how far it fell behind its own pace.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson

from benchmarks import cache
from benchmarks.harness import Sender

#: Records are sent in bursts of so long. Seconds.
_TICK_SECONDS = 0.02


def feed(bootstrap: str, records: cache.Records, rate: float) -> dict[str, Any]:
    """Send all records at `rate` events per second; returns once the broker has each.

    Raises RunFailedError.
    """
    sender = Sender(bootstrap, records.content_type)
    print("sending", flush=True)
    begin, sent, late = time.perf_counter(), 0, 0.0
    for chunk in records.chunks():
        for partition, value, events in zip(chunk["partition"], chunk["value"], chunk["events"], strict=True):
            ahead = sent / rate - (time.perf_counter() - begin)
            late = max(late, -ahead)
            if ahead > _TICK_SECONDS:
                time.sleep(ahead)
            sender.send(partition, value)
            sender.poll()
            sent += events
    sender.finish()
    return {"events": sent, "seconds": time.perf_counter() - begin, "late_seconds": late}


def main() -> None:
    bootstrap, rate, events, persons = sys.argv[1:]
    records = cache.records(cache.events(int(events), int(persons)), "arrow")
    print(orjson.dumps(feed(bootstrap, records, float(rate))).decode(), flush=True)


if __name__ == "__main__":
    main()
