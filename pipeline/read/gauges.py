"""Business gauges for Prometheus: the KPI call's defaults by district, refreshed beside the requests.

A scrape only reads the last figures; it never waits for ClickHouse. When ClickHouse does not answer, the last
figures stay, and the next refresh tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from clickhouse_connect.driver.client import Client
from prometheus_client import Gauge

from pipeline import metrics
from pipeline.read.kpi import kpi
from pipeline.read.names import KpiNames
from pipeline.read.reader import Reader
from pipeline.read.rejected import LIFE_SAFETY, life_safety_by_reason
from pipeline.read.repeat import repeat
from pipeline.read.times import parameter

WINDOW: Final = timedelta(days=30)
REFRESH_SECONDS: Final = 5.0
#: A refresh reads every case of its window: after one it rests so many times as long as it took, so that a
#: large store is read for a fifth of the time. Figures stay younger than the 120 s that alerts take for
#: fresh: two readings of at most 30 s, as long as a query may take, and the rest between them.
_REST: Final = 4.0
_LONGEST_REST_SECONDS: Final = 30.0
_LAST_HOUR: Final = timedelta(hours=1)
_OTHER: Final = "other"
#: Prometheus writes quantiles as fractions.
_QUANTILES: Final = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}
_GAUGES: Final = {
    "closure_rate": metrics.closure_ratio,
    "response_rate": metrics.response_ratio,
    "open": metrics.open_cases,
    "overdue": metrics.overdue_cases,
}

#: Gives the KPI call's default answer by district, with the counts behind each rate.
Districts = Callable[[], Awaitable[dict[str, Any]]]


@contextlib.contextmanager
def business_gauges(reader: Reader, *, interval_seconds: float = REFRESH_SECONDS) -> Iterator[None]:
    """Refresh the gauges in a task of the running event loop while the context is open."""
    task = asyncio.get_running_loop().create_task(
        refresh_for_ever(reader, interval_seconds=interval_seconds), name="business gauges"
    )
    try:
        yield
    finally:
        task.cancel()


async def refresh_for_ever(
    reader: Reader, *, interval_seconds: float = REFRESH_SECONDS, districts: Districts | None = None
) -> None:
    """Refresh the gauges until cancelled, every `interval_seconds` or as seldom as `rest_seconds` says. A
    failing refresh is logged once per spell, never raised."""
    await repeat(
        lambda: refresh(reader, districts),
        rest=partial(rest_seconds, interval_seconds=interval_seconds),
        failing_as="gauges_not_refreshed",
    )


def rest_seconds(took: float, interval_seconds: float = REFRESH_SECONDS) -> float:
    """Seconds between the end of a refresh that took so long and the begin of the next."""
    return max(interval_seconds, min(_REST * took, _LONGEST_REST_SECONDS))


async def refresh(reader: Reader, districts: Districts | None = None) -> None:
    """Set the gauges once. districts : who has the answer already; None: ClickHouse is asked.

    Raises UnavailableError when ClickHouse does not answer.
    """
    answer = await (districts() if districts is not None else reader.run(partial(_ask, reader)))
    rows = answer["rows"]
    now = reader.clock()

    def rest(client: Client) -> tuple[dict[str, int], dict[str, int], list[tuple[str, int, int]]]:
        alarms = life_safety_by_reason(client, from_=now - LIFE_SAFETY)
        return _breaches(client, now=now), alarms, _disks(client)

    breaches, alarms, disks = await reader.run(rest)
    # No await from here on: a scrape sees either all figures of one instant or all of another.
    metrics.business_as_of_timestamp_seconds.set(datetime.fromisoformat(answer["as_of"]).timestamp())
    for row in rows:
        district = row["key"]
        in_time, owed = row["parts"]["timely_response_rate"]
        metrics.response_breached_cases.labels(district).set(owed - in_time)
        metrics.response_breaches_last_hour_cases.labels(district).set(breaches.get(district, 0))
        for field, gauge in _GAUGES.items():
            _set(gauge, row[field], district)
        for percentile, quantile in _QUANTILES.items():
            _set(metrics.response_seconds, row["response_seconds"][percentile], district, quantile)
    _tell_life_safety(alarms, reader.catalogues.reason_names_zh)
    for disk, free, size in disks:
        metrics.store_disk_free_bytes.labels(disk).set(free)
        metrics.store_disk_size_bytes.labels(disk).set(size)


def _tell_life_safety(alarms: Mapping[str, int], known: Iterable[str]) -> None:
    """By reason; what is no reason of the catalogue is `other`, as in the worker's counter."""
    by_reason = dict.fromkeys((*known, _OTHER), 0)
    for reason, reports in alarms.items():
        by_reason[reason if reason in by_reason else _OTHER] += reports
    for reason, reports in by_reason.items():
        metrics.life_safety_rejections_last_hour_reports.labels(reason).set(reports)


def _ask(reader: Reader, client: Client) -> dict[str, Any]:
    now = reader.clock()
    names = KpiNames(reader.areas, reader.catalogues, client)
    window = {"from_": now - WINDOW, "to": now, "as_of": now}
    return kpi(client, by="district", view="cohort", names=names, parts=True, held=reader.held, **window)


def _breaches(client: Client, *, now: datetime) -> dict[str, int]:
    """District → counted cases whose response limit passed within the last hour without a response by then.

    By the instant of the limit: what the 30-day stock gains in an hour hides behind what leaves it.
    """
    found = client.query(
        """
        SELECT substring(state.3, 1, 6) AS district, count()
        FROM (
            SELECT argMax((is_admitted, is_counted, grid_code, response_due_at, first_response_at), version)
                AS state
            FROM cases
            WHERE case_id IN (
                SELECT case_id FROM cases WHERE response_due_at > {since:DateTime64(3, 'UTC')}
                    AND response_due_at <= {now:DateTime64(3, 'UTC')}
            )
            GROUP BY case_id
        )
        WHERE state.1 AND state.2 AND state.4 > {since:DateTime64(3, 'UTC')}
            AND state.4 <= {now:DateTime64(3, 'UTC')} AND ifNull(state.5 > state.4, 1)
        GROUP BY district
        """,
        parameters={"since": parameter(now - _LAST_HOUR), "now": parameter(now)},
    )
    return {str(district): int(cases) for district, cases in found.result_rows}


def _disks(client: Client) -> list[tuple[str, int, int]]:
    """Name, free and whole bytes of the disks that ClickHouse writes to."""
    found = client.query("SELECT name, free_space, total_space FROM system.disks WHERE total_space > 0")
    return [(str(name), int(free), int(size)) for name, free, size in found.result_rows]


def _set(gauge: Gauge, value: float | None, *labels: str) -> None:
    """A figure that does not exist (no case in the window) has no series, rather than a false zero."""
    if value is None:
        gauge.remove(*labels)
    else:
        gauge.labels(*labels).set(value)
