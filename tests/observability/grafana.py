"""The queries of the committed dashboards, as Grafana would send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

DASHBOARDS: Final = Path(__file__).parents[2] / "infra" / "grafana" / "dashboards"
PROVISIONING: Final = DASHBOARDS.parent / "provisioning"
PROMETHEUS: Final = "prometheus"
CLICKHOUSE: Final = "grafana-clickhouse-datasource"


@dataclass(frozen=True)
class PanelQuery:
    dashboard: str
    title: str
    ref: str
    text: str
    curve: bool  # asked for a time and a step, not for an instant
    description: str  # of its panel

    def __str__(self) -> str:
        return f"{self.dashboard}-{self.title.split()[-1]}-{self.ref}"


def every_panel(name: str) -> Iterator[dict[str, Any]]:
    """Panels of a dashboard, those inside rows too; no rows."""

    def walk(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for panel in found:
            if panel["type"] == "row":
                yield from walk(panel.get("panels") or [])
            else:
                yield panel

    yield from walk(json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))["panels"])


def panels(source: str) -> list[PanelQuery]:
    """Every query of every panel that reads this kind of source."""
    return [
        PanelQuery(
            path.stem,
            panel["title"],
            target["refId"],
            target.get("expr") or target["rawSql"],
            bool(target.get("range")),
            panel.get("description", ""),
        )
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in every_panel(path.stem)
        for target in panel["targets"]
        if (target.get("datasource") or panel["datasource"])["type"] == source
    ]


def provisioned(kind: str) -> dict[str, Any]:
    """The one source of this type that our file gives Grafana."""
    text = (PROVISIONING / "datasources" / "gridpipe.yml").read_text(encoding="utf-8")
    (found,) = (source for source in yaml.safe_load(text)["datasources"] if source["type"] == kind)
    return dict(found)


def scrape_seconds() -> int:
    """What Grafana takes for the time between two scrapes, and never asks for points closer than."""
    return int(provisioned(PROMETHEUS)["jsonData"]["timeInterval"].removesuffix("s"))


def promql(expression: str, step: int) -> str:
    """What Grafana's Prometheus source makes of its macro in a curve of a point every `step` seconds."""
    scrape = scrape_seconds()
    window = max(max(step, scrape) + scrape, 4 * scrape)
    expression = expression.replace("$__rate_interval", f"{window}s")
    assert "$" not in expression, "an unknown macro"
    return expression


def expand(sql: str, begin: datetime, end: datetime) -> str:
    """What the ClickHouse plugin makes of its time macros."""
    for macro, instant in (("$__fromTime_ms", begin), ("$__toTime_ms", end)):
        milliseconds = int(instant.timestamp()) * 1000 + instant.microsecond // 1000
        sql = sql.replace(macro, f"fromUnixTimestamp64Milli({milliseconds})")
    assert "$__" not in sql, "an unknown macro"
    return sql
