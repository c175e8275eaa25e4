"""The common work of the peers, and what each of them is given. Runs in the peers' own environment.

decode and check → drop repeated ids → matter → grid (3 attributes) → person (2 attributes) → rows of a
MergeTree table. Less than our pipeline does: no rules, no L2, no pseudonyms, no cases, no positions, no
commits.

The reference data are prepared as Parquet by the harness (`benchmarks.peers_inputs`), so that nobody pays for
making them. `finish` reads counts and checksums from the table by SQL and prints the result.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import clickhouse_connect
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

#: Rows of an insert, and at most this share of the run: in a short one inserts overlap with decoding, too.
INSERT_ROWS = 100_000
INSERT_SHARE = 5
COLUMNS = (
    "event_id", "source", "event_type", "case_id", "occurred_at", "channel", "matter_code", "grid_code",
    "actor_type", "actor_key", "description", "category", "lead_department", "grid_name", "grid_type",
    "village_kind", "gender", "residence_kind",
)  # fmt: skip
TABLE = f"""
CREATE TABLE IF NOT EXISTS peer_events ({
    ", ".join(
        f"{name} DateTime64(3, 'UTC')"
        if name == "occurred_at"
        else f"{name} LowCardinality(String)"
        if name
        in {
            "source",
            "event_type",
            "channel",
            "matter_code",
            "actor_type",
            "category",
            "lead_department",
            "grid_type",
            "village_kind",
            "gender",
            "residence_kind",
        }
        else f"{name} String"
        for name in COLUMNS
    )
})
ENGINE = MergeTree ORDER BY (grid_code, occurred_at)
"""
_SCHEMA = pa.schema(
    [(name, pa.timestamp("ms", "UTC") if name == "occurred_at" else pa.string()) for name in COLUMNS]
)


class Task(NamedTuple):
    """What the harness asks of a peer, read from the file that is its only argument."""

    bootstrap: str
    topic: str
    partitions: int
    form: str  # ndjson: events of a record are lines; each: one event
    reference: Path  # matters, grids, persons as Parquet
    path: Path  # directory of the embedded ClickHouse
    events: int

    @property
    def insert_rows(self) -> int:
        return max(1, min(INSERT_ROWS, self.events // INSERT_SHARE))

    @classmethod
    def read(cls) -> Task:
        raw = msgspec.json.decode(Path(sys.argv[1]).read_bytes())
        return cls(**{**raw, "reference": Path(raw["reference"]), "path": Path(raw["path"])})


class Actor(msgspec.Struct, gc=False):
    type: str
    key: str | None = None


class Person(msgspec.Struct, gc=False):
    role: str
    id_number: str | None = None


class Event(msgspec.Struct, gc=False):
    """The fields of the common work; the decoder checks their presence and types."""

    event_id: str
    source: str
    event_type: str
    case_id: str
    occurred_at: datetime
    channel: str
    matter_code: str
    grid_code: str
    actor: Actor
    persons: list[Person] = []
    description: str = ""


DECODER = msgspec.json.Decoder(Event)


class Reference:
    """The look-ups as dictionaries."""

    def __init__(self, directory: Path) -> None:
        self.matters = _table(directory / "matters.parquet", 2)
        self.grids = _table(directory / "grids.parquet", 3)
        self.persons = _table(directory / "persons.parquet", 2)


def _table(path: Path, attributes: int) -> dict[str, tuple[str, ...]]:
    key, *values = (column.to_pylist() for column in pq.read_table(path).columns)
    if len(values) != attributes:
        raise SystemExit(f"{path} has {len(values)} attributes, not {attributes}")
    # equal tuples are shared: a register has few distinct attribute pairs
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    return {
        name: shared.setdefault(row, row) for name, row in zip(key, zip(*values, strict=True), strict=True)
    }


class Work:
    """The common work on events, and the counts that it must end with."""

    def __init__(self, reference: Reference) -> None:
        self.matters, self.grids, self.persons = reference.matters, reference.grids, reference.persons
        self.seen: set[str] = set()
        self.duplicates = self.rejected = self.stored = 0

    @property
    def taken(self) -> int:
        return self.duplicates + self.rejected + self.stored

    def row(self, event: Event) -> tuple[Any, ...] | None:
        """The row of an event; None when it is a repetition or refused."""
        identity = event.event_id
        if identity in self.seen:
            self.duplicates += 1
            return None
        self.seen.add(identity)
        matter = self.matters.get(event.matter_code)
        grid = self.grids.get(event.grid_code)
        if matter is None or grid is None:
            self.rejected += 1
            return None
        person = ("", "")
        if event.persons:
            person = self.persons.get(event.persons[0].id_number or "", person)  # type: ignore[assignment]
        self.stored += 1
        actor = event.actor
        return (
            identity, event.source, event.event_type, event.case_id, event.occurred_at, event.channel,
            event.matter_code, event.grid_code, actor.type, actor.key or "", event.description,
            *matter, *grid, *person,
        )  # fmt: skip


class Sink:
    """Rows into the embedded ClickHouse as Arrow, one insert at a time."""

    def __init__(self, path: Path) -> None:
        self.client = clickhouse_connect.get_client(interface="chdb", path=str(path))
        self.client.command(TABLE)
        self._thread = ThreadPoolExecutor(1, "insert")
        self._running: Future[None] | None = None

    def insert(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """One insert. Releases the GIL for most of its time."""
        columns = list(zip(*rows, strict=True))
        if columns:
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self.client.insert_arrow("peer_events", pa.Table.from_arrays(arrays, schema=_SCHEMA))

    def insert_beside(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """The insert in a thread, beside decoding, once the one before is done."""
        self.wait()
        self._running = self._thread.submit(self.insert, rows)

    def wait(self) -> None:
        """Until no insert runs. Raises what the last one raised."""
        if self._running is not None:
            self._running.result()
            self._running = None

    def counts(self) -> dict[str, int]:
        """Read from the table."""
        stored, checksum = self.client.query(
            "SELECT count(), sum(toUInt64(right(event_id, 7))) FROM peer_events"
        ).result_rows[0]
        return {"stored": int(stored), "stored_checksum": int(checksum)}


class Clock:
    """Starts with the first record."""

    def __init__(self) -> None:
        self.begin = self.begin_cpu = 0.0

    def start(self) -> None:
        if not self.begin:
            self.begin, self.begin_cpu = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self.begin,
            "cpu_seconds": time.process_time() - self.begin_cpu,
        }


def peak_mb() -> float:
    """Peak resident memory of this program (`ru_maxrss` starts at that of the process it was forked from)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def freeze() -> None:
    """The register stays for good: keep the collector off it; and rows are no cycles: let it run seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def finish(took: dict[str, float], counts: dict[str, int], **more: Any) -> None:
    """Print the result and end the process at once: threads of the engine may still wind down."""
    sys.stdout.buffer.write(
        msgspec.json.encode({**took, "counts": counts, "peak_mb": peak_mb(), **more}) + b"\n"
    )
    sys.stdout.flush()
    os._exit(0)


def finish_work(clock: Clock, work: Work, sink: Sink) -> None:
    """Stop the clock, then count what the table holds."""
    took = clock.stop()
    finish(took, {"rejected": work.rejected, "duplicates": work.duplicates, **sink.counts()})
