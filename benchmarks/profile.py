"""Where the worker's and the gateway's time goes: flame graphs and our dearest functions, by py-spy.

    python -m benchmarks profile [--quick] [--only worker|gateway]

py-spy samples the running process from outside, a hundred times a second, threads that wait left out. What
the engine and polars do in threads of their own is not in it: see the processor time by kind of thread in
the processor's series. Writes var/bench/profile-worker.svg and profile-gateway.svg.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import cache
from benchmarks.gateway import body_events, run_load, server
from benchmarks.harness import PLACE, RunFailedError, Series, broker, out, report_place, run_parts
from benchmarks.processor import run_ours

WHAT: Final = ("worker", "gateway")
_TOP: Final = 25
_IMPORT: Final = "importlib._bootstrap"
_WAITS: Final = ("_worker (concurrent/futures", "EpollSelector.select", "Runner.run", "wait (threading")
#: py-spy lies beside the interpreter of the environment.
_SPY: Final = (str(Path(sys.executable).with_name("py-spy")), "record", "--rate", "100", "--threads")


def svg(place: Path, which: str) -> Path:
    """The flame graph beside the report at `place`."""
    return place / f"profile-{which}.svg"


def _works(frames: list[str]) -> bool:
    """Whether a stack is work of the running process: not its start, not a wait that looks like work."""
    return (
        bool(frames) and not frames[-1].startswith(_WAITS) and not any(_IMPORT in frame for frame in frames)
    )


def dearest(folded: str) -> list[dict[str, Any]]:
    """Our functions with most samples, those of the libraries that they call included: `polars` and the like
    are where the time goes, but who calls them is what can be changed.

    folded : lines of `frame;frame;… samples`. Returns function, share of all samples, of these in libraries.
    """
    ours: Counter[str] = Counter()
    libraries: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("thread (")]
        if not _works(frames):
            continue
        total += int(count)
        name = next((frame for frame in reversed(frames) if "(pipeline/" in frame), "libraries alone")
        ours[name] += int(count)
        if frames[-1] != name:
            libraries[name] += int(count)
    return [
        {"function": name, "share": count / total, "in_libraries": libraries[name] / count}
        for name, count in ours.most_common(_TOP)
    ]


def _worker(beside: Path, events: int, persons: int) -> list[dict[str, Any]]:
    source = cache.events(events, persons)
    records = cache.records(source, "arrow")
    folded = PLACE / "profile-worker.txt"
    for kind, file in (("flamegraph", svg(beside, "worker")), ("raw", folded)):
        spy = [*_SPY, "--function", "--format", kind, "--output", str(file), "--"]
        run_ours(source, records, persons, cache.PARTITIONS, under=spy)
    found = dearest(folded.read_text())
    folded.unlink()
    return found


def _watch(spy: list[str], said: list[str]) -> None:
    said.append(subprocess.run(spy, capture_output=True, text=True, check=False).stderr)


def _gateway(beside: Path, seconds: float, persons: int) -> list[dict[str, Any]]:
    place = PLACE / "profile"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folded = place / "gateway.txt"
    try:
        with broker() as to, server("gridpipe", to, place, cache.PARTITIONS) as (address, key, process):
            for kind, file in (("flamegraph", svg(beside, "gateway")), ("raw", folded)):
                spy = [*_SPY, "--function", "--format", kind, "--output", str(file)]
                spy += ["--duration", f"{seconds:.0f}", "--pid", str(process.pid)]
                said: list[str] = []
                watch = threading.Thread(target=_watch, args=(spy, said))
                watch.start()
                run_load(place, address, key, "ndjson500", persons=persons, seconds=seconds + 2)
                watch.join()
                if not file.exists():
                    raise RunFailedError(f"py-spy wrote nothing: {' '.join(said)[-1_000:]}")
        return dearest(folded.read_text())
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 events, 3 s")
    parser.add_argument("--only", action="append", choices=WHAT)
    parser.add_argument("--events", type=int)
    parser.add_argument("--persons", type=int, default=500_000)
    options = parser.parse_args(arguments)
    options.events = options.events or (100_000 if options.quick else 500_000)
    options.only = options.only or list(WHAT)
    return options


def prepare(arguments: list[str]) -> None:
    """Make what the runs use and is not in the cache."""
    options = _options(arguments)
    if "worker" in options.only:
        cache.store(options.persons)
        cache.records(cache.events(options.events, options.persons), "arrow")
    if "gateway" in options.only:
        body_events(options.persons)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prepare(arguments)
    settings = {"events": options.events, "persons": options.persons}
    series = Series("profile", settings, quick=options.quick, kept=False)
    beside = report_place(quick=options.quick)
    beside.mkdir(parents=True, exist_ok=True)

    def one(which: str) -> None:
        found = (
            _worker(beside, options.events, options.persons)
            if which == "worker"
            else _gateway(beside, 3.0 if options.quick else 8.0, options.persons)
        )
        series.add(which, 0, {"functions": found})
        out.print(f"{which}: {svg(beside, which)}")
        for part in found[:8]:
            out.print(
                f"  {part['share']:5.1%}, of it in libraries {part['in_libraries']:4.0%}  {part['function']}"
            )

    # py-spy may be let near its own child and not near another process
    return 1 if run_parts({which: partial(one, which) for which in options.only}) else 0
