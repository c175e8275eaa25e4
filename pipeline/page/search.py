"""Search by the whole id of an event, a case or a submission."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from pipeline.contract.event import ID_PATTERN
from pipeline.contract.privacy import shown_id
from pipeline.errors import ContractError
from pipeline.process.hashes import id_hash
from pipeline.read.times import instant

_ID: Final = re.compile(ID_PATTERN)
_MOST: Final = 50
#: Submission ids have no index: that column is read through, so long at most rather than keep the store busy.
_SECONDS: Final = 5
_TOO_SLOW: Final = 159

_SUBMITTED: Final = ("events", "rejections")
#: Said where nothing was found: `duplicates` and `quarantine` hold no submission ids, so that nothing there
#: is found by one.
_BY_EVENT_ID_ONLY: Final = {
    "zh": "重复提交和被隔离的事件不能按提交编号查找：请用事件编号",
    "en": "resent and quarantined events are not found by a submission's id: use the event's",
}
_COLUMNS: Final = "source, event_id, event_type, case_id, ingested_at"


def search(client: Client, text: str) -> dict[str, Any]:
    """What carries this id: {"q", "events", "cases", "complete", "note"}, at most 50 events, newest first.

    An event is found by its own id or its submission's, a resent or quarantined one by its own alone; a case
    by its id. `complete` is False when there were too many events to look for a submission in. `note` says in
    "zh" and "en", where nothing was found, what may be there all the same; else it is None.
    Raises ContractError when `text` cannot be an id.
    """
    if not _ID.fullmatch(text):
        raise ContractError("q must be a whole id: 1–64 characters from A–Z a–z 0–9 . _ : -")
    cases = client.query(
        "SELECT case_id FROM case_events WHERE case_id = {text:String} LIMIT 1", parameters={"text": text}
    ).result_rows
    found, complete = _by_event(client, text), True
    try:
        found += _by_submission(client, text)
    except DatabaseError as error:
        if error.code != _TOO_SLOW:
            raise
        complete = False
    oldest_first = sorted(found, key=lambda hit: hit["ingested_at"])
    events = {(hit["source"], hit["event_id"]): hit for hit in oldest_first}
    newest = sorted(events.values(), key=lambda hit: hit["ingested_at"], reverse=True)[:_MOST]
    return {
        "q": shown_id(text),
        "events": [{**hit, "ingested_at": instant(hit["ingested_at"])} for hit in newest],
        "cases": [case_id for (case_id,) in cases],
        "complete": complete,
        "note": None if newest or cases else _BY_EVENT_ID_ONLY,
    }


def _by_event(client: Client, text: str) -> list[dict[str, Any]]:
    """By the indexes of the event's id; the quarantine is small and read through."""
    sources = [
        source
        for (source,) in client.query(
            " UNION DISTINCT ".join(
                f"SELECT DISTINCT source FROM {table}"
                for table in ("events", "rejections", "duplicates", "quarantine")
            )
        ).result_rows
        if source
    ]
    stored = [
        f"SELECT {_COLUMNS}, outcome, submission_id FROM {table} "
        "WHERE (id_lo IN {ids:Array(UInt64)} AND event_id = {text:String})"
        for table in _SUBMITTED
    ]
    resent = (
        f"SELECT {_COLUMNS}, 'duplicate' AS outcome, NULL AS submission_id FROM duplicates "
        "WHERE event_id = {text:String} AND level = 'L2'"
    )
    quarantined = (
        "SELECT source, event_id, event_type, NULL AS case_id, ingested_at, 'quarantined' AS outcome, "
        "NULL AS submission_id FROM quarantine WHERE event_id = {text:String}"
    )
    return _hits(client, (*stored, resent, quarantined), text, ids=_id_numbers(sources, text))


def _by_submission(client: Client, text: str) -> list[dict[str, Any]]:
    """Raises DatabaseError with code 159 after `_SECONDS`."""
    submitted = [
        f"SELECT {_COLUMNS}, outcome, submission_id FROM {table} WHERE submission_id = {{text:String}}"
        for table in _SUBMITTED
    ]
    return _hits(client, submitted, text)


def _hits(client: Client, parts: Sequence[str], text: str, **parameters: Any) -> list[dict[str, Any]]:
    found = client.query(
        f"SELECT * FROM ({' UNION ALL '.join(parts)}) "
        "ORDER BY ingested_at DESC LIMIT 1 BY source, event_id LIMIT {most:UInt32}",
        parameters={"text": text, "most": _MOST, **parameters},
        settings={"max_execution_time": _SECONDS},
    )
    return list(found.named_results())


def _id_numbers(sources: list[str], event_id: str) -> list[int]:
    """`id_lo`, which has an index, of this id under every source."""
    schema = {"source": pl.String, "event_id": pl.String}
    frame = pl.DataFrame({"source": sources, "event_id": [event_id] * len(sources)}, schema=schema)
    return id_hash(frame)[1].to_list()
