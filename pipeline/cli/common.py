"""What all commands share: exit codes, error lines, JSON or human output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.settings import Settings

EXIT_DONE = 0
EXIT_SOME_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        help="File (0600) with the key, which is then in no process list (or GRIDPIPE_KEY_FILE).",
    ),
]

#: Human output; errors and progress go to stderr so that stdout stays parseable.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """One line on stderr; brackets in the message are text, not markup."""
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)


def key_of(settings: Settings) -> str | None:
    """The key in the file that the settings name, None without one. Raises ConfigurationError."""
    path = settings.key_file
    if path is None:
        return None
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"key file {path} can be read by others; run: chmod 600 {path}")
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise ConfigurationError(f"key file {path}: {reason}") from error
    if not key:
        raise ConfigurationError(f"key file {path} is empty")
    return key


def print_json(value: Any, *, one_line: bool = False) -> None:
    """One JSON document on stdout, whatever the terminal. one_line : for whom the command goes on."""
    options = orjson.OPT_UTC_Z if one_line else orjson.OPT_UTC_Z | orjson.OPT_INDENT_2
    sys.stdout.buffer.write(orjson.dumps(value, option=options) + b"\n")
    sys.stdout.flush()


def natural_width(table: Table) -> int:
    """Columns that `table` takes when nothing in it is wrapped or cut."""
    return Measurement.get(out, out.options.update(width=10_000), table).maximum


def print_table(table: Table, *, whole: bool = False) -> None:
    """Print a table whole: a pipe or file has no width, so nothing is cut there.

    whole : on a terminal neither, which breaks lines that are too wide for it.
    """
    if out.is_terminal and not whole:
        out.print(table)
    else:
        Console(highlight=False, width=max(natural_width(table), out.width)).print(table)
