"""The embedded log over its limit, several times: callers wait a moment, nothing is lost or doubled, and the
broker's memory stays bounded."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from pipeline.runtime.roll import OUTGROWN_FACTOR, LogState
from pipeline.settings import load_settings
from pipeline.store.client import connect
from tests.e2e.service import Service, gridpipe
from tests.e2e.test_up import report, sample
from tests.fault.verdict import keep_copies

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LIMIT = 8_000_000
QUIET_SECONDS = 4.0
ROLLS = 3
CLIENTS = 4
BATCH = 40
SEED = 20261122


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("roll") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIDPIPE_EMBEDDED_LOG_LIMIT_BYTES", str(LIMIT))
        patch.setenv("GRIDPIPE_EMBEDDED_LOG_QUIET_SECONDS", str(QUIET_SECONDS))
        running = Service(directory, "--no-simulate", "--http", "127.0.0.1:0")
    with _client(running) as client:
        keep_copies(client)  # or merges would take copies of a position away before anybody counts them
    yield running
    if running.process.poll() is None:
        running.stop()
    running.kill()


def incompressible(chance: random.Random) -> str:
    """Some 9 kB on the wire, of which the block's compression leaves more than half."""
    return "".join(chr(chance.randint(0x4E00, 0x9FA5)) for _ in range(3_000))


def state(service: Service) -> LogState:
    found = LogState.read(service.data_dir / "run")
    assert found is not None
    return found


class Feeder(threading.Thread):
    """One client that keeps posting; a batch is sent until it is answered 202."""

    def __init__(self, service: Service, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.service, self.stop = service, stop
        self.first = (number + 1) * 1_000_000
        self.chance = random.Random(SEED + number)
        self.answered: list[str] = []
        self.slowest = 0.0
        self.again = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            number = self.first
            headers = {"Authorization": f"Bearer {self.service.key}"}
            with httpx.Client(
                base_url=self.service.url, headers=headers, timeout=60, trust_env=False
            ) as client:
                while not self.stop.is_set():
                    batch = [
                        report(n, description=incompressible(self.chance))
                        for n in range(number, number + BATCH)
                    ]
                    self._send(client, batch)
                    self.answered += [event["event_id"] for event in batch]
                    number += BATCH
        except BaseException as error:
            self.failure = error

    def _send(self, client: httpx.Client, batch: list[dict[str, Any]]) -> None:
        while True:
            began = time.monotonic()
            try:
                answer = client.post("/v1/events", json=batch)
            except httpx.TransportError:  # the process was killed
                time.sleep(0.2)
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer.status_code == 202 and not answer.json()["errors"]:
                return
            assert answer.status_code in {202, 429, 503}, answer.text
            self.again += 1
            time.sleep(float(answer.headers.get("Retry-After", "0.2")))


def thread_names(pid: int) -> Counter[str]:
    """How many threads of a process have which name."""
    names: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            names[(path / "comm").read_text().strip()] += 1
    return names


@pytest.mark.slow
def test_a_log_far_over_its_limit_is_rolled_and_nothing_is_lost(service: Service) -> None:
    stop = threading.Event()
    feeders = [Feeder(service, number, stop) for number in range(CLIENTS)]
    first_broker = service.children()["tansu"].pid
    store, http = service.children()["store"].pid, service.children()["http"].pid
    resident, brokers = [], {first_broker}
    service.send(report(1, description="warm"))
    threads_before = thread_names(store)
    for feeder in feeders:
        feeder.start()
    deadline = time.monotonic() + 200
    while (
        state(service).rolls < ROLLS and time.monotonic() < deadline and not any(f.failure for f in feeders)
    ):
        try:
            broker = service.children().get("tansu")
            if broker is not None:
                brokers.add(broker.pid)
                resident.append(broker.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    stop.set()
    for feeder in feeders:
        feeder.join(90)
    assert not [f.failure for f in feeders if f.failure], service.log("up") + service.log("http")
    brokers.add(service.children()["tansu"].pid)  # the loop may have ended before it saw the newest
    found = state(service)
    assert found.rolls >= ROLLS, service.log("up") + service.log("store") + service.log("http")
    assert len(brokers) > ROLLS, "the broker's process was not replaced"
    # the log was replaced, not the processes around it
    assert (service.children()["store"].pid, service.children()["http"].pid) == (store, http)
    answered = [event_id for feeder in feeders for event_id in feeder.answered]
    rows = Counter(_outcomes(service))
    lost = set(answered) - rows.keys()
    double = {event_id: count for event_id, count in rows.items() if count > 1}
    print(
        f"seed {SEED}: {len(answered)} events answered, {found.rolls} rolls of {LIMIT / 1e6:.0f} MB, "
        f"lost {len(lost)}, doubled {len(double)}; broker at most {max(resident) / 1e6:.0f} MB; "
        f"slowest answer {max(f.slowest for f in feeders):.1f} s, sent again {sum(f.again for f in feeders)}"
    )
    assert not lost
    assert not double
    # limit, what comes in while a roll is due and under way, and the broker itself
    assert max(resident) < 4 * LIMIT + 40_000_000
    assert sample(service, "gridpipe_embedded_log_rolls_total")[()] == found.rolls
    for name in ("gap", "overlap", "backward"):
        assert set(sample(service, f"gridpipe_verifier_{name}_total").values()) <= {0.0}, name
    # ours have no name of their own; the engine keeps as many in its pools as queries ever ran at once
    threads = thread_names(store)
    assert threads["python3"] <= threads_before["python3"] + 8, f"{threads_before} became {threads}"
    assert 0 <= sample(service, "gridpipe_embedded_log_bytes")[()] < 4 * LIMIT


@contextlib.contextmanager
def _client(service: Service) -> Iterator[Client]:
    with contextlib.closing(connect(load_settings(data_dir=service.data_dir))) as client:
        yield client


def _outcomes(service: Service) -> list[str]:
    """Ids as they are stored, once for each row: without FINAL, which hides copies of one position."""
    with _client(service) as client:
        rows = client.query(
            "SELECT event_id FROM events WHERE source = 'local' UNION ALL "
            "SELECT event_id FROM rejections WHERE source = 'local'"
        ).result_rows
    return [row[0] for row in rows]


def settled(service: Service) -> LogState:
    """The log's state once no roll is due or under way, which the load of an earlier test may have left."""
    path = LogState.path(service.data_dir / "run")
    deadline = time.monotonic() + 60
    seen: set[int] = set()  # it is written at each look, and not while a roll is under way
    while len(seen) < 3:
        assert time.monotonic() < deadline, state(service)
        written = path.stat().st_mtime_ns
        seen = seen | {written} if state(service).bytes <= LIMIT else set()
        time.sleep(0.1)
    return state(service)


@contextlib.contextmanager
def direct_records(producer: Producer, number: int) -> Iterator[None]:
    """One a second meanwhile, numbered from `number` on."""
    enough = threading.Event()

    def go_on() -> None:
        at = number
        while not enough.wait(1):
            producer.produce("grid.events", json.dumps(report(at)).encode())
            producer.flush(5)
            at += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


@pytest.mark.slow
def test_direct_records_hold_the_roll_back_and_doctor_says_so(service: Service) -> None:
    rolls = settled(service).rolls
    line = " ".join(service.children()["tansu"].cmdline())
    bootstrap = line.rpartition("tcp://")[2].split()[0]
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    chance = random.Random(SEED)
    number, until = 9_000_000, time.monotonic() + QUIET_SECONDS + 2
    deadline = time.monotonic() + 90
    while time.monotonic() < until or state(service).bytes <= OUTGROWN_FACTOR * LIMIT:
        assert time.monotonic() < deadline, state(service)
        producer.produce("grid.events", json.dumps(report(number)).encode())
        producer.flush(5)
        service.send(*[report(number + n, description=incompressible(chance)) for n in range(1, 200)])
        assert state(service).rolls == rolls, "rolled while direct records came"
        number += 1_000
    assert "straight to the topic" in state(service).waits_for
    address = service.url.removeprefix("http://")
    with direct_records(producer, number):  # a doctor may take longer to come than the roll waits
        told = gridpipe("doctor", "--json", "--data-dir", str(service.data_dir), "--http", address)
    (broker,) = [finding for finding in json.loads(told.stdout) if finding["check"] == "broker"]
    assert (broker["level"], "outgrown" in broker["do"]) == ("warning", True), broker
    deadline = time.monotonic() + QUIET_SECONDS + 30
    while state(service).rolls == rolls:
        assert time.monotonic() < deadline, state(service)
        time.sleep(0.1)
    service.send(report(9_900_000))
    assert {"report-9000000", "report-9900000"} <= set(_outcomes(service))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["store", "http"])
def test_a_process_that_dies_within_a_roll_costs_nothing(service: Service, victim: str) -> None:
    """The supervisor takes a roll that breaks off for a dead broker: everything starts anew."""
    stop = threading.Event()
    first = {"store": 50, "http": 60}[victim]
    feeders = [Feeder(service, first + number, stop) for number in range(2)]
    log = service.data_dir / "log" / "store.log"
    before = log.read_text().count('"log_closed"')
    victims = service.children()
    for feeder in feeders:
        feeder.start()
    deadline = time.monotonic() + 90
    while log.read_text().count('"log_closed"') == before:
        assert time.monotonic() < deadline, "no roll"
        time.sleep(0.01)
    victims[victim].kill()
    counts = [len(feeder.answered) for feeder in feeders]
    while any(len(f.answered) <= count for f, count in zip(feeders, counts, strict=True)):
        assert time.monotonic() < deadline + 90, service.log("up") + service.log("store")
        assert not [f.failure for f in feeders if f.failure]
        time.sleep(0.1)
    stop.set()
    for feeder in feeders:
        feeder.join(90)
    rows = Counter(_outcomes(service))
    answered = {event_id for feeder in feeders for event_id in feeder.answered}
    assert answered - rows.keys() == set()
    assert {event_id for event_id, count in rows.items() if count > 1} == set()
    service.get("/health/ready")
