"""The load test's parts that need no service: bodies, shapes, and the checks at its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from benchmarks import load_check
from benchmarks.load_bodies import MARK, STORM_REPORTS, Batches, aged, spoilt, storm_bodies
from benchmarks.load_check import Second, Totals
from benchmarks.workload import NO_GRID, NO_MATTER
from pipeline.contract.parse import parse_ndjson

ROOT = Path(__file__).parents[2]


def line(number: int, event_type: str = "REPORTED") -> bytes:
    return orjson.dumps(
        {
            "event_id": f"{MARK.decode()}e-{number:07d}",
            "source": "bench",
            "event_type": event_type,
            "case_id": f"{MARK.decode()}c-{number:07d}",
            "occurred_at": "2026-03-01T10:00:00.000+08:00",
            "channel": "hotline_12345",
            "matter_code": "SA-01",
            "grid_code": "440703001001001",
            "actor": {"type": "full_time", "key": "W1"},
            "description": "路面破损",
        }
    )


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join(line(number) for number in range(10)))
    return path


def ids(data: bytes) -> set[bytes]:
    return set(re.findall(rb'"event_id":"([^"]+)"', data))


def test_no_pass_repeats_an_id(feed: Path) -> None:
    batches = Batches(feed, 5, "steady")
    bodies = [batches.take() for _ in range(6)]
    assert [body.events for body in bodies] == [5] * 6
    assert len(set.union(*(ids(body.data) for body in bodies))) == 30


def test_replay_sends_every_body_twice(feed: Path) -> None:
    batches = Batches(feed, 5, "replay")
    first, again, second = (batches.take() for _ in range(3))
    assert first.data == again.data != second.data
    assert (first.repeats, again.repeats, second.repeats) == (False, True, False)


def test_a_body_knows_what_must_become_of_it(feed: Path) -> None:
    batches = Batches(feed, 5, "replay")
    first, again = batches.take(), batches.take()
    assert sum(first.outcomes.values()) == 5
    assert first.outcomes["admitted"] == 5
    assert again.outcomes == {"duplicate": 5}
    assert Batches(feed, 5, "bad-data").take().outcomes == {}


def test_a_backlog_is_up_to_six_hours_old(feed: Path) -> None:
    lines = feed.read_bytes().splitlines()
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    old = aged([*lines, lines[0]], now)
    at = [datetime.fromisoformat(orjson.loads(text)["occurred_at"]) for text in old]
    assert at[0] == now - timedelta(hours=6)
    assert at[:-1] == sorted(at[:-1])
    assert at[-2] < now
    assert old[-1] == old[0], "a redelivery is the same bytes"
    assert not parse_ndjson(b"\n".join(old)).errors


def test_contract_refuses_exactly_the_broken_lines(feed: Path) -> None:
    body = Batches(feed, 10, "bad-data").take()
    parsed = parse_ndjson(body.data)
    assert len(parsed.errors) == body.bad == 2
    assert len(parsed.events) == 8


@pytest.mark.parametrize("way", range(5))
def test_every_way_of_breaking_a_line_is_refused(way: int) -> None:
    assert len(parse_ndjson(spoilt(line(1), way)).errors) == 1


def test_storm_is_one_place_and_a_thousand_reporters() -> None:
    bodies = storm_bodies([line(0, "CLOSED"), line(1)])
    events = [orjson.loads(body.data) for body in bodies]
    assert len({event["event_id"] for event in events}) == STORM_REPORTS
    assert len({event["actor"]["key"] for event in events}) == STORM_REPORTS
    assert {event["grid_code"] for event in events} == {"440703001001001"}
    assert not parse_ndjson(b"\n".join(body.data for body in bodies)).errors


def test_storm_is_of_a_report_that_can_be_admitted() -> None:
    no_matter = line(0).replace(b"SA-01", NO_MATTER.encode())
    no_grid = line(1).replace(b"440703001001001", b"440703001001" + NO_GRID.encode())
    (data,) = {body.data for body in storm_bodies([no_matter, no_grid, line(2)])[:1]}
    assert b"SA-01" in data
    assert b"440703001001001" in data


def totals(**more: int) -> Totals:
    found = Totals(accepted=100, requests=10, **more)
    found.seconds[0] = Second(events=100, requests=10, users=8, latencies_ms=[20.0] * 10)
    return found


COUNTED = {"admitted": 20, "recorded": 70, "rejected": 3, "duplicate": 7, "quarantined": 0}


def problems(
    found: Totals, *, scenario: str = "steady", left: float = 0.0, counted: dict[str, int] = COUNTED
) -> list[str]:
    return load_check.problems(scenario, counted, left, found, p99_limit_ms=1_000, may_push_back=False)


def test_sound_run_has_no_problem() -> None:
    assert problems(totals()) == []


def test_lost_and_surplus_events_are_problems() -> None:
    assert "the service counts 99" in problems(totals(), counted=COUNTED | {"recorded": 69})[0]
    assert "the service counts 101" in problems(totals(), counted=COUNTED | {"recorded": 71})[0]
    # a request that was cut off may have arrived
    assert problems(totals(unanswered=5), counted=COUNTED | {"recorded": 75}) == []


def test_lag_failures_and_slow_answers_are_problems() -> None:
    assert "lag" in problems(totals(), left=3)[0]
    assert "failed" in problems(totals(failed=1))[0]
    assert "failed" in problems(totals(pushed_back=1))[0]
    slow = totals()
    slow.seconds[0].latencies_ms = [2_000.0] * 10
    assert "p99" in problems(slow)[0]


def test_scenarios_check_what_they_are_for() -> None:
    assert "were refused" in problems(totals(bad_sent=5, refused=4), scenario="bad-data")[0]
    assert "duplicates" in problems(totals(repeated=50), scenario="replay")[0]


def test_replay_admits_no_more_than_was_sent_once() -> None:
    found = totals(repeated=7)
    found.expected.update({"admitted": 20, "recorded": 70, "rejected": 3, "duplicate": 7})
    assert problems(found, scenario="replay") == []
    found.expected["recorded"] = 69
    assert "92 ids were sent, but 93" in problems(found, scenario="replay")[0]


def test_storm_admits_every_report_that_arrived() -> None:
    found = totals()
    found.expected["admitted"] = 20
    assert problems(found, scenario="storm") == []
    found.expected["admitted"] = 30
    assert "20 reports were admitted, 30" in problems(found, scenario="storm")[0]
    found.lost = 10
    assert problems(found, scenario="storm") == []


def test_backlog_must_be_accepted_within_its_window() -> None:
    found = Totals()
    for second in range(10):
        found.seconds[second] = Second(events=100)
    assert load_check.backlog(found, 300, 3.0, 6.0) is None
    assert load_check.backlog(found, 301, 3.0, 6.0) == (
        "300 events were accepted within 3 s, the backlog is 301"
    )


def test_ramp_that_was_carried_to_its_top_has_no_knee() -> None:
    steps = (1.0, 2.0)
    assert load_check.knee_text(195.0, 100.0, steps, 500) == "no knee up to 200 events/s: raise --rate"
    assert load_check.knee_text(120.0, 100.0, steps, 500).startswith("knee: 120 events/s")


def test_metrics_are_read_from_the_exposition() -> None:
    text = (
        'gridpipe_events_total{outcome="admitted"} 12.0\ngridpipe_events_total{outcome="duplicate"} 3.0\n'
        'gridpipe_consumer_lag_records{partition="0"} 2.0\ngridpipe_consumer_lag_records{partition="1"} 5.0\n'
    )
    assert load_check.outcomes(text)["admitted"] == 12
    assert load_check.outcomes(text)["quarantined"] == 0
    assert load_check.lag(text) == 7


def test_knee_is_the_last_step_that_was_carried() -> None:
    found = Totals()
    for second in range(30):
        reached = (100, 200, 250)[second // 10]  # 400 were asked in the last step
        found.seconds[second] = Second(events=reached, requests=1, users=1, latencies_ms=[50.0])
    assert load_check.knee(found, 100.0, (1.0, 2.0, 4.0), 30.0, 1_000.0) == 200.0


def test_seconds_without_an_answer_carried_nothing() -> None:
    """A service that answers in bursts does not reach twice what it carries."""
    found = Totals()
    for second in range(0, 40, 2):
        found.seconds[second] = Second(events=100, requests=1, users=1, latencies_ms=[50.0])
    assert load_check.knee(found, 50.0, (1.0, 2.0), 40.0, 1_000.0) == 50.0


def test_service_that_stays_slow_after_a_burst_has_not_recovered() -> None:
    found = Totals()
    for second in range(100):
        reached = 100 if second < 30 else 0 if second < 80 else 60
        found.seconds[second] = Second(events=reached, requests=1, users=1, latencies_ms=[50.0])
    assert load_check.recovered(found, 100.0)
    for second in range(80, 100):
        found.seconds[second].events = 40
    assert not load_check.recovered(found, 100.0)


def _with_shapes(program: str, *, seconds: int) -> str:
    """What a program prints about a run of so many seconds; in a process of its own, for locust patches
    sockets and threads when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "LOAD_SECONDS": str(seconds)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_who_starts_the_load_does_not_import_locust() -> None:
    """It replaces sockets, threads and subprocesses, and does not come up where urllib3 was there before."""
    told = _with_shapes("import sys, benchmarks.load; print('locust' in sys.modules)", seconds=60)
    assert told.strip() == "False"


def test_shapes_ask_for_what_their_scenario_says() -> None:
    program = (
        "from benchmarks.load_shapes import SHAPES, USERS\n"
        "at = [n / 100 for n in range(100)]\n"
        "print({name: [max(map(s.factor, [s] * 100, at)), min(map(s.factor, [s] * 100, at))]"
        " if name != 'ramp' else s.STEPS for name, s in SHAPES.items()})"
    )
    told = _with_shapes(program, seconds=900)
    found = eval(told)
    assert set(found) == {"steady", "ramp", "spike", "storm", "reconnect", "soak", "bad-data", "replay"}
    assert found["spike"] == [10.0, 1.0]
    assert found["reconnect"][0] == pytest.approx(15.4)
    assert found["steady"] == [1.0, 1.0]
    assert sorted(found["ramp"]) == list(found["ramp"])


def test_a_step_takes_as_long_as_its_scenario_says() -> None:
    """As locust does: users are started at the pace told, which is asked for again every second."""
    program = (
        "from benchmarks.load_shapes import Spike\n"
        "class Trial(Spike):\n"
        "    at, users = 29.0, 8.0\n"
        "    get_run_time = lambda self: self.at\n"
        "    get_current_user_count = lambda self: round(self.users)\n"
        "shape = Trial()\n"
        "while shape.users < 80:\n"
        "    wanted, pace = shape.tick()\n"
        "    shape.users = min(wanted, shape.users + pace)\n"
        "    shape.at += 1.0\n"
        "print(shape.at - 30.0)"
    )
    told = _with_shapes(program, seconds=100)
    assert 9.0 <= float(told) <= 11.0
