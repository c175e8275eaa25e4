"""The store of a data directory behind an address, for several workers: the embedded engine and its bridge.

    python -m benchmarks.store_server DATA_DIR

Prints its address, with user and password, as one JSON line; serves until SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from benchmarks.cache import ROOT
from benchmarks.harness import RunFailedError, python
from pipeline.settings import load_settings
from pipeline.store.bridge import Bridge
from pipeline.store.engine import EmbeddedEngine


@contextlib.contextmanager
def store_server(data_dir: Path) -> Iterator[str]:
    """Its address while it runs, in a process of its own: a process has one engine."""
    child = subprocess.Popen(
        python("-m", "benchmarks.store_server", str(data_dir)),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TZ": "UTC"},
    )
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        if not line:
            raise RunFailedError(f"the store of {data_dir} did not start")
        yield str(orjson.loads(line)["url"])
    finally:
        end([child])
        child.stdout.close()


def end(children: Sequence[subprocess.Popen[bytes]], seconds: float = 40.0) -> None:
    """SIGTERM once, to all, and after so long SIGKILL."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    settings = load_settings(data_dir=Path(sys.argv[1]))
    engine, token = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir), secrets.token_hex()
    bridge = Bridge(engine, token).start()
    sys.stdout.buffer.write(orjson.dumps({"url": f"http://default:{token}@127.0.0.1:{bridge.port}"}) + b"\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})
    bridge.close()
    engine.close()
    os._exit(0)  # threads of the engine may still wind down


if __name__ == "__main__":
    main()
