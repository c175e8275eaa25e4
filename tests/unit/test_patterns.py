"""No text of a client makes a regular expression slow: the worker would stand still, begin anew and read the
same record again."""

from __future__ import annotations

import importlib
import pkgutil
import re
import string
import time
from collections.abc import Iterator
from typing import Any

import pipeline.contract
import pipeline.ingest
import pipeline.process

#: Twice as many take twice as long, 10 ms at most, or four times as long, half a second.
LENGTH = 40_000
#: What patterns begin with, beside signs, digits and letters.
BEGINNINGS = (
    "\\u", "\\u0022", '"phone":', '"phone" : [', '"phone":"x","', "'name':'a',", '"address":"',
    '"2026-05-01T08:00:00.1234567', "1.", "1 ", "-1", "a1", "19900101", "138 0000", "\uff11", "京", "粤J1",
    "3栋", "46号", "1室", "一", " - at `$", "\n",
)  # fmt: skip


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Every compiled pattern of the modules that read what clients send."""
    names = ["pipeline.logs", "pipeline.audit"]
    for package in (pipeline.contract, pipeline.ingest, pipeline.process):
        names += [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    for name in names:
        for attribute, value in vars(importlib.import_module(name)).items():
            several = [*value.values()] if isinstance(value, dict) else value
            for one in several if isinstance(several, tuple | list) else [several]:
                if isinstance(one, re.Pattern):
                    yield f"{name}.{attribute}", one


def test_no_repeated_text_makes_a_pattern_slow() -> None:
    found = {pattern: name for name, pattern in patterns()}
    assert len(found) > 25
    slow = []
    for pattern, name in found.items():
        for unit in (*string.punctuation, *" 019aAFuxXz", *BEGINNINGS):
            text: Any = unit * (LENGTH // len(unit)) + "\0"
            if isinstance(pattern.pattern, bytes):
                text = text.encode()
            started = time.thread_time()
            pattern.sub(text[:0], text)
            if (taken := time.thread_time() - started) > 0.2:
                slow.append((name, unit, round(taken, 2)))
    assert slow == []
