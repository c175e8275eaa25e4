"""Whether what this gateway answered with 2xx is in ClickHouse: part of the runtime verifier.

A sample, not the sums: of each minute the gateway remembers up to a thousand events that it answered, of a
request up to twenty, in a small city all of them, and looks for their rows, in whichever outcome table. It
counts its own answers only: other gateways, direct producers and restarts of workers do not blur the result.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.clock import Clock, utc_now
from pipeline.contract.event import Event
from pipeline.errors import UnavailableError

log = structlog.get_logger(__name__)
T = TypeVar("T")

_EVERY_SECONDS: Final = 60.0
MOST_PER_MINUTE: Final = 1_000
MOST_PER_REQUEST: Final = 20
#: What is younger is not looked for yet.
_FIRST_LOOK: Final = timedelta(seconds=60)
#: What is older and not stored is missing. It stops to be when it comes: an outage is not yet a loss.
ALLOWANCE: Final = timedelta(minutes=5)
#: Memory is bounded; an outage as long as this has told everybody.
_FORGOTTEN: Final = timedelta(hours=2)
_SLACK: Final = timedelta(seconds=1)
_MOST_NAMED: Final = 20

_Id = tuple[str, str]  # source, event_id


class Store(Protocol):
    """Where events are looked for; `read.reader.Reader` is one."""

    def run(self, work: Callable[[Client], T]) -> Awaitable[T]:
        """Raises UnavailableError when ClickHouse does not answer."""


@dataclass
class _Minute:
    """A sample of the events received in one minute of this gateway's clock."""

    begins: datetime
    seen: int = 0
    ids: list[_Id] = field(default_factory=list)

    def add(self, identity: _Id, chance: random.Random) -> None:
        self.seen += 1
        if len(self.ids) < MOST_PER_MINUTE:
            self.ids.append(identity)
        elif (at := int(chance.random() * self.seen)) < MOST_PER_MINUTE:
            self.ids[at] = identity


class Balance:
    """Remembers answered events and looks for them, on the gateway's event loop."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._minutes: dict[datetime, _Minute] = {}
        self._chance = random.Random()  # noqa: S311  a sample, no secret
        self._sources: set[str] = set()
        self._failing = False

    def answered(self, events: Sequence[Event], received_at: datetime) -> None:
        """These events are about to be answered with 2xx. received_at : their `ingested_at`."""
        if not events:
            return
        begins = received_at.replace(second=0, microsecond=0)
        minute = self._minutes.get(begins)
        if minute is None:
            minute = self._minutes[begins] = _Minute(begins)
        chosen = events if len(events) <= MOST_PER_REQUEST else self._chance.sample(events, MOST_PER_REQUEST)
        # a figure that appears with its first increase hides it from an alert
        for source in {event.source for event in chosen} - self._sources:
            self._sources.add(source)
            metrics.balance_missing_events.labels(source).set(0)
        for event in chosen:
            minute.add((event.source, event.event_id), self._chance)

    async def run(self, store: Store) -> None:
        """Look each minute until cancelled; a store that does not answer is asked again a minute later."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.look(store)
            except UnavailableError:
                continue
            except Exception:
                log.exception("balance_failed")

    async def look(self, store: Store) -> dict[str, int]:
        """Look for what is old enough; returns source -> events of the sample that are missing.

        Raises UnavailableError when ClickHouse does not answer.
        """
        now = self._clock()
        missing: Counter[str] = Counter()
        named: list[_Id] = []
        for begins, minute in sorted(self._minutes.items()):
            ended = begins + timedelta(minutes=1)
            if now - ended < _FIRST_LOOK:
                continue
            found = await store.run(_look(minute.ids, begins - _SLACK, ended + _SLACK))
            minute.ids = [identity for identity in minute.ids if identity not in found]
            if not minute.ids or now - ended > _FORGOTTEN:
                del self._minutes[begins]
            if now - ended >= ALLOWANCE:
                missing.update(source for source, _ in minute.ids)
                named += minute.ids
        for source in self._sources:
            metrics.balance_missing_events.labels(source).set(missing[source])
        self._tell(named)
        return dict(missing)

    def _tell(self, missing: Sequence[_Id]) -> None:
        if missing and not self._failing:
            log.error("answered_events_missing", events=len(missing), ids=missing[:_MOST_NAMED])
        elif self._failing and not missing:
            log.info("answered_events_found")
        self._failing = bool(missing)


def _look(ids: Sequence[_Id], since: datetime, until: datetime) -> Callable[[Client], set[_Id]]:
    """Those of `ids`, received in [since, until), that have a row in an outcome table."""
    parameters: dict[str, Any] = {
        "ids": [event_id for _, event_id in ids],
        "since": since.strftime("%Y-%m-%d %H:%M:%S.000"),
        "until": until.strftime("%Y-%m-%d %H:%M:%S.000"),
    }
    each = " UNION ALL ".join(
        f"SELECT toString(source) AS source, event_id FROM {table} "
        "WHERE ingested_at >= {since:DateTime64(3, 'UTC')} AND ingested_at < {until:DateTime64(3, 'UTC')} "
        "AND event_id IN {ids:Array(String)}"
        for table in ("events", "rejections", "duplicates", "quarantine")
    )

    def look(client: Client) -> set[_Id]:
        rows = client.query(f"SELECT DISTINCT source, event_id FROM ({each})", parameters=parameters)
        return {(str(source), str(event_id)) for source, event_id in rows.result_rows}

    return look
