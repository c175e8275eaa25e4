"""Gateway, workers, store and broker as processes of the test, each with its own way to be hurt."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import clickhouse_connect
import httpx
import psutil
from clickhouse_connect.driver.client import Client
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from infra.kafka.cluster import _end_with_parent
from pipeline.contract.privacy import Privacy
from pipeline.ingest.keys import KeyStore
from pipeline.reference.load import load_directory
from pipeline.runtime import broker
from pipeline.settings import Settings
from pipeline.store.migrate import migrate
from tests.fault.load import GRIDS, SOURCE, WORKER, Ledger, Load
from tests.fault.proxy import Proxy
from tests.fault.scrape import Scraper
from tests.fault.verdict import OUTCOME_TABLES, Verdict, in_database, judge, keep_copies
from tests.kafka import GroupOffsets

PARTITIONS = 6
_SQUARE = "POLYGON((113.09 22.56, 113.11 22.56, 113.11 22.58, 113.09 22.58, 113.09 22.56))"
_START_SECONDS = 90.0
#: Requests on their way at once, where each waits for its commit.
_STORED_THREADS = 8


def share() -> float:
    """By how much everything takes longer now, since others want this machine too; 1.0 when idle."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def look_again(admin: AdminClient, topic: str) -> None:
    """A client that once heard from a node that knew no leaders of a topic yet does not ask again by itself
    (2.16: "No leaders found", for minutes); a look at the topic renews what it knows."""
    with contextlib.suppress(KafkaException):
        admin.list_topics(topic, timeout=5)


class Process:
    """A child of the test; killed by pid, its output in a file."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        #: Whether it was told to end: it owes no answer any more.
        self.ending = False
        with log.open("ab") as output:
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"} | environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  a killed test leaves nothing running
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self.ending = True
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.ending = self.ending or number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int | None:
        """Exit code, None if it still runs after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def said(self, text: str) -> int:
        """How often its output holds `text`."""
        return self.log.read_text(errors="replace").count(text)

    def tail(self) -> str:
        return f"\n--- {self.name} ({self.log})\n" + self.log.read_text(errors="replace")[-3000:]


class Memory:
    """The largest resident size of processes, sampled each second while the block runs; bytes by name."""

    def __init__(self, *processes: Process) -> None:
        self._processes = {process.name: psutil.Process(process.pid) for process in processes}
        self.first = self._sizes()
        self.most = dict(self.first)
        self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # a sampler that died of a process that died has seen nothing of the rest
        assert all(process.is_running() for process in self._processes.values())

    def _sizes(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self._processes.items()}

    def _run(self) -> None:
        while not self._stop.wait(1):
            for name, size in self._sizes().items():
                self.most[name] = max(self.most[name], size)
            self.samples += 1

    @property
    def grown(self) -> dict[str, float]:
        """By which share of its first size each grew at most."""
        return {name: round(self.most[name] / size - 1, 3) for name, size in self.first.items()}

    @property
    def grown_mb(self) -> dict[str, int]:
        """By how much each grew at most."""
        return {name: round((self.most[name] - size) / 1e6) for name, size in self.first.items()}


class Store:
    """ClickHouse as a process: the embedded engine behind its HTTP bridge, on a port that it keeps.

    config : a server's configuration, whose users, grants and row policies hold there.
    """

    def __init__(self, directory: Path, *, config: Path | None = None) -> None:
        self.directory = directory
        self._config = config
        directory.mkdir(parents=True, exist_ok=True)
        self.host, self.port = "127.0.0.1", broker.free_port()
        self.token = secrets.token_urlsafe(32)
        self.process: Process | None = None
        self.start()

    def start(self) -> None:
        arguments = ["-m", "tests.fault.store_server", "--data", str(self.directory)]
        arguments += ["--port", str(self.port), f"--token={self.token}"]  # it may begin with a dash
        if self._config is not None:
            arguments += ["--config", str(self._config)]
        self.process = Process("store", arguments, {}, self.directory / "store.log")
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/ping", trust_env=False).status_code == 200:
                    return
            assert self.process.running, self.process.tail()
            assert time.monotonic() < deadline, self.process.tail()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None and self.process.running:
            self.process.signal(signal.SIGCONT)
            self.process.signal(signal.SIGTERM)
            if self.process.wait(10) is None:
                self.process.kill()

    def url(self, port: int | None = None) -> str:
        """port : of a proxy before it."""
        return f"http://default:{self.token}@127.0.0.1:{port or self.port}"

    def client(self, database: str | None = None) -> Client:
        return clickhouse_connect.get_client(dsn=self.url(), database=database, autogenerate_session_id=False)


class Server(Store):
    """A ClickHouse server of somebody else, which no test may kill: what GRIDPIPE_TEST_CLICKHOUSE names.

    url : of its HTTP interface, user and password included.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        assert self._url.scheme == "http" and self._url.hostname, (
            "the proxies of the fault tests speak HTTP alone"
        )
        self.host, self.port = self._url.hostname, self._url.port or 8123
        self.process = None

    def url(self, port: int | None = None) -> str:
        login = self._url.netloc.rpartition("@")[0]
        return f"http://{login or 'default:'}@{'127.0.0.1' if port else self.host}:{port or self.port}"


class System:
    """A gateway, workers and a client between a broker and a store; a topic and a database of its own.

    The workers reach the store through `store_proxy`, and the broker at `bootstrap`, which may be that of a
    proxy. embedded : whether that is the embedded broker. Its log is in memory only, so that the gateway
    answers, as that of `gridpipe up` does, once the worker has stored and committed. environment : settings
    for gateway and workers. The outcome tables keep every copy of a row (`keep_copies`).
    """

    def __init__(
        self,
        directory: Path,
        bootstrap: str,
        store: Store,
        *,
        seed: int,
        embedded: bool,
        environment: dict[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.store = store
        self.bootstrap = bootstrap
        self.seed = seed
        self.embedded = embedded
        name = uuid.uuid4().hex[:8]
        self.topic, self.group, self.database = f"events-{name}", f"workers-{name}", f"fault_{name}"
        self.environment = {
            "GRIDPIPE_TOPIC": self.topic,
            "GRIDPIPE_CONSUMER_GROUP": self.group,
            "GRIDPIPE_DATABASE": self.database,
            **({"FAULT_STORED": "1"} if embedded else {}),
            **(environment or {}),
        }
        self.settings = Settings(data_dir=directory, topic=self.topic, database=self.database)
        self.admin = broker.wait_until_up(bootstrap, seconds=60)
        nodes = len(self.admin.list_topics(timeout=10).brokers)
        self.environment.setdefault("GRIDPIPE_TOPIC_REPLICATION", str(min(nodes, 3)))
        broker.ensure_topic(self.admin, self.topic, PARTITIONS)
        self._offsets = GroupOffsets(bootstrap, self.group, self.topic, PARTITIONS)
        with contextlib.closing(store.client()) as client:
            migrate(client, self.database)
        self.client = store.client(self.database)
        keep_copies(self.client)
        privacy = Privacy.load(self.settings.pseudonym_key_path, create=True)
        load_directory(self.client, self._reference(), privacy)
        self.key = KeyStore(self.settings.keys_path).create(SOURCE)
        self.store_proxy = Proxy(store.port, store.host)
        self.ledger = Ledger(directory / "ledger")
        self.workers: list[Process] = []
        self.processes: list[Process] = []
        self.gateway: Process | None = None
        self.load: Load | None = None
        self._all_loads: list[Load] = []
        self.http_port = broker.free_port()
        self.scraper = Scraper(f"{self.url}/metrics", lambda: self.gateway, share)
        self.sources: tuple[str, ...] = (SOURCE,)
        self.kills = 0
        self.loads = 0
        self.ahead = timedelta(0)

    def _reference(self) -> Path:
        directory = self.directory / "reference"
        directory.mkdir(exist_ok=True)
        start = "2020-01-01T00:00:00+08:00"
        grids = [
            {
                "grid_code": code, "version": 1, "valid_from": start, "grid_name": f"格{code}",
                "grid_type": "residential", "boundary": _SQUARE, "status": "active",
            }
            for code in GRIDS
        ]  # fmt: skip
        worker = {
            "worker_key": WORKER, "kind": "full_time", "grid_code": GRIDS[0], "district_code": "440704",
            "active_from": start, "channel_rights": ["grid_patrol", "yuepingan"],
        }  # fmt: skip
        (directory / "grids.ndjson").write_text("\n".join(json.dumps(grid) for grid in grids) + "\n")
        (directory / "staff.ndjson").write_text(json.dumps(worker) + "\n")
        return directory

    # --- processes

    def _start(self, name: str, arguments: list[str]) -> Process:
        process = Process(
            name, arguments, self.environment, self.directory / f"{name}-{len(self.processes)}.log"
        )
        self.processes.append(process)
        return process

    def start_worker(
        self, point: str = "none", hit: int = 1, *, bootstrap: str | None = None, admin: int | None = None
    ) -> Process:
        """point, hit : where it kills itself (`worker_process`). admin : port on which it shows metrics."""
        url = self.store.url(self.store_proxy.port)
        arguments = ["-m", "tests.fault.worker_process", point, str(hit), "worker"]
        arguments += ["--kafka", bootstrap or self.bootstrap, "--clickhouse", url]
        arguments += ["--data-dir", str(self.directory)]
        if admin is not None:
            arguments += ["--admin-http", f"127.0.0.1:{admin}"]
        process = self._start("worker", arguments)
        self.workers.append(process)
        return process

    def start_gateway(self, point: str = "none", hit: int = 1, *, bootstrap: str | None = None) -> Process:
        """point, hit : where it kills itself (`worker_process`)."""
        arguments = ["-m", "tests.fault.worker_process", point, str(hit), "gateway"]
        arguments += ["--kafka", bootstrap or self.bootstrap]
        arguments += ["--clickhouse", self.store.url(), "--data-dir", str(self.directory)]
        arguments += ["--http", f"127.0.0.1:{self.http_port}"]
        started = self._start("gateway", arguments)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/live", trust_env=False).status_code == 200:
                    self.gateway = started
                    return started
            assert started.running and time.monotonic() < deadline, started.tail()
            time.sleep(0.1)

    def sent_to_end(self, process: Process) -> None:
        """Told to end, and has."""
        process.signal(signal.SIGTERM)
        assert process.wait(30 * share()) == 0, process.tail()

    def kill(self, process: Process) -> None:
        if process.running:
            process.kill()
            self.kills += 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @contextmanager
    def at_the_end_of_a_month(self) -> Iterator[None]:
        """For gateway, workers and loads that start in here it is now the last second of a month and now the
        first of the next, in turns of a tenth of a second: blocks are of both, and so are the inserts into
        tables that have a partition for each month. The month before this one, for the store folds no case by
        what its own clock takes for the future."""
        file, beside = self.directory / "clock", self.directory / "clock.new"
        end = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        stop = threading.Event()

        def set_clock(side: int) -> None:
            self.ahead = end + timedelta(seconds=side) - datetime.now(UTC)
            beside.write_text(str(self.ahead.total_seconds()))
            beside.replace(file)

        def run() -> None:
            side = 1
            while not stop.wait(0.1):
                side = -side
                set_clock(side)

        set_clock(-1)
        self.environment["FAULT_CLOCK"] = str(file)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def now(self) -> datetime:
        """By the clock of gateway and workers."""
        return datetime.now(UTC) + self.ahead

    def start_load(self, **options: Any) -> Load:
        """Where an answer waits for the store it takes more threads to keep the pace."""
        if self.embedded:
            options["threads"] = max(_STORED_THREADS, options.get("threads", 0))
        options.setdefault("clock", self.now)
        self.loads += 1
        self.load = Load(
            self.url, self.key, self.ledger, self.seed + self.loads, name=f".{self.loads}", **options
        ).start()
        self._all_loads.append(self.load)
        return self.load

    # --- what the system says

    def query(self, sql: str) -> Any:
        return in_database(self.client)(sql)

    def stored_ids(self) -> set[str]:
        kept = " UNION ALL ".join(f"SELECT event_id FROM {table}" for table in ("events", "rejections"))
        return {row[0] for row in self.query(kept)}

    def answered_and_not_stored(self) -> set[str]:
        """Ids that were answered 2xx and are not in the store now."""
        with self.ledger.lock:
            acked = set(self.ledger.acked)
        return acked - self.stored_ids()

    def until_ids_stored(self, ids: set[str], seconds: float = 60.0) -> float:
        """Seconds until just these are stored; `seconds` at most, on an idle machine."""
        started = time.monotonic()
        seconds *= share()
        while ids - self.stored_ids():
            assert time.monotonic() - started < seconds, "they are not stored" + self.tails()
            time.sleep(0.5)
        return time.monotonic() - started

    def stored(self) -> int:
        kept = " UNION ALL ".join(f"SELECT event_id FROM {table}" for table in ("events", "rejections"))
        return int(self.query(f"SELECT uniqExact(event_id) FROM ({kept})")[0][0])

    def committed(self) -> dict[int, int]:
        """partition -> committed offset, where there is one."""
        return {partition: offset for partition, offset in enumerate(self._offsets()) if offset >= 0}

    def until_stored(self, more: int = 1, seconds: float = 60.0) -> float:
        """Seconds until `more` further events are stored; `seconds` at most, on an idle machine."""
        started, before = time.monotonic(), self.stored()
        seconds *= share()
        while self.stored() < before + more:
            running = not self.workers or any(worker.running for worker in self.workers)
            assert running, "every worker has ended" + self.tails()
            assert time.monotonic() - started < seconds, "nothing is stored" + self.tails()
            time.sleep(0.1)
        return time.monotonic() - started

    def _end_loads(self) -> None:
        """Stop the load; fail if this one or an earlier one got an answer that no fault excuses."""
        if self.load is not None:
            self.load.stop()
        for load in self._all_loads:
            load.check()

    def drained(self, seconds: float = 120.0) -> float:
        """Stop the load, wait until everything that was answered is stored and nothing more comes."""
        self._end_loads()
        started = time.monotonic()
        seconds *= share()
        while True:
            verdict = judge(self.ledger, self.client, sources=self.sources, fold=False)
            if verdict.lost == 0 and verdict.agg == 0 and self._settled():
                return time.monotonic() - started
            assert time.monotonic() - started < seconds, f"not drained: {verdict}" + self.tails()
            time.sleep(0.5)

    def caught_up(self, seconds: float = 120.0) -> float:
        """Stop the load, wait until all that the log holds by then is committed; on Kafka only, the embedded
        broker tells its ends too low."""
        self._end_loads()
        started = time.monotonic()
        seconds *= share()
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(self.topic, partition): latest for partition in range(PARTITIONS)}
        look_again(self.admin, self.topic)
        ends = {at.partition: told.result(20).offset for at, told in self.admin.list_offsets(asked).items()}
        while any(self.committed().get(partition, 0) < end for partition, end in ends.items()):
            assert time.monotonic() - started < seconds, f"not at {ends}: {self.committed()}" + self.tails()
            time.sleep(0.5)
        return time.monotonic() - started

    def settled(self, seconds: float = 60.0) -> None:
        """Wait until no row comes any more, where some of what was answered cannot come. Three times nothing
        new: a worker that has just started recovers its partitions one after the other."""
        deadline, quiet = time.monotonic() + seconds * share(), 0
        while quiet < 3:
            quiet = quiet + 1 if self._settled() else 0
            assert time.monotonic() < deadline, "rows go on coming" + self.tails()

    def _settled(self) -> bool:
        """Whether no row of our sources comes any more; the gateway's own canaries never end."""
        before = self._rows()
        time.sleep(1.5 * share())
        return before == self._rows()

    def _rows(self) -> int:
        each = " UNION ALL ".join(
            f"SELECT count() AS n FROM {table} WHERE source IN ({', '.join(map(repr, self.sources))})"
            for table in ("events", "rejections", "duplicates")
        )
        [[rows]] = self.query(f"SELECT sum(n) FROM ({each})")
        return int(rows)

    def verdict(self) -> Verdict:
        """What the oracle says; fails if the gateway's metrics were not to be had meanwhile (fault 39).

        Of rows that stood still meanwhile: what nobody answered for may come in at last while it looks, and
        be in one figure and not in the next.
        """
        for _ in range(10):
            before = self._rows()
            found = judge(self.ledger, self.client, sources=self.sources, now=self.now())
            if before == self._rows():
                break
        else:
            raise AssertionError("rows go on coming" + self.tails())
        self.scraper.check()
        return found

    def audited(self) -> tuple[Verdict, int]:
        """The verdict once copies are merged, and how many positions stood there twice before.

        For workers that were frozen: one that stands still *inside* an insert finishes it when it wakes,
        beside what others stored meanwhile (ADR 0015). Before the merge already nothing is lost, every state
        is right, and copies are copies: of one position.
        """
        first = self.verdict()
        if not first.twice:
            return first, 0
        assert not (first.lost or first.phantom or first.agg or first.kpi or first.quarantined), first
        assert first.dup <= first.twice, first
        for table in OUTCOME_TABLES:
            self.client.command(f"OPTIMIZE TABLE {table} FINAL")
        return self.verdict(), first.twice

    def tails(self) -> str:
        return "".join(process.tail() for process in self.processes[-3:])

    def close(self) -> None:
        self.scraper.stop()
        if self.load is not None:
            self.load.stop(0)
        for process in self.processes:
            if process.running:
                process.signal(signal.SIGCONT)
                process.kill()
        self.store_proxy.close()
        self._offsets.close()
        self.ledger.close()
        with contextlib.suppress(Exception):
            self.client.command(f"DROP DATABASE {self.database}")
        self.client.close()


@contextmanager
def system(
    directory: Path, bootstrap: str, store: Store, *, report: dict[str, object], **options: Any
) -> Iterator[System]:
    """A system with nothing running yet; leaves in `report` how its gateway's metrics answered meanwhile."""
    made = System(directory, bootstrap, store, **options)
    try:
        yield made
    finally:
        made.close()
        report |= made.scraper.figures


def admin_of(bootstrap: str) -> AdminClient:
    return broker.wait_until_up(bootstrap, seconds=60)
