"""Disks, descriptors and memory that run out, and floods of copies."""

from __future__ import annotations

import contextlib
import random
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.ingest.keys import KeyStore
from pipeline.runtime import broker
from pipeline.settings import Settings
from pipeline.store.client import connect
from tests.e2e.service import Service
from tests.fault.conftest import ROUNDS
from tests.fault.flood import Flood
from tests.fault.load import Ledger, Load
from tests.fault.machine import Watch
from tests.fault.system import Process, Store, System, share, system
from tests.fault.verdict import judge, keep_copies

Report = dict[str, object]


@contextlib.contextmanager
def limited(process: Process, what: int, soft: int):  # type: ignore[no-untyped-def]
    """A running process under another soft limit for a while."""
    old = resource.prlimit(process.pid, what)
    resource.prlimit(process.pid, what, (soft, old[1]))
    try:
        yield
    finally:
        if process.running:
            resource.prlimit(process.pid, what, old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 MB; skips where mounting is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("needs a mount of its own, which this machine does not allow")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_20_disk_of_the_store_full(
    tmp_path: Path, small_disk: Path, embedded: str, report: Report, seed: int
) -> None:
    """No byte is left for a while, and what is freed is taken at once: nothing is torn, nothing is committed
    that is not there; with space again all goes on."""
    store = Store(small_disk / "store")
    try:
        with system(tmp_path / "town", embedded, store, seed=seed, embedded=True, report=report) as town:
            town.start_gateway()
            worker = town.start_worker()
            town.start_load(pace=10)
            town.until_stored(20)
            filler = small_disk / "filler"
            until, full_since = time.monotonic() + 12, 0.0
            stored: set[str] | None = None
            with filler.open("wb", buffering=0) as file:
                while time.monotonic() < until:  # what is freed is taken at once
                    try:
                        file.write(b"x" * 4_096)
                    except OSError:
                        time.sleep(0.005)
                        full_since = full_since or time.monotonic()
                    if full_since and stored is None and time.monotonic() > full_since + 3:
                        stored = town.stored_ids()  # no insert is on its way that found room
            with town.ledger.lock:
                acked = set(town.ledger.acked)
            left = town.answered_and_not_stored()
            filler.unlink()
            assert stored is not None, "the disk was not full for so long"
            # an answer may come late, as that of a request of which a part waited in vain
            meanwhile = acked - stored
            assert not left, "answered, and there was no room for it"
            town.until_stored(20)
            town.drained()
            verdict = town.verdict()
            report |= {
                "refused": worker.said("does not take the block"), "acked_while_full": len(meanwhile),
                "verdict": verdict,
            }  # fmt: skip
            assert not meanwhile, "stored and answered while no byte was left"
            assert verdict.zeros, verdict
            assert worker.running
            assert worker.said("does not take the block") > 0
    finally:
        store.stop()


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_20_torn_parts_are_taken_out_and_read_again(
    tmp_path: Path, embedded: str, report: Report, seed: int
) -> None:
    """A limit on the size of files (a quota does the same) tears parts that the engine calls stored: those of
    merges for certain, those of inserts now and then. What the runbook says then (docs/torn-parts.md): take
    the torn parts out, read the log again; zeros."""
    rng = random.Random(seed)
    store = Store(tmp_path / "store")
    try:
        with system(tmp_path / "town", embedded, store, seed=seed, embedded=True, report=report) as town:
            town.start_gateway()
            worker = town.start_worker()
            town.start_load(pace=20)
            town.until_stored(20)
            assert store.process is not None
            rounds, found = 0, []
            while rounds < ROUNDS and not found:
                rounds += 1
                if not worker.running:
                    worker = town.start_worker()
                table = rng.choice(["events", "case_events", "cases"])
                with limited(store.process, resource.RLIMIT_FSIZE, _within_a_part(town, rng)):
                    time.sleep(rng.uniform(0.1, 0.5))
                    with contextlib.suppress(ClickHouseError):
                        town.client.command(f"OPTIMIZE TABLE {table} FINAL")
                time.sleep(0.5)
                found = _torn_parts(town)
            assert town.load is not None
            town.load.stop()
            if worker.running:
                worker.signal(signal.SIGTERM)
                worker.wait(30 * share())
            torn: dict[str, int] = {}
            for table, part in _torn_parts(town):
                town.client.command(f"ALTER TABLE {table} DETACH PART '{part}'")
                torn[table] = torn.get(table, 0) + 1
            town.environment["GRIDPIPE_CONSUMER_GROUP"] = town.group = f"{town.group}-again"
            worker = town.start_worker()
            town.drained()
            verdict = town.verdict()
            report |= {"rounds": rounds, "torn": torn, "verdict": verdict}
            assert torn, "no part was torn: does the engine still do it?"
            assert verdict.zeros, verdict
            assert worker.running
    finally:
        store.stop()


def _within_a_part(town: System, rng: random.Random) -> int:
    """Bytes that end within what a part like the latest ones takes."""
    sizes = town.query(
        "SELECT bytes_on_disk FROM system.parts WHERE database = currentDatabase() "
        "AND table IN ('events', 'case_events', 'cases') ORDER BY modification_time DESC LIMIT 12"
    )
    return int(rng.choice(sizes)[0] * rng.uniform(0.2, 0.9))


def _torn_parts(town: System) -> list[tuple[str, str]]:
    """(table, part) of what cannot be read."""
    torn = []
    tables = "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
    for (table,) in town.query(tables):
        asked = f"CHECK TABLE {table} SETTINGS check_query_single_value_result = 0 FORMAT TSV"
        checked = [line.split("\t") for line in bytes(town.client.raw_query(asked)).decode().splitlines()]
        torn += [(table, part) for part, passed, _ in checked if passed == "0"]
    return torn


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_21_temporary_directory_gone(tmp_path: Path, report: Report, seed: int) -> None:
    """Of `gridpipe up`: only there inserts go through a file. Over the bridge they do not."""
    service = Service(tmp_path, "--http", "127.0.0.1:0", "--no-simulate")
    ledger = Ledger(tmp_path / "ledger")
    log = tmp_path / "log" / "store.log"
    directory = Settings(data_dir=tmp_path).engine_tmp_dir
    try:
        with contextlib.closing(connect(Settings(data_dir=tmp_path))) as client:
            keep_copies(client)
        load = Load(service.url, service.key, ledger, seed, pace=10, source="local").start()
        _until(lambda: len(ledger.acked) > 20, log)
        store = service.children()["store"].pid
        away = directory.with_name("away")
        directory.rename(away)
        try:
            _until(lambda: "does not take the block" in log.read_text(), log)
            time.sleep(1)  # an insert whose file was open already ends
            acked = len(ledger.acked)
            time.sleep(6)
            meanwhile = len(ledger.acked) - acked
        finally:
            away.rename(directory)
        acked = len(ledger.acked)
        _until(lambda: len(ledger.acked) > acked + 20, log)
        load.stop()
        same = service.children()["store"].pid == store
        client = connect(Settings(data_dir=tmp_path))
        verdict = judge(ledger, client, sources=("local",), unknown_grids=True)
        client.close()
        refused = log.read_text().count("does not take the block")
        report |= {"refused": refused, "acked_meanwhile": meanwhile, "same_process": same, "verdict": verdict}
        load.check()
        assert verdict.zeros, verdict
        assert meanwhile == 0, "answered 202 without a place to insert from"
        assert same, log.read_text()[-4_000:]
        assert service.stop() == 0
    finally:
        service.kill()
        ledger.close()


def _until(true: Callable[[], bool], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds * share()
    while not true():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def _idle_clients(town: System, number: int) -> list[socket.socket]:
    clients = []
    for _ in range(number):
        with contextlib.suppress(OSError):
            clients.append(socket.create_connection(("127.0.0.1", town.http_port), timeout=2))
    return clients


def _fresh(town: System) -> int | str:
    """What a new client gets for an event: a status, or the name of the error."""
    try:
        with httpx.Client(trust_env=False, timeout=3) as client:
            headers = {"Authorization": f"Bearer {town.key}"}
            return client.post(f"{town.url}/v1/events", json=[], headers=headers).status_code
    except httpx.TransportError as error:
        return type(error).__name__


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_22_gateway_out_of_descriptors(town: System, report: Report) -> None:
    """Two hundred idle clients take all descriptors of a gateway whose limit falls while it runs, which can
    then answer nobody new; and all connections of one that knew its limit when it came, which tells who comes
    above to come again. Either serves again afterwards. Descriptors: 264 and not 64, for 200 are kept for
    files of its own."""
    gateway = town.start_gateway()
    town.start_worker()
    town.start_load(pace=10)
    town.until_stored(20)
    limit = psutil.Process(gateway.pid).num_fds() + 20
    with town.scraper.excused(), limited(gateway, resource.RLIMIT_NOFILE, limit):
        clients = _idle_clients(town, 200)
        time.sleep(1)
        most, fresh = psutil.Process(gateway.pid).num_fds(), _fresh(town)
        time.sleep(4)
        for client in clients:
            client.close()
        time.sleep(1)
    town.until_stored(20)
    assert gateway.running
    gateway.signal(signal.SIGTERM)
    assert gateway.wait(30 * share()) == 0, gateway.tail()
    town.environment["FAULT_DESCRIPTORS"] = "264"
    gateway = town.start_gateway()
    town.until_stored(20)
    with town.scraper.excused():
        clients = _idle_clients(town, 200)
        told, answered = _fresh(town), 0
        for client in clients:
            client.settimeout(0.05)
            with contextlib.suppress(OSError):
                answered += client.recv(100).startswith(b"HTTP/1.1 503")
            client.close()
        time.sleep(1)
    served = _fresh(town)
    town.until_stored(20)
    town.drained()
    verdict = town.verdict()
    report |= {
        "limit": limit, "descriptors": most, "fresh": fresh, "told": told, "answered_503": answered,
        "served": served, "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert most >= limit - 1, "descriptors were left"
    assert isinstance(fresh, str), "a connection was accepted without a descriptor"
    assert told == 503
    assert answered > 100  # those above 64, less what an idle one left that waited too long
    assert served == 400, "an empty list, read and refused"
    assert gateway.running


@pytest.mark.timeout(600)
def test_23_burst_against_a_memory_ceiling(town: System, report: Report) -> None:
    """120 requests of 4 MB that are all on their way before one ends, twice, against 300 MB more address
    space than now: load is shed, the process lives."""
    gateway = town.start_gateway()
    town.start_worker()
    town.start_load(pace=5)
    town.until_stored(20)
    body = b"[" + b" " * 4_000_000 + b"]"
    where = urlsplit(town.url)
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {town.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    answers: Counter[int | str] = Counter()
    all_begun = threading.Barrier(120)

    def burst() -> None:
        for _ in range(2):
            with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
                connection.sendall(head + body[:1])
                with contextlib.suppress(threading.BrokenBarrierError):
                    all_begun.wait(30)
                try:
                    refused, _, _ = select.select([connection], [], [], 0.5)
                    if not refused:
                        connection.sendall(body[1:])
                    code: int | str = int(connection.recv(12)[9:12])
                except (OSError, ValueError) as error:
                    code = type(error).__name__
            answers[code] += 1

    space = psutil.Process(gateway.pid).memory_info().vms
    with limited(gateway, resource.RLIMIT_AS, space + 300_000_000):
        threads = [threading.Thread(target=burst) for _ in range(120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120 * share())
    town.until_stored(20)
    town.drained()
    verdict = town.verdict()
    report |= {"answers": answers, "verdict": verdict}
    assert verdict.zeros, verdict
    assert gateway.running
    # an empty list when it is read to its end, 503 where there is no room for it
    assert {code for code in answers if isinstance(code, int)} <= {400, 429, 503}
    assert answers.get(503, 0) + answers.get(429, 0) > 0, "nothing was shed"


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("limit", "refusal"), [("quota", 429), ("bytes", 503)])
def test_overload_leaves_the_admitted_as_quick_as_before(
    town: System, report: Report, limit: str, refusal: int
) -> None:
    """Three sources flood the gateway as fast as it answers: what is too much is told to come again, and the
    slowest hundredth of what is taken in from a quiet source waits twice as long as without them at most, or
    half a second, however much is refused beside it. The floods take what others leave of the cores."""
    town.environment["GRIDPIPE_QUOTA_ADDRESS_REQUESTS_PER_SECOND"] = "0"
    if limit == "quota":
        town.environment |= {
            "GRIDPIPE_QUOTA_LOOPBACK": "true", "GRIDPIPE_QUOTA_SOURCE_EVENTS_PER_SECOND": "300",
        }  # fmt: skip
    else:
        # four floods at once, of about half a megabyte each; the least that such bodies may have
        town.environment |= {
            "GRIDPIPE_IN_FLIGHT_LIMIT_BYTES": "2400000", "GRIDPIPE_MAX_BODY_BYTES": "600000",
            "GRIDPIPE_MAX_DECOMPRESSED_BYTES": "1800000",
        }  # fmt: skip
    town.start_gateway()
    town.start_worker()
    load = town.start_load(pace=20, copies=0.0)
    town.until_stored(200)
    load.taken.clear()
    time.sleep(15)
    calm = _p99(load.taken)
    answers: Counter[int] = Counter()
    with contextlib.ExitStack() as running:
        floods = [running.enter_context(_flood(town, f"flood-{name}")) for name in "abc"]
        time.sleep(2)
        load.taken.clear()
        watch = Watch()
        time.sleep(20)
        busy, slow = _p99(load.taken), watch.slowness()
        for flood in floods:
            told, taken = flood.stop()
            answers += told
            town.ledger.answered(taken)
    town.drained()
    verdict = town.verdict()
    report |= {
        "calm_p99": round(calm, 3), "busy_p99": round(busy, 3), "slowness": round(slow, 1),
        "flood": dict(answers), "quiet": load.statuses, "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert set(answers) <= {202, 429, 503}
    assert answers[refusal] > answers[202], "no flood: hardly anything was too much"
    assert busy < max(2 * calm, 0.5 * slow), (calm, busy, slow)


def _flood(town: System, source: str) -> Flood:
    """A source of its own, with requests so large that they exceed its quota however slow the answers."""
    key = KeyStore(town.settings.keys_path).create(source)
    events = Load(town.url, key, town.ledger, town.seed, name=source, size=1_200, source=source).batch()
    town.ledger.sending(events)
    town.sources += (source,)
    return Flood(town.url, key, events)


def _p99(seconds: list[float]) -> float:
    assert len(seconds) >= 20, "too few requests were taken"
    return sorted(seconds)[int(0.99 * len(seconds))]


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_25_every_event_five_times_across_restarts(town: System, report: Report, seed: int) -> None:
    rng = random.Random(seed)
    town.start_gateway()
    worker = town.start_worker()
    town.start_load(copies=0.0)
    town.until_stored(300)
    assert town.load is not None
    town.load.stop()
    events = list(town.ledger.sent.values())
    again = Load(town.url, town.key, town.ledger, seed)
    with httpx.Client(trust_env=False, timeout=60) as client:
        for _ in range(4):
            town.kill(worker)
            worker = town.start_worker()
            rng.shuffle(events)
            for at in range(0, len(events), 50):
                while not again.post(client, events[at : at + 50]):
                    time.sleep(0.2)
    town.drained()
    verdict = town.verdict()
    copies = town.query("SELECT count() FROM duplicates WHERE level = 'L1'")[0][0]
    report |= {"kills": town.kills, "copies": copies, "verdict": verdict}
    assert verdict.zeros, verdict
    # a request that was told to come again may be in the log all the same, and is one more copy then
    told = again.statuses.get(503, 0) + town.load.statuses.get(503, 0)
    assert copies >= 4 * len(events), "every copy has a row that says so"
    assert told or copies == 4 * len(events)


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_39_metrics_while_a_worker_is_killed(town: System, report: Report) -> None:
    """Scraped all the time, by the gateway and by the worker's listener of its own, which is away only until
    the next worker has come: never a 5xx; the gateway's never slower than 200 ms."""
    town.start_gateway()
    port = broker.free_port()
    worker = town.start_worker(admin=port)
    town.start_load()
    town.until_stored()
    pages = {"gateway": f"{town.url}/metrics", "worker": f"http://127.0.0.1:{port}/metrics"}
    codes: dict[str, Counter[int | str]] = {name: Counter() for name in pages}
    slowest = dict.fromkeys(pages, 0.0)
    with httpx.Client(trust_env=False, timeout=10) as client:
        for turn in range(20):
            for name, page in pages.items():
                started = time.monotonic()
                try:
                    codes[name][client.get(page).status_code] += 1
                except httpx.TransportError as error:
                    codes[name][type(error).__name__] += 1
                else:
                    slowest[name] = max(slowest[name], time.monotonic() - started)
            if turn % 7 == 3:
                worker.signal(signal.SIGKILL)
                worker.wait(10)
                town.kills += 1
                worker = town.start_worker(admin=port)
            time.sleep(1)
    town.drained()
    verdict = town.verdict()
    report |= {
        "kills": town.kills, "scrapes": {name: dict(found) for name, found in codes.items()},
        "slowest": {name: round(seconds, 3) for name, seconds in slowest.items()},
        "verdict": verdict,
    }  # fmt: skip
    assert verdict.zeros, verdict
    assert set(codes["gateway"]) == {200}
    # a killed worker's connection ends, and nobody listens until the next one has started
    assert codes["worker"].keys() <= {200, "ConnectError", "ReadError", "RemoteProtocolError"}
    assert codes["worker"][200] >= 5
    assert slowest["gateway"] < 0.2, slowest
    # not within 0.2 s: the listener of a worker shares its interpreter, and answers between two steps
    assert slowest["worker"] < 2.0 * share(), slowest
