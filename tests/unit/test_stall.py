"""What counts as a partition that stands still, and that a process whose loop does is ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from pipeline.process.stall import Look, StallWatch
from pipeline.runtime.watchdog import watch_loop

IDLE = Look(10, 10, 10, waiting=False)
HELD = Look(10, 14, 14, waiting=True)


def stands(*looks: Look, excused: frozenset[int] = frozenset()) -> float:
    """Seconds that partition 0 stands still after a look each second."""
    watch = StallWatch(8)
    still: dict[int, float] = {}
    for second, look in enumerate(looks):
        still = watch.still([(0, look)], float(second), excused=second in excused)
    return still.get(0, 0)


def test_records_that_wait_and_no_commit() -> None:
    assert stands(*[HELD] * 9) == 8
    watch = StallWatch(8)
    for second in range(10):
        still = watch.still([(0, HELD), (1, IDLE)], float(second), excused=False)
        assert watch.suspected(still) == ([0] if second >= 4 else [])
        assert watch.stalled(still) == ([0] if second >= 8 else [])


@pytest.mark.parametrize(
    "looks",
    [
        [IDLE] * 9,
        [*[HELD] * 8, HELD._replace(committed=12)],  # a commit
        [IDLE, *[IDLE._replace(received=11, end=11)] * 8],  # a record came, and was no event of ours
        [*[HELD] * 8, IDLE],  # a commit of all that there was, unseen
        [IDLE, *[IDLE._replace(end=11)] * 8],  # the mark of a transaction
    ],
)
def test_what_moves_or_has_nothing_to_do(looks: list[Look]) -> None:
    assert stands(*looks) == 0


def test_records_that_go_on_coming_are_no_excuse() -> None:
    """One round hangs and holds its partition; the load goes on."""
    assert stands(*[HELD._replace(received=14 + n, end=14 + n) for n in range(9)]) == 8


def test_a_fetch_that_brings_nothing_of_a_log_that_grows() -> None:
    assert stands(IDLE, *[IDLE._replace(end=12)] * 8) == 8


def test_a_store_that_refuses_is_an_excuse_while_it_does() -> None:
    assert stands(*[HELD] * 9, excused=frozenset(range(9))) == 0
    assert stands(*[HELD] * 9, excused=frozenset({3})) == 5


def test_a_partition_that_was_away_begins_anew() -> None:
    watch = StallWatch(8)
    for second in range(9):
        still = watch.still([] if second == 7 else [(0, HELD)], float(second), excused=False)
    assert still == {}


def test_nothing_is_ever_stalled_at_0() -> None:
    watch = StallWatch(0)
    for second in (0.0, 1e9):
        still = watch.still([(0, HELD)], second, excused=False)
    assert watch.suspected(still) == watch.stalled(still) == []


_LOOP = """
import asyncio, sys, time
from pipeline.runtime.watchdog import watch_loop

async def main():
    watching = asyncio.create_task(watch_loop(float(sys.argv[1]), lambda _: None))
    await asyncio.sleep(1.5)
    print("goes on", flush=True)
    secret = "4403"
    time.sleep(float(sys.argv[2]))
    watching.cancel()

asyncio.run(main())
"""


@pytest.mark.parametrize(("seconds", "code"), [("1", 1), ("0", 0), ("60", 0)])
def test_a_loop_that_stands_still_ends_the_process(seconds: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOP, seconds, "1.6"], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (code, "goes on\n"), done.stderr
    assert ("Timeout" in done.stderr) == (code == 1)
    assert "4403" not in done.stderr


async def test_the_timer_goes_with_the_watch() -> None:
    watching = asyncio.create_task(watch_loop(0.5, lambda _: None))
    await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await asyncio.sleep(0.7)


@pytest.mark.parametrize("seconds", [2.0, 0.0])
async def test_how_late_the_loop_came_is_told_for_a_minute(seconds: float) -> None:
    lates: list[float] = []
    told = asyncio.Event()

    def late(most: float) -> None:
        lates.append(most)
        if most >= 0.7:
            told.set()

    watching = asyncio.create_task(watch_loop(seconds, late))
    await asyncio.sleep(0.05)
    time.sleep(1.8)  # noqa: ASYNC251  # what a call that blocks does
    await asyncio.wait_for(told.wait(), 5)
    count = len(lates)
    while len(lates) == count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert lates[-1] >= 0.7, "the look after it, which was in time, tells it too"
