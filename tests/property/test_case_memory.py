"""What a worker keeps of its cases' sets gives the states that the whole sets give, whatever it had to read,
forgot, or was told late; and the two folds, over frames and in SQL, say the same of every column."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import polars as pl
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.frames import CASE_EVENT, CASE_SET, RANK, TIMESTAMP
from pipeline.process.case_memory import CaseMemory, ExistingCases
from pipeline.process.hashes import case_hash
from pipeline.store import fold_walk
from pipeline.store.cases import FOLD_SETTINGS, case_sets, known_cases, pack_case_events, store_cases
from pipeline.store.fold import ALL
from pipeline.store.fold import fold as fold_in_sql
from pipeline.store.fold_frames import fold
from pipeline.store.migrate import migrate
from tests.property.stored import case_event, empty
from tests.property.strategies import Row, event_set

T = TypeVar("T")

DATABASE: Final = "test_case_memory"
_GIVEN: Final = frozenset(
    {
        "case_id", "occurred_at", "rank", "event_id", "source", "_part", "_off", "_idx", "ingested_at",
        "outcome", "self_handled", "_inc",
    }
)  # fmt: skip
_SETS: Final = "SELECT case_id, groupUniqArrayArray(events) AS tuples FROM case_events GROUP BY case_id"
_FOLDED: Final = f"SELECT {', '.join(ALL)} FROM ({fold_in_sql(_SETS)}) ORDER BY case_id"
_STORED: Final = f"SELECT {', '.join(ALL)} FROM cases FINAL ORDER BY case_id"


@pytest.fixture(scope="module")
def database(open_client: Client) -> Iterator[Client]:
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    yield open_client
    open_client.command(f"DROP DATABASE {DATABASE}")
    open_client.database = "default"


def table(client: Client, query: str) -> list[dict[str, Any]]:
    return list(client.query(query, settings=FOLD_SETTINGS).named_results())


def differences(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> list[str]:
    assert [row["case_id"] for row in found] == [row["case_id"] for row in wanted]
    return [
        f"{row['case_id']}.{name}: frames {row[name]!r}, SQL {want[name]!r}"
        for row, want in zip(found, wanted, strict=True)
        for name in ALL
        if row[name] != want[name]
    ]


def folded(sets: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(fold(sets)))


def entries(rows: Sequence[Row]) -> pl.DataFrame:
    """CASE_SET of these rows."""
    frames = [
        case_sets(
            pl.DataFrame([case_event(row.event) for row in rows if row.event.inc == inc], CASE_EVENT), inc
        )
        for inc in sorted({row.event.inc for row in rows})
    ]
    return pl.concat([pl.DataFrame(schema=CASE_SET), *frames])


def arrive(client: Client, stored: pl.DataFrame) -> None:
    """Into `case_events`, as the sink writes it."""
    for (inc,), part in stored.group_by("_inc"):
        packed = pack_case_events(part.select(list(CASE_EVENT)), int(str(inc)))
        client.insert_arrow(
            "case_events",
            packed.to_arrow(compat_level=pl.CompatLevel.oldest()),
            settings={"async_insert": 0, "deduplicate_insert": "disable"},
        )


@settings(
    max_examples=12,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), cases=st.integers(1, 40))
def test_states_from_memory_are_those_of_the_whole_sets(
    database: Client, rng: random.Random, cases: int
) -> None:
    empty(database)
    rows = [row for row in event_set(rng, cases) if row.is_case_event]
    cuts = sorted(rng.randint(0, len(rows)) for _ in range(rng.randint(0, 8)))
    memory = CaseMemory(most_entries=rng.choice([3, 30, 100_000]))
    memory.begin(on=True)
    late: list[pl.DataFrame] = []
    for low, high in itertools.pairwise([0, *cuts, len(rows)]):
        if rng.random() < 0.15:  # partitions went and came back, or a block was rebuilt
            memory.forget()
        block = entries(rows[low:high])
        arrive(database, block)
        if rng.random() < 0.3:  # its round takes longer than the next one
            late.append(block)
            continue
        for told in (block, *late):
            sets = memory.sets(database, told)
            assert sets is not None
            store_cases(database, sets)
        late.clear()
    for told in late:
        sets = memory.sets(database, told)
        assert sets is not None
        store_cases(database, sets)
    touched = {row["case_id"] for row in table(database, _STORED)}
    wanted = [row for row in table(database, _FOLDED) if row["case_id"] in touched]
    assert differences(table(database, _STORED), wanted) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_both_folds_agree_on_every_column(database: Client, seed: int) -> None:
    empty(database)
    rng = random.Random(seed)
    rows = [row for row in event_set(rng, 600) if row.is_case_event]
    arrive(database, entries(rows))
    sets = entries(rows)
    store_cases(database, pl.concat([sets, sets.sample(fraction=0.1, seed=seed)]))  # entries given twice
    found = table(database, _STORED)
    assert len(found) > 500
    assert differences(found, table(database, _FOLDED)) == []


def test_an_entry_judged_twice_under_one_position_folds_as_in_sql(database: Client) -> None:
    empty(database)
    rows = [row for row in event_set(random.Random(5), 60) if row.is_case_event]
    sets = entries(rows)
    again = sets.filter(pl.col("rank") == 2).with_columns(
        resolution_limit_seconds=pl.col("resolution_limit_seconds") + 60, level=pl.lit("x")
    )
    assert again.height
    both = pl.concat([sets, again])
    arrive(database, sets)
    arrive(database, again)
    store_cases(database, both)
    assert differences(table(database, _STORED), table(database, _FOLDED)) == []


def test_nothing_folds_to_nothing() -> None:
    assert folded(pl.DataFrame(schema=CASE_SET)).shape == (0, len(ALL))


def test_a_memory_that_is_not_the_whole_leaves_the_reading_to_the_store(database: Client) -> None:
    memory = CaseMemory()
    rows = [row for row in event_set(random.Random(1), 3) if row.is_case_event]
    assert memory.sets(database, entries(rows)) is None
    memory.begin(on=True)
    assert memory.sets(database, entries(rows)) is not None
    memory.begin(on=False)
    assert memory.sets(database, entries(rows)) is None
    assert len(memory) == 0
    assert not memory.on


def test_memory_is_bounded_and_the_latest_cases_stay(database: Client) -> None:
    empty(database)
    memory = CaseMemory(most_entries=1_000)
    memory.begin(on=True)
    rows = [row for row in event_set(random.Random(3), 400) if row.is_case_event]
    for low in range(0, len(rows), 200):
        sets = memory.sets(database, entries(rows[low : low + 200]))
        assert sets is not None
        assert len(memory) <= 1_000 + 200
    assert len(memory) >= 200


def test_many_small_blocks_leave_few_frames_in_little_memory(database: Client) -> None:
    empty(database)
    memory = CaseMemory()
    memory.begin(on=True)
    wide = pl.DataFrame(
        {name: ["x" * 1_000] * 1_000 for name, dtype in CASE_SET.items() if dtype == pl.String()},
        schema={name: dtype for name, dtype in CASE_SET.items() if dtype == pl.String()},
    ).with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in CASE_SET.items() if dtype != pl.String()
    )
    before = psutil.Process().memory_info().rss
    for number in range(600):
        one = wide.slice(number, 1).with_columns(
            case_id=pl.lit(f"case-{number}"),
            occurred_at=pl.lit(number).cast(TIMESTAMP),
            _off=pl.lit(number, pl.UInt64),
        )
        # as a row of a large block: whatever holds it must not hold the block
        block = pl.concat([one, wide.with_columns(case_id=pl.lit("other"))], rechunk=True).head(1)
        assert memory.sets(database, block.select(list(CASE_SET))) is not None
    held = memory._held
    assert held is not None
    assert len(held._frames) < 12
    assert sum(frame.n_chunks() for frame in held._frames) == len(held._frames)
    assert psutil.Process().memory_info().rss - before < 200_000_000


def test_forgetting_does_not_wait_for_a_store_that_does_not_answer(database: Client) -> None:
    memory = CaseMemory()
    memory.begin(on=True)
    rows = [row for row in event_set(random.Random(1), 3) if row.is_case_event]
    asked, answered = threading.Event(), threading.Event()

    def slow(call: Callable[[], T], /) -> T:
        asked.set()
        answered.wait(30)
        return call()

    waiting = threading.Thread(target=lambda: memory.sets(database, entries(rows), slow))
    waiting.start()
    assert asked.wait(10)
    began = time.monotonic()
    memory.forget()
    memory.begin(on=False)
    assert time.monotonic() - began < 1
    answered.set()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_read_that_fails_leaves_nothing_behind(database: Client) -> None:
    empty(database)
    rows = [row for row in event_set(random.Random(6), 20) if row.is_case_event]
    first, second = entries(rows[: len(rows) // 2]), entries(rows[len(rows) // 2 :])
    arrive(database, first)
    memory = CaseMemory()
    memory.begin(on=True)
    memory.know(database)
    arrive(database, second)

    def failing(call: Callable[[], T], /) -> T:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        memory.sets(database, second, failing)
    sets = memory.sets(database, second)
    assert sets is not None
    touched = second["case_id"].unique().to_list()
    assert sets.height == pl.concat([first, second]).filter(pl.col("case_id").is_in(touched)).height


def test_known_cases_are_hashed_as_in_the_process(database: Client) -> None:
    empty(database)
    rows = [row for row in event_set(random.Random(4), 50) if row.is_case_event]
    arrive(database, entries(rows))
    existing = ExistingCases()
    for hashes in known_cases(database):
        existing.add(hashes)
    ids = pl.DataFrame({"case_id": sorted({row.event.case_id for row in rows})})
    assert existing.may_hold(ids.select(case_hash()).to_series().to_numpy()).all()
    others = pl.DataFrame({"case_id": [f"other-{n}" for n in range(10_000)]})
    assert existing.may_hold(others.select(case_hash()).to_series().to_numpy()).sum() == 0


def test_few_new_cases_are_looked_for_in_vain() -> None:
    existing = ExistingCases()
    rng = np.random.default_rng(1)
    existing.add(rng.integers(0, 2**64, 2_000_000, np.uint64))
    assert existing.may_hold(rng.integers(0, 2**64, 100_000, np.uint64)).mean() < 0.001


@pytest.mark.parametrize("seed", range(6))
def test_both_walks_decide_alike(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Step by step over all cases, and event by event of one case, from any step on."""
    rng = random.Random(seed)
    rows = [row for row in event_set(rng, 60) if row.is_case_event]
    sets = entries(rows)
    monkeypatch.setattr(fold_walk, "_FEW_CASES", 0)
    wanted = folded(sets).sort("case_id")
    longest = int(wanted["event_times"].list.len().max())  # type: ignore[arg-type]
    assert longest > 8, "cases of some length"
    for few in (1, 3, 17, 10**9):
        monkeypatch.setattr(fold_walk, "_FEW_CASES", few)
        assert folded(sets).sort("case_id").equals(wanted, null_equal=True), f"few = {few}"


def test_a_case_of_many_thousand_events_is_folded_without_a_step_of_numpy_for_each() -> None:
    events = 20_000
    start = 1_700_000_000_000
    types = ["REPORTED", "ACCEPTED", *["HANDLING"] * (events - 2)]
    frame = pl.DataFrame(
        {
            "case_id": "long",
            "occurred_at": pl.Series(range(start, start + events)).cast(TIMESTAMP),
            "rank": pl.Series([RANK[name] for name in types], dtype=pl.UInt8),
            "event_id": [f"e-{number}" for number in range(events)],
            "source": "grid",
            "_part": 0,
            "_off": range(events),
            "_idx": 0,
            "ingested_at": pl.Series([start] * events).cast(TIMESTAMP),
            "outcome": [1, *[0] * (events - 1)],
            "self_handled": True,
            "_inc": 1,
        }
    ).select(
        pl.col(name).cast(dtype) if name in _GIVEN else pl.lit(None, dtype).alias(name)
        for name, dtype in CASE_SET.items()
    ).with_columns(pl.col("evidence_pending", "backfill").fill_null(False))  # fmt: skip
    begin = time.process_time()
    state = folded(frame).row(0, named=True)
    spent = time.process_time() - begin
    assert state["event_count"] == events
    assert state["state"] == "HANDLING"
    assert state["illegal_count"] == 0
    # 0.03 s; walked step by step 0.7 and more
    assert spent < 0.3
