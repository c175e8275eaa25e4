"""How the benchmarks run their load client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gateway, latency
from benchmarks.harness import WrongCountsError
from benchmarks.load_bodies import outcomes_of
from benchmarks.load_check import OUTCOMES


@pytest.mark.parametrize("seconds", [2.0, 1_800.0])
def test_load_client_gets_more_time_than_it_loads(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def note(_: Any, *, seconds: float) -> dict[str, Any]:
        limits.append(seconds)
        return {}

    monkeypatch.setattr(gateway, "run_program", note)
    monkeypatch.setattr(gateway, "prepare_load", lambda *_: (tmp_path / "bodies", []))
    gateway.run_load(tmp_path, "127.0.0.1:1", "k", "ndjson500", persons=1, seconds=seconds)
    assert limits[0] >= seconds + 60


def test_outcomes_of_passes_over_the_bodies() -> None:
    running = [{"recorded": 0, "rejected": 0}, {"recorded": 3, "rejected": 1}, {"recorded": 7, "rejected": 1}]
    assert outcomes_of(0, running) == {"recorded": 0, "rejected": 0}
    assert outcomes_of(5, running) == {"recorded": 2 * 7 + 3, "rejected": 2 + 1}


def test_events_that_were_rejected_do_not_pass_as_stored() -> None:
    wanted = {"admitted": 20, "recorded": 70, "rejected": 3, "duplicate": 7}
    right = dict.fromkeys(OUTCOMES, 0) | wanted
    latency.check_outcomes(right, wanted, 0)
    resends = right | {"admitted": 5, "duplicate": 22}
    with pytest.raises(WrongCountsError, match="admitted"):
        latency.check_outcomes(resends, wanted, 0)
    # requests that were answered 503 may have been any
    latency.check_outcomes(right | {"recorded": 60}, wanted, 10)


def test_what_waits_gets_a_share_of_the_load_and_is_then_not_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(latency.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(latency.time, "sleep", lambda _: now.__setitem__(0, now[0] + 10.0))
    monkeypatch.setattr(latency, "stored", lambda _: 99)
    for load_seconds, limit in ((20.0, 60.0), (1_800.0, 360.0)):
        now[0] = 0.0
        with pytest.raises(latency.NotDrainedError, match="99 of 100"):
            latency.drain("http://x", 100, load_seconds)
        assert limit < now[0] <= limit + 10
