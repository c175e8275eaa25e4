"""Keeps a source that has gone mad from filling the log: a token bucket per kind of line and source."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

#: Lines of one kind and source that may come at once, and then per second.
BURST: Final = 50
PER_SECOND: Final = 1.0
#: What was left out is told after this long.
SUMMARY_SECONDS: Final = 10.0
#: Kinds and sources remembered; a sender may invent sources.
_MOST_KEYS: Final = 2_000

_Key = tuple[str, str]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float
    suppressed: int = 0


class LimitedHandler(logging.Handler):
    """Hands records on to `handlers`, of one kind and source at most `burst` at once and `per_second` later.

    The kind is the event name of a structlog line, the unformatted message of any other. What is left out is
    counted and told as `lines_suppressed` after `SUMMARY_SECONDS`, and when the handler is closed.
    """

    def __init__(
        self,
        handlers: Sequence[logging.Handler],
        *,
        burst: int = BURST,
        per_second: float = PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._handlers = tuple(handlers)
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._buckets: OrderedDict[_Key, _Bucket] = OrderedDict()
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._allowed(_key(record)):
            self._pass_on(record)

    def summarise(self) -> None:
        """Tell what was left out since the last time."""
        with self._own_lock:
            self._timer = None
            left_out = [
                (key, bucket.suppressed) for key, bucket in self._buckets.items() if bucket.suppressed
            ]
            for key, _ in left_out:
                self._buckets[key].suppressed = 0
        for (kind, source), lines in left_out:
            self._pass_on(_summary(kind, source, lines))

    def flush(self) -> None:
        for handler in self._handlers:
            handler.flush()

    def close(self) -> None:
        with self._own_lock:
            if self._timer is not None:
                self._timer.cancel()
        self.summarise()
        for handler in self._handlers:
            handler.close()
        super().close()

    @property
    def _own_lock(self) -> threading.RLock:
        assert self.lock is not None
        return self.lock

    def _pass_on(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            handler.handle(record)

    def _allowed(self, key: _Key) -> bool:
        """Take a token; `emit` runs under the handler's lock."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
            self._forget_old()
        self._buckets.move_to_end(key)
        bucket.tokens = min(bucket.tokens + (now - bucket.filled_at) * self._per_second, self._burst)
        bucket.filled_at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return True
        bucket.suppressed += 1
        if self._timer is None:
            self._timer = threading.Timer(SUMMARY_SECONDS, self.summarise)
            self._timer.daemon = True
            self._timer.start()
        return False

    def _forget_old(self) -> None:
        """Buckets of those that were quiet longest; what they still have to tell is told."""
        while len(self._buckets) > _MOST_KEYS:
            (kind, source), bucket = self._buckets.popitem(last=False)
            if bucket.suppressed:
                self._pass_on(_summary(kind, source, bucket.suppressed))


def _key(record: logging.LogRecord) -> _Key:
    if isinstance(record.msg, dict):  # as structlog hands it over
        return str(record.msg.get("event", "")), str(record.msg.get("source", ""))
    return f"{record.name}: {record.msg}"[:200], ""


def _summary(kind: str, source: str, lines: int) -> logging.LogRecord:
    message = f"lines_suppressed: {lines} of {kind!r}" + (f" from {source!r}" if source else "")
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
    record.suppressed = {"of": kind, "source": source, "lines": lines}
    return record
