"""Logs: one JSON object a line in `<data-dir>/log/<role>.log`, readable lines on a terminal.

Everything goes through the standard library's root logger, so that Faust, uvicorn and aiokafka end up in the
same place. Lines name events, cases and requests by their ids. No personal data: every text passes the
redaction that the gateway applies to descriptions. A flood of lines of one kind and source is cut short.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from structlog.types import Processor

from pipeline.contract.privacy import redact, redact_head
from pipeline.logs_limit import LimitedHandler

MAX_TEXT: Final = 4_000
_FILE_BYTES: Final = 20_000_000
_FILES_KEPT: Final = 5
#: Libraries that tell their life story at INFO.
_QUIET: Final = (
    "aiokafka", "alembic", "asyncio", "clickhouse_connect", "faust", "httpcore", "httpx", "kafka", "mode",
    "urllib3",
)  # fmt: skip

Event = MutableMapping[str, Any]


def _clean(_: Any, __: str, event: Event) -> Event:
    """Cut long texts and take id numbers, phones, plates and bank cards out of every one of them."""
    for key, value in event.items():
        if not key.startswith("_") and key not in {"level", "timestamp", "logger"}:
            event[key] = _clean_value(value)
    return event


def _clean_value(value: Any) -> Any:
    """Texts cleaned wherever they are; what is neither text, number nor a collection becomes text first."""
    if value is None or isinstance(value, bool | int | float):
        # a phone or id number may come as a number
        return value if redact(str(value)) == str(value) else redact(str(value))
    if isinstance(value, Mapping):
        return {redact_head(str(key), MAX_TEXT): _clean_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean_value(item) for item in value]
    text = str(value)
    clean = redact_head(text, MAX_TEXT)
    return clean if len(text) <= MAX_TEXT else clean + f"… ({len(text)} characters)"


def _json(_: Any, __: str, event: Event) -> str:
    return orjson.dumps(event, default=str).decode()


def configure(*, level: str = "info", role: str, log_dir: Path | None, console: bool) -> None:
    """Send the logs of this process to `<log_dir>/<role>.log` and, with `console`, to stderr.

    Called once per process. On stderr a terminal gets readable lines, anything else JSON.
    """

    def name_role(_: Any, __: str, event: Event) -> Event:
        event["role"] = role
        return event

    shared: list[Processor] = [
        name_role,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _clean,
    ]
    foreign: list[Processor] = [structlog.stdlib.ExtraAdder(allow={"suppressed"}), *shared]
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    as_json = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=[strip, _json])
    handlers: list[logging.Handler] = []
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        to_file = logging.handlers.RotatingFileHandler(
            log_dir / f"{role}.log", maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8"
        )
        to_file.setFormatter(as_json)
        handlers.append(to_file)
    if console:
        to_stderr = logging.StreamHandler(sys.stderr)
        readable = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign, processors=[strip, structlog.dev.ConsoleRenderer()]
        )
        to_stderr.setFormatter(readable if sys.stderr.isatty() else as_json)
        handlers.append(to_stderr)
    root = logging.getLogger()
    root.handlers[:] = [LimitedHandler(handlers)] if handlers else []
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; context such as `request_id` is bound with structlog.contextvars."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
