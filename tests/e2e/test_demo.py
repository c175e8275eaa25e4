"""The demo as a whole, in processes of its own: published figures, twice, and after kills anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.e2e.small_demo import YEARS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
#: Beside a case that says nearly the same.
MORE = pytest.mark.slow

PATIENCE_SECONDS = 400


class Demo:
    """Runs of the small demo in one data directory; every process it starts is in a session of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.running = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.e2e.small_demo",
                "demo",
                "--json",
                "--data-dir",
                str(self.data_dir),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TZ": "UTC", "GRIDPIPE_SIMULATED_PERSONS": "2000"},
            start_new_session=True,
        )

    def finish(self) -> dict[str, Any]:
        """Wait for the end; the result must be printed and the exit code 0."""
        assert self.running is not None
        out, err = self.running.communicate(timeout=PATIENCE_SECONDS)
        assert self.running.returncode == 0, err.decode()[-2_000:]
        result: dict[str, Any] = orjson.loads(out)
        return result

    def wait_for_answers(self, count: int) -> None:
        """Until so many batches are answered."""
        assert self.running is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            ledger = self.data_dir / "ledger.ndjson"
            if ledger.exists() and ledger.read_bytes().count(b'"again"') >= count:
                return
            assert self.running.poll() is None, (self.running.stderr or sys.stdin).read()
            time.sleep(0.02)
        raise AssertionError("no progress")

    def pids(self) -> dict[str, int]:
        found: dict[str, int] = orjson.loads((self.data_dir / "run" / "pids.json").read_bytes())
        return found

    def kill_tree(self) -> None:
        """kill -9 of the demo and every process of the service, all at once."""
        assert self.running is not None
        for pid in {self.running.pid, *self.pids().values()}:
            os.kill(pid, signal.SIGKILL)
        self.running.communicate()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path / "demo")
    yield demo
    if demo.running is not None and demo.running.poll() is None:
        demo.running.kill()  # the kernel kills its children with it
        demo.running.communicate()


def check(result: dict[str, Any]) -> None:
    """The shape of the issue, measured equal to published, and nothing lost or unexplained."""
    assert set(result) == {"districts", "events", "seconds"}
    assert [row["code"] for row in result["districts"]] == [year.code for year in YEARS]
    for row, year in zip(result["districts"], YEARS, strict=True):
        assert set(row) == {"code", "name_zh", "published", "measured"}
        assert row["published"] == {
            "received": year.received, "closed": year.closed, "closure_rate": year.closure_rate,
        }  # fmt: skip
        assert (row["measured"]["cases"], row["measured"]["closed"]) == (year.received, year.closed)
        assert row["measured"]["closure_rate"] == year.closed / year.received
    events = result["events"]
    assert events["sent"] == sum(events[name] for name in ("stored", "duplicates", "rejected", "quarantined"))
    assert min(events["rejected"], events["duplicates"], events["quarantined"] + 1) > 0


@pytest.mark.slow
def test_demo_measures_the_published_year_twice_in_a_row(demo: Demo) -> None:
    results = []
    for _ in range(2):
        demo.start()
        results.append(demo.finish())
        check(results[-1])
    assert orjson.loads((demo.data_dir / "demo.json").read_bytes())["finished"] is True


@pytest.mark.parametrize("role", [pytest.param(role, marks=MORE) for role in ("store", "http", "broker")])
def test_demo_survives_the_death_of_any_part(demo: Demo, role: str) -> None:
    demo.start()
    demo.wait_for_answers(6)
    os.kill(demo.pids()[role], signal.SIGKILL)
    check(demo.finish())


@pytest.mark.slow
def test_a_killed_demo_goes_on_with_the_same_year(demo: Demo) -> None:
    demo.start()
    demo.wait_for_answers(6)
    started_at = orjson.loads((demo.data_dir / "demo.json").read_bytes())["started_at"]
    demo.kill_tree()
    demo.start()
    demo.wait_for_answers(12)
    assert demo.running is not None
    os.kill(demo.running.pid, signal.SIGKILL)  # the demo alone: its service must die with it
    demo.running.communicate()
    demo.start()
    check(demo.finish())
    assert orjson.loads((demo.data_dir / "demo.json").read_bytes())["started_at"] == started_at
