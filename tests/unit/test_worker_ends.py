"""How a process ends whose worker cannot go on: as a crash, which is started again, not as a refusal."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx
import pytest

from pipeline.errors import UnavailableError, WorkerFailedError
from pipeline.runtime import store
from pipeline.runtime.process import STOP_ORDER
from pipeline.runtime.supervisor import Supervisor, _Role
from pipeline.settings import Settings


class _EndedError(Exception):
    pass


def _close(listener: socket.socket | None) -> None:
    if listener is not None:
        listener.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **named: Any) -> NoReturn:
        _close(named["listener"])
        raise WorkerFailedError("partitions [1] do not move though nothing holds them up")

    def end(code: int) -> NoReturn:
        raise _EndedError(code)

    monkeypatch.setattr(store, "run_store", fail)
    monkeypatch.setattr(store, "_end", end)


@pytest.mark.usefixtures("failing")
def test_a_worker_alone_ends_with_1(tmp_path: Path) -> None:
    with pytest.raises(_EndedError) as ended:
        store.run_alone(Settings(data_dir=tmp_path), bootstrap="127.0.0.1:1", listener=None)
    assert ended.value.args == (1,)


@pytest.mark.usefixtures("failing")
def test_the_supervisor_hears_of_a_crash_and_of_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(store, "report_problem", lambda *given: told.append(given) or 2)
    with socket.socket() as listener:
        details = {"bootstrap": "127.0.0.1:1", "fd": listener.detach(), "token": "t"}
        order: Any = SimpleNamespace(settings=Settings(data_dir=tmp_path), details=details)
        assert store._run(order) == 1
    assert told == []

    def refuse(*_: Any, **named: Any) -> NoReturn:
        _close(named["listener"])
        raise UnavailableError("no broker")

    monkeypatch.setattr(store, "run_store", refuse)
    with socket.socket() as listener:
        order.details["fd"] = listener.detach()
        assert store._run(order) == 2, "what cannot be mended by a start is told"
    assert len(told) == 1


_STANDS_STILL = """
import time
from pipeline.runtime.process import obey_signals
obey_signals(lambda: print("asked", flush=True), kill=lambda: print("kill", flush=True), last_words="over")
print("waits", flush=True)
time.sleep(60)
"""


def test_a_second_signal_ends_a_process_that_stands_still() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _STANDS_STILL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            assert child.stdout.readline() == "waits\n"
            for number in (STOP_ORDER, signal.SIGTERM, STOP_ORDER):  # the order of the same stop is no second
                child.send_signal(number)
                assert child.stdout.readline() == "asked\n"
            assert child.poll() is None
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == 1
            assert child.stdout.read() == "kill\n"
            assert child.stderr.read() == "error: second signal: over\n"
        finally:
            child.kill()


def test_the_supervisor_gives_the_store_an_order_and_no_second_signal(tmp_path: Path) -> None:
    """A service manager may send SIGTERM to every process; the supervisor stops its children besides."""
    told: dict[str, object] = {}
    supervisor = Supervisor(Settings(data_dir=tmp_path))
    for name in ("city", "http", "store"):
        child: Any = SimpleNamespace(
            stop=lambda _, number, name=name: told.update({name: number}),
            exit_code={"city": -9, "http": 0, "store": -9}[name],
        )
        supervisor._roles[name] = _Role(start=lambda: None, child=child)  # type: ignore[arg-type,return-value]
    supervisor._stop_children()
    assert told == {"city": signal.SIGTERM, "http": signal.SIGTERM, "store": STOP_ORDER}
    assert supervisor.unfinished == ("store",), "the city has nothing to finish"


_SERVES = """
import asyncio, socket, sys
from pathlib import Path
from types import SimpleNamespace
from pipeline.ingest.keys import KeyStore
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.http import Parts, serve
from pipeline.settings import Settings

async def close():  # stands for a broker that does not take what is on its way
    print("stops", flush=True)
    await asyncio.sleep(4)

settings = Settings(data_dir=Path(sys.argv[1]))
listener = socket.create_server(("127.0.0.1", 0))
control = SimpleNamespace(close=close)
keys, catalogues = KeyStore(settings.keys_path), load_catalogues(settings.catalogue_dir)
parts = Parts(settings, catalogues, keys, None, None, control, {})
print(listener.getsockname()[1], flush=True)
serve(parts, listener, None, alone=sys.argv[2] == "alone")
"""


@pytest.mark.parametrize(
    ("shape", "code", "said"), [("alone", 1, "error: second signal: "), ("beside", 0, "")]
)
def test_a_second_signal_ends_a_gateway_alone(tmp_path: Path, shape: str, code: int, said: str) -> None:
    """Beside a supervisor it may be the same stop, sent twice: what is on its way is finished."""
    child = subprocess.Popen(
        [sys.executable, "-c", _SERVES, str(tmp_path), shape],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            port = int(child.stdout.readline())
            httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=60, trust_env=False).raise_for_status()
            child.send_signal(signal.SIGTERM)
            assert child.stdout.readline() == "stops\n"
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == code
            assert child.stderr.read()[: len(said) or None] == said
        finally:
            child.kill()


_SERVES_READS = """
import os, socket, sys, time
from pathlib import Path
from pipeline.ingest.keys import KeyStore
from pipeline.read.reader import Reader
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.http import Parts, serve
from pipeline.settings import Settings

def connect():  # to a store that does not answer; the gauges and what is held ask at once
    os.write(1, b"asks\\n")
    time.sleep(120)

settings = Settings(data_dir=Path(sys.argv[1]))
keys, catalogues = KeyStore(settings.keys_path), load_catalogues(settings.catalogue_dir)
reader = Reader(connect, catalogues=catalogues, settings=settings)
parts = Parts(settings, catalogues, keys, None, reader, None, {})
serve(parts, socket.create_server(("127.0.0.1", 0)), None, alone=True)
"""


def test_a_query_of_a_store_that_is_silent_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Nobody waits for what it brings: the end is in time, and nothing was left undone."""
    command = [sys.executable, "-c", _SERVES_READS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "asks\n"
            child.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert child.wait(30) == 0
            assert time.monotonic() - began < 4
        finally:
            child.kill()
