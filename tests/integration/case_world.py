"""Writes events to a real database the way the sink does, for tests of the fold and of the KPIs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import polars as pl
import xxhash
from clickhouse_connect.driver.client import Client

from pipeline.frames import CASE_EVENT, DUPLICATE, RANK, STORED
from pipeline.store.cases import pack_case_events, refresh_cases

T0 = datetime(2024, 5, 1, tzinfo=UTC)
GRID = "440704001001003"
DISTRICTS = ("440703", "440704", "440705", "440781", "440783", "440784", "440785")
INC = 1_700_000_000_000
_OUTCOMES = {"recorded": 0, "admitted": 1, "rejected": 2, "resent": 3}


def at(hours: float) -> datetime:
    """An instant so many hours after T0."""
    return T0 + timedelta(hours=hours)


@dataclass
class Event:
    """One event and what the stages before the sink decided about it."""

    case_id: str
    event_type: str
    occurred_at: datetime
    event_id: str = ""
    source: str = "s1"
    ingested_at: datetime | None = None
    outcome: str = ""  # admitted (default of REPORTED), rejected, recorded (default), resent (L2)
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.event_id = self.event_id or f"{self.case_id}-{self.event_type}-{self.occurred_at:%d%H%M%S%f}"
        self.outcome = self.outcome or ("admitted" if self.event_type == "REPORTED" else "recorded")
        self.ingested_at = self.ingested_at or self.occurred_at + timedelta(seconds=30)

    def values(self) -> dict[str, Any]:
        given = self.attributes
        report = self.event_type == "REPORTED"
        grid = given.get("grid_code", GRID)
        matter = given.get("matter_code", "SA-07" if report else None)
        return {
            "case_id": self.case_id,
            "event_type": self.event_type,
            "event_id": self.event_id,
            "source": self.source,
            "occurred_at": self.occurred_at,
            "ingested_at": self.ingested_at,
            "rank": RANK[self.event_type],
            "response_limit_seconds": 3600 if report else None,
            "resolution_limit_seconds": 24 * 3600 if report else None,
            "channel": "hotline_12345",
            "grid_code": grid,
            "matter_code": matter,
            "category": matter[:2] if matter else None,
            "lead_department": "urban_management" if matter else None,
            "district_code": grid[:6],
            "town_code": grid[:9],
            "village_code": grid[:12],
            "evidence_pending": False,
            "backfill": False,
            "actor_type": "clerk",
            **given,
        }


_FILLED = {pl.Boolean(): False, pl.String(): "", pl.UInt64(): 0, pl.UInt16(): 0}
_REQUIRED = (
    "backfill", "evidence_pending", "life_safety", "late_beyond_horizon", "time_adjusted", "key_version",
    "content_hash", "district_code", "town_code", "village_code", "outcome", "rule_results", "reasons",
    "missing_fields", "persons", "photos", "person_facts", "grid_risk_tags", "staff_channel_rights",
)  # fmt: skip


def _frame(rows: list[dict[str, Any]], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    return pl.DataFrame(
        [{name: row.get(name) for name in schema} for row in rows], schema=schema, orient="row"
    )


class World:
    """A log of one partition that writes blocks of events: outcome tables, case events, refresh."""

    def __init__(self, client: Client, inc: int = INC) -> None:
        self.client = client
        self.inc = inc
        self.next_offset = 0

    def write(self, *events: Event, refresh: bool = True, offset: int | None = None) -> tuple[int, int]:
        """Insert one block; every event is a record of its own. Returns its first and last offset."""
        low = self.next_offset if offset is None else offset
        high = low + len(events) - 1
        self.next_offset = max(self.next_offset, high + 1)
        rows = []
        for number, event in enumerate(events):
            digest = xxhash.xxh3_128_intdigest(f"{event.source}\x00{event.event_id}".encode())
            position = {"_part": 0, "_off": low + number, "_idx": 0}
            ids = {"id_hi": digest >> 64, "id_lo": digest & (2**64 - 1)}
            rows.append({**event.values(), **position, **ids, "outcome": event.outcome})
        self._insert_stored(
            "events", [r for r in rows if r["outcome"] in {"admitted", "recorded"}], low, high
        )
        self._insert_stored("rejections", [r for r in rows if r["outcome"] == "rejected"], low, high)
        resent = [
            {
                **r,
                "level": "L2",
                "original_case_id": r["primary_case_id"],
                "original_source": "",
                "original_event_id": "",
            }
            for r in rows
            if r["outcome"] == "resent"
        ]
        self.insert_duplicates(resent, low, high)
        packed = pack_case_events(
            _frame([{**r, "outcome": _OUTCOMES[r["outcome"]]} for r in rows], CASE_EVENT), self.inc
        )
        self.client.insert_arrow("case_events", packed.to_arrow(compat_level=pl.CompatLevel.oldest()))
        if refresh:
            refresh_cases(self.client, self.inc, [(0, low, high)])
        return low, high

    def redeliver(self, *events: Event) -> None:
        """L1 duplicates: rows of `duplicates` only."""
        low = self.next_offset
        self.next_offset += len(events)
        rows = [
            {**e.values(), "level": "L1", "original_case_id": e.case_id, "original_source": e.source,
             "original_event_id": e.event_id, "_part": 0, "_off": low + n, "_idx": 0}
            for n, e in enumerate(events)
        ]  # fmt: skip
        self.insert_duplicates(rows, low, self.next_offset - 1)

    def insert_duplicates(self, rows: list[dict[str, Any]], low: int, high: int) -> None:
        if rows:
            self._insert("duplicates", _frame(rows, DUPLICATE), low, high)

    def _insert_stored(self, table: str, rows: list[dict[str, Any]], low: int, high: int) -> None:
        if not rows:
            return
        frame = _frame(rows, STORED)
        frame = frame.with_columns(
            pl.col(name).fill_null(
                pl.lit([], STORED[name]) if STORED[name].is_nested() else _FILLED[STORED[name]]
            )
            for name in _REQUIRED
        )
        self._insert(table, frame, low, high)

    def _insert(self, table: str, frame: pl.DataFrame, low: int, high: int) -> None:
        frame = frame.with_columns(
            pl.lit(self.inc, pl.UInt64).alias("_inc"), pl.lit(low, pl.UInt64).alias("_blk_lo"),
            pl.lit(high, pl.UInt64).alias("_blk_hi"), pl.lit("r").alias("_rules"),
        )  # fmt: skip
        self.client.insert_arrow(table, frame.to_arrow(compat_level=pl.CompatLevel.oldest()))

    def case(self, case_id: str, as_of: datetime | None = None) -> dict[str, Any]:
        """The row of case_current, or of case_as_of(as_of)."""
        view = "case_as_of(as_of = {as_of:DateTime64(3, 'UTC')})" if as_of else "case_current"
        answer = self.client.query(
            f"SELECT * FROM {view} WHERE case_id = {{case_id:String}}",
            parameters={"case_id": case_id, "as_of": as_of or T0},
            tz_mode="aware",
        )
        rows = list(answer.named_results())
        assert len(rows) == 1, rows
        return dict(rows[0])


def chain(
    case_id: str, steps: Sequence[tuple[str, float] | tuple[str, float, dict[str, Any]]]
) -> list[Event]:
    """Events of one case: (event_type, hours after T0, attributes)."""
    return [
        Event(case_id, step[0], at(step[1]), attributes=dict(step[2]) if len(step) > 2 else {})
        for step in steps
    ]


def flat(groups: Iterable[Iterable[Event]]) -> list[Event]:
    return [event for group in groups for event in group]


class KpiNames:
    """Names of keys as the KPI call needs them; the districts and channels of the tests."""

    channel_kinds: ClassVar[dict[str, str]] = {"hotline_12345": "public", "grid_patrol": "staff"}

    def listed_keys(self, by: str) -> Sequence[str]:
        return {"city": ("4407",), "district": DISTRICTS}.get(by, ())

    def name_zh(self, by: str, key: str) -> str | None:
        return {"4407": "江门市", "440704": "江海区", "440703": "蓬江区"}.get(key)
