"""The gate before the log, and the supervisor's orders to a child over a real pair of sockets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnavailableError
from pipeline.ingest.gate import Gate, gate_orders
from pipeline.runtime.roll import LogRoll, LogState
from pipeline.runtime.valve import RefusedError, Valve, obey
from pipeline.settings import Settings
from tests.unit.gateway_world import event, make_world


async def test_nobody_is_inside_a_closed_gate_and_who_waits_goes_on() -> None:
    gate = Gate(5)
    inside, seen = asyncio.Event(), []

    async def call(name: str) -> None:
        async with gate:
            seen.append(name)
            await inside.wait()

    first = asyncio.create_task(call("first"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gate.close())
    second = asyncio.create_task(call("second"))
    await asyncio.sleep(0.01)
    assert not closing.done()
    assert seen == ["first"]
    inside.set()
    await closing
    await asyncio.sleep(0.01)
    assert seen == ["first"]
    gate.open()
    await asyncio.gather(first, second)
    assert seen == ["first", "second"]


async def test_a_gate_that_closes_again_at_once_lets_nobody_in_who_waited() -> None:
    gate, inside = Gate(5), []

    async def call() -> None:
        async with gate:
            inside.append(gate.is_open)

    await gate.close()
    waiting = asyncio.create_task(call())
    await asyncio.sleep(0.01)
    gate.open()
    await gate.close()  # before the caller has had its turn
    await asyncio.sleep(0.01)
    assert inside == []
    gate.open()
    await asyncio.wait_for(waiting, 5)
    assert inside == [True]


async def test_a_caller_waits_only_so_long() -> None:
    gate = Gate(0.05)
    await gate.close()
    with pytest.raises(UnavailableError):
        async with gate:
            pass
    gate.open()
    async with gate:
        pass


async def test_a_failing_call_leaves_the_gate() -> None:
    gate = Gate(1)
    with pytest.raises(KeyError):
        async with gate:
            raise KeyError
    await asyncio.wait_for(gate.close(), 1)


async def test_a_gate_that_cannot_be_emptied_opens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.gate._CLOSE_SLACK_SECONDS", 0.05)
    gate = Gate(0.05)
    async with gate:
        with pytest.raises(TimeoutError):
            await gate_orders(gate, asyncio.Event().wait)["close"]()
        assert gate.is_open


@contextmanager
def child(orders: dict[str, Callable[[], Awaitable[dict[str, Any]]]]) -> Iterator[Valve]:
    valve = Valve()
    fd = valve.theirs.detach()
    thread = threading.Thread(target=lambda: asyncio.run(obey(fd, orders)))
    thread.start()
    try:
        yield valve
    finally:
        valve.close()
        thread.join(5)
        assert not thread.is_alive(), "a child must notice that the supervisor is gone"


async def _slow() -> dict[str, Any]:
    await asyncio.sleep(0.5)
    return {"slow": True}


async def _quick() -> dict[str, Any]:
    return {"quick": True}


async def _broken() -> dict[str, Any]:
    raise ValueError("no")


def test_orders_are_answered_refused_and_late_answers_passed_over() -> None:
    with child({"slow": _slow, "quick": _quick, "broken": _broken}) as valve:
        assert valve.ask("quick", seconds=5) == {"quick": True}
        with pytest.raises(RefusedError, match="ValueError"):
            valve.ask("broken", seconds=5)
        with pytest.raises(RefusedError, match="KeyError"):
            valve.ask("unknown", seconds=5)
        with pytest.raises(UnavailableError, match="no answer"):
            valve.ask("slow", seconds=0.1)
        assert valve.ask("quick", seconds=5) == {"quick": True}
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            valve.ask("slow", seconds=60, give_up=lambda: True)
        assert time.monotonic() - began < 2


def test_a_child_that_is_gone_is_noticed_at_once() -> None:
    valve = Valve()
    valve.started()
    with pytest.raises(UnavailableError):
        valve.ask("quick", seconds=60)
    valve.close()


def test_a_site_outgrows_the_embedded_log(tmp_path: Path) -> None:
    assert LogState.read(tmp_path) is None
    assert LogState.bytes_in(tmp_path) == 0
    state = LogState(bytes=10, limit=100, rolls=3, rolled_at=1.0, between_rolls=3_600.0)
    state.write(tmp_path)
    assert LogState.read(tmp_path) == state
    assert state.outgrown() == ""
    assert "in 5.0 minutes" in LogState(limit=100, between_rolls=300.0).outgrown()
    assert "straight" in LogState(bytes=200, limit=100, waits_for="records come straight").outgrown()


@pytest.mark.parametrize(("direct", "rolled"), [([99.0, 99.5, 100.0], True), ([99.0, 99.5, 0.1], False)])
def test_a_log_with_a_direct_record_since_the_gate_closed_is_not_rolled(
    tmp_path: Path, direct: list[float], rolled: bool
) -> None:
    settings = Settings(data_dir=tmp_path, embedded_log_quiet_seconds=60)
    settings.run_dir.mkdir(parents=True)
    told: list[str] = []
    answers = iter(zip((False, False, True), direct, strict=True))

    def orders(whose: str, *names: str) -> dict[str, Callable[[], Awaitable[dict[str, Any]]]]:
        async def note(name: str) -> dict[str, Any]:
            told.append(f"{whose}: {name}")
            return {}

        return {name: partial(note, name) for name in names}

    async def rest() -> dict[str, Any]:
        drained, seconds = next(answers)
        return {"drained": drained, "direct_seconds": seconds}

    with (
        child(orders("http", "close", "open", "renewed")) as http,
        child({"rest": rest, **orders("store", "close", "open")}) as store,
    ):
        roll = LogRoll(
            settings,
            children=lambda: {"http": http, "store": store},
            replace_broker=lambda: told.append("broker replaced"),
            give_up=lambda: False,
        )
        waits_for = roll._roll()
    if rolled:
        assert told == ["http: close", "store: close", "broker replaced", "store: open", "http: renewed"]
    else:
        assert told == ["http: close", "http: open"]
    assert bool(waits_for) != rolled


async def test_a_request_waits_before_the_gate_even_while_no_broker_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path)
    await world.gateway.gate.close()
    with monkeypatch.context() as patch:
        patch.setattr(world.log, "available", lambda: False)
        waiting = asyncio.create_task(world.post(event(1)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
    await world.gateway.renewed()
    assert (await waiting).status_code == 202


async def test_a_request_gives_up_before_a_gate_that_stays_closed(tmp_path: Path) -> None:
    world = make_world(tmp_path, durability_timeout_seconds=0.05)
    await world.gateway.gate.close()
    answer = await world.post(event(1))
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "Retry-After" in answer.headers
