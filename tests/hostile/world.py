"""A real service under attack: raw sockets, an HTTP client and a Kafka producer beside the gateway."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import jsonschema
import orjson
import psutil
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from pipeline.ingest.blocks import partition_of
from pipeline.ingest.keys import KeyStore
from pipeline.settings import Settings, load_settings
from pipeline.store.client import connect
from tests.e2e.service import Service
from tests.fault.verdict import OUTCOME_TABLES
from tests.hostile.memory import Peak

GRID: Final = "440704001001003"
SOURCE: Final = "hostile"
OTHER: Final = "other-source"
EVENTS: Final = "/v1/events"
PROBLEM: Final = "application/problem+json"
#: No answer may take longer, on a machine that has nothing else to do; a busy one gets its share more.
HANG_SECONDS: Final = 2.0
#: What the HTTP process may have grown at any moment of a row and after all rows, and the worker's at any
#: moment of a hostile record.
GROWTH_BYTES: Final = 100_000_000

Document = dict[str, Any]


def patience() -> float:
    return HANG_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass
class Reply:
    """What came back over a raw socket until the server closed or fell silent."""

    raw: bytes
    seconds: float
    closed: bool

    @property
    def statuses(self) -> list[int]:
        # a second answer follows the first one's body, wherever that ends
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.raw)]

    @property
    def problem(self) -> Document:
        """The last answer's document."""
        document: Document = orjson.loads(self.raw.rpartition(b"\r\n\r\n")[2] or b"{}")
        return document


@dataclass
class World:
    service: Service
    settings: Settings
    keys: KeyStore
    key: str
    client: httpx.Client
    problem_schema: Document
    ledger: set[str] = field(default_factory=set)
    #: Ids of events that some answer refused; one that was taken later is in the ledger as well.
    refused: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    #: The hostile input whose rows are being played.
    playing: int = 0
    #: Hostile records read by the worker; its resident bytes before the first of them, and the most since.
    records: int = 0
    worker_before: int | None = None
    worker_most: int = 0

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.service.url)
        return url.host, url.port or 80

    @property
    def http(self) -> psutil.Process:
        return self.service.children()["http"]

    @property
    def worker(self) -> psutil.Process:
        """The worker; the embedded ClickHouse lives in the same process."""
        return self.service.children()["store"]

    @contextlib.contextmanager
    def worker_stays_small(self, records: int) -> Iterator[None]:
        """While the block puts hostile records into the topic and waits until they are read.

        Its size before the first of all such blocks counts, so that they cannot grow it bit by bit.
        """
        with Peak(self.worker.pid) as peak:
            if self.worker_before is None:
                self.worker_before = self.worker_most = peak.first
            yield
        self.records += records
        self.worker_most = max(self.worker_most, peak.most)
        assert peak.samples, "nobody looked"
        assert self.worker_grown < GROWTH_BYTES, f"the worker grew by {self.worker_grown / 1e6:.0f} MB"

    @property
    def worker_grown(self) -> int:
        return self.worker_most - (self.worker_before or 0)

    # --- events

    def event(self, **changes: Any) -> Document:
        """A sound event; `changes` replace fields, a value of `...` drops one."""
        number = next(self.numbers)
        given = {
            "event_id": f"h-{number}",
            "source": SOURCE,
            "event_type": "REPORTED",
            "case_id": f"hc-{number}",
            "occurred_at": (datetime.now(UTC) - timedelta(hours=1)).isoformat(),
            "channel": "hotline_12345",
            "matter_code": "UE-01",
            "grid_code": GRID,
            "actor": {"type": "citizen"},
            **changes,
        }
        return {name: value for name, value in given.items() if value is not ...}

    def keep(self, *events: Document) -> None:
        """These were answered 2xx: they must be found in the store in the end."""
        self.ledger |= {event["event_id"] for event in events}

    # --- HTTP

    def post(
        self,
        body: Any,
        content_type: str | None = "application/json",
        *,
        path: str = EVENTS,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """POST, and every promise that holds for each answer checked."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {"Authorization": f"Bearer {key or self.key}", **(headers or {})}
        if content_type is not None:
            given["Content-Type"] = content_type
        return self.checked(lambda: self.client.post(path, content=content, headers=given))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.checked(lambda: self.client.get(path, **options))

    def checked(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        began = time.monotonic()
        answer = call()
        seconds = time.monotonic() - began
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text[:500]}" + self.service.log(
            "http"
        )
        assert seconds < patience(), f"{answer.status_code} after {seconds:.1f} s"
        if answer.status_code >= 400:
            self.is_problem(answer.headers.get("content-type", ""), answer.json())
        if (answer.request.method, answer.request.url.path) == ("POST", EVENTS):
            self.refused |= _ids_refused(answer)
        return answer

    def is_problem(self, content_type: str, document: Document) -> None:
        assert content_type == PROBLEM
        jsonschema.validate(document, self.problem_schema)

    def still_well(self) -> None:
        """A sound event is taken as if nothing had happened."""
        good = self.event()
        answer = self.post(good)
        assert answer.status_code == 202, answer.text
        assert answer.json()["accepted"] == 1
        self.keep(good)

    def outcome(self, event_id: str, source: str = SOURCE) -> Document:
        answer = self.client.get(f"/v1/events/{source}/{event_id}")
        assert answer.status_code == 200, answer.text
        document: Document = answer.json()
        return document

    def talk(
        self,
        *parts: bytes,
        pause: float = 0.0,
        seconds: float = 3.0,
        shut: bool = False,
        to: tuple[str, int] | None = None,
    ) -> Reply:
        """Send `parts`, then read until the server closes, at most `seconds` without a byte.

        shut : close our half after the last part. to : another listener than that for everybody.
        """
        began = time.monotonic()
        received, closed = bytearray(), False
        with socket.create_connection(to or self.address, timeout=seconds) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
                if shut:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the end: what it said is still to be read
            heard = time.monotonic()
            try:
                while chunk := connection.recv(65_536):
                    received += chunk
                    heard = time.monotonic()
                closed, heard = True, time.monotonic()
            except TimeoutError:
                pass
            except ConnectionResetError:
                closed, heard = True, time.monotonic()
        reply = Reply(bytes(received), heard - began, closed)
        if reply.statuses and reply.statuses[-1] >= 400:
            self.refused |= set().union(*map(_ids_in, set(parts)))
        return reply

    def head(self, *fields: str, path: str = EVENTS, method: str = "POST", key: str | None = None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key or self.key}"]
        return "\r\n".join([*lines, "Content-Type: application/json", *fields, "", ""]).encode("latin-1")

    # --- Kafka

    def bootstrap(self) -> str:
        line = " ".join(self.service.children()["tansu"].cmdline())
        found = re.search(r"tcp://(127\.0\.0\.1:\d+)", line)
        assert found is not None, line
        return found.group(1)

    def produce(
        self,
        records: Sequence[tuple[bytes | None, Mapping[str, bytes | None] | None, bytes | None]],
        **options: Any,
    ) -> tuple[int, list[int]]:
        """Write (value, headers, key) straight to the partition of `GRID`; (partition, offsets)."""
        partition = partition_of(GRID, self.settings.partitions)
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap(),
                "message.max.bytes": 20_000_000,
                "log_level": 0,
                **options,
            }
        )
        offsets: list[int] = []
        failures: list[Any] = []

        def report(error: Any, message: Any) -> None:
            failures.append(error) if error else offsets.append(message.offset())

        for value, headers, key in records:
            producer.produce(
                self.settings.topic,
                value=value,
                key=key,
                partition=partition,
                headers=list((headers or {}).items()),
                on_delivery=report,
            )
        assert producer.flush(20) == 0
        assert not failures, failures
        return partition, offsets

    def wait_for(self, event_id: str, seconds: float = 20.0) -> Document:
        deadline = time.monotonic() + seconds
        while True:
            answer = self.client.get(f"/v1/events/{SOURCE}/{event_id}")
            if answer.status_code == 200:
                document: Document = answer.json()
                return document
            assert time.monotonic() < deadline, f"{event_id} did not come through" + self.service.log("store")
            time.sleep(0.05)

    # --- what is stored

    @contextlib.contextmanager
    def store(self) -> Iterator[Client]:
        client = connect(self.settings)
        try:
            yield client
        finally:
            client.close()

    def rows(self, query: str, **parameters: Any) -> list[Sequence[Any]]:
        with self.store() as client:
            return list(client.query(query, parameters=parameters).result_rows)

    def take(self, *events: Document) -> Document:
        """All of these are accepted."""
        answer = self.post(list(events))
        assert answer.status_code == 202, answer.text
        document: Document = answer.json()
        assert document["accepted"] == len(events), document["errors"]
        self.keep(*events)
        return document

    def column(self, name: str, *event_ids: str) -> list[Any]:
        """A column of stored rows, in the order of the ids, whatever became of them."""
        rows = dict(
            self.rows(
                " UNION ALL ".join(
                    f"SELECT event_id, {name} FROM {table} FINAL WHERE event_id IN {{ids:Array(String)}}"
                    for table in ("events", "rejections")
                ),
                ids=list(event_ids),
            )
        )
        return [rows.get(event_id) for event_id in event_ids]

    def stored_ids(self) -> list[str]:
        """Ids in every table of outcomes, one per row of the tables' final state."""
        found = self.rows(
            "SELECT event_id FROM events FINAL UNION ALL SELECT event_id FROM rejections FINAL "
            "UNION ALL SELECT event_id FROM quarantine WHERE reason = 'ID_CONFLICT'"
        )
        return [row[0] for row in found]

    def stored_twice(self) -> list[Sequence[Any]]:
        """Source and id of what has more than one row among the outcomes, copies that no merge has taken away
        yet counted."""
        each = " UNION ALL ".join(f"SELECT source, event_id FROM {t}" for t in ("events", "rejections"))
        return self.rows(f"SELECT source, event_id, count() FROM ({each}) GROUP BY ALL HAVING count() > 1")

    def traces(self) -> set[str]:
        """Ids of every event that left a row, as whatever it counts."""
        each = " UNION DISTINCT ".join(f"SELECT event_id FROM {table}" for table in OUTCOME_TABLES)
        return {row[0] for row in self.rows(each)}


def _ids_refused(answer: httpx.Response) -> set[str]:
    """Of a request for events: the ids of those that its answer refuses."""
    if answer.status_code >= 400:
        return _ids_in(answer.request.content)
    errors = answer.json()["errors"]
    return {error["event_id"] for error in errors if error["event_id"] and not error["retryable"]}


def _ids_in(body: bytes) -> set[str]:
    """Ids of events in the text of a request, however damaged; none of one that is packed."""
    return {found.decode(errors="replace") for found in re.findall(rb'"(?:event_)?id":"([^"\\]+)"', body)}


@contextlib.contextmanager
def open_world(data_dir: Any, *arguments: str, **environment: str) -> Iterator[World]:
    """Start `gridpipe up` in `data_dir` with a key of our own. arguments : more of the command's."""
    os.environ.update(environment)
    try:
        service = Service(data_dir, "--no-simulate", "--http", "127.0.0.1:0", *arguments)
    finally:
        for name in environment:
            del os.environ[name]
    settings = load_settings(data_dir=data_dir)
    keys = KeyStore(settings.keys_path)
    client = httpx.Client(base_url=service.url, timeout=30, trust_env=False)
    document = client.get("/openapi.json").json()
    responses = document["paths"][EVENTS]["post"]["responses"]
    problem = responses["400"]["content"][PROBLEM]["schema"]
    world = World(service, settings, keys, keys.create(SOURCE), client, problem)
    try:
        yield world
    finally:
        client.close()
        if service.process.poll() is None:
            service.stop()
        service.kill()


def fresh(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"
