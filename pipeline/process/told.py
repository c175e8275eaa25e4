"""Log lines of single events that somebody should hear about, by their ids alone: no text, no person."""

from __future__ import annotations

from typing import Final

import polars as pl
import structlog

from pipeline.process.flow import BlockResult

log = structlog.get_logger(__name__)

#: Lines of one kind per commit; the log itself cuts floods short, this spares making them.
_MOST_LINES: Final = 50


def tell(result: BlockResult) -> None:
    """A line per rejected report that may concern life and limb, and per event in quarantine."""
    if result.rejections["life_safety"].any():  # a filter copies every column
        alarms = result.rejections.filter("life_safety")
        _lines("life_safety_rejected", alarms, "source", "event_id", "case_id", "request_id", "reasons")
    _lines("event_quarantined", result.quarantined, "source", "event_id", "reason", "_part", "_off", "_idx")


def _lines(event: str, rows: pl.DataFrame, *columns: str) -> None:
    for row in rows.head(_MOST_LINES).select(columns).iter_rows(named=True):
        log.warning(event, **{name.strip("_"): value for name, value in row.items()})
    if rows.height > _MOST_LINES:
        log.warning(f"{event}_and_more", events=rows.height - _MOST_LINES)
