"""A worker that is killed: at random under load, at every step of a block, while it starts."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.fault.conftest import ROUNDS
from tests.fault.system import System, share
from tests.fault.worker_process import POINTS

Report = dict[str, object]
CRASHES = [f"{when}:{name}" for name in POINTS for when in ("before", "after")]
#: Points that are looked at in every `make test`; the others in `make test-fault`.
QUICK = {"after:insert:events"}


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_1_worker_killed_at_random_under_load(town: System, report: Report, seed: int) -> None:
    rng = random.Random(seed)
    town.start_gateway()
    worker = town.start_worker()
    town.start_load()
    town.until_stored()
    recoveries = []
    for _ in range(ROUNDS):
        time.sleep(rng.uniform(0.5, 3.0))
        town.kill(worker)
        worker = town.start_worker()
        recoveries.append(town.until_stored())
    town.drained()
    verdict = town.verdict()
    report |= {
        "rounds": ROUNDS,
        "kills": town.kills,
        "verdict": verdict,
        "recovery_max": round(max(recoveries), 1),
    }
    assert verdict.zeros, verdict
    assert verdict.acked > 0
    assert max(recoveries) < 15 * share(), recoveries


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_1_a_worker_killed_every_three_seconds(town: System, report: Report, seed: int) -> None:
    """Two workers, one of them killed every 3 s for MINUTES (5): the load is held, the rest drains."""
    minutes = float(os.environ.get("MINUTES", "5"))
    town.start_gateway()
    running = [town.start_worker(), town.start_worker()]
    town.start_load()
    town.until_stored()
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        time.sleep(3)
        town.kill(running.pop(0))
        running.append(town.start_worker())
    recovery = town.until_stored()
    town.drained(300)
    verdict = town.verdict()
    report |= {"minutes": minutes, "kills": town.kills, "recovery": round(recovery, 1), "verdict": verdict}
    assert verdict.zeros, verdict
    assert recovery < 15 * share()


@pytest.mark.parametrize(
    "point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.fault) for point in CRASHES]
)
def test_2_3_4_worker_killed_at(town: System, report: Report, point: str) -> None:
    """Every step of a block, before and after it; the next worker completes what was begun."""
    town.start_gateway()
    first = town.start_worker(point, 1 if "recover" in point else 3)
    town.start_load(copies=0.5)
    code = first.wait(60 * share())
    assert code == -9, f"the point was not reached: {code}" + first.tail()
    town.kills += 1
    second = town.start_worker()
    town.until_stored(20)
    town.drained()
    verdict = town.verdict()
    report |= {"kills": town.kills, "verdict": verdict, "rebuilt_blocks": second.said("rebuilding_block")}
    assert verdict.zeros, verdict
    if point in {"after:insert:events", "before:commit"}:
        assert second.said("rebuilding_block") > 0, "a block was left behind, and none was rebuilt"
