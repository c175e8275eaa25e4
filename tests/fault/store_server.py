"""ClickHouse as a process of its own for the fault tests: the embedded engine behind its HTTP bridge."""

from __future__ import annotations

import argparse
import signal
import socket
import threading
from pathlib import Path

from pipeline.store.bridge import Bridge
from pipeline.store.engine import EmbeddedEngine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--config", type=Path)
    given = parser.parse_args()
    if given.config is not None:
        import chdb

        path = (given.data / "clickhouse").resolve()
        path.mkdir(parents=True, exist_ok=True)
        # Users, grants and policies of a server's configuration hold for every handle opened after this one.
        first = chdb.connect(f"{path}?config-file={given.config.resolve()}")
    engine = EmbeddedEngine(given.data / "clickhouse", given.data / "tmp")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", given.port))
    listener.listen(256)
    bridge = Bridge(engine, given.token, listener=listener).start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    bridge.close()
    engine.close()
    if given.config is not None:
        first.close()


if __name__ == "__main__":
    main()
