"""The audit log: who read or changed personal data, when, by which call, about which id; never the data.

One JSON line each in `<data-dir>/audit/<day>.jsonl` (0600, days in UTC). Lines are appended in one write, so
that several processes may share a file; nothing is ever rewritten, and days past their time are deleted.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import threading
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from pipeline.clock import Clock, utc_now
from pipeline.contract.privacy import CUT_MARGIN, holds_personal_number, redact_head

_LONGEST: Final = 200


class AuditLog:
    """Appends lines. Raises OSError where that fails: a caller must not answer then."""

    def __init__(self, directory: Path, *, keep_days: int, clock: Clock = utc_now) -> None:
        self._directory = directory
        self._keep = timedelta(days=keep_days)
        self._clock = clock
        self._day: date | None = None
        self._file: int | None = None
        self._lock = threading.Lock()

    def record(self, *, who: str, call: str, subject: str | None = None, **more: Any) -> None:
        """who : key id, "loopback" or the operator's login; call : route or command; subject : an id.

        Texts that hold an identity or mobile number are replaced: somebody may have asked for one.
        """
        now = self._clock()
        line = {"at": now.isoformat(timespec="milliseconds"), "who": who, "call": call, "subject": subject}
        line |= more
        clean = {name: _clean(value) if isinstance(value, str) else value for name, value in line.items()}
        with self._lock:
            if self._day != now.date() or self._file is None:
                self._turn(now.date())
            assert self._file is not None
            os.write(self._file, orjson.dumps(clean, default=str) + b"\n")

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _turn(self, day: date) -> None:
        """Open the day's file, delete those past their time."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = os.open(
            self._directory / f"{day.isoformat()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        if self._file is not None:
            os.close(self._file)
        self._file, self._day = opened, day
        for path in self._directory.glob("*.jsonl"):
            with contextlib.suppress(ValueError, FileNotFoundError):
                if date.fromisoformat(path.stem) < day - self._keep:
                    path.unlink()


def operator() -> str:
    """Who runs a command: the login name."""
    try:
        return f"operator {getpass.getuser()}"
    except (KeyError, OSError):  # no such user, as in some containers
        return f"operator uid {os.getuid()}"


def _clean(text: str) -> str:
    held = holds_personal_number(text[: _LONGEST + CUT_MARGIN])
    return "[personal number]" if held else redact_head(text, _LONGEST)
