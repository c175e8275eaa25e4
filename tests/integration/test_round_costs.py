"""What a round costs however few its events: a partition more must not cost queries more, nor must a column.

Each call on a polars Series that is no plain accessor is a query of 35 to 80 µs. Without those per partition
a round of 4,000 events over twelve took a fifth less. They are counted, not timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.process.case_memory import CaseMemory
from pipeline.process.flow import Block, PartitionState, Rules, process_blocks, remember
from pipeline.settings import Settings
from pipeline.store.cases import case_sets, pack_case_events
from pipeline.store.fold_frames import fold
from tests.integration.worker_world import arrow, event, load_reference, rules_of

EVENTS = 240
#: Queries of a whole round, judged and remembered: 183 before they were joined.
MOST_OF_A_ROUND = 30
#: Queries that a partition may add: a copy or a resend among its events has to be looked at by itself.
MOST_PER_PARTITION = 1.0
#: Of packing a round's events, of its cases' sets and of their fold to eighty columns; there were 54 of them.
MOST_OF_THE_CASES = 8


def test_a_partition_more_costs_no_queries(clickhouse: Client, tmp_path: Path) -> None:
    load_reference(clickhouse, tmp_path)
    rules = rules_of(clickhouse)
    few, many = (_queries_of_a_round(rules, partitions) for partitions in (2, 12))
    assert few > 10, "are queries counted at all?"
    assert few <= MOST_OF_A_ROUND
    assert (many - few) / 10 <= MOST_PER_PARTITION, (few, many)


def test_the_cases_of_a_round_cost_few_queries(clickhouse: Client, tmp_path: Path) -> None:
    load_reference(clickhouse, tmp_path)
    rules, states = rules_of(clickhouse), {0: PartitionState.empty(Settings())}
    first, second = (
        process_blocks(
            [Block(0, [arrow(number, *(_report(number, 0, at) for at in range(EVENTS)))])], states, rules
        ).case_events
        for number in (0, 1)
    )
    memory = CaseMemory()
    memory.begin(on=True)
    assert memory.sets(clickhouse, case_sets(first, inc=1)) is not None

    def refresh() -> None:
        pack_case_events(second, inc=1)
        sets = memory.sets(clickhouse, case_sets(second, inc=1))
        assert sets is not None
        assert fold(sets).num_rows

    found = _queries(refresh)
    assert 0 < found <= MOST_OF_THE_CASES, found


def _queries_of_a_round(rules: Rules, partitions: int) -> int:
    """Polars queries of judging and remembering the second of two rounds with the same number of events."""
    states = {partition: PartitionState.empty(Settings()) for partition in range(partitions)}

    def blocks(number: int) -> list[Block]:
        share = EVENTS // partitions
        return [
            Block(partition, [arrow(number, *(_report(number, partition, at) for at in range(share)))])
            for partition in range(partitions)
        ]

    remember(states, process_blocks(blocks(0), states, rules))
    second = blocks(1)
    return _queries(lambda: remember(states, process_blocks(second, states, rules)))


def _report(number: int, partition: int, at: int) -> dict[str, Any]:
    name = f"{number}-{partition}-{at}"
    return event(name, description=f"阳台铁皮松动 {name}", submission_id=f"s-{name}")


def _queries(work: Callable[[], None]) -> int:
    """How often this thread asks polars to run a plan."""
    found = 0

    def count(_frame: Any, what: str, called: Any) -> None:
        nonlocal found
        if what == "c_call" and type(getattr(called, "__self__", None)).__name__ == "PyLazyFrame":
            found += called.__name__ == "collect"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found
