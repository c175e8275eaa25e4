"""Ours and every peer on the same events, interleaved round by round; ratios are taken within a round.

    python -m benchmarks peers [--quick] [--events N] [--rounds N] [--only row_loop --only faust …]

The peers do the smaller common work (benchmarks/peers/common.py); ours does all of its own. One event per
record is slow: there are fewer events there (`--each-events`), and fewer still for programs that are slow
with it and far from the best (`--slow-events`), on which their rate does not depend; of ours a run of less
than a million events leaves out most merges, and what its buffer holds is fetched before its clock starts.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from benchmarks import cache, peers_inputs
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
ARROW = "gridpipe arrow"
#: Rounds with `--fewer-rounds`, of what no goal depends on: floors, and a peer far from the best one.
FEWER_ROUNDS = {"quixstreams": 2, "consume_only": 1, "parse_polars": 1, "parse_msgspec": 1}
#: One event per record is slow for these: `--slow-events`.
SLOW = ("faust", "quixstreams")


class _Case(NamedTuple):
    """What one run works on. name : `gridpipe` or of `PEERS`; form : of the records."""

    name: str
    form: str
    events: int
    persons: int


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="50,000 events, one round")
    parser.add_argument("--events", type=int)
    parser.add_argument("--each-events", type=int, help="one event per record")
    parser.add_argument("--slow-events", type=int, help=f"the same, of {', '.join(SLOW)}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--persons", type=int, default=500_000)
    parser.add_argument("--large-register", type=int, help="persons of another run of ours, Arrow blocks")
    parser.add_argument("--partitions", type=int, default=cache.PARTITIONS)
    parser.add_argument("--fewer-rounds", action="store_true", help="of floors and of slow peers")
    parser.add_argument("--only", action="append", choices=[*PEERS, "gridpipe"], help="default: all")
    parser.add_argument("--form", action="append", choices=cache.FORMS, help="default: all")
    return parser.parse_args(arguments)


def _cases(options: argparse.Namespace) -> dict[str, _Case]:
    """The runs of a round by their names in the series, in the order that they run."""
    blocks = options.events or (50_000 if options.quick else 1_000_000)
    each = options.each_events or (50_000 if options.quick else 200_000)
    slow = options.slow_events or min(each, 30_000)
    found = {}
    for case in case_names():
        name, form = case.split(" ")
        if (not options.only or name in options.only) and (not options.form or form in options.form):
            events = blocks if form != "each" else slow if name in SLOW else each
            found[case] = _Case(name, form, events, options.persons)
            if case == ARROW and options.large_register:
                large = found[case]._replace(persons=options.large_register)
                found[f"{ARROW}, {large.persons:,} persons"] = large
    return found


def _own_environment(case: _Case) -> bool:
    return case.name in PEERS and PEERS[case.name].own_environment


def prepare(arguments: list[str]) -> None:
    """Make what the runs use and is not in the cache. Raises RunFailedError without the peers' packages."""
    options = _options(arguments)
    cases = _cases(options).values()
    for name, form, size, persons in cases:
        source = cache.events(size, persons)
        if name == "gridpipe":
            cache.store(persons)
        elif PEERS[name].own_environment:
            peers_inputs.reference(persons)
        if name == "gridpipe" or PEERS[name].needs_topic:
            cache.records(source, form, partitions=options.partitions)
        else:
            peers_inputs.ndjson(source)
    if any(map(_own_environment, cases)):
        peers_inputs.interpreter()


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    number = options.rounds or (1 if options.quick else 5)
    cases = _cases(options)
    series = Series(
        "peers",
        {
            "events": max((case.events for case in cases.values()), default=0),
            "one per record": {name: case.events for name, case in cases.items() if case.form == "each"},
            "persons": options.persons,
            "partitions": options.partitions,
        },
        quick=options.quick,
    )
    try:
        prepare(arguments)
    except RunFailedError as error:  # ours and the floors need none of it
        for name in [name for name, case in cases.items() if _own_environment(case)]:
            series.leave_out(name, str(error))
            del cases[name]
        out.print(f"peers left out: {error}", markup=False)
    try:
        _run(series, cases, number, options)
    finally:  # ours may end the series: what was measured until then is compared
        series.facts["goals"] = compare(series)
        series.save()
    return 1 if series.facts.get("left_out") else 0


def _run(series: Series, cases: dict[str, _Case], number: int, options: argparse.Namespace) -> None:
    fewer = {told: FEWER_ROUNDS.get(case.name, number) for told, case in cases.items()}
    for at, told in rounds(number, cases, fewer if options.fewer_rounds else None):
        name, form, size, persons = cases[told]
        source = cache.events(size, persons)
        if name == "gridpipe":
            records = cache.records(source, form, partitions=options.partitions)
            result: dict[str, Any] = run_ours(source, records, persons, options.partitions)
        else:
            try:
                result = run_peer(name, source, form, persons, options.partitions)
            except (WrongCountsError, RunFailedError) as error:  # ours may not fail; theirs is left out
                series.leave_out(told, f"round {at + 1}: {error}")
                out.print(f"round {at + 1}/{number}  {told}: left out, {error}", markup=False)
                continue
        series.add(told, at, result)
        tell(series, told, at, number)


def case_names() -> list[str]:
    """`program form`, in the order that they run."""
    names = [ARROW, "gridpipe ndjson"]
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


def compare(series: Series) -> dict[str, dict[str, Any]]:
    """The table of goals as far as it was measured, by what is compared. runs : rounds with both."""
    compared = {}
    for what, mine, theirs, least in GOALS:
        other = best_row(series, theirs[5:]) if theirs.startswith("rows:") else theirs
        if mine not in series.runs or other not in series.runs:
            continue
        both = {run["round"] for run in series.runs[mine]} & {run["round"] for run in series.runs[other]}
        if not both:
            continue
        ratio = series.ratio(mine, other)
        compared[what] = {
            "against": other,
            "ratio": ratio,
            "at_least": least,
            "runs": len(both),
            "events": series.runs[mine][0]["events"],
            "origin": series.origin(series.ended),
        }
        verdict = "reached" if ratio >= least else "NOT REACHED"
        out.print(f"{what}: {ratio:.2f} (at least {least:g}, against {other}): {verdict}")
    if "gridpipe arrow" in series.runs:
        rate = series.median("gridpipe arrow")
        out.print(f"Arrow blocks: {rate:,.0f} events/s (goal {EVENTS_PER_SECOND_GOAL:,})")
    return compared
