"""Our worker over a filled topic, alone in this process: from ready to the last commit.

    python -m benchmarks.worker_run DATA_DIR BOOTSTRAP EVENTS [count-calls]

With `count-calls` Python counts its calls meanwhile, within rounds, and a block waits for its records, so
that it is as large as it may be: slower, but no machine changes the figures. (What the event loops and
regular looks call, and where a block ends otherwise, depends on the time that all takes.)
DATA_DIR holds a store (`benchmarks.cache`). Prints one JSON object: seconds, CPU, counts and checksums read
by SQL, seconds per stage, rows and parts per insert, memory; and what the process used until its first round:
on a store that has rows already, the engine merges what was left of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson
from clickhouse_connect.driver.client import Client

from benchmarks.calls import Calls
from benchmarks.peers.common import peak_mb
from benchmarks.workload import ID_DIGITS
from pipeline import metrics
from pipeline.contract.privacy import Privacy
from pipeline.process import worker
from pipeline.process.rounds import fold_round, store_round
from pipeline.process.worker import run_worker
from pipeline.settings import Settings, load_settings
from pipeline.store.engine import EmbeddedEngine
from pipeline.store.migrate import migrate

_ENGINE_EVENTS = (
    "InsertQuery",
    "InsertedRows",
    "InsertedBytes",
    "MergeTreeDataWriterBlocks",
    "Merge",
    "MergedRows",
)
#: How long a block waits for its records where calls are counted.
_LINGER_SECONDS = 15.0
#: The number of an event of `workload`; other ids give 0.
_NUMBER = f"toUInt64OrZero(right(event_id, {ID_DIGITS}))"


def outcomes() -> dict[str, int]:
    """Events by outcome, from the worker's own metric."""
    return {
        sample.labels["outcome"]: int(sample.value)
        for metric in metrics.events.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def stage_seconds() -> dict[str, float]:
    return {
        "insert " + sample.labels["table"]
        if "table" in sample.labels
        else sample.labels["stage"]: sample.value
        for histogram in (metrics.stage_seconds, metrics.insert_seconds)
        for metric in histogram.collect()
        for sample in metric.samples
        if sample.name.endswith("_sum")
    }


def blocks() -> int:
    return int(
        sum(s.value for m in metrics.batch_rows.collect() for s in m.samples if s.name.endswith("_count"))
    )


def engine_events(client: Client) -> dict[str, int]:
    """The engine's own counters: inserts, rows, parts written by inserts, merges."""
    rows = client.query(
        "SELECT event, value FROM system.events WHERE event IN {names:Array(String)}",
        parameters={"names": list(_ENGINE_EVENTS)},
    ).result_rows
    return dict.fromkeys(_ENGINE_EVENTS, 0) | {name: int(value) for name, value in rows}


def stored(client: Client) -> dict[str, int]:
    """Counts and checksums of the tables."""
    found = client.query(
        f"""
        SELECT (SELECT count() FROM events) AS stored,
            (SELECT countIf(outcome = 'admitted') FROM events) AS admitted,
            (SELECT count() FROM rejections) AS rejected,
            (SELECT count() FROM duplicates) AS duplicates,
            (SELECT count() FROM quarantine) AS quarantined,
            (SELECT sum({_NUMBER}) FROM events) AS stored_checksum,
            (SELECT sum({_NUMBER}) FROM rejections) AS rejected_checksum
        """
    )
    return {
        name: int(value or 0) for name, value in zip(found.column_names, found.result_rows[0], strict=True)
    }


#: What runs in the threads of rounds, but for inserts beside each other.
_ROUND = {store_round.__code__, fold_round.__code__}
#: Kinds of threads by the beginning of their names.
_THREADS = {
    "polars": ("polars-",),
    "engine: merges": ("MergeMutate",),
    "engine: reading and queries": ("Query", "ThreadPool", "Parquet"),
    "engine: upkeep": ("Bg", "PoolDelay", "jemalloc", "MemoryWorker", "Database", "Async", "HTTP"),
}


def thread_seconds() -> dict[str, float]:
    """Processor time of this process by kind of thread, from /proc; of threads that still live."""
    found: dict[str, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text().strip()
            times = (task / "stat").read_text().rpartition(")")[2].split()
            kind = next((kind for kind, begins in _THREADS.items() if name.startswith(begins)), None)
            if kind is None:
                main_thread = task.name == str(os.getpid())
                kind = "event loop" if main_thread else "rounds: Python, numpy, inserts"
            found[kind] = found.get(kind, 0.0) + (int(times[11]) + int(times[12])) / ticks
    return found


class Begin:
    """Where the worker stands as it begins its first round: partitions are recovered one after the other, and
    rounds of the first ones run before the last one, and with it the worker, is ready."""

    def __init__(self, client: Client) -> None:
        self.at: float | None = None
        self._client = client  # for this alone: no two threads may share one
        self._first = threading.Lock()
        worker.store_round = self._store_round  # type: ignore[assignment]

    def _store_round(self, *arguments: Any, **more: Any) -> Any:
        with self._first:
            if self.at is None:
                self.engine = engine_events(self._client)
                self.cpu, self.threads = resource.getrusage(resource.RUSAGE_SELF), thread_seconds()
                self.at = time.perf_counter()
        return store_round(*arguments, **more)


async def run(settings: Settings, bootstrap: str, expected: int, calls: Calls | None) -> dict[str, Any]:
    privacy = Privacy.load(settings.pseudonym_key_path, create=False)
    engine = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir)
    client = engine.new_client()
    migrate(client, settings.database)
    stop, ready, begun = asyncio.Event(), asyncio.Event(), Begin(engine.new_client())

    def begins() -> None:
        if calls is not None:  # the first block may begin before we see that the worker is ready
            calls.on = True
        ready.set()

    task = asyncio.create_task(
        run_worker(
            settings,
            client_factory=lambda: engine.new_client(settings.database),
            bootstrap=bootstrap,
            privacy=privacy,
            stop=stop,
            ready=begins,
            known_sources=lambda: ("bench",),
        )
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    pause = 0.005 if calls is None else 0.25
    ready_mb = peak_mb()
    committed = 0.0
    while (done := sum(outcomes().values())) < expected:
        if task.done():
            await task
        if done and not committed:
            committed = time.perf_counter()
        await asyncio.sleep(pause)
    assert begun.at is not None
    begin, begin_cpu, threads, before = begun.at, begun.cpu, begun.threads, begun.engine
    seconds, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    spent = {kind: now - threads.get(kind, 0.0) for kind, now in thread_seconds().items()}
    called = calls.take() if calls is not None else None
    after = engine_events(client)
    stop.set()
    await task
    counts = stored(client)
    client.close()
    result = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime - begin_cpu.ru_utime - begin_cpu.ru_stime,
        "before": {
            "cpu_seconds": begin_cpu.ru_utime + begin_cpu.ru_stime,
            "merge_cpu_seconds": threads.get("engine: merges", 0.0),
            "merges": before["Merge"],
            "merged_rows": before["MergedRows"],
        },
        "kernel_seconds": used.ru_stime - begin_cpu.ru_stime,
        "page_faults": used.ru_minflt - begin_cpu.ru_minflt,
        "first_commit_seconds": (committed or begin + seconds) - begin,
        "counts": counts,
        "outcomes": outcomes(),
        "stages": stage_seconds(),
        "thread_cpu_seconds": spent,
        "blocks": blocks(),
        "engine": {name: after[name] - before[name] for name in after},
        "calls": called,
        "ready_mb": ready_mb,
        "peak_mb": peak_mb(),
    }
    engine.close()
    return result


def main() -> None:
    data_dir, bootstrap, expected, *more = sys.argv[1:]
    calls = Calls(_ROUND) if more == ["count-calls"] else None
    if calls:
        worker._QUIET_LINGER_SECONDS = _LINGER_SECONDS  # type: ignore[misc]
    settings = load_settings(
        data_dir=Path(data_dir),
        kafka=bootstrap,
        log_level="warning",
        block_linger_seconds=_LINGER_SECONDS if calls else None,
    )
    result = asyncio.run(run(settings, bootstrap, int(expected), calls))
    sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # threads of the engine may still wind down


if __name__ == "__main__":
    main()
