"""A stop is over in time, whatever wakes the worker in the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.process.worker import Worker
from pipeline.settings import Settings
from tests.integration.worker_world import PRIVACY


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    def no_store() -> None:
        pytest.fail("nothing is read here")

    return Worker(Settings(data_dir=tmp_path), no_store, "127.0.0.1:1", PRIVACY)  # type: ignore[arg-type]


@pytest.mark.parametrize("event", ["_wake", "_settled"])
async def test_a_wake_in_the_tick_of_the_stop_does_not_swallow_it(worker: Worker, event: str) -> None:
    """`asyncio.wait_for` of Python 3.11 returns normally when what it waits for and its own cancellation come
    in one tick: the loop went round again, and the process never ended."""
    waiting = worker._dispatch() if event == "_wake" else worker._until(lambda: False, 60)
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0.01)
    getattr(worker, event).set()
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=2)
    if not done:
        task.cancel()
    assert done, "still going round"
    assert task.cancelled()
