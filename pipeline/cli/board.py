"""The live closure-rate table of `gridpipe up`, read from the service's own KPI call."""

from __future__ import annotations

import time
from typing import Any

import httpx
from rich.table import Table

from pipeline.cli.common import out

_ASK_SECONDS = 5.0


class Board:
    """Asks `GET /v1/kpi?by=district` and `by=city`; keeps the last answer while the service is busy."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_ASK_SECONDS, trust_env=False)
        self._rows: dict[str, list[dict[str, Any]]] = {"district": [], "city": []}
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
            self._rows[by] = answer.json()["rows"]
        self._note = "cohort of the last 30 days, as of now"

    def table(self) -> Table:
        """Fresh figures as a table."""
        self.refresh()
        table = Table(title="办结率 closure rate", caption=self._note)
        table.add_column("区域 district")
        for head in (
            "上报 reports",
            "案件 cases",
            "办结 closed",
            "办结率",
            "响应率",
            "在办 open",
            "超期 overdue",
            "响应 p50",
        ):
            table.add_column(head, justify="right")
        for by, style in (("district", ""), ("city", "bold")):
            for row in self._rows[by]:
                table.add_row(*_cells(row), style=style)
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
                f"closed {row['closed']} closure rate {_percent(row['closure_rate'])} "
                f"response rate {_percent(row['response_rate'])} open {row['open']} overdue {row['overdue']}",
                soft_wrap=True,
            )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['name_zh']} {row['key']}",
        f"{row['reports']:,}",
        f"{row['cases']:,}",
        f"{row['closed']:,}",
        _percent(row["closure_rate"]),
        _percent(row["response_rate"]),
        f"{row['open']:,}",
        f"{row['overdue']:,}",
        _duration(row["response_seconds"]["p50"]),
    ]


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d}"
