"""Compares what a demo sent with what lies in ClickHouse, identity by identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

#: Every table that holds an outcome of an event, with the outcomes that its rows stand for.
_OUTCOMES: Final = {
    "events": "stored",
    "rejections": "rejected",
    "duplicates": "duplicates",
    "quarantine": "quarantined",
}


@dataclass(frozen=True)
class Counted:
    """Events of a source by outcome, as ClickHouse holds them. stored = admitted + recorded."""

    stored: int
    duplicates: int
    rejected: int
    quarantined: int

    @property
    def total(self) -> int:
        return self.stored + self.duplicates + self.rejected + self.quarantined


def count_outcomes(client: Client, source: str) -> Counted:
    """Rows of `source` in each outcome table; a block that was inserted twice counts once (FINAL)."""
    counts = {}
    for table, outcome in _OUTCOMES.items():
        found = client.query(
            f"SELECT count() FROM {table} FINAL WHERE source = {{source:String}}",
            parameters={"source": source},
        )
        counts[outcome] = int(found.result_rows[0][0])
    return Counted(**counts)


def held_copies(client: Client, source: str) -> pl.DataFrame:
    """Copies of every event id of `source`, over all outcome tables. Columns event_id, held."""
    union = " UNION ALL ".join(
        f"SELECT assumeNotNull(event_id) AS id FROM {table} FINAL WHERE source = {{source:String}}"
        for table in _OUTCOMES
    )
    table = client.query_arrow(
        f"SELECT id AS event_id, toInt64(count()) AS held FROM ({union}) GROUP BY id",
        parameters={"source": source},
        use_strings=True,
    )
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.select(pl.col("event_id").cast(pl.String), pl.col("held").cast(pl.Int64))


@dataclass(frozen=True)
class Reconciled:
    """sent : copies that reached the service. problems : what cannot be explained, one line each."""

    sent: int
    problems: list[str]


def reconcile(lines: pl.DataFrame, copies: pl.DataFrame, held: pl.DataFrame) -> Reconciled:
    """Count what was sent, and check it against what is held, for every event id.

    lines : lane, line, event_id, the whole file; copies : `ledger.COPIES`; held : event_id, held.
    An id must be held at least as often as copies of it were acknowledged, and at most as often as copies
    were acknowledged or left without an answer. Copies without an answer count as sent if they are held.
    """
    known = lines.join(copies, on=["lane", "line"], how="left").with_columns(
        pl.col("acknowledged").fill_null(0), pl.col("unanswered").fill_null(0)
    )
    unsettled = known.filter(pl.col("acknowledged") == 0).height
    by_id = known.group_by("event_id").agg(pl.col("acknowledged").sum(), pl.col("unanswered").sum())
    both = by_id.join(held, on="event_id", how="full", coalesce=True).with_columns(
        pl.col("acknowledged", "unanswered", "held").fill_null(0)
    )
    most = pl.col("acknowledged") + pl.col("unanswered")
    lost = both.filter(pl.col("held") < pl.col("acknowledged"))
    surplus = both.filter(pl.col("held") > most)
    sent: Any = both.select(pl.col("held").clip(pl.col("acknowledged"), most).sum()).item()
    problems = []
    if unsettled:
        problems.append(f"{unsettled} events were never acknowledged")
    for frame, what in ((lost, "acknowledged but not held"), (surplus, "held more often than sent")):
        if frame.height:
            problems.append(f"{frame.height} event ids {what}, for example {frame['event_id'].to_list()[0]}")
    return Reconciled(int(sent or 0), problems)
