"""Topic → ClickHouse with our worker, in the three forms of records and at two sizes of the person register.

    python -m benchmarks processor [--quick] [--events N] [--rounds N] [--form arrow] [--persons N]

The topic is full before the clock starts; it runs from the worker's first round to its last commit.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from typing import Any

from benchmarks import cache
from benchmarks.harness import (
    PLACE,
    Series,
    broker,
    check_common,
    fill,
    out,
    python,
    rounds,
    run_program,
    tell,
)
from benchmarks.workload import Ledger


class OursError(Exception):
    """Our own counts differ from the ledger."""


def run_ours(
    source: cache.Events,
    records: cache.Records,
    persons: int,
    partitions: int,
    *more: str,
    under: Sequence[str] = (),
) -> dict[str, Any]:
    """One run against a fresh broker and a fresh copy of the store. more : arguments of `worker_run`;
    under : a command that runs it, a profiler for example."""
    place = PLACE / "ours"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    cache.copy_store(persons, place)
    count = source.ledger.sent
    try:
        with broker(partitions) as to:
            fill(to.bootstrap, records)
            used = to.cpu_seconds()
            result = run_program(
                [*under, *python("-m", "benchmarks.worker_run", str(place), to.bootstrap, str(count), *more)]
            )
            result["broker_cpu_seconds"] = to.cpu_seconds() - used
    finally:
        shutil.rmtree(place, ignore_errors=True)
    check_ours(result, source.ledger)
    result["events"] = count
    result["events_per_second"] = count / result["seconds"]
    return result


def check_ours(result: dict[str, Any], ledger: Ledger) -> None:
    """Everything that the ledger names, by SQL and by the worker's own counters."""
    check_common("gridpipe", result, ledger)
    wanted = {
        "admitted": ledger.admitted,
        "rejected": ledger.rejected,
        "quarantined": ledger.quarantined,
        "rejected_checksum": ledger.rejected_checksum,
    }
    wrong = {
        name: (result["counts"][name], value)
        for name, value in wanted.items()
        if result["counts"][name] != value
    }
    told = result["outcomes"]
    if told.get("recorded") != ledger.recorded or sum(told.values()) != ledger.sent:
        wrong["outcomes"] = (told, ledger.sent)
    if wrong:
        raise OursError(f"gridpipe: (found, ledger) {wrong}")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks processor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100,000 events, one round")
    parser.add_argument("--events", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--form", action="append", choices=cache.FORMS, help="default: all three")
    parser.add_argument(
        "--persons", type=int, action="append", help="default: 500,000 and, for Arrow, 4.8 million"
    )
    parser.add_argument("--partitions", type=int, default=cache.PARTITIONS)
    options = parser.parse_args(arguments)
    options.events = options.events or (100_000 if options.quick else 1_000_000)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.persons = options.persons or ([500_000] if options.quick else [500_000, 4_800_000])
    options.form = options.form or list(cache.FORMS)
    return options


def _inputs(options: argparse.Namespace) -> dict[str, tuple[cache.Events, cache.Records, int]]:
    """Events, records and persons by case; made where they are not in the cache."""
    found = {}
    for size in options.persons:
        cache.store(size)
        source = cache.events(options.events, size)
        for form in options.form if size == options.persons[0] else options.form[:1]:
            name = f"gridpipe {form}" + ("" if size == options.persons[0] else f", {size:,} persons")
            found[name] = (source, cache.records(source, form, partitions=options.partitions), size)
    return found


def prepare(arguments: list[str]) -> None:
    """Make what the runs use and is not in the cache."""
    _inputs(_options(arguments))


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    inputs = _inputs(options)
    series = Series(
        "processor",
        {
            "events": options.events,
            "persons": options.persons,
            "partitions": options.partitions,
            "block_events": cache.BLOCK_EVENTS,
        },
        quick=options.quick,
    )
    for at, name in rounds(options.rounds, inputs):
        source, records, size = inputs[name]
        series.add(name, at, run_ours(source, records, size, options.partitions))
        tell(series, name, at, options.rounds)
    show(series)
    return 0


def show(series: Series) -> None:
    for name, runs in series.runs.items():
        last = runs[-1]
        whole = sum(last["stages"].values()) or 1.0
        parts = ", ".join(
            f"{stage} {value / whole:.0%}"
            for stage, value in sorted(last["stages"].items(), key=lambda item: -item[1])
            if value / whole >= 0.01
        )
        engine = last["engine"]
        out.print(
            f"{name}: {series.median(name):,.0f} events/s (spread {series.spread(name):.0%}); "
            f"{last['blocks']} blocks, {engine['MergeTreeDataWriterBlocks']} parts by "
            f"{engine['InsertQuery']} inserts; {last['page_faults'] / last['events']:.2f} page faults/event, "
            f"kernel {last['kernel_seconds'] / last['cpu_seconds']:.0%} of processor time; "
            f"threads' time: {parts}"
        )
