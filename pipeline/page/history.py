"""The last hour of every tile: one point a minute, and past points of the KPI read as of their instant."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Any, Final

from pipeline.read.times import instant

HOUR: Final = timedelta(hours=1)
#: Past points read when the page is first watched: one per so many minutes.
PAST_STEP: Final = timedelta(minutes=6)

#: A delay above the last bound of its histogram is kept as that bound: left out, the worst would be a gap.
LONGEST_DELAY: Final = 30.0

#: What of the city's row is kept.
KPI_FIELDS: Final = (
    "closure_rate",
    "response_rate",
    "timely_response_rate",
    "closure_on_time_rate",
    "handling_on_time_rate",
    "open",
    "overdue",
)


class History:
    """Points of the last hour, oldest first."""

    def __init__(self) -> None:
        self._points: deque[tuple[datetime, dict[str, Any]]] = deque()

    def add(self, at: datetime, kpi_row: dict[str, Any] | None, figures: dict[str, Any] | None) -> None:
        """A point; times may come in any order. kpi_row : a city's row, None where the store did not answer;
        figures : `Figures.describe()`, or what of it is known of a time that is past."""
        point: dict[str, Any] = {name: (kpi_row or {}).get(name) for name in KPI_FIELDS}
        delay = (figures or {}).get("delay_seconds")
        p99 = None if delay is None else LONGEST_DELAY if delay["p99"] is None else delay["p99"]
        point |= {
            "events_per_second": (figures or {}).get("events_per_second"),
            "delay_seconds": p99,
        }
        self._points.append((at, point))
        self._points = deque(sorted(self._points, key=lambda item: item[0]))
        while self._points and self._points[-1][0] - self._points[0][0] > HOUR:
            self._points.popleft()

    def complete(self, at: datetime, **known: float | None) -> None:
        """Give the point of that instant what was not known when it was kept."""
        for kept_at, point in self._points:
            if kept_at == at:
                point.update({name: value for name, value in known.items() if point[name] is None})

    def past_instants(self, now: datetime) -> list[datetime]:
        """Instants of the last hour that no point stands for, newest first: what is left to be read.

        Counted from the oldest point there is, so that the line goes on without a gap.
        """
        oldest = self._points[0][0] if self._points else now
        steps = int(HOUR / PAST_STEP)
        return [at for n in range(1, steps + 1) if (at := oldest - n * PAST_STEP) >= now - HOUR]

    def oldest_at(self) -> datetime | None:
        return self._points[0][0] if self._points else None

    def points(self) -> list[dict[str, Any]]:
        return [{"at": instant(at), **point} for at, point in self._points]
