"""Each stage alone, over batch sizes: run by pytest-benchmark through `python -m benchmarks stages`.

A stage gets what the stages before it gave for the same events, and its output height is checked. What is
looked up is looked up among a million ids and their reports, as a partition knows them after a while.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import cache
from benchmarks.harness import PLACE
from benchmarks.peers.common import peak_mb
from pipeline.contract.parse import parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.ingest.blocks import encode_blocks
from pipeline.process.case_memory import CaseMemory
from pipeline.process.decode import decode
from pipeline.process.deduplicate import Entry, deduplicate
from pipeline.process.flow import Block, PartitionState, Rules, case_events_of, process_blocks, remember
from pipeline.process.records import Record
from pipeline.process.resend import ANCHOR, drop_resends
from pipeline.reference.enrich import enrich
from pipeline.reference.snapshot import Reference
from pipeline.rules.admit import admit
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import load_settings
from pipeline.sink.tables import Extent, Sink
from pipeline.store.cases import case_sets, pack_case_events, store_cases
from pipeline.store.engine import EmbeddedEngine

PERSONS = int(os.environ.get("BENCH_PERSONS", "500000"))
SIZES = [int(size) for size in os.environ.get("BENCH_SIZES", "500,5000,50000").split(",")]
INC = 1
#: Ids that a partition knows, and of each so many one is of a report.
KNOWN = 1_000_000
CASE_EVENTS = 8


@pytest.fixture(autouse=True)
def memory(benchmark: Any) -> Iterator[None]:
    """Peak memory of the process until now, MiB, beside every figure."""
    yield
    benchmark.extra_info["peak_mb"] = peak_mb()


def known_state(settings: Any, ids: int = KNOWN) -> PartitionState:
    """A partition that knows so many ids, and the reports among them; none is an event of the batches."""
    state, rng, now = PartitionState.empty(settings), np.random.default_rng(1), _now_ms()
    for at in range(0, ids, 50_000):
        size = min(50_000, ids - at)
        hi, lo, content = (rng.integers(1, 2**63, size, dtype=np.uint64) for _ in range(3))
        position, ingested = np.arange(at, at + size), np.full(size, now)
        state.seen.remember(hi, lo, Entry(position, ingested, content, np.ones(size, np.uint16)))
        reports = slice(0, size, CASE_EVENTS)
        names = [f"known-{number}" for number in position[reports]]
        anchors = pl.DataFrame(
            {
                "position": position[reports], "occurred": ingested[reports], "ingested": ingested[reports],
                "l2_hi": hi[reports], "l2_lo": content[reports], "sub_hi": None, "sub_lo": None,
                "event_id": names, "source": "bench", "case_id": names,
            },
            schema=ANCHOR,
        )  # fmt: skip
        state.anchors.remember(anchors)
    return state


@pytest.fixture(scope="session")
def world() -> Iterator[Any]:
    """Store, reference data and rules as a worker has them."""
    place = PLACE / "stages"
    shutil.rmtree(place, ignore_errors=True)
    cache.copy_store(PERSONS, place)
    settings = load_settings(data_dir=place)
    engine = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir)
    client = engine.new_client(settings.database)
    privacy = Privacy.load(settings.pseudonym_key_path, create=False)
    reference = Reference.load(client, tolerance_m=settings.grid_tolerance_m)
    rules = Rules(reference, load_catalogues(settings.catalogue_dir), privacy, settings)
    yield SimpleNamespace(
        settings=settings, client=client, privacy=privacy, rules=rules, state=known_state(settings)
    )
    client.close()
    engine.close()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session", params=SIZES, ids=lambda size: f"{size}")
def batch(request: pytest.FixtureRequest, world: Any) -> Any:
    """A batch of so many events and what each stage makes of it."""
    size: int = request.param
    lines = next(cache.events(max(SIZES), PERSONS).chunks())["json"].head(size).to_list()
    body = "\n".join(lines).encode()
    parsed = parse_ndjson(body, max_events=None)
    frame = to_frame(
        parsed.events, ingested_at=_now(), request_id="bench", backfill=False, privacy=world.privacy
    )
    blocks = encode_blocks(frame, partitions=1, max_bytes=900_000)
    arrow = [
        Record(number, _now_ms(), "application/vnd.apache.arrow.stream", block.payload, "1")
        for number, block in enumerate(blocks)
    ]
    state = world.state
    decoded = decode([(0, arrow)], privacy=world.privacy)
    unique = deduplicate(decoded.events, {0: state.seen}, _window(world))
    features = world.rules.reference.look_up(unique.kept, world.rules.catalogues.matter_categories)
    judged = _admit(world, pl.concat([unique.kept, features], how="horizontal"))
    resends = drop_resends(judged, {0: state.anchors})
    stored = enrich(resends.kept, world.rules.reference)
    result = process_blocks([Block(0, arrow)], {0: state}, world.rules)
    return SimpleNamespace(
        size=size, body=body, parsed=parsed, frame=frame, arrow=arrow, state=state, decoded=decoded,
        unique=unique, features=features, judged=judged, resends=resends, stored=stored, result=result,
        ndjson=[
            Record(number, _now_ms(), "application/x-ndjson", "\n".join(lines[at : at + 500]).encode(), "1")
            for number, at in enumerate(range(0, size, 500))
        ],
        each=[
            Record(number, _now_ms(), "application/x-ndjson", line.encode(), "1")
            for number, line in enumerate(lines)
        ],
    )  # fmt: skip


def _now() -> Any:
    from pipeline.clock import utc_now

    return utc_now()


def _now_ms() -> int:
    return int(_now().timestamp() * 1_000)


def _window(world: Any) -> timedelta:
    return timedelta(days=world.settings.dedup_window_days)


def _admit(world: Any, rows: pl.DataFrame) -> pl.DataFrame:
    return admit(
        rows,
        world.rules.catalogues,
        world.rules.reference.modes,
        districts=world.settings.districts_taking_part,
    )


def _measure(benchmark: Any, batch: Any, call: Any) -> Any:
    benchmark.extra_info["rows"] = batch.size
    return benchmark(call)


def test_parse_ndjson(benchmark: Any, batch: Any) -> None:
    found = _measure(benchmark, batch, lambda: parse_ndjson(batch.body, max_events=None))
    assert len(found.events) == batch.size


def test_to_frame(benchmark: Any, batch: Any, world: Any) -> None:
    found = _measure(
        benchmark,
        batch,
        lambda: to_frame(
            batch.parsed.events, ingested_at=_now(), request_id="b", backfill=False, privacy=world.privacy
        ),
    )
    assert found.height == batch.size


def test_encode_blocks(benchmark: Any, batch: Any) -> None:
    found = _measure(benchmark, batch, lambda: encode_blocks(batch.frame, partitions=12, max_bytes=900_000))
    assert sum(len(block.rows) for block in found) == batch.size


@pytest.mark.parametrize("form", ["arrow", "ndjson", "each"])
def test_decode(benchmark: Any, batch: Any, world: Any, form: str) -> None:
    records = getattr(batch, form)
    found = _measure(benchmark, batch, lambda: decode([(0, records)], privacy=world.privacy))
    assert found.events.height == batch.size


def test_deduplicate(benchmark: Any, batch: Any, world: Any) -> None:
    found = _measure(
        benchmark,
        batch,
        lambda: deduplicate(batch.decoded.events, {0: batch.state.seen}, _window(world)),
    )
    assert found.kept.height + found.duplicates.height == batch.size


def test_look_up(benchmark: Any, batch: Any, world: Any) -> None:
    categories = world.rules.catalogues.matter_categories
    found = _measure(benchmark, batch, lambda: world.rules.reference.look_up(batch.unique.kept, categories))
    assert found.height == batch.unique.kept.height


def test_admit(benchmark: Any, batch: Any, world: Any) -> None:
    rows = pl.concat([batch.unique.kept, batch.features], how="horizontal")
    found = _measure(benchmark, batch, lambda: _admit(world, rows))
    assert found.height == batch.unique.kept.height


def test_drop_resends(benchmark: Any, batch: Any) -> None:
    found = _measure(benchmark, batch, lambda: drop_resends(batch.judged, {0: batch.state.anchors}))
    assert found.kept.height == batch.judged.height


def test_enrich(benchmark: Any, batch: Any, world: Any) -> None:
    found = _measure(benchmark, batch, lambda: enrich(batch.resends.kept, world.rules.reference))
    assert found.height == batch.resends.kept.height


def test_case_events(benchmark: Any, batch: Any) -> None:
    found = _measure(
        benchmark,
        batch,
        lambda: pack_case_events(case_events_of(batch.stored, batch.resends.duplicates), INC),
    )
    assert found["entries"].list.len().sum() == batch.stored.height


def test_process_block(benchmark: Any, batch: Any, world: Any) -> None:
    found = _measure(
        benchmark, batch, lambda: process_blocks([Block(0, batch.arrow)], {0: batch.state}, world.rules)
    )
    assert found.received == batch.size


def test_remember(benchmark: Any, batch: Any, world: Any) -> None:
    """Ids and reports of a block that is stored; every repetition has some of its own."""
    state, rng = known_state(world.settings), np.random.default_rng(batch.size)

    def other(rows: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
        """The rows with other keys; where there is none, as before."""
        fresh = {name: pl.Series(rng.integers(1, 2**63, rows.height, dtype=np.uint64)) for name in names}
        return rows.with_columns(
            pl.when(pl.col(name).is_not_null()).then(value).alias(name) for name, value in fresh.items()
        )

    def fresh() -> tuple[tuple[Any], dict[str, Any]]:
        result = dataclasses.replace(
            batch.result,
            events=other(batch.result.events, ("id_hi", "id_lo", "l2_hi", "l2_lo")),
            rejections=other(batch.result.rejections, ("id_hi", "id_lo")),
        )
        return (result,), {}

    def stage(result: Any) -> int:
        before = len(state.seen)
        remember({0: state}, result)
        return len(state.seen) - before

    benchmark.extra_info["rows"] = batch.size
    found = benchmark.pedantic(stage, setup=fresh, rounds=5, warmup_rounds=1)
    assert found == batch.result.events.height + batch.result.rejections.height


def test_insert(benchmark: Any, batch: Any, world: Any) -> None:
    """All tables; every repetition stands in another place."""
    sink, places = Sink(world.client, "bench"), itertools.count(INC + 1)
    result = batch.result
    extent = Extent(0, 0, len(batch.arrow) - 1)

    def write() -> None:
        sink.write(result, inc=next(places), blocks=[extent], rules="bench")

    benchmark.extra_info["rows"] = batch.size
    benchmark.pedantic(write, rounds=5 if batch.size <= 5_000 else 3, warmup_rounds=1)
    assert world.client.command("SELECT count() FROM events") >= result.events.height


def test_fold(benchmark: Any, batch: Any, world: Any) -> None:
    """The sets of the cases touched and their states; every repetition is about cases of its own."""
    memory, salts = CaseMemory(), itertools.count()
    memory.begin(on=True)

    def fresh() -> tuple[tuple[pl.DataFrame], dict[str, Any]]:
        named = pl.concat_str(pl.lit(f"{batch.size}-{next(salts)}-"), pl.col("case_id")).alias("case_id")
        return (case_sets(batch.result.case_events.with_columns(named), INC),), {}

    def fold(stored: pl.DataFrame) -> int:
        sets = memory.sets(world.client, stored)
        assert sets is not None
        store_cases(world.client, sets)
        return sets["case_id"].n_unique()

    benchmark.extra_info["rows"] = batch.size
    found = benchmark.pedantic(fold, setup=fresh, rounds=5, warmup_rounds=1)
    assert found == batch.result.case_events["case_id"].n_unique()
