"""Puts generated rows where the worker puts them: outcome tables, case events, refreshed states."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.frames import CASE_EVENT, DUPLICATE, POSITION, STORED, Schema
from pipeline.process.hashes import id_hash
from pipeline.store.cases import pack_case_events, refresh_cases
from tests.oracle.fold import Event
from tests.oracle.kpi import Report
from tests.property.strategies import Row

TABLES: Final = ("events", "rejections", "duplicates", "case_events", "cases")
#: No deduplication of inserts: a batch that is sent again must be absorbed by the tables themselves.
_SETTINGS: Final = {"async_insert": 0, "deduplicate_insert": "disable"}
MOST_EXACT_RANGES: Final = 200
_OUTCOMES: Final = {0: "recorded", 1: "admitted", 2: "rejected"}


def empty(client: Client) -> None:
    for table in TABLES:
        client.command(f"TRUNCATE TABLE {table}")


def arrive(client: Client, rng: random.Random, rows: Sequence[Row]) -> None:
    """Empty the tables, then insert `rows` in random order, in up to three batches, some of them twice."""
    empty(client)
    order = rng.sample(list(rows), len(rows))
    cuts = sorted(rng.randint(0, len(order)) for _ in range(rng.randint(0, 2)))
    for low, high in itertools.pairwise([0, *cuts, len(order)]):
        insert(client, order[low:high])
        if rng.random() < 0.25:
            insert(client, order[low:high])


def insert(client: Client, rows: Sequence[Row]) -> None:
    """One batch, as the sink writes it: a block per incarnation, then the touched cases are folded again."""
    for inc in sorted({row.event.inc for row in rows}):
        block = [row for row in rows if row.event.inc == inc]
        for table in ("events", "rejections"):
            _insert(client, table, STORED, [_stored(row.event) for row in block if row.table == table], inc)
        duplicates = [_duplicate(row) for row in block if row.table == "duplicates"]
        _insert(client, "duplicates", DUPLICATE, duplicates, inc)
        events = pl.DataFrame([case_event(row.event) for row in block if row.is_case_event], CASE_EVENT)
        if events.height:
            packed = pack_case_events(events, inc)
            client.insert_arrow(
                "case_events", packed.to_arrow(compat_level=pl.CompatLevel.oldest()), settings=_SETTINGS
            )
        refresh_cases(client, inc, _ranges([row.event for row in block]))


def _ranges(events: Sequence[Event]) -> list[tuple[int, int, int]]:
    """Exactly the positions of `events` while they are few, as a block's refresh is told; else their span."""
    if len(events) <= MOST_EXACT_RANGES:
        return [(event.part, event.off, event.off) for event in events]
    parts = sorted({event.part for event in events})
    offsets = {part: [event.off for event in events if event.part == part] for part in parts}
    return [(part, min(offsets[part]), max(offsets[part])) for part in parts]


def reports_of(rows: Iterable[Row]) -> list[Report]:
    """The report-level rows that the tables hold."""
    found = []
    for row in rows:
        if row.event.event_type != "REPORTED":
            continue
        event = row.event
        outcome = row.level or _OUTCOMES[event.outcome]
        found.append(
            Report(
                outcome=outcome,
                source=event.source,
                event_id=event.event_id,
                position=event.position,
                occurred_at=event.occurred_at,
                channel=event.channel,
                matter_code=event.matter_code,
                grid_code=event.grid_code,
                category=event.category,
                lead_department=event.lead_department,
            )
        )
    return found


def _insert(client: Client, table: str, schema: Schema, rows: list[dict[str, Any]], inc: int) -> None:
    if not rows:
        return
    frame = pl.DataFrame(rows, schema)
    if "id_lo" in schema:
        frame = frame.with_columns(*id_hash(frame))
    frame = frame.with_columns(
        pl.lit(inc, pl.UInt64).alias("_inc"),
        pl.col("_off").alias("_blk_lo"),
        pl.col("_off").alias("_blk_hi"),
        pl.lit("test").alias("_rules"),
    )
    client.insert_arrow(table, frame.to_arrow(compat_level=pl.CompatLevel.oldest()), settings=_SETTINGS)


def _placed(event: Event) -> dict[str, int]:
    return dict(zip(POSITION, (event.part, event.off, event.idx), strict=True))


def case_event(event: Event) -> dict[str, Any]:
    values = asdict(event) | _placed(event)
    return {name: values[name] for name in CASE_EVENT}


def _stored(event: Event) -> dict[str, Any]:
    given = {name: value for name, value in asdict(event).items() if name in STORED}
    empty_value = {
        name: [] if isinstance(dtype, pl.List) else False if dtype == pl.Boolean() else None
        for name, dtype in STORED.items()
    }
    required = {
        "event_type": event.event_type,
        "actor_type": "system",
        "key_version": 1,
        "id_hi": 0,
        "id_lo": 0,
        "content_hash": 0,
        "outcome": _OUTCOMES[event.outcome],
        "reasons": ["TOO_OLD"] if event.outcome == 2 else [],
        "district_code": event.grid_code[:6],
        "town_code": event.grid_code[:9],
        "village_code": event.grid_code[:12],
    }
    return empty_value | given | required | _placed(event)


def _duplicate(row: Row) -> dict[str, Any]:
    event = row.event
    original = {
        "level": row.level,
        "event_type": event.event_type,
        "original_source": event.source,
        "original_event_id": event.event_id,
        "original_case_id": event.primary_case_id or event.case_id,
    }
    values = asdict(event) | original | _placed(event)
    return {name: values.get(name) for name in DUPLICATE}
