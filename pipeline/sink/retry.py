"""Which failures of an insert pass, which are the data's fault, and how long to wait between attempts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, TypeVar

import structlog
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError, OperationalError
from urllib3.exceptions import HTTPError

from pipeline import metrics
from pipeline.errors import ContractError, TransientError

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Failure(Enum):
    """What to do after a failed insert."""

    TRANSIENT = "transient"  # send the same block again, for ever
    DATA = "data"  # find the row and quarantine it
    UNKNOWN = "unknown"  # stop the process and tell: going on could lose data


#: ClickHouse codes that pass by themselves or when an operator acts; the block waits meanwhile.
TRANSIENT_CODES: Final = {
    3: "unexpected end of file: the connection broke in the middle",
    32: "attempt to read after eof: the connection broke in the middle",
    74: "cannot read from a file: disk or temporary directory",
    75: "cannot write to a file: disk or temporary directory",
    76: "cannot open a file: temporary directory missing or read-only",
    107: "a file is gone: the temporary directory was moved or emptied under an insert",
    159: "timeout exceeded; the insert may have succeeded, the token tells",
    164: "read-only mode",
    198: "DNS error",
    202: "too many simultaneous queries",
    203: "no free connection",
    209: "socket timeout",
    210: "network error",
    225: "no Keeper",
    236: "aborted: the server is shutting down",
    241: "memory limit exceeded",
    242: "table is read-only: Keeper lost",
    243: "not enough space",
    252: "too many parts: merges must catch up",
    254: "no active replicas",
    279: "all connection attempts failed",
    285: "too few live replicas",
    286: "quorum not satisfied",
    289: "replica is not in quorum",
    319: "unknown status of insert; the token tells",
    335: "shutdown called",
    373: "session is locked",
    394: "query was cancelled",
    425: "system call failed",
    439: "cannot schedule a task: thread limit",
    473: "deadlock avoided",
    499: "object storage error",
    516: "authentication failed: the operator must act, the events wait",
    745: "server overloaded",
    999: "Keeper error",
}

#: ClickHouse codes that blame a value: bisect and quarantine.
DATA_CODES: Final = {
    6: "cannot parse text",
    27: "cannot parse input",
    33: "cannot read all data",
    38: "cannot parse date",
    41: "cannot parse date and time",
    69: "argument out of bounds",
    70: "cannot convert type",
    72: "cannot parse number",
    117: "incorrect data",
    131: "string too large",
    321: "value out of the type's range",
    349: "null in a column that takes none",
    407: "decimal overflow",
    469: "constraint violated",
    691: "unknown element of an enum",
}

#: Full jitter between these, doubling.
FIRST_WAIT_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 30.0


#: When a call last failed in a way that passes (monotonic seconds); written by threads.
_refused_at = float("-inf")
#: Of each thread whose call is being repeated: when it failed first.
_refused_first: dict[int, float] = {}


class Stopping(Exception):  # noqa: N818  # a request to end, not a failure
    """The process is asked to end; the block was not stored and will be sent again after the next start."""


def classify(error: BaseException) -> Failure:
    """What a failed insert means."""
    if isinstance(error, (DataError, ContractError)):
        return Failure.DATA
    if isinstance(error, TransientError):
        return Failure.TRANSIENT
    if isinstance(error, ClickHouseError):
        code = getattr(error, "code", None)
        if code in TRANSIENT_CODES:
            return Failure.TRANSIENT
        if code in DATA_CODES:
            return Failure.DATA
        # without a code the server did not answer: the driver words every broken connection like this
        return Failure.TRANSIENT if code is None and isinstance(error, OperationalError) else Failure.UNKNOWN
    if isinstance(error, (HTTPError, OSError)):
        return Failure.TRANSIENT
    return Failure.UNKNOWN


def refused_since(moment: float) -> bool:
    """Whether the store refused anything, or did not answer, since `moment` (monotonic seconds)."""
    return _refused_at >= moment


def refused_for() -> float:
    """Seconds for which the call has been refused that is repeated longest by now; 0 if none is."""
    firsts = list(_refused_first.values())
    return time.monotonic() - min(firsts) if firsts else 0.0


def persist(call: Callable[[], T], *, stopping: threading.Event, what: str) -> T:
    """Call until it succeeds; only passing failures are repeated, everything else is raised.

    Blocks the calling thread, never the event loop.
    Raises Stopping once `stopping` is set and the call fails.
    """
    try:
        return _repeated(call, stopping, what)
    finally:
        _refused_first.pop(threading.get_ident(), None)


def _repeated(call: Callable[[], T], stopping: threading.Event, what: str) -> T:
    global _refused_at  # noqa: PLW0603  one store for all threads
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            if classify(error) is not Failure.TRANSIENT:
                raise
            metrics.insert_retries.inc()
            _refused_at = time.monotonic()
            _refused_first.setdefault(threading.get_ident(), _refused_at)
            delay = random.uniform(FIRST_WAIT_SECONDS / 2, wait)  # noqa: S311  # jitter, no secret
            code = getattr(error, "code", None)
            log.warning(
                "store does not take the block; trying again",
                what=what,
                code=code,
                reason=TRANSIENT_CODES.get(code) if isinstance(code, int) else None,
                error=type(error).__name__,
                wait_seconds=round(delay, 2),
            )
            if stopping.wait(delay):
                raise Stopping(f"{what}: not stored before the end") from error
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)
