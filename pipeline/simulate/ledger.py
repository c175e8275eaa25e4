"""The demo's durable ledger: which batches were sent and what was answered, one JSON line each.

A line `sent` is written before a request leaves, a line `answered` when its answer has come, and the file is
synced before the next batch goes. Whatever process is killed, and whenever, the ledger therefore names every
copy that can have reached the service, and every copy that it acknowledged.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import polars as pl

#: Copies of a lane's line: acknowledged by an answer; sent without any answer (each arrived, or not).
COPIES = {"lane": pl.Int64, "line": pl.Int64, "acknowledged": pl.Int64, "unanswered": pl.Int64}


class Ledger:
    """Append-only; several lanes may write at once."""

    def __init__(self, path: Path) -> None:
        _drop_torn_line(path)
        self._path = path
        self._lock = threading.Lock()
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sent(self, lane: int, attempt: int, lines: Sequence[int]) -> None:
        """Lines of a lane are about to be sent."""
        self._append({"lane": lane, "attempt": attempt, "sent": _ranges(lines)}, durable=False)

    def answered(self, lane: int, attempt: int, again: Sequence[int]) -> None:
        """An attempt was answered: all its lines are settled but those in `again`."""
        self._append({"lane": lane, "attempt": attempt, "again": list(again)}, durable=True)

    def _append(self, record: dict[str, Any], *, durable: bool) -> None:
        with self._lock:
            self._file.write(orjson.dumps(record) + b"\n")
            self._file.flush()
            if durable:
                os.fdatasync(self._file.fileno())


def _ranges(lines: Sequence[int]) -> list[list[int]]:
    """Sorted numbers as [first, last] ranges: a batch is one of them."""
    numbers = np.asarray(lines, dtype=np.int64)
    cuts = np.flatnonzero(np.diff(numbers) != 1)
    first, last = np.r_[0, cuts + 1], np.r_[cuts, len(numbers) - 1]
    return [[int(numbers[low]), int(numbers[high])] for low, high in zip(first, last, strict=True)]


def _drop_torn_line(path: Path) -> None:
    """A kill may leave half a line at the end: cut it off, so that the next record starts on its own line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


class History:
    """What the ledger says so far.

    next_attempt : by lane, a number that no attempt had yet.
    """

    def __init__(self, path: Path) -> None:
        self.next_attempt: dict[int, int] = defaultdict(int)
        attempts: dict[tuple[int, int], list[list[int]]] = {}
        answers: dict[tuple[int, int], list[int]] = {}
        if path.exists():
            _drop_torn_line(path)
            for line in path.read_bytes().splitlines():
                record = orjson.loads(line)
                key = (record["lane"], record["attempt"])
                self.next_attempt[key[0]] = max(self.next_attempt[key[0]], key[1] + 1)
                if "sent" in record:
                    attempts[key] = record["sent"]
                else:
                    answers[key] = record["again"]
        self._attempts = attempts
        self._answers = answers

    def copies(self) -> pl.DataFrame:
        """One row per line that was ever sent, columns `COPIES`."""
        parts: list[pl.DataFrame] = []
        for (lane, attempt), ranges in self._attempts.items():
            lines = np.concatenate([np.arange(first, last + 1) for first, last in ranges])
            answer = self._answers.get((lane, attempt))
            settled = np.zeros(len(lines), dtype=np.int64)
            if answer is not None:
                settled = (~np.isin(lines, answer)).astype(np.int64)
            parts.append(
                pl.DataFrame(
                    {
                        "lane": np.full(len(lines), lane),
                        "line": lines,
                        "acknowledged": settled,
                        "unanswered": 1 - settled,
                    }
                )
            )
        frame = pl.concat(parts) if parts else pl.DataFrame(schema=COPIES)
        return (
            frame.group_by("lane", "line")
            .agg(pl.col("acknowledged").sum(), pl.col("unanswered").sum())
            .select(pl.col(name).cast(dtype) for name, dtype in COPIES.items())
            .sort("lane", "line")
        )

    def settled(self, lane: int, lines: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(lines,) which lines of a lane are acknowledged."""
        done = np.zeros(lines, dtype=np.bool_)
        mine = self.copies().filter((pl.col("lane") == lane) & (pl.col("acknowledged") > 0))
        done[mine["line"].to_numpy()] = True
        return done
