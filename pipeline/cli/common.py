"""What all commands share: exit codes, error lines, JSON or human output."""

from __future__ import annotations

import sys
from typing import Any

import orjson
from rich.console import Console

EXIT_DONE = 0
EXIT_SOME_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

#: Human output; errors and progress go to stderr so that stdout stays parseable.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, whatever the terminal."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z) + b"\n")
    sys.stdout.flush()
