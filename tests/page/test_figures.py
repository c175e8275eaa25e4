"""What the page makes of the metrics: rates, delays, restarts, what is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import generate_latest

from pipeline import metrics
from pipeline.ingest.durability import Replicated
from pipeline.ingest.producer import Written
from pipeline.page.figures import STUCK_SECONDS, Figures, Sample, quantile, read_families
from tests.unit.gateway_world import event, make_world


def sample(at: float, *, worker: bool = True, **families: dict[str, float]) -> Sample:
    return Sample(at, dict(families), worker)


def described(*samples: Sample) -> dict[str, Any]:
    figures = Figures()
    for item in samples:
        figures.add(item)
    return figures.describe()


def test_families_are_read_from_what_the_registry_really_writes() -> None:
    metrics.events.labels("recorded").inc(3)
    metrics.consumer_lag_records.labels("7").set(11)
    metrics.committed_offset.labels("7").set(40)
    metrics.partition_braked.labels("7").set(1)
    metrics.ingest_delay_seconds.observe(0.2)
    found = read_families(generate_latest(metrics.REGISTRY))
    assert found["events_total"]["recorded"] >= 3
    assert found["consumer_lag_records"]["7"] == 11
    assert (found["committed_offset"]["7"], found["partition_braked"]["7"]) == (40, 1)
    assert found["ingest_delay_seconds_bucket"]["0.25"] >= 1
    assert found["gateway_in_flight_bytes"][""] == 0
    for gauge in (metrics.consumer_lag_records, metrics.committed_offset, metrics.partition_braked):
        gauge.remove("7")


def test_rates_are_taken_over_five_seconds() -> None:
    said = described(
        *(sample(at, events_total={"admitted": 100.0 * at, "rejected": 2.0 * at}) for at in range(20))
    )
    assert said["events_per_second"] == pytest.approx(102)
    assert said["flow"]["outcomes_per_second"]["rejected"] == pytest.approx(2)
    assert said["totals"] == {"admitted": 1900, "rejected": 38}
    assert said["stored"] == {"events": 510, "seconds": 5.0}


def test_a_restart_is_no_negative_rate() -> None:
    said = described(
        sample(0, events_total={"admitted": 1000}),
        sample(1, events_total={"admitted": 5}),
        sample(2, events_total={"admitted": 15}),
    )
    assert said["events_per_second"] == pytest.approx(10)


def test_what_the_worker_counts_is_unknown_without_it() -> None:
    said = described(sample(0, events_total={"admitted": 5}), sample(1, worker=False))
    assert said["worker"] is False
    assert said["events_per_second"] is None
    assert said["stored"] is None
    assert said["delay_seconds"] is None


def test_delays_are_those_of_the_last_minute() -> None:
    old = {"0.1": 100.0, "1.0": 100.0, "+Inf": 100.0}
    new = {"0.1": 100.0, "1.0": 110.0, "+Inf": 110.0}
    said = described(sample(0, ingest_delay_seconds_bucket=old), sample(30, ingest_delay_seconds_bucket=new))
    assert said["delay_seconds"] == {"p50": pytest.approx(0.55), "p99": pytest.approx(0.991), "count": 10}
    idle = described(sample(0, ingest_delay_seconds_bucket=new), sample(30, ingest_delay_seconds_bucket=new))
    assert idle["delay_seconds"] is None


def test_a_quantile_above_the_last_bound_is_unknown_and_zeros_below_are_skipped() -> None:
    assert quantile([(1.0, 0.0), (2.0, 10.0), (float("inf"), 10.0)], 0.5) == pytest.approx(1.5)
    assert quantile([(1.0, 1.0), (float("inf"), 10.0)], 0.99) is None


@pytest.mark.parametrize(("seconds", "stuck"), [(STUCK_SECONDS - 1, []), (STUCK_SECONDS + 1, [3])])
def test_a_partition_is_stuck_that_does_not_move_while_others_do(seconds: float, stuck: list[int]) -> None:
    def at(instant: float, third: float = 20.0, waiting: float = 4.0) -> Sample:
        return sample(
            instant,
            consumer_lag_records={"0": 4.0, "3": waiting, "11": 0.0},
            committed_offset={"0": 100.0 + instant, "3": third, "11": 7.0},
            events_total={"admitted": 9.0 + instant},
        )

    figures = Figures()
    for instant in range(int(seconds) + 1):
        figures.add(at(instant))
    assert figures.describe()["flow"]["topic"]["stuck_partitions"] == stuck
    figures.add(at(seconds + 1, third=21.0))
    assert figures.describe()["flow"]["topic"]["stuck_partitions"] == []
    for instant in range(int(STUCK_SECONDS) + 3):
        figures.add(at(seconds + 2 + instant, third=21.0, waiting=0.0))
    assert figures.describe()["flow"]["topic"]["stuck_partitions"] == [], "it has nothing to do"


def test_a_partition_that_was_stopped_is_stuck_at_once_and_no_longer_when_it_went_elsewhere() -> None:
    figures = Figures()
    figures.add(sample(0, consumer_lag_records={"0": 0.0, "1": 0.0}, partition_braked={"0": 0.0, "1": 1.0}))
    assert figures.describe()["flow"]["topic"]["stuck_partitions"] == [1]
    figures.add(sample(1, consumer_lag_records={"0": 0.0}, partition_braked={"0": 0.0}))
    assert figures.describe()["flow"]["topic"]["stuck_partitions"] == []


@pytest.mark.parametrize(("seconds", "stuck"), [(STUCK_SECONDS - 1, False), (STUCK_SECONDS + 1, True)])
def test_the_store_is_stuck_when_it_refuses_for_long(seconds: float, stuck: bool) -> None:
    metrics.sink_blocked_seconds.set(seconds)
    metrics.worker_buffer_bytes.set(5_000)
    families = read_families(generate_latest(metrics.REGISTRY))
    metrics.sink_blocked_seconds.set(0)
    metrics.worker_buffer_bytes.set(0)
    store = described(Sample(1.0, families, worker=True))["flow"]["store"]
    assert (store["stuck"], store["blocked_seconds"], store["waiting_bytes"]) == (stuck, seconds, 5_000)


def requests(at: float, *, age: float, accepted: float = 3.0) -> Sample:
    """age : of the oldest request that came whole."""
    return sample(
        at,
        gateway_in_flight_bytes={"": 700.0},
        gateway_oldest_request_seconds={"": age},
        gateway_events_total={"accepted": accepted},
    )


def test_the_gateway_is_stuck_when_a_request_waits_and_none_is_answered() -> None:
    def stuck(*samples: Sample) -> bool:
        found: bool = described(*samples)["flow"]["gateway"]["stuck"]
        return found

    seconds = range(int(STUCK_SECONDS) + 2)
    assert stuck(*(requests(at, age=at) for at in seconds))
    assert not stuck(*(requests(at, age=at) for at in seconds[:-2])), "not for long enough"
    assert not stuck(*(requests(at, age=at, accepted=at) for at in seconds)), "others are answered"
    # an hour without a request, then one that is new
    assert not stuck(*(requests(at, age=0.0) for at in range(3_600)), requests(3_600, age=0.5))


def test_a_body_that_is_long_in_coming_makes_no_gateway_stuck() -> None:
    """Its bytes are booked at once, as declared; a handset on a slow link may take 30 s for them."""
    slow = described(*(requests(at, age=0.0) for at in range(30)))["flow"]["gateway"]
    assert (slow["in_flight_bytes"], slow["stuck"]) == (700, False)


class Held(Replicated):
    """Events are safe when the test says so."""

    def __init__(self) -> None:
        self.asked, self.safe = asyncio.Event(), asyncio.Event()

    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        self.asked.set()
        await self.safe.wait()
        return await super().confirm(written)


async def test_a_request_is_as_old_as_its_whole_body(tmp_path: Path) -> None:
    def oldest() -> float:
        return read_families(generate_latest(metrics.REGISTRY))["gateway_oldest_request_seconds"][""]

    log, begun, rest = Held(), asyncio.Event(), asyncio.Event()
    world = make_world(tmp_path, durability=log)
    body = orjson.dumps(event(1))

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:20]
        begun.set()
        await rest.wait()
        yield body[20:]

    head = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    async with world.client() as client, asyncio.timeout(30):
        sent = asyncio.create_task(client.post("/v1/events", content=slowly(), headers=head))
        await begun.wait()
        await asyncio.sleep(0.05)
        assert world.gateway.budget._used == len(body)
        assert oldest() == 0
        rest.set()
        await log.asked.wait()
        second = asyncio.create_task(world.post(event(2)))
        await asyncio.sleep(0.3)
        assert 0.3 <= oldest() < 20
        log.safe.set()
        assert {(await sent).status_code, (await second).status_code} == {202}
    assert oldest() == 0
    assert (await world.post(b"no json")).status_code == 400
    assert oldest() == 0


def test_the_mean_time_of_a_stage_is_that_of_the_last_seconds() -> None:
    said = described(
        sample(0, stage_seconds_sum={"decode": 100.0}, stage_seconds_count={"decode": 1000.0}),
        sample(6, stage_seconds_sum={"decode": 100.5}, stage_seconds_count={"decode": 1010.0}),
    )
    assert said["flow"]["stages"]["decode"] == pytest.approx(0.05)
    assert said["flow"]["stages"]["admit"] is None


def test_before_a_worker_has_its_partitions_what_waits_is_unknown() -> None:
    begun = described(sample(0, events_total={"admitted": 0.0}), sample(1, events_total={"admitted": 0.0}))
    topic = begun["flow"]["topic"]
    assert (topic["known"], topic["lag_records"], topic["lag_seconds"]) == (False, None, None)
    topic = described(sample(0, consumer_lag_records={"3": 0.0}, consumer_lag_seconds={"3": 0.0}))["flow"][
        "topic"
    ]
    assert (topic["known"], topic["lag_records"], topic["lag_seconds"]) == (True, 0, 0.0)


def test_one_sample_tells_no_rate() -> None:
    """After a start or a restart: 0 would be a figure, and stand in the trend."""
    said = described(sample(0, events_total={"admitted": 1000.0}, gateway_events_total={"accepted": 5.0}))
    assert said["events_per_second"] is None
    assert said["stored"] is None
    assert set(said["flow"]["outcomes_per_second"].values()) == {None}
    assert said["flow"]["gateway"]["accepted_per_second"] is None
    assert said["flow"]["store"]["inserts_per_second"] is None
    assert said["totals"] == {"admitted": 1000}


def waits(at: float) -> Sample:
    return sample(
        at,
        consumer_lag_records={"3": 4.0},
        committed_offset={"3": 20.0},
        gateway_oldest_request_seconds={"": max(0.0, at - 50)},
        gateway_events_total={"accepted": 3.0},
    )


def test_samples_that_lie_far_apart_do_not_tell_that_nothing_moved() -> None:
    """While nobody watches one is taken a minute: something waited at both instants, not all the while."""
    figures = Figures()
    figures.add(waits(0))
    figures.add(waits(60))
    figures.add(waits(61))
    flow = figures.describe()["flow"]
    assert (flow["topic"]["stuck_partitions"], flow["gateway"]["stuck"]) == ([], False)
    for seconds in range(2, int(STUCK_SECONDS) + 2):
        figures.add(waits(60 + seconds))
    flow = figures.describe()["flow"]
    assert (flow["topic"]["stuck_partitions"], flow["gateway"]["stuck"]) == ([3], True)


@pytest.mark.parametrize(
    ("stage", "arrow"),
    [
        ("decode", "decode"),
        ("deduplicate", "deduplicate"),
        ("look_up", "admit"),
        ("drop_resends", "admit"),
        ("enrich", "enrich"),
        ("fold", "store"),
    ],
)
def test_the_busiest_part_holds_the_others_up(stage: str, arrow: str) -> None:
    def at(
        seconds: float, *, busy: float = 0.6, late: float = 9.0, grows: float = 5.0, inserts: float = 0.1
    ) -> Sample:
        return sample(
            seconds,
            consumer_lag_records={"3": 100.0 + grows * seconds},
            consumer_lag_seconds={"3": late},
            committed_offset={"3": seconds},
            stage_seconds_sum={stage: busy * seconds, "no part": 5.0 * seconds},
            insert_seconds_sum={"events": inserts * seconds, "cases": inserts * seconds},
        )

    def slowest(until: float = STUCK_SECONDS, **how: float) -> Any:
        return described(*(at(seconds, **how) for seconds in range(int(until) + 1)))["flow"]["slowest"]

    assert slowest() == arrow
    assert slowest(until=STUCK_SECONDS - 1) is None, "not for long enough"
    assert slowest(late=4.0) is None
    assert slowest(grows=-1.0) is None, "it is being worked off"
    assert slowest(busy=0.2, inserts=0.0) is None, "nothing is busy: something else is wrong"
    assert slowest(inserts=0.4) == "store"
