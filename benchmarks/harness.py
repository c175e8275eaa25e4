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
#: How long a series looks, before it begins, at what else the machine does.
LOOK_SECONDS: Final = 1.0
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
    """The commit measured, with `+` when files that a figure depends on differ from it: the product's, its
    schemas, the benchmarks' own.

    Eight digits name it, and are too few for the scan for secrets to take them for a key.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    # a series writes its own history: that is no change of what is measured
    measured = ("pipeline", "schemas", "benchmarks", ":!benchmarks/history")
    return git("rev-parse", "--short=8", "HEAD") + ("+" if git("status", "--porcelain", *measured) else "")


def others_cores(seconds: float) -> float:
    """Cores that everything but this process keeps busy, over so many seconds in which we do nothing.

    The load average would tell of the part before: it is a mean of minutes, and that part kept it up.
    """

    def busy() -> float:
        times = psutil.cpu_times()
        used = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        return float(used - time.process_time())

    before, begin = busy(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, (busy() - before) / (time.perf_counter() - begin))


def machine() -> dict[str, Any]:
    """What the figures depend on, without any name of the machine. Takes a second."""
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
        "others_cores": round(others_cores(LOOK_SECONDS), 2),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def report_place(*, quick: bool) -> Path:
    """Where series lie, in `series`, and their report. Looks have one of their own: they would take the place
    of what was measured."""
    return PLACE / "quick" if quick else PLACE


def series_path(kind: str, *, quick: bool) -> Path:
    return report_place(quick=quick) / "series" / f"{kind}.json"


def read_series(path: Path) -> dict[str, Any] | None:
    """A series as `Series.save` writes it; None where there is none, or one of an earlier form."""
    if not path.exists():
        return None
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found if "origins" in found else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Series:
    """Runs of one benchmark: interleaved rounds over cases, each run written down at once, in the history and
    for the report.

    The report's file of a kind holds the last runs of every case, whichever series they are of: one that runs
    some cases, or one of another size, leaves the others as they are, and every case says where it is from.
    """

    kind: str
    settings: dict[str, Any]
    #: Quick runs are looks, not measurements: they stay out of the committed history and of its report.
    quick: bool = False
    #: Whether what is measured goes into the committed history.
    kept: bool = True
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: What the report tells beside the runs, by name and then by case or whatever it is about.
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _begun: str = field(default_factory=_now)
    _machine: dict[str, Any] = field(default_factory=machine)
    _commit: str = field(default_factory=commit)
    _ended: dict[str, str] = field(default_factory=dict)

    def origin(self, at: str) -> dict[str, Any]:
        """Where figures are from. begun : of the series, which two cases of one round share; at : of the last
        run."""
        return {
            "begun": self._begun,
            "at": at,
            "commit": self._commit,
            "machine": self._machine,
            "settings": self.settings,
        }

    def add(self, case: str, round_number: int, result: dict[str, Any]) -> None:
        result = {"round": round_number, **result}
        self.runs.setdefault(case, []).append(result)
        self._ended[case] = _now()
        history = HISTORY if self.kept and not self.quick else PLACE / "history"
        history.mkdir(parents=True, exist_ok=True)
        line = {
            "at": self._ended[case],
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

    @property
    def ended(self) -> str:
        """When the last run ended."""
        return max(self._ended.values(), default=self._begun)

    def leave_out(self, case: str, why: str) -> None:
        """Note a run that has no figure, for the report."""
        left_out = self.facts.setdefault("left_out", {})
        left_out[case] = f"{left_out[case]}; {why}" if case in left_out else why

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

    def save(self) -> Path:
        """The file for the report: our cases and facts in place of earlier ones of the same names."""
        path = series_path(self.kind, quick=self.quick)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = read_series(path) or {"runs": {}, "origins": {}, "facts": {}}
        facts = {
            # what was told of a case that ran again is over
            name: {about: fact for about, fact in told.items() if about not in self.runs}
            for name, told in before["facts"].items()
        }
        for name, told in self.facts.items():
            facts[name] = facts.get(name, {}) | told
        fresh = path.with_suffix(".new")  # a series cut off in the middle would end every later report
        fresh.write_bytes(
            orjson.dumps(
                {
                    "kind": self.kind,
                    "runs": before["runs"] | self.runs,
                    "origins": before["origins"]
                    | {case: self.origin(at) for case, at in self._ended.items()},
                    "facts": facts,
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


def peak_mb_of(pid: int) -> float:
    """Largest resident memory of a running process so far, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_seconds_of(pid: int) -> float:
    """Processor time of all threads of a running process so far, ended ones too, to the nanosecond where
    `/proc` counts hundredths: its CPU clock, as `clock_getcpuclockid` names it on Linux."""
    return time.clock_gettime(~pid << 3 | 2)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
