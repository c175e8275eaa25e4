"""The load test's parts that need no service: bodies, shapes, and the checks at its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from benchmarks import load_check
from benchmarks.load_bodies import MARK, STORM_REPORTS, Batches, Body, aged, spoilt, storm_bodies
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
    assert [body.outcomes["duplicate"] for body in (first, again, second)] == [0, 5, 0]


def test_a_body_knows_what_must_become_of_it(feed: Path) -> None:
    batches = Batches(feed, 5, "replay")
    first, again = batches.take(), batches.take()
    assert sum(first.outcomes.values()) == 5
    assert first.outcomes["admitted"] == 5
    assert again.outcomes == {"duplicate": 5}


def test_outcomes_of_a_body_with_broken_lines_are_those_of_the_others(tmp_path: Path) -> None:
    """What is redelivered of a broken line is no duplicate, for the broken one never came in."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"\n".join([*(line(number) for number in range(5)), line(3), line(4)]))
    assert Batches(path, 7, "steady").take().outcomes == {
        "admitted": 5, "recorded": 0, "rejected": 0, "duplicate": 2,
    }  # fmt: skip
    body = Batches(path, 7, "bad-data").take()
    assert body.bad == 1
    assert body.outcomes == {"admitted": 5, "recorded": 0, "rejected": 0, "duplicate": 1}


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


COUNTED = {"admitted": 20, "recorded": 70, "rejected": 3, "duplicate": 7, "quarantined": 0}
ALL_OF_IT = ((0.0, 100.0),)


def totals(**more: int) -> Totals:
    found = Totals(accepted=100, requests=10, **more)
    found.expected.update(COUNTED)
    found.seconds[0] = Second(events=100, requests=10, users=8, latencies_ms=[20.0] * 10)
    return found


def problems(
    found: Totals,
    *,
    left: float = 0.0,
    counted: dict[str, int] = COUNTED,
    calm: tuple[tuple[float, float], ...] = ALL_OF_IT,
) -> list[str]:
    return load_check.problems(counted, left, found, p99_limit_ms=1_000, calm=calm)


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
    pushed = totals()
    pushed.seconds[0].pushed_back = 1
    assert "1 of 11 requests were pushed back" in problems(pushed)[0]
    slow = totals()
    slow.seconds[0].latencies_ms = [2_000.0] * 10
    assert "p99" in problems(slow)[0]


def test_outside_a_burst_a_service_must_answer_in_time_and_not_push_back() -> None:
    calm = ((0.0, 10.0), (20.0, 100.0))
    found = totals()
    found.seconds[10] = Second(requests=5, pushed_back=9, latencies_ms=[9_000.0] * 5)
    assert problems(found, calm=calm) == []
    assert problems(found, calm=()) == []
    found.seconds[20] = found.seconds.pop(10)
    pushed, slow = problems(found, calm=calm)
    assert "pushed back" in pushed
    assert "p99" in slow


@pytest.mark.parametrize(
    "became",
    [
        {"recorded": 0, "rejected": 73},
        {"recorded": 0, "quarantined": 70},
        {"admitted": 0, "duplicate": 27},
        {"duplicate": 0, "recorded": 77},
    ],
)
def test_events_must_become_what_the_bodies_hold(became: dict[str, int]) -> None:
    """As many events as were accepted: what became of them is what tells."""
    counted = COUNTED | became
    assert load_check.accounts(counted, totals())
    assert "must be" in problems(totals(), counted=counted)[0]


def test_redelivery_of_a_lost_original_is_the_original() -> None:
    counted = COUNTED | {"recorded": 74, "duplicate": 3}
    assert problems(totals(lost=4), counted=counted) == []
    assert len(problems(totals(lost=3), counted=counted)) == 2
    # however much was lost, no more than the redeliveries can take the place of an original
    assert problems(totals(lost=1_000), counted=COUNTED | {"recorded": 0, "rejected": 73})


def test_what_may_have_arrived_is_of_any_outcome_but_takes_nothing_away() -> None:
    assert problems(totals(unanswered=5), counted=COUNTED | {"rejected": 8}) == []
    assert problems(totals(unanswered=5), counted=COUNTED | {"rejected": 8, "recorded": 65})


BODY = Body(b"", 10, 2, {"admitted": 5, "duplicate": 3})


def test_answers_are_counted_as_a_whole_or_in_part() -> None:
    found = Totals(begin=time.monotonic())
    found.sent(BODY)
    assert (found.lost, found.unanswered, found.requests) == (10, 10, 1)
    found.answered(BODY, 8, 2, 20.0, 1)
    assert (found.lost, found.unanswered, found.accepted, found.refused, found.bad_sent) == (0, 0, 8, 2, 2)
    assert found.expected == {"admitted": 5, "duplicate": 3}
    found.sent(BODY)
    found.answered(BODY, 6, 2, 20.0, 1)  # two may be written or not
    assert (found.lost, found.unanswered, found.unsorted) == (10, 2, 6)
    found.sent(BODY)
    found.pushed(BODY, 1, written=False)
    assert (found.lost, found.unanswered, found.pushed_back) == (20, 2, 1)
    found.sent(BODY)
    found.pushed(BODY, 1, written=True)
    assert (found.lost, found.unanswered, found.pushed_back) == (30, 12, 2)
    assert found.expected == {"admitted": 5, "duplicate": 3}
    (second,) = found.seconds.values()
    assert (second.events, second.requests, second.pushed_back) == (14, 2, 2)


def test_good_events_that_the_contract_refuses_are_a_problem() -> None:
    assert "5 broken events were sent, 4 were refused" in problems(totals(bad_sent=5, refused=4))[0]
    assert "0 broken events were sent, 4 were refused" in problems(totals(refused=4))[0]


def test_run_that_sends_less_than_was_asked_fails() -> None:
    assert load_check.too_slow(Totals(offered=95), 100.0) is None
    assert load_check.too_slow(Totals(offered=94), 100.0) == (
        "94 events were sent, 100 were asked: that is 94%"
    )


def test_backlog_must_be_accepted_within_its_window() -> None:
    found = Totals()
    for second in range(40):
        found.seconds[second] = Second(events=100)
    # a second of tick and two between batches are allowed for: 17 of 20 s
    assert load_check.backlog(found, 2_000 / 17, 10.0, 30.0, 2.0) is None
    assert load_check.backlog(found, 2_001 / 17, 10.0, 30.0, 2.0) == (
        "2000 events were accepted within 20 s, the backlog is 2354, 2001 without what may be answered later"
    )
    assert "run longer" in str(load_check.backlog(found, 0.0, 10.0, 30.0, 19.0))


def test_service_that_stands_still_in_a_burst_fails() -> None:
    found = Totals()
    for second in range(40):
        found.seconds[second] = Second(events=0 if 10 <= second < 30 else 100)
    assert load_check.stood_still(found, 100.0, 10.0, 30.0) == (
        "0 events were accepted within 20 s of burst, not even 2000"
    )
    found.seconds[29].events = 2_000
    assert load_check.stood_still(found, 100.0, 10.0, 30.0) is None


def test_ramp_that_was_carried_to_its_top_has_no_knee() -> None:
    steps = (1.0, 2.0)
    assert load_check.knee_text(195.0, 100.0, steps, 500) == "no knee up to 200 events/s: raise --rate"
    assert load_check.knee_text(0.0, 100.0, steps, 500).startswith("no step was carried")
    assert load_check.knee_text(120.0, 100.0, steps, 500).startswith("knee: 120 events/s")


def test_metrics_are_read_from_the_exposition() -> None:
    text = (
        'gridpipe_events_total{outcome="admitted"} 12.0\ngridpipe_events_total{outcome="duplicate"} 3.0\n'
        'gridpipe_consumer_lag_records{partition="0"} 2.0\ngridpipe_consumer_lag_records{partition="1"} 5.0\n'
        'gridpipe_dedup_entries{level="L1"} 10.0\ngridpipe_dedup_entries{level="L2"} 2.0\n'
        "gridpipe_held_bytes 4.5e+08\n"
    )
    assert load_check.outcomes(text)["admitted"] == 12
    assert load_check.outcomes(text)["quarantined"] == 0
    assert load_check.lag(text) == 7
    assert load_check.held(text) == (12, 450_000_000)


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


def test_seconds_without_an_answer_over_http_have_no_latency(tmp_path: Path) -> None:
    found = Totals()
    found.seconds[0] = Second(events=100, requests=1, users=8, latencies_ms=[50.0])
    found.seconds[1] = Second(events=100, requests=1, users=8)
    load_check.write_seconds(tmp_path / "events.csv", found)
    assert (tmp_path / "events.csv").read_text().splitlines() == [
        "second,users,requests,pushed_back,events,p50_ms,p99_ms",
        "0,8,1,0,100,50.0,50.0",
        "1,8,1,0,100,,",
    ]
    found.seconds[0].latencies_ms = []
    assert load_check.knee(found, 100.0, (1.0,), 2.0, 1_000.0) == 0.0  # nobody knows how it would answer


def test_service_that_stays_slow_after_a_burst_has_not_recovered() -> None:
    found = Totals()
    for second in range(100):
        reached = 100 if second < 30 else 0 if second < 80 else 60
        found.seconds[second] = Second(events=reached, requests=1, users=1, latencies_ms=[50.0])
    assert load_check.recovered(found, 100.0)
    for second in range(80, 100):
        found.seconds[second].events = 40
    assert not load_check.recovered(found, 100.0)


def _with_shapes(program: str, *, seconds: int, **more: str) -> str:
    """What a program prints about a run of so many seconds; in a process of its own, for locust patches
    sockets and threads when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "LOAD_SECONDS": str(seconds), **more},
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
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


def test_scenarios_say_when_a_service_may_push_back_and_what_they_ask() -> None:
    program = (
        "from benchmarks.load_shapes import MAY_PUSH_BACK, SHAPES\n"
        "print({name: shape.CALM for name, shape in SHAPES.items() if name in MAY_PUSH_BACK})\n"
        "print(SHAPES['steady']().asked(1_600.0), SHAPES['spike']().asked(1_600.0))"
    )
    calm, asked = _with_shapes(program, seconds=100).splitlines()
    found = eval(calm, {"inf": float("inf")})
    assert found == {
        "ramp": (),
        "spike": ((0.0, 0.3), (0.8, float("inf"))),
        "reconnect": ((0.0, 0.3), (0.8, float("inf"))),
    }
    assert asked.split() == ["160000.0", str(1_600.0 * (70 + 10 * 30))]


def test_short_reconnect_of_a_service_that_takes_all_is_in_order() -> None:
    """What users send at their own pace in the 20 s of a short form, each batch answered before the next."""
    program = (
        "import math\n"
        "from benchmarks import load_check\n"
        "from benchmarks.load_shapes import SECONDS, USERS, Reconnect as R\n"
        "worst = []\n"
        "for rate in (500, 1_500, 5_000):\n"
        "    interval, totals = USERS * 500 / rate, load_check.Totals()\n"
        "    for late, answer in ((0.0, 0.3), (0.5, min(1.5, interval)), (0.99, min(1.5, interval))):\n"
        "        begin, end = R.BEGIN * SECONDS, R.END * SECONDS\n"
        "        totals.seconds.clear()\n"
        "        for user in range(R().users_at(0.4)):\n"
        "            first = 0.0 if user < USERS else begin + late\n"
        "            for number in range(math.ceil((end + late - first) / interval)):\n"
        "                totals.seconds[int(first + number * interval + answer)].events += 500\n"
        "        worst.append(load_check.backlog(totals, R.BACKLOG * rate, begin, end, interval))\n"
        "print(worst)"
    )
    assert eval(_with_shapes(program, seconds=60)) == [None] * 9


LOCUSTFILE = """
from types import SimpleNamespace
from benchmarks import load_check, locustfile
from benchmarks.load_bodies import Body
from benchmarks.locustfile import DirectProducer, Feeder, check, totals
"""


def test_share_of_producers_is_the_share_of_users() -> None:
    program = LOCUSTFILE + (
        "from itertools import islice\n"
        "from locust.dispatch import _kl_generator\n"
        "weights = [(kind.__name__, kind.weight) for kind in (DirectProducer, Feeder)]\n"
        "print(list(islice(_kl_generator(weights), 80)).count('DirectProducer'))"
    )
    told = _with_shapes(program, seconds=60, LOAD_KAFKA="127.0.0.1:1", LOAD_KAFKA_SHARE="0.25")
    assert int(told) == 20


def test_batches_straight_to_the_topic_count_as_those_over_http_do() -> None:
    program = LOCUSTFILE + (
        "import time\n"
        "class Producer:\n"
        "    def produce(self, topic, on_delivery, **_): on_delivery(error, None)\n"
        "    def poll(self, _): return 0\n"
        "    def __len__(self): return 0\n"
        "user = object.__new__(DirectProducer)\n"
        "user.producer = Producer()\n"
        "body = Body(b'{}\\n{}', 2, 1, {'recorded': 1})\n"
        "told = []\n"
        "fire = lambda **request: told.append(str(request['exception']))\n"
        "user.environment = SimpleNamespace(batches=SimpleNamespace(take=lambda: body), runner=None,\n"
        "    events=SimpleNamespace(request=SimpleNamespace(fire=fire)))\n"
        "for error in (None, 'away'):\n"
        "    totals = locustfile.totals = load_check.Totals(begin=time.monotonic())\n"
        "    user.produce_batch()\n"
        "    print([told.pop(), totals.requests, totals.failed, totals.lost, totals.unanswered,\n"
        "        totals.direct, totals.offered, totals.events_within(0, 60), dict(totals.expected)])"
    )
    told = _with_shapes(program, seconds=60, LOAD_KAFKA="127.0.0.1:1").splitlines()
    assert list(map(eval, told)) == [
        ["None", 1, 0, 0, 0, 2, 2, 2, {"recorded": 1, "quarantined": 1}],
        ["not delivered", 1, 1, 2, 2, 0, 2, 0, {}],
    ]


def test_run_fails_for_the_client_and_for_what_its_scenario_demands(tmp_path: Path) -> None:
    program = LOCUSTFILE + (
        "totals.accepted = totals.offered = totals.expected['recorded'] = 90_000\n"
        "counted = dict.fromkeys(load_check.OUTCOMES, 0) | {'recorded': 90_000}\n"
        "load_check.settle = lambda *_: (counted, 0.0)\n"
        "for exceptions in ({}, {1: {'count': 3, 'msg': 'KeyError'}}):\n"
        "    environment = SimpleNamespace(batches=SimpleNamespace(storm=[]), host='http://x',\n"
        "        runner=SimpleNamespace(exceptions=exceptions))\n"
        "    check(environment)\n"
        "    print(environment.process_exit_code)\n"
        "totals.offered = 80_000\n"
        "for locustfile.SCENARIO in ('steady', 'ramp', 'spike', 'reconnect'):\n"
        "    found = [problem for problem in locustfile._scenario_problems() if problem]\n"
        "    print(len(found), 'of', locustfile.SCENARIO)"
    )
    told = _with_shapes(program, seconds=60, LOAD_REPORT=str(tmp_path)).splitlines()
    assert [text for text in told if text in {"0", "1"} or text.startswith("FAILED")] == [
        "0",
        "FAILED: 3 times in the load client: KeyError",
        "1",
    ]
    assert any("90,000 events in batches, 100% of the 90,000 asked" in text for text in told)
    # of a run in which less was sent than asked, and nothing was accepted in any second
    assert told[-4:] == ["1 of steady", "1 of ramp", "2 of spike", "2 of reconnect"]


def test_users_that_wait_for_their_answers_are_late() -> None:
    program = LOCUSTFILE + (
        "now = [0.0]\n"
        "locustfile.time = SimpleNamespace(monotonic=lambda: now[0])\n"
        "user = object.__new__(Feeder)\n"
        "environment = SimpleNamespace(batches=SimpleNamespace(take=lambda: Body(b'', 5)))\n"
        "for gap in (0.0, 1.0, 1.0, 2.0):\n"
        "    now[0] += gap * locustfile.INTERVAL\n"
        "    user.next_batch(environment)\n"
        "print(totals.late_share(), totals.offered)"
    )
    assert _with_shapes(program, seconds=60).split() == ["0.25", "20"]
