"""The KPI call gives exactly the oracle's figures: every metric, by every dimension, cohort and flow."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.read.held.figures import HeldFigures
from pipeline.read.kpi import BY, VIEWS
from pipeline.read.kpi import kpi as measured
from pipeline.read.times import instant
from pipeline.store.migrate import migrate
from tests.oracle import kpi as oracle
from tests.property.stored import arrive, reports_of
from tests.property.strategies import SPAN, START, Row, event_set

DATABASE: Final = "test_fold_agrees_on_metrics"
CHANNEL_KINDS: Final = {
    "grid_patrol": "staff", "yueshengshi": "public", "hotline_12345": "public", "pingantong": "care",
    "petition_market": "desk", "iot_sensor": "device",
}  # fmt: skip


class Names:
    """Names that are easy to recognise; the districts and the city in the order of their codes."""

    channel_kinds: Mapping[str, str] = CHANNEL_KINDS

    def listed_keys(self, by: str) -> Sequence[str]:
        return {"city": (oracle.CITY,), "district": oracle.DISTRICTS}.get(by, ())

    def name_zh(self, by: str, key: str) -> str | None:
        return f"{by}:{key}"


def expected(rows: Sequence[Row], **asked: Any) -> dict[str, Any]:
    names = oracle.Names(Names().name_zh, CHANNEL_KINDS)
    answer = oracle.kpi(
        [row.event for row in rows if row.is_case_event], reports_of(rows), names=names, **asked
    )
    return answer | {name: instant(answer[name]) for name in ("from", "to", "as_of")}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line per figure that differs. Rates are quotients of equal integers, so they agree to the bit."""
    lines = [
        f"{name}: database {found[name]!r}, oracle {wanted[name]!r}"
        for name in ("from", "to", "as_of", "view")
        if found[name] != wanted[name]
    ]
    rows = {row["key"]: row for row in found["rows"]}
    if list(rows) != [row["key"] for row in wanted["rows"]]:
        lines.append(f"keys: database {list(rows)}, oracle {[row['key'] for row in wanted['rows']]}")
    lines += [
        f"{row['key']}: only in one of both {rows[row['key']].keys() ^ row.keys()}"
        for row in wanted["rows"]
        if row["key"] in rows and rows[row["key"]].keys() != row.keys()
    ]
    lines += [
        f"{row['key']}.{name}: database {rows[row['key']][name]!r}, oracle {value!r}"
        for row in wanted["rows"]
        if row["key"] in rows
        for name, value in row.items()
        if rows[row["key"]][name] != value
    ]
    return lines


@pytest.fixture(scope="module")
def database(open_client: Client) -> Iterator[Client]:
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    yield open_client
    open_client.command(f"DROP DATABASE {DATABASE}")
    open_client.database = "default"


def windows(rng: random.Random, rows: Sequence[Row]) -> list[dict[str, datetime]]:
    """Everything at the end; a part of it as of a past instant that is exactly an event's; another part as of
    then and of the end."""
    at = rng.choice([row.event.occurred_at for row in rows])
    end = START + 10 * SPAN
    return [
        {"from_": START - SPAN, "to": end, "as_of": end},
        {"from_": START + SPAN / 4, "to": at + timedelta(milliseconds=1), "as_of": at},
        {"from_": START + SPAN / 4, "to": START + SPAN / 2, "as_of": START + SPAN},
        {"from_": START + SPAN / 4, "to": START + SPAN / 2, "as_of": end},
    ]


@pytest.mark.parametrize("seed", [11, 12])
def test_every_metric_agrees(database: Client, seed: int) -> None:
    rng = random.Random(seed)
    rows = event_set(rng, 400)
    arrive(database, rng, rows)
    held = HeldFigures(most_cases=1_000_000)
    held.keep_up(database)
    wrong, answered = [], 0
    for number, window in enumerate(windows(rng, rows)):
        for view in VIEWS:
            # the whole window by every dimension, the others by three of them each
            for by in BY if number == 0 else rng.sample(BY, 3):
                asked: dict[str, Any] = {"by": by, "view": view, **window}
                wanted = expected(rows, **asked)
                found = {
                    "store": measured(database, names=Names(), **asked),
                    "held": measured(database, names=Names(), held=held, **asked),
                }
                parts = held.parts(database, view, (by,), (), **window)
                answered += parts is not None and parts[0].cases is not None
                wrong += [
                    f"{who}: {view} by {by} #{number} {line}"
                    for who, answer in found.items()
                    for line in differences(answer, wanted)
                ]
    assert answered == (len(BY) + 9) * len(VIEWS)
    assert wrong == []
