"""The live closure-rate table of `gridpipe up`, read from the service's own KPI call."""

from __future__ import annotations

import time
from typing import Any

import httpx
from rich.table import Table

from pipeline.cli.common import out
from pipeline.cli.tables import kpi_table, percent

_ASK_SECONDS = 5.0


class Board:
    """Asks `GET /v1/kpi?by=district` and `by=city`; keeps the last answer while the service is busy."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=_ASK_SECONDS,
            trust_env=False,
            verify=False,  # noqa: S501  the service of this very process: nobody is between
        )
        self._rows: dict[str, list[dict[str, Any]]] = {"district": [], "city": []}
        self._answer: dict[str, Any] = {"view": "", "from": "", "to": "", "as_of": ""}
        self._note = "no figures yet"
        self._printed_at = time.monotonic()

    def refresh(self) -> None:
        for by in self._rows:
            try:
                answer = self._client.get("/v1/kpi", params={"by": by})
                answer.raise_for_status()
            except httpx.HTTPError:
                self._note = "the service does not answer just now; older figures"
                return
            self._answer = answer.json()
            self._rows[by] = self._answer["rows"]
        self._note = "cohort of the last 30 days, as of now"

    def table(self) -> Table:
        """Fresh figures as a table."""
        self.refresh()
        table = kpi_table(
            {**self._answer, "rows": [*self._rows["district"], *self._rows["city"]]}, "district"
        )
        table.title, table.caption = "办结率 closure rate", self._note
        return table

    def print_line_every(self, seconds: float) -> None:
        """One plain line for logs, at most every `seconds`."""
        if time.monotonic() - self._printed_at < seconds:
            return
        self._printed_at = time.monotonic()
        self.refresh()
        for row in self._rows["city"]:
            out.print(
                f"{time.strftime('%H:%M:%S', time.gmtime())} reports {row['reports']} cases {row['cases']} "
                f"closed {row['closed']} closure rate {percent(row['closure_rate'])} "
                f"response rate {percent(row['response_rate'])} open {row['open']} overdue {row['overdue']}",
                soft_wrap=True,
            )
