"""Scenarios of load: how many users at which second. A user sends a fixed share of the base rate.

Nothing here imports locust, for benchmarks.load needs the scenarios too: locust replaces sockets, threads and
subprocesses of the process that imports it, and ends it where urllib3 was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar, Final

SECONDS: Final = float(os.environ.get("LOAD_SECONDS", "60"))
#: Users at the base rate; each sends an eighth of it.
USERS: Final = 8
#: Of a run with a burst: from here on the service is as it was before.
_CALM_AGAIN: Final = 0.8
_EVER: Final = float("inf")


def direct_weight(share: float, others: int) -> int:
    """Weight of a kind of users that is to be a share (0 to below 1) of all, beside others of this weight."""
    return round(others * share / (1.0 - share))


class Shape:
    """`factor` of the base rate at a share (0–1) of the run; subclasses say only that.

    Locust runs a class of both: `class Scenario(Steady, LoadTestShape)`.
    """

    get_run_time: Callable[[], float]
    get_current_user_count: Callable[[], int]
    #: Seconds that a step takes, from the first user more to the last.
    spawn_seconds: ClassVar[float] = 1.0
    #: Shares of the run in which the service must answer all in time; outside it may push back (429, 503 with
    #: Retry-After) without the scenario failing.
    CALM: ClassVar[tuple[tuple[float, float], ...]] = ((0.0, _EVER),)
    _users, _pace = 0, 1.0

    def factor(self, at: float) -> float:
        raise NotImplementedError

    def users_at(self, at: float) -> int:
        return max(1, round(USERS * self.factor(at)))

    def asked(self, rate: float) -> float:
        """Events that the users send in the whole run, each at its own pace; `rate` : the base, events/s."""
        seconds = range(round(SECONDS))
        return rate / USERS * sum(self.users_at(second / SECONDS) for second in seconds)

    def tick(self) -> tuple[int, float] | None:
        at = self.get_run_time() / SECONDS
        if at >= 1.0:
            return None
        users = self.users_at(at)
        if users != self._users:
            # of the whole step: of what is left of it the pace would fall with every second
            step = abs(users - self.get_current_user_count())
            self._users, self._pace = users, max(1.0, step / self.spawn_seconds)
        return users, self._pace


class Steady(Shape):
    """The same load from the first second to the last."""

    def factor(self, at: float) -> float:
        return 1.0


class Ramp(Shape):
    """Twelve steps from a half to 64 times the base rate; the knee is read from the answers."""

    CALM: ClassVar[tuple[tuple[float, float], ...]] = ()
    STEPS: ClassVar = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)

    def factor(self, at: float) -> float:
        return self.STEPS[min(int(at * len(self.STEPS)), len(self.STEPS) - 1)]


class Spike(Shape):
    """Ten times the load within ten seconds (or a tenth of a short run), held a while, then as before."""

    spawn_seconds: ClassVar = min(10.0, SECONDS / 10)
    BEGIN: ClassVar = 0.3
    END: ClassVar = 0.6
    CALM: ClassVar = ((0.0, BEGIN), (_CALM_AGAIN, _EVER))

    def factor(self, at: float) -> float:
        return 10.0 if self.BEGIN <= at < self.END else 1.0


class Reconnect(Shape):
    """The network is back: one handset in five uploads six hours of backlog within five minutes.

    Six hours of a fifth of the base rate in five minutes are 0.2 · 72 = 14.4 times the base rate, on top.
    A short run keeps the rate and shortens the five minutes to a third of the run.
    """

    BACKLOG: ClassVar = 0.2 * 6 * 60 / 5
    BEGIN: ClassVar = 0.3
    END: ClassVar = BEGIN + min(300.0 / SECONDS, 1 / 3)
    CALM: ClassVar = ((0.0, BEGIN), (_CALM_AGAIN, _EVER))

    def factor(self, at: float) -> float:
        return 1.0 + (self.BACKLOG if self.BEGIN <= at < self.END else 0.0)


#: Scenario -> shape. `storm`, `bad-data` and `replay` differ in what is sent, not in how much.
SHAPES: Final[dict[str, type[Shape]]] = {
    "steady": Steady,
    "ramp": Ramp,
    "spike": Spike,
    "storm": Steady,
    "reconnect": Reconnect,
    "soak": Steady,
    "bad-data": Steady,
    "replay": Steady,
}
#: Seconds of the full form.
LENGTHS: Final = {"ramp": 240, "spike": 120, "reconnect": 900, "soak": 1_800}
#: Scenarios in parts of which the service may push back.
MAY_PUSH_BACK: Final = frozenset(name for name, shape in SHAPES.items() if shape.CALM != Shape.CALM)
