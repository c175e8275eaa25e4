"""What admission would decide about events that are only checked: look-ups and rules as in the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.frames import DECODED
from pipeline.reference.snapshot import Reference
from pipeline.rules.admit import admit, explain_rules
from pipeline.rules.catalogue import Catalogues
from pipeline.settings import Settings

_REPORTED = (
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
        decoded = frame.with_columns(
            pl.lit(0).cast(dtype).alias(name) for name, dtype in DECODED.items() if name not in frame.columns
        ).select(list(DECODED))
        tolerance = self._settings.grid_tolerance_m
        reference = Reference.for_events(self._client(), decoded, tolerance_m=tolerance)
        judged = admit(
            pl.concat([decoded, reference.look_up(decoded)], how="horizontal"),
            self._catalogues,
            reference.modes,
            districts=self._settings.districts_taking_part,
        )
        return [
            {**{name: row[name] for name in _REPORTED}, "rules": explain_rules(row, self._catalogues)}
            for row in judged.select(*_REPORTED, "rule_results").iter_rows(named=True)
        ]

    def _client(self) -> Client:
        if not hasattr(self._local, "client"):
            self._local.client = self._client_factory()
        client: Client = self._local.client
        return client
