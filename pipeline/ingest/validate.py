"""What admission would decide about events that are only checked: look-ups and rules as in the worker."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now
from pipeline.contract.parse import parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.frames import DECODED, FEATURES, MODE
from pipeline.reference.snapshot import Reference
from pipeline.rules.admit import admit, explain_rules
from pipeline.rules.catalogue import Catalogues, load_catalogues
from pipeline.settings import Settings

_REPORTED: Final = (
    "outcome", "reasons", "missing_fields", "evidence_pending", "life_safety", "category", "urgency",
    "lead_department", "response_limit_seconds", "resolution_limit_seconds", "mode", "mode_level",
    "catalogue_version",
)  # fmt: skip


class Validator:
    """`gateway.Validator` on the reference data in ClickHouse; used from several threads, a client each."""

    def __init__(
        self, client_factory: Callable[[], Client], catalogues: Catalogues, settings: Settings
    ) -> None:
        self._client_factory = client_factory
        self._catalogues = catalogues
        self._settings = settings
        self._local = threading.local()

    def decide(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        """Per row of `frames.EVENT`: outcome, reasons, missing_fields, limits; `rules` as explain shows them.

        Duplicates are not looked for. Raises UnavailableError if the store does not answer.
        """
        decoded = _decoded(frame)
        tolerance = self._settings.grid_tolerance_m
        reference = Reference.for_events(self._client(), decoded, tolerance_m=tolerance)
        features = reference.look_up(decoded, self._catalogues.matter_categories)
        judged = admit(
            pl.concat([decoded, features], how="horizontal"),
            self._catalogues,
            reference.modes,
            districts=self._settings.districts_taking_part,
        )
        return _reports(judged, self._catalogues)

    def _client(self) -> Client:
        if not hasattr(self._local, "client"):
            self._local.client = self._client_factory()
        client: Client = self._local.client
        return client


class LocalCheck:
    """Contract and catalogue alone, when no service runs: what needs reference data, modes among it, stays
    unknown."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalogues = load_catalogues(settings.catalogue_dir)
        # Pseudonyms made here are thrown away with the frame.
        self._privacy = Privacy(secrets.token_bytes(32))

    def check(self, body: bytes) -> dict[str, Any]:
        """`errors` and `decisions` of NDJSON text, as `POST /v1/events:validate` gives them."""
        parsed = parse_ndjson(body)
        frame = to_frame(
            parsed.events, ingested_at=utc_now(), request_id=None, backfill=False, privacy=self._privacy
        )
        decoded = _decoded(frame)
        unknown = pl.DataFrame(
            [pl.Series(name, [None] * frame.height, dtype=dtype) for name, dtype in FEATURES.items()]
        )
        judged = admit(
            pl.concat([decoded, unknown], how="horizontal"),
            self._catalogues,
            pl.DataFrame(schema=MODE),
            districts=self._settings.districts_taking_part,
        )
        decisions = [
            {"index": index, "event_id": event.event_id, **report}
            for index, event, report in zip(
                parsed.indexes, parsed.events, _reports(judged, self._catalogues), strict=True
            )
        ]
        return {"errors": [error.answer() for error in parsed.errors], "decisions": decisions}


def _decoded(frame: pl.DataFrame) -> pl.DataFrame:
    """`frames.DECODED` for rows that never lay on the topic: position and hashes are 0."""
    return frame.with_columns(
        pl.lit(0).cast(dtype).alias(name) for name, dtype in DECODED.items() if name not in frame.columns
    ).select(list(DECODED))


def _reports(judged: pl.DataFrame, catalogues: Catalogues) -> list[dict[str, Any]]:
    return [
        {**{name: row[name] for name in _REPORTED}, "rules": explain_rules(row, catalogues)}
        for row in judged.select(*_REPORTED, "rule_results").iter_rows(named=True)
    ]
