"""`gridpipe`: one command for every task. Each module in `COMMANDS` adds its own with `register(app)`."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys

import structlog
import typer

from pipeline.cli.common import EXIT_UNREACHABLE, EXIT_USAGE, print_error
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError

COMMANDS = (
    "pipeline.cli.serve",  # up, gateway, worker, api, migrate
    "pipeline.cli.demo",
    "pipeline.cli.keys",
    "pipeline.cli.simulate",
    "pipeline.cli.send",  # send, validate
    "pipeline.cli.query",  # explain, case, kpi
    "pipeline.cli.reference",
    "pipeline.cli.rules",
    "pipeline.cli.person",  # person, pseudonym
    "pipeline.cli.operate",  # config show, doctor, refold
)

#: What a disk says without naming a file.
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})

app = typer.Typer(
    name="gridpipe",
    help="Grid governance events (网格事件) from report to closure rate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def build() -> typer.Typer:
    for name in COMMANDS:
        importlib.import_module(name).register(app)
    return app


def _keep_logs_off_the_terminal() -> None:
    """Commands print results and errors; what libraries log besides would spoil both. Services configure
    their logs themselves."""
    logging.getLogger().addHandler(logging.NullHandler())
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def run() -> None:
    """Entry point: errors raised on purpose become one line each and the documented exit code."""
    os.umask(0o077)  # keys, data and what is cut from them: for this user only
    _keep_logs_off_the_terminal()
    try:
        build()()
    except ConfigurationError as error:
        for problem in error.problems:
            print_error(problem)
        sys.exit(EXIT_USAGE)
    except UnavailableError as error:
        print_error(str(error))
        sys.exit(EXIT_UNREACHABLE)
    except GridpipeError as error:
        print_error(str(error))
        sys.exit(EXIT_USAGE)
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise  # a fault of ours
        reason = error.strerror or str(error)
        print_error(reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}")
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _leave_with_what_the_store_said(error)
        raise


def _leave_with_what_the_store_said(error: Exception) -> None:
    driver = sys.modules.get("clickhouse_connect.driver.exceptions")  # dear to load, so not for this
    if driver is None or not isinstance(error, driver.ClickHouseError):
        return
    from pipeline.store.client import as_told

    told = as_told(error)
    if told is not None:
        print_error(str(told))
        sys.exit(EXIT_UNREACHABLE if isinstance(told, UnavailableError) else EXIT_USAGE)


if __name__ == "__main__":
    run()
