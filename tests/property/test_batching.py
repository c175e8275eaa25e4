"""Same result however batched: the same events give the same rows, whatever the cut into records and blocks,
whatever is delivered again, and in every order that keeps copies of one id and of one report in sequence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any, Final

import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.frames import POSITION
from pipeline.process.flow import Block, BlockResult, PartitionState, Rules, process_block, remember
from pipeline.process.records import Record
from pipeline.store.migrate import migrate
from tests.integration.worker_world import NOON, arrow, event, load_reference, record, rules_of

DATABASE: Final = "test_batching"
RECEIVED: Final = NOON + timedelta(hours=2)
TABLES: Final = ("events", "rejections", "duplicates", "quarantined", "case_events")
TEXTS: Final = ("阳台铁皮松动", "井盖破损", "楼道堆放杂物")


@pytest.fixture(scope="module")
def rules(open_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rules]:
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    load_reference(open_client, tmp_path_factory.mktemp("reference"))
    yield rules_of(open_client)
    open_client.command(f"DROP DATABASE {DATABASE}")
    open_client.database = "default"


def documents(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Events as clients send them: reports that repeat one another, redeliveries, id conflicts, rejected
    reports, later events (one of them from the future), and some that break the contract."""
    made: list[dict[str, Any]] = []
    for number in range(count):
        kind = rng.choice(("report", "report", "report", "later", "again", "conflict", "rejected", "broken"))
        minutes = rng.choice((0, 1, 5, 9, 10, 11, 20, 45))
        good = [document for document in made if document["channel"] != 7]
        if kind in {"again", "conflict"} and good:
            first = rng.choice(good)
            made.append(dict(first) if kind == "again" else {**first, "title": f"标题 {number}"})
        elif kind == "later":
            at = rng.choice((minutes, minutes, 60 * 24))  # a day ahead: receipt stands in for the time
            made.append(
                event(
                    number,
                    minutes=at,
                    event_type="ACCEPTED",
                    case_id=f"c{rng.randrange(count)}",
                    matter_code=None,
                )
            )
        elif kind == "rejected":
            made.append(event(number, minutes=minutes, description=rng.choice(TEXTS), matter_code="ZZ-99"))
        elif kind == "broken":
            made.append(event(number, channel=7))
        else:
            submission = rng.choice((None, None, f"s{rng.randrange(3)}"))
            made.append(
                event(number, minutes=minutes, description=rng.choice(TEXTS), submission_id=submission)
            )
    return made


def keys(document: dict[str, Any]) -> list[str]:
    """What must stay in sequence: copies of an id, reports of one content, reports of one submission."""
    found = [f"id {document['event_id']}"]
    if document["event_type"] == "REPORTED":
        found.append(f"text {document['description']} {document.get('title')}")
        if "submission_id" in document:
            found.append(f"submission {document['submission_id']}")
    return found


def another_order(rng: random.Random, made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A random order in which documents that share a key, directly or through others, keep their sequence."""
    group_of: dict[str, int] = {}
    groups: dict[int, list[int]] = {}
    for number, document in enumerate(made):
        joined = {group_of[key] for key in keys(document) if key in group_of}
        members = [*sorted(chain.from_iterable(groups.pop(group) for group in joined)), number]
        groups[number] = members
        for member in members:
            group_of.update(dict.fromkeys(keys(made[member]), number))
    waiting = [list(members) for members in groups.values()]
    order = []
    while waiting:
        chosen = rng.choice(waiting)
        order.append(made[chosen.pop(0)])
        waiting = [members for members in waiting if members]
    return order


def records_of(rng: random.Random, made: Sequence[dict[str, Any]]) -> list[Record]:
    """Cut into records of random size, with gaps in the offsets, NDJSON and Arrow mixed."""
    records: list[Record] = []
    offset, start = 0, 0
    while start < len(made):
        part = made[start : start + rng.randint(1, 8)]
        # the gateway lets nothing broken through, so that only direct records can hold it
        as_arrow = rng.random() < 0.5 and not any(document["channel"] == 7 for document in part)
        records.append((arrow if as_arrow else record)(offset, *part, received=RECEIVED))
        start += len(part)
        offset += rng.randint(1, 3)
    return records


def run(rng: random.Random, records: Sequence[Record], rules: Rules) -> dict[str, list[str]]:
    """Process in random blocks; some blocks are delivered again after they were remembered."""
    state = PartitionState.empty(rules.settings)
    results: list[BlockResult] = []
    start = 0
    while start < len(records):
        block = Block(3, records[start : start + rng.randint(1, max(1, len(records) // 2))])
        result = process_block(block, state, rules)
        remember({3: state}, result)
        if rng.random() < 0.4:
            assert rows_of([process_block(block, state, rules)], positions=True) == rows_of(
                [result], positions=True
            )
        results.append(result)
        start += len(block.records)
    return rows_of(results, positions=False)


def rows_of(results: Sequence[BlockResult], *, positions: bool) -> dict[str, list[str]]:
    """The rows of every table as sorted text; without their positions unless asked."""
    found = {}
    for table in TABLES:
        frame = pl.concat([getattr(result, table) for result in results])
        kept = frame if positions else frame.drop(list(POSITION))
        found[table] = sorted(map(repr, kept.rows()))
    return found


@settings(
    max_examples=15,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), count=st.integers(1, 40))
def test_same_rows_however_batched(rules: Rules, rng: random.Random, count: int) -> None:
    made = documents(rng, count)
    whole = record(0, *made, received=RECEIVED)
    result = process_block(Block(3, [whole]), PartitionState.empty(rules.settings), rules)
    at_once = rows_of([result], positions=False)
    assert sum(len(at_once[table]) for table in TABLES[:4]) == count
    for order in (made, another_order(rng, made)):
        assert run(rng, records_of(rng, order), rules) == at_once


def test_the_documents_reach_every_outcome(rules: Rules) -> None:
    made = documents(random.Random(4), 200)
    found = process_block(
        Block(3, [record(0, *made, received=RECEIVED)]), PartitionState.empty(rules.settings), rules
    )
    assert set(found.events["outcome"]) == {"admitted", "recorded"}
    assert set(found.duplicates["level"]) == {"L1", "L2"}
    assert {"MALFORMED", "ID_CONFLICT"} <= set(found.quarantined["reason"])
    assert found.rejections.height > 0
    assert found.events["time_adjusted"].any()
