"""What to simulate: how many cases of which districts, in which time, and how much noise around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from pipeline.simulate.lifecycle import Rates
from pipeline.simulate.published import DISTRICTS, PUBLISHED_YEARS

YEAR: Final = timedelta(days=365)
_LEAST_LIFE: Final = timedelta(hours=6)


@dataclass(frozen=True)
class DistrictPlan:
    """Counted cases of one district. closed : how many are closed at the end; None: as life goes.

    mix : name of a channel mix (`reports.CHANNEL_MIXES`). all_responded : also those that are left open.
    """

    code: str
    cases: int
    closed: int | None
    mix: str
    all_responded: bool = False


@dataclass(frozen=True)
class Noise:
    """What comes on top of the counted cases: shares of cases, or of events where it says so (assumed)."""

    merged: float = 0.05
    voided: float = 0.015
    rejected: float = 0.03
    orphans: float = 0.003
    supplements: float = 0.006  # a second report under the same case
    resends: float = 0.02
    redeliveries: float = 0.01  # of events
    slow: float = 0.12  # of events: arrive half an hour later in the mean
    offline: float = 0.03  # of events: arrive hours or days later
    conflicts: float = 0.0002  # of events: the id of an earlier event with other content


@dataclass(frozen=True)
class Plan:
    """start, end : cases are reported in [start, end); nothing but some rejected reports lies behind `end`.

    last_report : cases are reported before it; None: six hours before the end, so that their lives fit.
    time_lapse : how many times faster than in life cases are handled.
    tag : letters that begin every id, so that two runs do not meet; source : feeding system of the events.
    """

    districts: tuple[DistrictPlan, ...]
    start: datetime
    end: datetime
    seed: int
    tag: str
    source: str
    rates: Rates = field(default_factory=Rates)
    noise: Noise = field(default_factory=Noise)
    last_report: datetime | None = None
    time_lapse: float = 1.0

    @property
    def last_report_ms(self) -> int:
        last = self.last_report or self.end - _LEAST_LIFE
        return max(int(last.timestamp() * 1_000), self.start_ms + 1)

    @property
    def start_ms(self) -> int:
        return int(self.start.timestamp() * 1_000)

    @property
    def end_ms(self) -> int:
        return int(self.end.timestamp() * 1_000)


_MIXES: Final = {"440703": "public", "440704": "general", "440784": "rider", "440785": "general"}


def published_year(end: datetime, seed: int, source: str) -> Plan:
    """The districts' published volumes in the 365 days before `end` (design 9.22). Dates are simulated."""
    districts = tuple(
        DistrictPlan(
            year.code,
            year.received,
            year.closed,
            _MIXES[year.code],
            all_responded=year.response_rate == 1.0,
        )
        for year in PUBLISHED_YEARS
    )
    return Plan(districts, end - YEAR, end, seed, "demo", source)


def ordinary_days(
    cases: int,
    start: datetime,
    end: datetime,
    *,
    seed: int,
    tag: str,
    source: str,
    last_report: datetime | None = None,
    noise: Noise | None = None,
    time_lapse: float = 1.0,
) -> Plan:
    """About `cases` cases of all seven districts, by residents, living as they do (see `Plan`)."""
    residents = sum(facts.residents for facts in DISTRICTS)
    districts = tuple(
        DistrictPlan(facts.code, max(1, round(cases * facts.residents / residents)), None, "general")
        for facts in DISTRICTS
    )
    return Plan(
        districts, start, end, seed, tag, source,
        noise=noise or Noise(), last_report=last_report, time_lapse=time_lapse,
    )  # fmt: skip
