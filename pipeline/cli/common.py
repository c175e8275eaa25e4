"""What all commands share: exit codes, error lines, JSON or human output."""

from __future__ import annotations

import sys
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

EXIT_DONE = 0
EXIT_SOME_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

#: Human output; errors and progress go to stderr so that stdout stays parseable.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """One line on stderr; brackets in the message are text, not markup."""
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, whatever the terminal."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z) + b"\n")
    sys.stdout.flush()


def natural_width(table: Table) -> int:
    """Columns that `table` takes when nothing in it is wrapped or cut."""
    return Measurement.get(out, out.options.update(width=10_000), table).maximum


def print_table(table: Table) -> None:
    """Print a table whole: a pipe or file has no width, so nothing is cut there."""
    if out.is_terminal:
        out.print(table)
    else:
        Console(highlight=False, width=max(natural_width(table), out.width)).print(table)
