"""Ours and every peer on the same events, interleaved round by round; ratios are taken within a round.

    python -m benchmarks peers [--quick] [--events N] [--rounds N] [--only row_loop --only faust …]

The peers do the smaller common work (benchmarks/peers/common.py); ours does all of its own. One event per
record is slow for some: they get fewer events there (`--each-events`), on which their rate does not depend;
of ours a run of less than a million events leaves out most merges.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import cache
from benchmarks.harness import RunFailedError, Series, WrongCountsError, out, rounds, tell
from benchmarks.peers_case import PEERS, run_peer
from benchmarks.processor import run_ours

#: (what is compared, ours, peers of which the fastest counts, at least)
GOALS = (
    ("Arrow blocks to the best Python row program", "gridpipe arrow", "rows:ndjson", 2.5),
    ("Arrow blocks to the plain Faust agent", "gridpipe arrow", "faust each", 30.0),
    ("Arrow blocks to ClickHouse reading a file", "gridpipe arrow", "clickhouse_file ndjson", 0.75),
    ("NDJSON blocks to the best Python row program", "gridpipe ndjson", "rows:ndjson", 1.5),
    ("NDJSON blocks to ClickHouse's JSONEachRow push", "gridpipe ndjson", "clickhouse_push ndjson", 1.0),
    ("one event per record to the best Python row program", "gridpipe each", "rows:each", 1.5),
)
EVENTS_PER_SECOND_GOAL = 650_000
#: Rounds with `--fewer-rounds`, of what no goal depends on closely: floors, and peers far from the best one.
FEWER_ROUNDS = {
    "faust": 3, "quixstreams": 3, "bytewax": 3, "consume_only": 2, "parse_polars": 2, "parse_msgspec": 2,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="50,000 events, one round")
    parser.add_argument("--events", type=int)
    parser.add_argument("--each-events", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--persons", type=int, default=500_000)
    parser.add_argument("--partitions", type=int, default=cache.PARTITIONS)
    parser.add_argument("--fewer-rounds", action="store_true", help="of floors and of slow peers")
    parser.add_argument("--only", action="append", choices=[*PEERS, "gridpipe"], help="default: all")
    parser.add_argument("--form", action="append", choices=cache.FORMS, help="default: all")
    options = parser.parse_args(arguments)
    number = options.rounds or (1 if options.quick else 5)
    sizes = {
        "ndjson": options.events or (50_000 if options.quick else 1_000_000),
        "each": options.each_events or (50_000 if options.quick else 200_000),
    }
    sizes["arrow"] = sizes["ndjson"]
    cases = [
        case
        for case in case_names()
        if (not options.only or case.split(" ")[0] in options.only)
        and (not options.form or case.split(" ")[1] in options.form)
    ]
    series = Series(
        "peers",
        {"events": sizes, "persons": options.persons, "partitions": options.partitions},
        quick=options.quick,
    )
    left_out: list[str] = []
    series.facts["left_out"] = left_out
    for size in set(sizes.values()):
        cache.events(size, options.persons)
    try:
        _run(series, cases, number, sizes, options, left_out)
    finally:  # ours may end the series: what was measured until then is compared
        series.save(goals=compare(series))
    return 1 if left_out else 0


def _run(  # noqa: PLR0917
    series: Series,
    cases: list[str],
    number: int,
    sizes: dict[str, int],
    options: argparse.Namespace,
    left_out: list[str],
) -> None:
    fewer = {case: FEWER_ROUNDS.get(case.split(" ")[0], number) for case in cases}
    for at, case in rounds(number, cases, fewer if options.fewer_rounds else None):
        name, form = case.split(" ")
        source = cache.events(sizes[form], options.persons)
        if name == "gridpipe":
            records = cache.records(source, form, partitions=options.partitions)
            result: dict[str, Any] = run_ours(source, records, options.persons, options.partitions)
        else:
            try:
                result = run_peer(name, source, form, options.persons, options.partitions)
            except (WrongCountsError, RunFailedError) as error:  # ours may not fail; theirs is left out
                left_out.append(f"{case} in round {at + 1}: {error}")
                out.print(f"round {at + 1}/{number}  {case}: left out, {error}")
                continue
        series.add(case, at, result)
        tell(series, case, at, number)


def case_names() -> list[str]:
    """`program form`, in the order that they run."""
    names = ["gridpipe arrow", "gridpipe ndjson"]
    names += [f"{name} ndjson" for name in PEERS if name != "faust"]
    return names + ["gridpipe each"] + [f"{name} each" for name, peer in PEERS.items() if peer.kind == "row"]


def best_row(series: Series, form: str) -> str | None:
    """The fastest Python row program measured on this form."""
    found = [
        f"{name} {form}"
        for name, peer in PEERS.items()
        if peer.kind == "row" and f"{name} {form}" in series.runs
    ]
    return max(found, key=series.median, default=None)


def compare(series: Series) -> list[dict[str, Any]]:
    """The table of goals as far as it was measured."""
    compared = []
    for what, mine, theirs, least in GOALS:
        other = best_row(series, theirs[5:]) if theirs.startswith("rows:") else theirs
        if mine not in series.runs or other not in series.runs:
            continue
        if not {run["round"] for run in series.runs[mine]} & {run["round"] for run in series.runs[other]}:
            continue
        ratio = series.ratio(mine, other)
        compared.append({"what": what, "against": other, "ratio": ratio, "at_least": least})
        verdict = "reached" if ratio >= least else "NOT REACHED"
        out.print(f"{what}: {ratio:.2f} (at least {least:g}, against {other}): {verdict}")
    if "gridpipe arrow" in series.runs:
        rate = series.median("gridpipe arrow")
        out.print(f"Arrow blocks: {rate:,.0f} events/s (goal {EVENTS_PER_SECOND_GOAL:,})")
    return compared
