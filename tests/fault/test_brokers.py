"""Brokers that die, freeze, lose records, or take no commits; and what the gateway answers meanwhile."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic
from confluent_kafka.admin._listoffsets import OffsetSpec
from prometheus_client.parser import text_string_to_metric_families

from infra.kafka.cluster import Cluster
from pipeline.errors import UnavailableError
from pipeline.process.topic import describe_topic
from pipeline.runtime import broker
from tests.e2e.service import Service
from tests.fault.conftest import ROUNDS
from tests.fault.load import Ledger, Load
from tests.fault.proxy import Proxy
from tests.fault.system import PARTITIONS, Memory, Process, Store, System, look_again, share, system
from tests.fault.verdict import OUTCOME_TABLES, judge, keep_copies
from tests.fault.worker_process import GATEWAY_POINTS
from tests.kafka import JARS, embedded_broker, need_kafka

Report = dict[str, object]
GATEWAY_CRASHES = [f"{when}:{name}" for name in GATEWAY_POINTS for when in ("before", "after")]


@pytest.fixture
def kafka_town(
    tmp_path: Path, kafka_three: Cluster, store_process: Store, seed: int, report: Report
) -> Iterator[System]:
    with system(
        tmp_path, kafka_three.bootstrap, store_process, seed=seed, embedded=False, report=report
    ) as made:
        yield made
    for node in kafka_three.members:
        if not node.running:
            kafka_three.start_node(node.number)


def answered_in_time(load: Load, town: System) -> None:
    """No request of the load waited longer than for its durability, and none was left without an answer.

    2 s beyond: one for the gateway to end its wait, one for the machine."""
    slowest = max(load.slowest.values())
    assert slowest <= town.settings.durability_timeout_seconds + 2, load.slowest
    assert not {"ReadTimeout", "RemoteProtocolError", "ReadError"} & load.statuses.keys(), load.statuses


@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_13_kafka_node_killed_while_producing(
    kafka_town: System, kafka_three: Cluster, report: Report, seed: int
) -> None:
    """One of three nodes at a time: what is answered stays, since two have it; no restart is needed."""
    rng = random.Random(seed)
    gateway, worker = kafka_town.start_gateway(), kafka_town.start_worker()
    load = kafka_town.start_load()
    kafka_town.until_stored(50)
    for _ in range(ROUNDS):
        number = rng.randint(1, 3)
        kafka_three.kill(number)
        kafka_town.kills += 1
        time.sleep(rng.uniform(2, 6))
        kafka_three.start_node(number)
        kafka_town.until_stored(50)
    kafka_town.drained()
    verdict = kafka_town.verdict()
    report |= {"rounds": ROUNDS, "kills": kafka_town.kills, "answers": load.statuses, "verdict": verdict}
    assert verdict.zeros, verdict
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_librdkafka_tells_no_end_and_no_error_of_a_partition_whose_leader_is_away(
    kafka_three: Cluster,
) -> None:
    """A trap (tests/traps): who takes the answer for an offset believes that the log was cut. For us an end
    that is not known is an error."""
    topic, partitions = f"ends-{uuid.uuid4().hex[:8]}", range(PARTITIONS)
    admin = broker.wait_until_up(kafka_three.bootstrap, seconds=60)
    [made] = admin.create_topics(
        [NewTopic(topic, PARTITIONS, 1, config={"min.insync.replicas": "1"})]
    ).values()
    made.result(30)
    asked = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}  # type: ignore[no-untyped-call]

    def ends() -> dict[int, int]:
        """Without an error for any of them; it is told anew, as for a leader that has just come."""
        until = time.monotonic() + 30 * share()
        while True:
            try:
                answers = admin.list_offsets(asked, request_timeout=5)
                return {at.partition: answer.result(10).offset for at, answer in answers.items()}
            except KafkaException:
                assert time.monotonic() < until
                time.sleep(0.2)
                look_again(admin, topic)

    assert ends() == dict.fromkeys(partitions, 0)
    kafka_three.kill(1)
    try:
        until = time.monotonic() + 30 * share()
        while (told := ends()) == dict.fromkeys(partitions, 0):
            assert time.monotonic() < until, "an end is told where nobody is who could know it"
            time.sleep(0.1)
        assert set(told.values()) == {0, -1001}, "offset -1001, and no error"
        with pytest.raises(UnavailableError):
            describe_topic(kafka_three.bootstrap, topic, seconds=5)
    finally:
        kafka_three.start_node(1)


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_13_all_kafka_nodes_down(kafka_town: System, kafka_three: Cluster, report: Report) -> None:
    """503 with Retry-After within 1 s once the circuit is open, also for those that wait when it opens;
    everything goes on by itself afterwards."""
    gateway, worker = kafka_town.start_gateway(), kafka_town.start_worker()
    load = kafka_town.start_load(pace=5)
    kafka_town.until_stored(20)
    for number in (1, 2, 3):
        kafka_three.kill(number)
    time.sleep(3)
    slowest = 0.0
    with httpx.Client(trust_env=False, timeout=30) as client:
        for _ in range(5):
            started = time.monotonic()
            answer = client.post(
                f"{kafka_town.url}/v1/events",
                json=[next(iter(kafka_town.ledger.sent.values()))],
                headers={"Authorization": f"Bearer {kafka_town.key}"},
            )
            slowest = max(slowest, time.monotonic() - started)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
    for number in (1, 2, 3):
        kafka_three._launch(kafka_three.members[number - 1])
    kafka_three.wait_ready()
    kafka_town.until_stored(20, seconds=120)
    kafka_town.drained()
    verdict = kafka_town.verdict()
    report |= {
        "slowest_503": round(slowest, 2), "kills": 3, "answers": load.statuses, "slowest": load.slowest,
        "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert gateway.running
    assert worker.running
    assert slowest < 1.0
    answered_in_time(load, kafka_town)


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_13_two_kafka_nodes_down(kafka_town: System, kafka_three: Cluster, report: Report, seed: int) -> None:
    """The node that is left leads a third of the partitions and has a copy of all: one copy confirms nothing.
    Nobody is answered 2xx until a second one is back; all goes on by itself."""
    gateway, worker = kafka_town.start_gateway(), kafka_town.start_worker()
    load = kafka_town.start_load(pace=10)
    kafka_town.until_stored(50)
    down = random.Random(seed).sample((1, 2, 3), 2)
    for number in down:
        kafka_three.kill(number)
        kafka_town.kills += 1
    time.sleep(1)
    # one that was on its way may have been acknowledged in part, and is answered when its rest is given up
    before = set(kafka_town.ledger.sent)
    late = kafka_town.start_load(pace=10)  # the threads of the first one wait for what they sent before
    time.sleep(25)
    tried = set(kafka_town.ledger.sent) - before
    meanwhile = len(tried & kafka_town.ledger.acked)
    for number in down:
        kafka_three._launch(kafka_three.members[number - 1])
    kafka_three.wait_ready()
    kafka_town.until_stored(20, seconds=120)
    load.stop()
    kafka_town.drained()
    verdict = kafka_town.verdict()
    report |= {
        "kills": kafka_town.kills, "answers": [load.statuses, late.statuses],
        "slowest": [load.slowest, late.slowest], "sent_meanwhile": len(tried), "acked_meanwhile": meanwhile,
        "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert tried
    assert meanwhile == 0, "answered 2xx by one copy"
    for each in (load, late):
        assert each.statuses.get(503, 0) > 0, "nobody was told to come again"
        answered_in_time(each, kafka_town)
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_15_kafka_frozen(kafka_town: System, kafka_three: Cluster, report: Report) -> None:
    """All nodes stand still for 30 s: nothing is answered 2xx, then recovery without a restart."""
    gateway, worker = kafka_town.start_gateway(), kafka_town.start_worker()
    load = kafka_town.start_load(pace=10)
    kafka_town.until_stored(20)
    for number in (1, 2, 3):
        kafka_three.signal(number, signal.SIGSTOP)
    time.sleep(1)
    # one that was on its way may have been acknowledged in part, and is answered when its rest is given up
    before = set(kafka_town.ledger.sent)
    late = kafka_town.start_load(pace=10)  # the threads of the first one wait for what they sent before
    with Memory(gateway, worker) as memory:
        time.sleep(29)
    tried = set(kafka_town.ledger.sent) - before
    meanwhile = len(tried & kafka_town.ledger.acked)
    for number in (1, 2, 3):
        kafka_three.signal(number, signal.SIGCONT)
    kafka_town.until_stored(20, seconds=120)
    load.stop()
    kafka_town.drained()
    verdict = kafka_town.verdict()
    report |= {
        "answers": [load.statuses, late.statuses],
        "sent_while_frozen": len(tried),
        "acked_while_frozen": meanwhile,
        "slowest": [load.slowest, late.slowest],
        "memory_growth": memory.grown,
        "verdict": verdict,
    }
    assert verdict.zeros, verdict
    for each in (load, late):
        assert each.statuses.get(503, 0) > 0, "nobody was told to come again"
        answered_in_time(each, kafka_town)
    # what is on the way is bounded: each thread that sends has at most one request there
    assert memory.grown["gateway"] < 0.10, memory.grown
    assert memory.grown["worker"] < 0.20, memory.grown  # the last blocks that it had fetched
    assert tried
    assert meanwhile == 0
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hit", [1, 10])
def test_29_kafka_retention_passed_the_commit(kafka_town: System, report: Report, hit: int) -> None:
    """Records that were never read are deleted: the worker says so and goes on with what is left; also where
    rows were stored and nothing was committed yet (hit 1)."""
    kafka_town.start_gateway()
    worker = kafka_town.start_worker("before:commit", hit)
    kafka_town.start_load()
    assert worker.wait(120 * share()) is not None, worker.tail()
    stored = judge(kafka_town.ledger, kafka_town.client, fold=False).stored
    time.sleep(3)
    assert kafka_town.load is not None
    kafka_town.load.stop()
    gone = len(kafka_town.ledger.acked)
    offsets_stored = _offsets_stored(kafka_town)
    ends = [TopicPartition(kafka_town.topic, part, -1) for part in range(PARTITIONS)]  # -1: up to the end
    look_again(kafka_town.admin, kafka_town.topic)
    deleted = {
        at.partition: done.result(20).low_watermark
        for at, done in kafka_town.admin.delete_records(ends).items()
    }
    port = broker.free_port()
    worker = kafka_town.start_worker(admin=port)
    kafka_town.start_load()
    kafka_town.until_stored(50)
    kafka_town.caught_up()
    verdict = kafka_town.verdict()
    told = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    [counted] = [float(gap) for gap in re.findall(r"^gridpipe_verifier_gap_total (\S+)", told, re.MULTILINE)]
    report |= {"deleted_unread": verdict.lost, "offsets_counted": counted, "verdict": verdict}
    assert 0 < verdict.lost <= gone - stored
    assert replace(verdict, lost=0).zeros, verdict
    assert worker.said("offsets_passed_over") > 0
    # a partition of which nothing was stored begins where its log does; one without a new record tells later
    told_of = set(_offsets_stored(kafka_town, deleted)) & set(offsets_stored)
    assert told_of
    assert counted == sum(deleted[part] - offsets_stored[part] for part in told_of)


def _offsets_stored(town: System, begins: Mapping[int, int] | None = None) -> dict[int, int]:
    """Of how many offsets of each partition, from where it begins, any row is stored; partitions without any
    are left out."""
    each = " UNION ALL ".join(f"SELECT _part, _off FROM {table}" for table in OUTCOME_TABLES)
    found = town.client.query(f"SELECT _part, groupUniqArray(_off) FROM ({each}) GROUP BY _part").result_rows
    kept = {part: sum(off >= (begins or {}).get(part, 0) for off in offsets) for part, offsets in found}
    return {part: offsets for part, offsets in kept.items() if offsets}


def _received(port: int) -> float:
    """Events that the worker on this port has counted."""
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "gridpipe_events_received_total"
    )


def _until_refused(worker: Process) -> None:
    """Until a commit of each partition on its way was refused."""
    deadline = time.monotonic() + 30 * share()
    while not worker.said("commit failed; trying again"):
        assert time.monotonic() < deadline, "no commit was refused"
        time.sleep(0.2)
    time.sleep(2)


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [False, True], ids=["then-they-stand", "then-it-is-killed"])
def test_5_commits_fail_for_a_minute(town: System, killed: bool, report: Report) -> None:
    """Every commit is refused: what comes is stored all the same, memory does not grow, and one later commit
    covers it all; or the worker dies with many blocks stored and none committed, and they are rebuilt."""
    town.start_gateway()
    port = broker.free_port()
    refusing = town.directory / "refuse-commits"
    worker = town.start_worker(f"refuse-commits:{refusing}", admin=port)
    first = town.start_load(pace=10)
    town.until_stored()
    time.sleep(15)  # a worker that has just begun grows by what it loads, whether commits stand or not
    refusing.touch()
    refused_until = time.monotonic() + 60
    _until_refused(worker)
    stored, committed, received = town.stored(), town.committed(), _received(port)
    with Memory(worker) as memory:
        time.sleep(20)
        # on the embedded broker the first load waits for its answers, that is for the commits
        town.start_load(pace=10)
        time.sleep(max(30, refused_until - time.monotonic()))
    progress = town.stored() - stored
    counted = _received(port)
    assert town.committed() == committed, "a commit went through"
    refused = worker.said("commit failed; trying again")
    refusing.unlink()
    if killed:
        town.kill(worker)
        worker = town.start_worker()
    town.until_stored(10)
    first.stop()
    town.drained()
    if not killed:
        deadline = time.monotonic() + 20 * share()
        while _received(port) < received + progress:
            assert time.monotonic() < deadline, (
                "what was stored meanwhile is not counted once its commit stands"
            )
            time.sleep(0.5)
    verdict = town.verdict()
    report |= {
        "refused": refused, "stored_meanwhile": progress, "memory_growth": memory.grown,
        "rebuilt_blocks": worker.said("rebuilding_block"), "kills": town.kills, "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert max(memory.grown.values()) < 0.10, memory.grown
    assert worker.running
    assert refused > 0
    assert progress > 0, "nothing was stored while commits were refused"
    assert counted == received, "counted before its commit stood"
    if killed:
        assert worker.said("rebuilding_block") > 2


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_5_commits_hang_over_a_rebalance(town: System, report: Report) -> None:
    """No commit comes back, partitions go to a second worker and come back again; then the requests are
    answered that an earlier assignment made. No commit goes backward, and nothing is counted twice."""
    town.start_gateway()
    hanging = town.directory / "hang-commits"
    hanging.touch()
    worker = town.start_worker(f"hang-commits:{hanging}")
    first = town.start_load(pace=10)
    town.until_stored()
    time.sleep(5)
    stored = town.stored()
    town.start_load(pace=10)
    time.sleep(20)
    progress = town.stored() - stored
    assert town.committed() == {}, "a commit went through"
    other = town.start_worker()
    time.sleep(10)
    hanging.unlink()
    offsets: list[dict[int, int]] = []
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        offsets.append(town.committed())
        time.sleep(0.1)
    town.kill(other)
    town.until_stored(10)
    first.stop()
    town.drained()
    offsets.append(town.committed())
    verdict = town.verdict()
    report |= {"stored_meanwhile": progress, "kills": town.kills, "verdict": verdict}
    assert verdict.zeros, verdict
    assert progress > 0, "nothing was stored while no commit was answered"
    assert worker.running
    for partition in offsets[-1]:
        told = [found[partition] for found in offsets if partition in found]
        assert told == sorted(told), f"commits of partition {partition} went backward"
    assert not worker.said("offsets_passed_over") + other.said("offsets_passed_over")


@pytest.fixture(params=["embedded", "kafka"])
def far_broker(
    request: pytest.FixtureRequest, tmp_path: Path, store_process: Store, seed: int, report: Report
) -> Iterator[tuple[System, Proxy]]:
    """A system that reaches its broker through a proxy alone: the embedded one, or one Kafka node."""
    port = broker.free_port()
    proxy = Proxy(port)
    address = f"127.0.0.1:{proxy.port}"
    with contextlib.ExitStack() as running:
        running.callback(proxy.close)
        if request.param == "kafka":
            need_kafka()
            far = {"advertised.listeners": f"PLAINTEXT://{address}"}
            node = Cluster(tmp_path / "kafka", ports=[port], jars=JARS, retention_ms=-1, settings=far)
            running.enter_context(node)
        else:
            running.enter_context(embedded_broker(port, proxy.port))
        embedded = request.param == "embedded"
        made = system(tmp_path, address, store_process, seed=seed, embedded=embedded, report=report)
        yield running.enter_context(made), proxy


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_18_half_open_connection_to_the_broker(far_broker: tuple[System, Proxy], report: Report) -> None:
    """Nothing is forwarded and nothing is closed: no answer is 2xx, then all goes on without a restart."""
    town, proxy = far_broker
    gateway, worker = town.start_gateway(), town.start_worker()
    load = town.start_load(pace=10)
    town.until_stored(20)
    proxy.hold = True
    time.sleep(2)
    # one that was on its way may have been acknowledged in part, and is answered when its rest is given up
    before = set(town.ledger.sent)
    late = town.start_load(pace=10)  # the threads of the first one wait for what they sent before
    time.sleep(25)
    tried = set(town.ledger.sent) - before
    meanwhile = len(tried & town.ledger.acked)
    proxy.hold = False
    town.until_stored(20, seconds=120)
    load.stop()
    town.drained()
    verdict = town.verdict()
    report |= {
        "answers": [load.statuses, late.statuses], "slowest": [load.slowest, late.slowest],
        "sent_meanwhile": len(tried), "acked_meanwhile": meanwhile, "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert tried
    assert meanwhile == 0
    for each in (load, late):
        assert each.statuses.get(503, 0) > 0, "nobody was told to come again"
        answered_in_time(each, town)
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_19_slow_link_to_the_broker(far_broker: tuple[System, Proxy], report: Report) -> None:
    """20 kB/s and 300 ms each way: requests wait or are told to come again, memory stays, nothing is lost."""
    town, proxy = far_broker
    gateway, worker = town.start_gateway(), town.start_worker()
    load = town.start_load(pace=10)
    town.until_stored(50)
    before = psutil.Process(gateway.pid).memory_info().rss
    proxy.bytes_per_second, proxy.delay_reply = 20_000, 0.3
    time.sleep(30)
    grown = psutil.Process(gateway.pid).memory_info().rss - before
    proxy.bytes_per_second, proxy.delay_reply = None, 0.0
    town.until_stored(20, seconds=120)
    town.drained()
    verdict = town.verdict()
    report |= {"answers": load.statuses, "gateway_grew_mb": round(grown / 1e6), "verdict": verdict}
    assert verdict.zeros, verdict
    assert grown < 100_000_000
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_19_more_than_a_slow_link_to_the_broker_takes(
    far_broker: tuple[System, Proxy], report: Report
) -> None:
    """20 kB/s and 300 ms each way, and more to send than it takes in the time of a request: whoever is not
    served is told to come again, memory stays, and once the link is as before what was refused is taken."""
    town, proxy = far_broker
    gateway, worker = town.start_gateway(), town.start_worker()
    first = town.start_load(pace=10)
    town.until_stored(50)
    first.stop()
    proxy.bytes_per_second, proxy.delay_reply = 20_000, 0.3
    # a block holds about 300 bytes of each report: 24 requests of 100 are half a minute of the link
    load = town.start_load(pace=100, threads=24, size=100, text=600, copies=0.0, patience=400)
    with Memory(gateway, worker) as memory:
        time.sleep(45)
    sent = len(load.ledger.sent)
    answers = dict(load.statuses)
    proxy.bytes_per_second, proxy.delay_reply = None, 0.0
    load.stop(200 * share())
    unanswered = set(town.ledger.sent) - town.ledger.acked
    town.drained()
    verdict = town.verdict()
    report |= {
        "answers_meanwhile": answers, "answers": load.statuses, "slowest": load.slowest, "sent": sent,
        "grew_mb": memory.grown_mb, "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    refused = answers.get(503, 0) + answers.get("202 in part", 0)
    assert refused >= 10, "hardly anybody was told to come again"
    assert load.unscheduled == 0
    answered_in_time(load, town)
    assert not unanswered, "refused, and not taken afterwards"
    assert memory.samples >= 20
    assert memory.grown_mb["gateway"] < 100, memory.grown_mb
    assert gateway.running
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_gateway_killed_under_load(town: System, report: Report, seed: int) -> None:
    """A request without an answer may be stored or not; sent again, it is stored once."""
    rng = random.Random(seed)
    gateway = town.start_gateway()
    town.start_worker()
    load = town.start_load()
    town.until_stored()
    for _ in range(ROUNDS):
        time.sleep(rng.uniform(0.5, 2.0))
        town.kill(gateway)
        gateway = town.start_gateway()
    town.until_stored(10)
    town.drained()
    verdict = town.verdict()
    report |= {"rounds": ROUNDS, "kills": town.kills, "answers": load.statuses, "verdict": verdict}
    assert verdict.zeros, verdict


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_gateway_killed_at_every_point(town: System, report: Report) -> None:
    """Of a request that dies before the log has it nothing is stored, of one that dies between log and answer
    everything. Sent again, it is stored once, and what the log has twice by then is a copy."""
    town.environment["GRIDPIPE_CANARY_INTERVAL_SECONDS"] = "0"  # the first blocks are those of our request
    town.start_worker()
    load = Load(town.url, town.key, town.ledger, town.seed)
    logged: dict[str, int] = {}
    with httpx.Client(timeout=load.timeout, trust_env=False) as client:
        for point in GATEWAY_CRASHES:
            gateway = town.start_gateway(point)
            events = load.batch()
            ids = {event["event_id"] for event in events}
            town.ledger.sending(events)
            assert not load.post(client, events), "it was answered"
            assert gateway.wait(30 * share()) == -signal.SIGKILL, gateway.tail()
            town.kills += 1
            if point == "before:send":
                town.settled()
                assert not ids & town.stored_ids(), "the log had it before it was sent"
            else:
                town.until_ids_stored(ids)
            logged[point] = len(ids & town.stored_ids())
            gateway = town.start_gateway()
            assert load.post(client, events), load.statuses
            town.until_ids_stored(ids)
            town.settled()
            copies = town.query(f"SELECT count() FROM duplicates WHERE event_id IN {tuple(ids)}")[0][0]
            assert copies == logged[point], f"{point}: the log has {copies} of them a second time"
            town.sent_to_end(gateway)
    load.check()
    town.drained()
    verdict = town.verdict()
    report |= {"kills": town.kills, "logged": logged, "answers": load.statuses, "verdict": verdict}
    assert verdict.zeros, verdict
    assert verdict.acked == len(GATEWAY_CRASHES) * load.size


@pytest.mark.fault
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", ["tansu", "store", "http"])
def test_13_embedded_service_under_kills(tmp_path: Path, report: Report, seed: int, victim: str) -> None:
    """`gridpipe up`: its broker (whose log dies with it), its store or its HTTP process killed under load."""
    from pipeline.settings import Settings
    from pipeline.store.client import connect

    rng = random.Random(seed)
    service = Service(tmp_path, "--http", "127.0.0.1:0", "--no-simulate")
    ledger = Ledger(tmp_path / "ledger")
    kills, recoveries = 0, []

    def until_acked(more: int) -> float:
        before, started = len(ledger.acked), time.monotonic()
        while len(ledger.acked) < before + more:
            assert time.monotonic() - started < 30 * share(), service.log("up") + service.log("store")
            time.sleep(0.1)
        return time.monotonic() - started

    try:
        load = Load(service.url, service.key, ledger, seed, pace=10, source="local", timeout=90).start()
        until_acked(1)  # each log has rows: the first one, too
        with contextlib.closing(connect(Settings(data_dir=tmp_path))) as client:
            keep_copies(client)
        for _ in range(ROUNDS):
            time.sleep(rng.uniform(0.5, 3))
            started = time.monotonic()
            while (running := service.children().get(victim)) is None:  # it died on its own account
                assert time.monotonic() - started < 30 * share(), service.log("up")
                time.sleep(0.1)
            running.kill()
            kills += 1
            # answers of both threads' requests may still come from before the kill
            recoveries.append(until_acked(60))
        load.stop()
        load.check()
        client = connect(Settings(data_dir=tmp_path))
        deadline = time.monotonic() + 60
        verdict = judge(ledger, client, sources=("local",), unknown_grids=True)
        while not verdict.zeros and time.monotonic() < deadline:
            time.sleep(1)
            verdict = judge(ledger, client, sources=("local",), unknown_grids=True)
        every = " UNION ALL ".join(f"SELECT _inc FROM {t} WHERE source = 'local'" for t in OUTCOME_TABLES[:3])
        [[logs]] = client.query(f"SELECT uniqExact(_inc) FROM ({every})").result_rows
        client.close()
        report |= {
            "rounds": ROUNDS, "kills": kills, "recovery_max": round(max(recoveries), 1), "logs": logs,
            "answers": load.statuses, "slowest": load.slowest, "verdict": verdict,
        }  # fmt: skip
        assert verdict.zeros, verdict
        assert verdict.acked > 0
        assert kills == ROUNDS
        assert logs == (kills + 1 if victim == "tansu" else 1)
        # Without its broker the supervisor answers, within a second: `tests/e2e/test_stand_in.py`. Where only
        # the HTTP process died, who connects meanwhile waits at the listening socket until the next one is
        # there. Nobody hangs: once that one has started the wait is the one for durability, as ever.
        assert load.statuses.get(503, 0) > 0 or victim != "tansu", load.statuses
        assert "ReadTimeout" not in load.statuses, load.statuses
        durable = Settings(data_dir=tmp_path).durability_timeout_seconds
        assert max(load.slowest.values()) < durable + 15 * share(), load.slowest
        assert service.stop() == 0
    finally:
        service.kill()
        ledger.close()


def test_kafka_behind_the_whole_service(
    tmp_path: Path, kafka_node: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gridpipe up --kafka`: ready, an event sent, and its story told; and again after a stop."""
    monkeypatch.setenv("GRIDPIPE_TOPIC", "whole.service")
    monkeypatch.setenv("GRIDPIPE_PARTITIONS", "3")
    monkeypatch.setenv("GRIDPIPE_TOPIC_REPLICATION", "1")
    service = Service(tmp_path, "--http", "127.0.0.1:0", "--no-simulate", "--kafka", kafka_node.bootstrap)
    try:
        event = {
            "event_id": "up-1", "source": "local", "event_type": "REPORTED", "case_id": "up-c1",
            "occurred_at": "2026-03-01T15:59:00.123+08:00", "channel": "hotline_12345",
            "matter_code": "UE-01", "grid_code": "440704001001003", "actor": {"type": "citizen"},
        }  # fmt: skip
        assert service.send(event)["durability"] == "replicated"
        told = service.get("/v1/events/local/up-1")
        assert told["outcome"] in {"admitted", "rejected"}, told
        assert service.stop() == 0
    finally:
        service.kill()
    again = Service(tmp_path, "--http", "127.0.0.1:0", "--no-simulate", "--kafka", kafka_node.bootstrap)
    try:
        event["event_id"] = "up-2"
        again.send(event)
        assert again.get("/v1/events/local/up-2")["outcome"] in {"admitted", "rejected"}
        assert again.stop() == 0
    finally:
        again.kill()
