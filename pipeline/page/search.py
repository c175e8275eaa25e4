"""Search by the whole id of an event, a case or a submission."""

from __future__ import annotations

import re
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.contract.event import ID_PATTERN
from pipeline.contract.privacy import shown_id
from pipeline.errors import ContractError
from pipeline.process.hashes import id_hash
from pipeline.read.times import instant

_ID: Final = re.compile(ID_PATTERN)
_MOST: Final = 50
#: Submission ids have no index: a search of very many events ends here rather than keep the store busy.
_SECONDS: Final = 5

_SUBMITTED: Final = ("events", "rejections")
_COLUMNS: Final = "source, event_id, event_type, case_id, ingested_at"


def search(client: Client, text: str) -> dict[str, Any]:
    """What carries this id: {"events": […], "cases": […]}, at most 50 events, newest first.

    An event is found by its own id or its submission's; a case by its id.
    Raises ContractError when `text` cannot be an id.
    """
    if not _ID.fullmatch(text):
        raise ContractError("q must be a whole id: 1–64 characters from A–Z a–z 0–9 . _ : -")
    events = _events(client, text)
    cases = client.query(
        "SELECT case_id FROM case_events WHERE case_id = {text:String} LIMIT 1", parameters={"text": text}
    ).result_rows
    return {"q": shown_id(text), "events": events, "cases": [case_id for (case_id,) in cases]}


def _events(client: Client, text: str) -> list[dict[str, Any]]:
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
    parameters = {"text": text, "ids": _id_numbers(sources, text), "most": _MOST}
    stored = [
        f"SELECT {_COLUMNS}, outcome, submission_id FROM {table} "
        "WHERE (id_lo IN {ids:Array(UInt64)} AND event_id = {text:String})"
        for table in _SUBMITTED
    ]
    submitted = [
        f"SELECT {_COLUMNS}, outcome, submission_id FROM {table} WHERE submission_id = {{text:String}}"
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
    found = client.query(
        f"SELECT * FROM ({' UNION ALL '.join((*stored, *submitted, resent, quarantined))}) "
        "ORDER BY ingested_at DESC LIMIT 1 BY source, event_id LIMIT {most:UInt32}",
        parameters=parameters,
        settings={"max_execution_time": _SECONDS},
    )
    return [{**row, "ingested_at": instant(row["ingested_at"])} for row in found.named_results()]


def _id_numbers(sources: list[str], event_id: str) -> list[int]:
    """`id_lo`, which has an index, of this id under every source."""
    schema = {"source": pl.String, "event_id": pl.String}
    frame = pl.DataFrame({"source": sources, "event_id": [event_id] * len(sources)}, schema=schema)
    return frame.select(*id_hash())["id_lo"].to_list()
