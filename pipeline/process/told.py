"""Log lines of single events that somebody should hear about, by their ids alone: no text, no person."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson
import polars as pl
import structlog

from pipeline.contract.event import ID_PATTERN
from pipeline.contract.privacy import holds_personal_number
from pipeline.process.deduplicate import ID_CONFLICT
from pipeline.process.flow import UNSTORABLE, BlockResult

log = structlog.get_logger(__name__)

#: Lines of one kind per commit; the log itself cuts floods short, this spares making them.
_MOST_LINES: Final = 50
#: Refused after they were read: their payload is the row as the pipeline has it, not a sender's text.
_READ: Final = frozenset({ID_CONFLICT, UNSTORABLE})
_ID: Final = re.compile(ID_PATTERN)


def tell(result: BlockResult) -> None:
    """A line per rejected report that may concern life and limb, and per event in quarantine."""
    if result.rejections["life_safety"].any():  # a filter copies every column
        alarms = result.rejections.filter("life_safety")
        ids = ("source", "event_id", "case_id", "request_id")
        _lines("life_safety_rejected", alarms.height, _shown(alarms, *ids, "reasons"))
    refused = result.quarantined
    rows = _shown(refused, "source", "event_id", "reason", "_part", "_off", "_idx", "payload")
    _lines(
        "event_quarantined",
        refused.height,
        (row | _ids_in(row.pop("payload"), row["reason"]) for row in rows),
    )


def _shown(rows: pl.DataFrame, *columns: str) -> Iterator[dict[str, Any]]:
    return rows.head(_MOST_LINES).select(columns).iter_rows(named=True)


def _lines(event: str, count: int, rows: Iterable[dict[str, Any]]) -> None:
    """count : of all; `rows` are those that get a line."""
    for row in rows:
        log.warning(event, **{name.strip("_"): value for name, value in row.items()})
    if count > _MOST_LINES:
        log.warning(f"{event}_and_more", events=count - _MOST_LINES)


def _ids_in(payload: str, reason: str) -> dict[str, str | None]:
    """The ids of case and request, null where unknown; that of a request only where the gateway wrote it."""
    try:
        found = orjson.loads(payload)
    except orjson.JSONDecodeError:
        found = None
    row = found if isinstance(found, dict) else {}
    return {
        "case_id": _id(row.get("case_id")),
        "request_id": _id(row.get("request_id")) if reason in _READ else None,
    }


def _id(given: object) -> str | None:
    """An id that may be shown."""
    good = isinstance(given, str) and _ID.fullmatch(given) and not holds_personal_number(given)
    return str(given) if good else None
