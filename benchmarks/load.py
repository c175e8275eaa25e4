"""`make load SCENARIO=steady`: a service of its own, locust in one of eight scenarios, server-side checks.

    python -m benchmarks.load SCENARIO [--rate N] [--seconds S] [--kafka-share 0.25]

Reports (HTML, CSV, events by second) lie in var/load/SCENARIO. Exit 1 when a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import cache, load_check
from benchmarks.harness import broker, end_cleanly
from benchmarks.load_bodies import MARK
from benchmarks.load_shapes import LENGTHS, SHAPES
from benchmarks.memory import MEMORY_TOLERANCE, Memory
from benchmarks.peers_inputs import ndjson
from benchmarks.service import service

PERSONS = 20_000
_SOAK_SECONDS = 600
HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=sorted(SHAPES), help="the shape of the load")
    parser.add_argument("--rate", type=float, default=1_500, help="base rate, events/s (default %(default)s)")
    parser.add_argument(
        "--seconds", type=int, help="length; a short form keeps the shape (default: 60 or more)"
    )
    parser.add_argument("--events", type=int, default=100_000, help="distinct events (default %(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="events per request (default %(default)s)")
    parser.add_argument(
        "--p99-ms", type=float, default=5_000, help="limit of the answers' p99 (default %(default)s)"
    )
    parser.add_argument(
        "--kafka-share", type=float, default=0.0, help="share of the users that write to the topic directly"
    )
    parser.add_argument("--data-dir", type=Path, default=Path("var/load"), help="reports go below it")
    options = parser.parse_args()
    if not 0.0 <= options.kafka_share < 1.0:
        parser.error("--kafka-share: from 0 to below 1, for what is checked comes in by HTTP too")
    end_cleanly()
    seconds = options.seconds or LENGTHS.get(options.scenario, 60)

    report = (options.data_dir / options.scenario).resolve()
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir(parents=True)
    data = report / "data"
    print("making the events and the store", flush=True)
    source = cache.events(options.events, PERSONS, salt=MARK.decode())
    feed = ndjson(source)
    cache.copy_store(PERSONS, data)
    code = 1
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(broker()).bootstrap if options.kafka_share else None
        running, key = stack.enter_context(service(data, direct))
        with Memory(running, lambda: load_check.held(load_check.read_metrics(running.url))) as memory:
            code = locust(options, seconds, report, feed, running.url, key, direct)
        memory.write(report / "memory.csv")
        for role in sorted(running.pids):
            text, flat = memory.verdict(role)
            print(text)
            if options.scenario == "soak" and seconds >= _SOAK_SECONDS and not flat:
                print(f"FAILED: memory of {role} grew by more than {MEMORY_TOLERANCE:.0%}")
                code = 1
    shutil.rmtree(data, ignore_errors=True)
    print(f"report: {report / 'report.html'}")
    return code


def locust(  # noqa: PLR0917
    options: argparse.Namespace,
    seconds: int,
    report: Path,
    feed: Path,
    url: str,
    key: str,
    direct: str | None,
) -> int:
    """Run locust; its exit code."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(HERE / "locustfile.py"),
            "--headless",
            "--only-summary",
            "--stop-timeout",
            "60",
            "--host",
            url,
            "--html",
            str(report / "report.html"),
            "--csv",
            str(report / "load"),
        ],
        env={
            **os.environ,
            "LOAD_SCENARIO": options.scenario,
            "LOAD_EVENTS": str(feed),
            "LOAD_KEY": key,
            "LOAD_RATE": str(options.rate),
            "LOAD_SECONDS": str(seconds),
            "LOAD_BATCH": str(options.batch),
            "LOAD_P99_MS": str(options.p99_ms),
            "LOAD_REPORT": str(report),
            "LOAD_KAFKA_SHARE": str(options.kafka_share),
            "PYTHONPATH": str(HERE.parent),
            **({"LOAD_KAFKA": direct} if direct else {}),
        },
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
