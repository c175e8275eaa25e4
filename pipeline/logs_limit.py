"""Keeps senders gone mad from filling the log: token buckets per kind of line and source, and per kind."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

#: Lines of one kind and source that may come at once, and then per second.
BURST: Final = 50
PER_SECOND: Final = 1.0
#: Of one kind, whoever they are from: a sender may invent sources.
KIND_BURST: Final = 500
KIND_PER_SECOND: Final = 20.0
#: What was left out is told after this long.
SUMMARY_SECONDS: Final = 10.0
#: Buckets remembered.
_MOST_KEYS: Final = 2_000
#: Sources of a kind of which a summary tells one by one, those with most lines first.
_MOST_NAMED: Final = 10
#: Ports, offsets and counts that libraries write into their messages make no new kind.
_DIGITS: Final = re.compile("[0-9]+")


class _Key(NamedTuple):
    """source : "" where a line has none; None for all lines of the kind."""

    kind: str
    source: str | None


@dataclass(slots=True)
class _Bucket:
    whole: _Key  # that of its kind
    tokens: float
    filled_at: float
    suppressed: int = 0


class LimitedHandler(logging.Handler):
    """Hands records on to `handlers`: of one kind and source at most `burst` at once and `per_second` later,
    of one kind KIND_BURST and KIND_PER_SECOND.

    The kind is the event name of a structlog line; of any other it is the unformatted message, its numbers
    left out, and all of its logger together. What is left out is counted and told as `lines_suppressed` after
    `SUMMARY_SECONDS`, and when the handler is closed.
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
        key, whole = _keys(record)
        of_source = self._allowed(key, whole, self._burst, self._per_second)
        if of_source and self._allowed(whole, whole, KIND_BURST, KIND_PER_SECOND):
            self._pass_on(record)

    def summarise(self) -> None:
        """Tell what was left out since the last time."""
        left_out: defaultdict[_Key, list[tuple[int, _Key]]] = defaultdict(list)
        with self._own_lock:
            self._timer = None
            for key, bucket in self._buckets.items():
                if bucket.suppressed:
                    left_out[bucket.whole].append((bucket.suppressed, key))
                    bucket.suppressed = 0
        for whole, found in left_out.items():
            named = sorted((lines, key) for lines, key in found if key != whole)[-_MOST_NAMED:]
            for lines, key in reversed(named):
                self._pass_on(_summary(key, lines))
            if others := sum(lines for lines, _ in found) - sum(lines for lines, _ in named):
                self._pass_on(_summary(whole, others))

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

    def _allowed(self, key: _Key, whole: _Key, burst: int, per_second: float) -> bool:
        """Take a token; `emit` runs under the handler's lock."""
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(whole, burst, now)
            self._forget_old()
        self._buckets.move_to_end(key)
        bucket.tokens = min(bucket.tokens + (now - bucket.filled_at) * per_second, burst)
        bucket.filled_at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return True
        bucket.suppressed += 1
        self._tell_later()
        return False

    def _tell_later(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(SUMMARY_SECONDS, self.summarise)
            self._timer.daemon = True
            self._timer.start()

    def _forget_old(self) -> None:
        """Buckets of those that were quiet longest; what they still have to tell is told of their kind."""
        while len(self._buckets) > _MOST_KEYS:
            key, bucket = self._buckets.popitem(last=False)
            if not bucket.suppressed:
                continue
            kind = self._buckets.get(bucket.whole)
            if kind is not None:
                kind.suppressed += bucket.suppressed
            else:
                self._pass_on(_summary(key, bucket.suppressed))


def _keys(record: logging.LogRecord) -> tuple[_Key, _Key]:
    """That of the line's kind and source, and that of the kind."""
    if isinstance(record.msg, dict):  # as structlog hands it over
        kind = str(record.msg.get("event", ""))
        return _Key(kind, str(record.msg.get("source", ""))), _Key(kind, None)
    message = _DIGITS.sub("0", str(record.msg)[:200])
    return _Key(f"{record.name}: {message}", ""), _Key(record.name, None)


def _summary(key: _Key, lines: int) -> logging.LogRecord:
    whose = " from others" if key.source is None else f" from {key.source!r}" if key.source else ""
    message = f"lines_suppressed: {lines} of {key.kind!r}{whose}"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
    record.suppressed = {"of": key.kind, "source": key.source, "lines": lines}
    return record
