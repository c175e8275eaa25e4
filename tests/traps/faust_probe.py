"""Ten messages, an agent that fails on the first two times it is called: what is committed afterwards?

`python -m tests.traps.faust_probe MODE BOOTSTRAP GROUP TOPIC DATADIR`; prints STORED lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

import faust

MODE, BOOTSTRAP, GROUP, TOPIC, DATADIR = sys.argv[1:]
FAILURES = 2

app = faust.App(
    GROUP,
    broker=f"kafka://{BOOTSTRAP}",
    datadir=DATADIR,
    web_enabled=False,
    topic_disable_leader=True,
    topic_allow_declare=False,
    value_serializer="raw",
    broker_commit_interval=0.5,
    broker_rebalance_timeout=6.0,
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    consumer_auto_offset_reset="earliest",
)
topic = app.topic(TOPIC, value_serializer="raw")
calls = 0


def handle(what: Any) -> None:
    global calls  # noqa: PLW0603  a probe
    calls += 1
    if calls <= FAILURES:
        raise RuntimeError("the store is down")
    for value in what if isinstance(what, list) else [what]:
        print("STORED", value.decode(), flush=True)


@app.agent(topic)
async def sink(stream: Any) -> None:
    if MODE == "take":
        async for batch in stream.take(3, within=1):
            handle(batch)
    elif MODE == "noack_take":
        async for batch in stream.noack_take(3, within=1):
            handle(batch)
    elif MODE == "plain":
        async for value in stream:
            handle(value)
    elif MODE == "with":
        async for event in stream.noack().events():
            async with event:
                handle(event.value)
    elif MODE == "noack":
        async for event in stream.noack().events():
            handle(event.value)
            await stream.ack(event)
    else:
        raise ValueError(MODE)


async def main() -> None:
    await app.start()
    await asyncio.sleep(12)
    # with messages that nobody acked, Faust waits for ever, and a cancellation does not reach it (F7)
    threading.Timer(10, os._exit, (0,)).start()
    await app.stop()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
