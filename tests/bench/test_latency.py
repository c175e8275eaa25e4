"""The probes of the latency benchmark: on a clock, each measured from its own answer, few ones called so."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import harness, latency
from benchmarks.latency import Probes, tail_text


def test_of_few_probes_the_slowest_is_told_and_not_a_p99() -> None:
    assert tail_text({"probes": 200, "p99_ms": 40.4}) == "p99 40 ms"
    assert tail_text({"probes": 199, "p99_ms": 40.4}) == "max of 199 40 ms"


def test_probes_start_on_a_clock_although_nothing_is_visible_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one probe after the other a service that takes a second would get one probe a second."""
    posted: dict[str, float] = {}
    cases: list[str] = []

    class Store:
        def query(self, _: str, parameters: dict[str, Any]) -> Any:
            rows = [(name,) for name in parameters["names"] if time.perf_counter() - posted[name] > 0.5]
            return SimpleNamespace(result_rows=rows)

        def close(self) -> None: ...

    class Http:
        def __init__(self, **_: Any) -> None: ...
        def __enter__(self) -> Http:
            return self

        def __exit__(self, *_: object) -> None: ...
        def post(self, _: str, *, content: bytes, headers: dict[str, str]) -> Any:
            event = json.loads(content)
            if event["event_id"].endswith("3"):
                raise latency.httpx.ReadTimeout("no answer")
            if event["event_id"].endswith("7"):
                return SimpleNamespace(status_code=503)
            posted[event["event_id"]] = time.perf_counter()
            cases.append(event["case_id"])
            return SimpleNamespace(status_code=202)

    monkeypatch.setattr(latency, "connect", lambda _: Store())
    monkeypatch.setattr(latency.httpx, "Client", Http)
    running: Any = SimpleNamespace(url="http://x", settings=None)
    templates = [b'{"event_id":"w1","case_id":"c1"}', b'{"event_id":"w2","case_id":"c2"}']
    probes = Probes(running, "k", templates, "0")
    probes.start()
    time.sleep(2.0)
    probes.finish()
    assert probes.sent == len(probes.seconds) == len(posted)
    assert len(posted) >= 16  # 32 on an idle machine
    # one in five is refused or gets no answer: the ones behind it are sent all the same
    assert abs(len(probes.refused) - len(posted) / 4) <= 2
    assert min(probes.seconds) > 0.5
    assert probes.late == []
    # spread over all cases: of one alone they would all wait for one partition
    assert abs(cases.count("c1") - cases.count("c2") - len(probes.refused)) <= 4  # those were of `c2`


def test_a_run_that_fails_leaves_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PLACE", tmp_path)
    monkeypatch.setattr(harness, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(latency, "PLACE", tmp_path)
    monkeypatch.setattr(latency, "prepare", lambda _: None)

    def copy(_: int, to: Path) -> None:
        to.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(latency.cache, "copy_store", copy)
    with pytest.raises(OSError, match="disk full"):
        latency.main(["--quick"])
    assert list(tmp_path.iterdir()) == []
