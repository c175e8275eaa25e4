"""Rolling the embedded log. The embedded broker keeps every record in memory for ever; over a limit its
process is replaced, and with it the log, once everything in the log is stored.

The order makes it safe: nobody is on the way to the log (gate), nothing in it is unstored (drained), nobody
reads it (worker closed), and only then it goes. Offsets of the new log can confirm nothing of the old one.
A step that fails ends in what the supervisor does when a broker dies: everything that uses it starts anew,
and nothing was answered that is not stored. Source: design 2.10, ADR 0012.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from pipeline import logs
from pipeline.errors import UnavailableError
from pipeline.runtime.valve import RefusedError, Valve
from pipeline.settings import Settings

log = logs.get_logger(__name__)

_LOOK_SECONDS: Final = 1.0
_REST_SECONDS: Final = 5.0
#: Longer than the slowest request on its way.
_CLOSE_SLACK_SECONDS: Final = 8.0
#: Between two tries that made callers wait in vain.
_PATIENCE_SECONDS: Final = 60.0
_DRAIN_SECONDS: Final = 10.0
_WORKER_CLOSE_SECONDS: Final = 25.0
_GATE_OPEN_SECONDS: Final = 30.0
_NOT_QUIET: Final = "records keep coming straight to the topic"
#: A site whose log fills faster than this belongs on Kafka.
OUTGROWN_SECONDS: Final = 600.0
#: So far over the limit the log could not be rolled for too long.
OUTGROWN_FACTOR: Final = 1.5


@dataclass
class LogState:
    """What the embedded log is like, for metrics and `doctor`; kept in `run/log.json`.

    bytes : memory that the broker took since it started; over_since, rolled_at : unix seconds, None: not;
    between_rolls : seconds from the last but one roll to the last; waits_for : why a due roll is put off.
    """

    bytes: int = 0
    limit: int = 0
    rolls: int = 0
    over_since: float | None = None
    rolled_at: float | None = None
    between_rolls: float | None = None
    waits_for: str = ""

    @staticmethod
    def path(run_dir: Path) -> Path:
        return run_dir / "log.json"

    @classmethod
    def read(cls, run_dir: Path) -> LogState | None:
        """None where no embedded broker runs."""
        try:
            return cls(**json.loads(cls.path(run_dir).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def bytes_in(cls, run_dir: Path) -> int:
        """`bytes` of the running broker, 0 without one."""
        state = cls.read(run_dir)
        return state.bytes if state is not None else 0

    def write(self, run_dir: Path) -> None:
        path = self.path(run_dir)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)

    def outgrown(self) -> str:
        """Why this site should move to Kafka, empty if it need not."""
        if self.bytes > OUTGROWN_FACTOR * self.limit:
            return f"holds {self.bytes / 1e6:.0f} MB and cannot be emptied: {self.waits_for or 'it is busy'}"
        if self.between_rolls is not None and self.between_rolls < OUTGROWN_SECONDS:
            return f"fills its {self.limit / 1e6:.0f} MB in {self.between_rolls / 60:.1f} minutes"
        return ""


class LogRoll:
    """Looks at the broker's memory, and rolls the log when it is over the limit and may go.

    children : the valves of the running children by role, `http` and `store`.
    replace_broker : end the broker and start another at the same address, with the topic.
    give_up : whether the service is stopping.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        children: Callable[[], Mapping[str, Valve]],
        replace_broker: Callable[[], None],
        give_up: Callable[[], bool],
    ) -> None:
        self._run_dir = settings.run_dir
        self._quiet_seconds = settings.embedded_log_quiet_seconds
        self._close_seconds = settings.durability_timeout_seconds + _CLOSE_SLACK_SECONDS
        self._children = children
        self._replace_broker = replace_broker
        self._give_up = give_up
        self._pid = 0
        self._base = 0
        self._look_at = 0.0
        self._try_at = 0.0
        self.state = LogState(limit=settings.embedded_log_limit_bytes)

    def broker_started(self, pid: int) -> None:
        """A broker with an empty log."""
        self._pid, self._base = pid, _resident(pid)
        self.state.bytes, self.state.over_since, self.state.waits_for = 0, None, ""
        self.state.write(self._run_dir)

    def tend(self) -> None:
        """Called all the time. Raises UnavailableError when a roll broke off with the log closed: the caller
        must replace everything that uses the broker."""
        now = time.monotonic()
        if now < self._look_at or not self._pid:
            return
        self._look_at = now + _LOOK_SECONDS
        self.state.bytes = max(_resident(self._pid) - self._base, 0)
        if self.state.bytes <= self.state.limit:
            self.state.over_since = None
        elif self.state.over_since is None:
            self.state.over_since = time.time()
        if self.state.over_since is not None:
            self.state.waits_for = self._roll()
        self.state.write(self._run_dir)

    def _roll(self) -> str:
        """Roll the log; returns why it cannot be done now, empty when it was done."""
        children = self._children()
        http, store = children.get("http"), children.get("store")
        if http is None or store is None:
            return "a process is starting"
        if time.monotonic() < self._try_at:
            return self.state.waits_for
        try:
            found = store.ask("rest", seconds=_REST_SECONDS, give_up=self._give_up)
        except UnavailableError:
            return "the store process does not answer"
        if found["direct_seconds"] < self._quiet_seconds:
            return _NOT_QUIET
        began = time.monotonic()
        try:
            http.ask("close", seconds=self._close_seconds, give_up=self._give_up)
        except RefusedError:
            return self._later("requests do not come to an end")
        if problem := self._left_in_the_log(store):
            http.ask("open", seconds=_GATE_OPEN_SECONDS, give_up=self._give_up)
            return self._later(problem)
        store.ask("close", seconds=_WORKER_CLOSE_SECONDS, give_up=self._give_up)
        held = self.state.bytes
        self._replace_broker()
        store.ask("open", seconds=_REST_SECONDS, give_up=self._give_up)
        http.ask("renewed", seconds=_GATE_OPEN_SECONDS, give_up=self._give_up)
        self._count()
        log.info(
            "log_rolled",
            held_bytes=held,
            rolls=self.state.rolls,
            paused_seconds=round(time.monotonic() - began, 2),
        )
        return ""

    def _later(self, why: str) -> str:
        """Callers waited in vain: leave them alone for a while."""
        self._try_at = time.monotonic() + _PATIENCE_SECONDS
        log.warning("log_roll_put_off", reason=why)
        return why

    def _left_in_the_log(self, store: Valve) -> str:
        """Waits until nothing is; returns why something still is or may come, empty if not."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() <= deadline:
            found = store.ask("rest", seconds=_REST_SECONDS, give_up=self._give_up)
            if found["direct_seconds"] < self._quiet_seconds:
                return _NOT_QUIET
            if found["drained"]:
                return ""
            time.sleep(0.02)
        return "the worker does not come to the end of the log"

    def _count(self) -> None:
        now = time.time()
        if self.state.rolled_at is not None:
            self.state.between_rolls = now - self.state.rolled_at
        self.state.rolled_at = now
        self.state.rolls += 1


def _resident(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        resident: int = psutil.Process(pid).memory_info().rss
        return resident
    return 0
