"""What every benchmark shares: a broker, filling it, running a program alone, checking it, writing it down.

A program is a process of its own; the last line that it prints is one JSON object with at least `seconds`,
`cpu_seconds`, `peak_mb` and `counts`. A run whose counts are not the ledger's is an error, never a figure.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console

from benchmarks.cache import PARTITIONS, ROOT, Records
from benchmarks.workload import Ledger
from pipeline.runtime.broker import command, free_port, wait_until_up

HISTORY: Final = ROOT / "benchmarks" / "history"
PLACE: Final = ROOT / "var" / "bench"
TOPIC: Final = "grid.events"
RUN_SECONDS: Final = 1_800.0
_PACKAGES: Final = ("polars", "chdb", "confluent-kafka", "aiokafka", "faust-streaming", "msgspec", "pyarrow")

out = Console(highlight=False, width=150, soft_wrap=True)


class WrongCountsError(Exception):
    """A program's counts or checksums are not those of the ledger."""


class RunFailedError(Exception):
    """A program ended without a result."""


@dataclass
class Broker:
    """An embedded broker in a process of its own."""

    bootstrap: str
    process: psutil.Process
    admin: AdminClient

    def create(self, topic: str = TOPIC, partitions: int = PARTITIONS) -> None:
        for future in self.admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            future.result()

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


def end_cleanly() -> None:
    """On SIGTERM unwind, so that brokers and servers end with the benchmark that started them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextlib.contextmanager
def broker(partitions: int = PARTITIONS) -> Iterator[Broker]:
    """A fresh broker with an empty topic."""
    port = free_port()
    child = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bootstrap = f"127.0.0.1:{port}"
        found = Broker(bootstrap, psutil.Process(child.pid), wait_until_up(bootstrap, seconds=10))
        found.create(partitions=partitions)
        yield found
    finally:
        child.kill()
        child.wait()


class Sender:
    """Puts prepared records on a topic."""

    def __init__(self, bootstrap: str, content_type: str, topic: str = TOPIC) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "linger.ms": 5,
                "queue.buffering.max.messages": 2_000_000,
                "queue.buffering.max.kbytes": 1_000_000,
            }
        )
        self._topic = topic
        self._headers = {"content-type": content_type, "schema-version": "1"}
        self._failed: list[str] = []

    def send(self, partition: int, value: bytes) -> None:
        """Hand a record over; waits while too many are on their way."""
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=value,
                    partition=partition,
                    headers=self._headers,
                    on_delivery=self._delivered,
                )
                return
            except BufferError:
                self.poll(0.1)

    def poll(self, seconds: float = 0.0) -> None:
        """Take in what the broker confirmed."""
        self._producer.poll(seconds)

    def finish(self) -> None:
        """Return once the broker has every record. Raises RunFailedError."""
        if self._producer.flush(120) or self._failed:
            raise RunFailedError(f"the broker did not take all records: {self._failed[:1]}")

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed.append(str(error))


def fill(bootstrap: str, records: Records, topic: str = TOPIC) -> int:
    """Send all records; returns their number once the broker has each."""
    sender, sent = Sender(bootstrap, records.content_type, topic), 0
    for chunk in records.chunks():
        for partition, value in zip(chunk["partition"].to_list(), chunk["value"], strict=True):
            sender.send(partition, value)
            sent += 1
            if sent % 1_000 == 0:
                sender.poll()
    sender.finish()
    return sent


def run_program(
    arguments: Sequence[str], *, env: Mapping[str, str] | None = None, seconds: float = RUN_SECONDS
) -> dict[str, Any]:
    """The JSON object that the program printed last. Raises RunFailedError."""
    done = subprocess.run(
        arguments,
        capture_output=True,
        check=False,
        timeout=seconds,
        cwd=ROOT,
        env={**os.environ, "TZ": "UTC", **(env or {})},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    if done.returncode or not lines:
        tail = (done.stderr or done.stdout).decode(errors="replace")[-3_000:]
        raise RunFailedError(f"{' '.join(arguments[:4])} ended with {done.returncode}:\n{tail}")
    result: dict[str, Any] = orjson.loads(lines[-1])
    return result


def check_common(name: str, result: Mapping[str, Any], ledger: Ledger) -> None:
    """The counts that ours and every peer must show, read from the stored table by SQL."""
    wanted = {"stored": ledger.stored, "rejected": ledger.rejected, "duplicates": ledger.duplicates}
    wanted["stored_checksum"] = ledger.stored_checksum
    found = {key: result["counts"].get(key) for key in wanted}
    # a store that only dedups later says so itself by leaving a count out
    wrong = {
        key: (value, wanted[key])
        for key, value in found.items()
        if value is not None and value != wanted[key]
    }
    if wrong or found["stored"] is None:
        raise WrongCountsError(f"{name}: (found, ledger) {wrong or found}")


def commit() -> str:
    """The commit measured, with `+` when the product's files differ from it.

    Eight digits name it, and are too few for the scan for secrets to take them for a key.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short=8", "HEAD") + ("+" if git("status", "--porcelain", "pipeline") else "")


def machine() -> dict[str, Any]:
    """What the figures depend on, without any name of the machine."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def report_place(*, quick: bool) -> Path:
    """Where series lie, in `series`, and their report. Looks have one of their own: they would take the place
    of what was measured."""
    return PLACE / "quick" if quick else PLACE


@dataclass
class Series:
    """Runs of one benchmark: interleaved rounds over cases, each run written down at once, in the history and
    for the report."""

    kind: str
    settings: dict[str, Any]
    #: Quick runs are looks, not measurements: they stay out of the committed history and of its report.
    quick: bool = False
    #: Whether what is measured goes into the committed history.
    kept: bool = True
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: What the report tells beside the runs.
    facts: dict[str, Any] = field(default_factory=dict)
    _machine: dict[str, Any] = field(default_factory=machine)
    _commit: str = field(default_factory=commit)

    def add(self, case: str, round_number: int, result: dict[str, Any]) -> None:
        result = {"round": round_number, **result}
        self.runs.setdefault(case, []).append(result)
        history = HISTORY if self.kept and not self.quick else PLACE / "history"
        history.mkdir(parents=True, exist_ok=True)
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self._commit,
            "machine": self._machine,
            "settings": self.settings,
            "case": case,
            **result,
        }
        with (history / f"{self.kind}.jsonl").open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")
        # at once: what comes later may fail, and this was measured
        self.save()

    def median(self, case: str, name: str = "events_per_second") -> float:
        return statistics.median(run[name] for run in self.runs[case])

    def ratio(self, case: str, other: str, name: str = "events_per_second") -> float:
        """Median over rounds of the ratio in one round: what disturbed a round disturbed both.

        A round in which one of the two was left out says nothing."""
        theirs = {run["round"]: run[name] for run in self.runs[other]}
        return statistics.median(
            run[name] / theirs[run["round"]] for run in self.runs[case] if run["round"] in theirs
        )

    def spread(self, case: str, name: str = "events_per_second") -> float:
        """(largest − smallest) / median."""
        values = [run[name] for run in self.runs[case]]
        return (max(values) - min(values)) / statistics.median(values)

    def save(self, **facts: Any) -> Path:
        """The series as one file for the report, with what is to be told beside the runs."""
        self.facts |= facts
        directory = report_place(quick=self.quick) / "series"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.kind}.json"
        fresh = path.with_suffix(".new")  # a series cut off in the middle would end every later report
        fresh.write_bytes(
            orjson.dumps(
                {
                    "kind": self.kind,
                    "commit": self._commit,
                    "machine": self._machine,
                    "settings": self.settings,
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "runs": self.runs,
                    "facts": self.facts,
                },
                option=orjson.OPT_INDENT_2,
            )
        )
        fresh.replace(path)
        return path


def rounds(
    number: int, cases: Iterable[str], most: Mapping[str, int] | None = None
) -> Iterator[tuple[int, str]]:
    """A B C A B C …, every other round backwards, so that no case always follows the same one.

    most : rounds of single cases, where fewer do.
    """
    listed, most = list(cases), most or {}
    for at in range(number):
        for case in listed if at % 2 == 0 else reversed(listed):
            if at < most.get(case, number):
                yield at, case


def run_parts(parts: Mapping[str, Callable[[], object]]) -> list[str]:
    """Run each; the names of those that raised, or answered with an exit code, after all were run."""
    failed = []
    for name, part in parts.items():
        begin = time.perf_counter()
        out.rule(name)
        try:
            if part():
                failed.append(name)
        except Exception as error:  # whatever it is, the report tells what the others measured
            failed.append(name)
            out.print(f"{name} FAILED: {type(error).__name__}: {error}", markup=False)
        out.print(f"{name}: {(time.perf_counter() - begin) / 60:.1f} minutes")
    return failed


def tell(series: Series, case: str, number: int, of: int) -> None:
    run = series.runs[case][-1]
    out.print(
        f"round {number + 1}/{of}  {case:<28} {run['events_per_second']:>11,.0f} events/s"
        f"  {run['cpu_seconds'] / run['events'] * 1e6:6.2f} CPU µs/event  {run.get('peak_mb', 0):>6,.0f} MB"
    )


class Watch:
    """Wall and CPU time of this process since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self.wall

    def cpu_seconds(self) -> float:
        return time.process_time() - self.cpu


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
