"""How the benchmarks run their load client."""

from __future__ import annotations

import http.client
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gateway, latency, together
from benchmarks.harness import WrongCountsError
from benchmarks.load_bodies import outcomes_of
from benchmarks.load_check import OUTCOMES


@pytest.mark.parametrize(
    ("rate", "size", "least", "connections"),
    [
        (100_000, 500, 16, 100),  # 200 requests a second, each of which may take half a second
        (20_000, 500, 16, 20),
        (10_000, 500, 16, 16),
        (3_000, 500, 16, 12),  # more would idle for so long that the server closes them
        (100, 500, 16, 1),
        (100_000, 1, 64, 1_000),  # the service takes 2,000
    ],
)
def test_open_loop_has_connections_for_slow_answers(
    rate: float, size: int, least: int, connections: int
) -> None:
    """With sixteen of them the load fell behind, and the service was blamed."""
    assert gateway.connections_for(rate, size, least) == connections


def test_a_client_that_cannot_keep_its_pace_is_told() -> None:
    fast = {"client_cpu_share": 0.1, "late_seconds": 0.1}
    assert gateway.pace_text(fast) == ""
    assert gateway.pace_text(fast | {"late_seconds": 3.0}).startswith("it sent up to 3.0 s behind its pace:")
    assert "used 90% of a core and it sent" in gateway.pace_text(
        {"client_cpu_share": 0.9, "late_seconds": 3.0}
    )


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


def test_what_was_not_answered_may_have_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"requests": 3, "unanswered": 1, "accepted": 1_000}
    running = [{"recorded": 0}, {"recorded": 500}]
    monkeypatch.setattr(gateway, "run_program", lambda *_, **__: dict(result))
    monkeypatch.setattr(gateway, "prepare_load", lambda *_: (tmp_path / "bodies", running))
    found = gateway.run_load(tmp_path, "127.0.0.1:1", "k", "ndjson500", persons=1, seconds=1, first_pass=0)
    assert (found["expected"], found["not_accepted"]) == ({"recorded": 2_000}, 1_000)


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
    monkeypatch.setattr(latency, "scrape", lambda _: metrics(recorded=99))
    for load_seconds, limit in ((20.0, 60.0), (1_800.0, 360.0)):
        now[0] = 0.0
        with pytest.raises(latency.NotDrainedError, match="99 of 100"):
            latency.drain("http://x", 100, load_seconds)
        assert limit < now[0] <= limit + 10


def metrics(lag: int = 0, **events: int) -> str:
    """/metrics of a service with so many events by outcome."""
    lines = [f'gridpipe_events_total{{outcome="{name}"}} {count}' for name, count in events.items()]
    return "\n".join([*lines, f'gridpipe_consumer_lag_records{{partition="0"}} {lag}'])


def test_what_was_not_accepted_and_arrives_all_the_same_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One 503 whose events were stored cost ten minutes their figure."""
    monkeypatch.setattr(latency.time, "sleep", lambda _: None)
    given: list[str] = []
    monkeypatch.setattr(latency, "scrape", lambda _: given.pop(0) if len(given) > 1 else given[0])
    total = latency.Sent()
    total.load({"accepted": 500, "not_accepted": 500, "expected": {"recorded": 1_000}, "seconds": 1.0})
    # as many as were accepted are there, but which ones is not known while some wait
    given[:] = [metrics(1, recorded=500), metrics(1, recorded=700), metrics(0, recorded=1_000)]
    total.drain("http://x")
    assert total.stored == 1_000
    given[:] = [metrics(0, recorded=500)]  # or none of them arrived
    total.drain("http://x")
    assert total.stored == 500
    total.probes(10, 2)
    given[:] = [metrics(0, recorded=1_012)]
    total.drain("http://x")
    given[:] = [metrics(0, recorded=1_013)]
    with pytest.raises(latency.RunFailedError, match="1013 events stored"):
        total.drain("http://x")


def test_a_service_that_is_busy_is_asked_for_its_metrics_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    answers: list[str | Exception] = [TimeoutError("timed out"), http.client.IncompleteRead(b""), "text"]

    def read(_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr(latency.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(latency.time, "sleep", lambda _: now.__setitem__(0, now[0] + 30.0))
    monkeypatch.setattr(latency.load_check, "read_metrics", read)
    assert latency.scrape("http://x") == "text"
    answers[:] = [TimeoutError("timed out")] * 9
    with pytest.raises(latency.RunFailedError, match="no answer"):
        latency.scrape("http://x")
    # at the end of a load that was measured, it is no reason to have no figure
    with pytest.raises(latency.NotDrainedError):
        latency.drain("http://x", 1, 1.0)


class _Service:
    """A service and a load, as `together` sees them: what is stored is what was sent, less `missing`."""

    url = "http://x"

    def __init__(self, missing: int) -> None:
        self.pids = {"store": 1}
        self.missing, self.sent = missing, 0

    def load(self, *_: Any, **more: Any) -> dict[str, Any]:
        self.sent += 1_000
        return {
            "accepted": 1_000, "not_accepted": 10, "expected": {"recorded": 1_010}, "seconds": 1.0,
            "began": time.perf_counter() - 1.0, "statuses": {"202": 2, "503": 1}, "latency_ms": {},
            "client_cpu_share": 0.1, "late_seconds": 0.0,
        }  # fmt: skip

    def scrape(self, *_: Any) -> str:
        return metrics(recorded=self.sent + 5 - (self.missing if self.sent > 1_000 else 0))


@pytest.mark.parametrize(("missing", "drained"), [(0, True), (500, False)])
def test_together_has_a_figure_although_requests_were_refused(
    missing: int, drained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _Service(missing)
    monkeypatch.setattr(together, "run_load", service.load)
    monkeypatch.setattr(together, "prepare_load", lambda *_: None)
    monkeypatch.setattr(together, "Memory", _NoMemory)
    monkeypatch.setattr(latency, "scrape", service.scrape)
    monkeypatch.setattr(latency, "_DRAIN_SECONDS", 0.1)
    found = together._run(tmp_path, service, "k", 1, 1.0, 1_000.0, 0.9)  # type: ignore[arg-type]
    assert found["stored_per_second"] == pytest.approx(1_000 - missing, rel=0.2)
    assert (found["drained_after_seconds"] is not None) is drained
    assert together.sustained(found, memory_counts=False) is drained


class _NoMemory:
    def __init__(self, _: Any, __: Any) -> None:
        self.samples: list[tuple[float, dict[str, float]]] = []

    def __enter__(self) -> _NoMemory:
        return self

    def __exit__(self, *_: object) -> None: ...
    def growth(self, _: str) -> float:
        return 0.5

    def verdict(self, role: str) -> tuple[str, bool]:
        return role, False
