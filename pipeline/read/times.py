"""RFC 3339 in and out. The driver gives times of a UTC column without a zone or with one: both are UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pipeline.errors import ContractError

_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)

#: The range of event times; far beyond it the store's own times overflow.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)


def aware(at: datetime) -> datetime:
    """UTC, whatever the driver gave."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def instant(at: datetime | None) -> str | None:
    """`2026-03-02T01:02:03.456Z`: UTC, milliseconds."""
    if at is None:
        return None
    return aware(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_instant(text: str, name: str) -> datetime:
    """UTC, cut to milliseconds. Raises ContractError naming the parameter.

    text : RFC 3339 with zone, in 2000–2100.

    A `+` that was not percent-encoded in a query string arrives as a space; it is taken for what it was.
    """
    given = re.sub(r" (\d{2}:\d{2})$", r"+\1", text)
    try:
        if not _RFC_3339.fullmatch(given):
            raise ValueError(text)
        whole, fraction, zone = re.fullmatch(r"(.{19})(\.\d+)?(.+)", given).groups()  # type: ignore[union-attr]
        milliseconds = (fraction or ".0")[1:4].ljust(3, "0")
        at = datetime.fromisoformat(f"{whole}.{milliseconds}{zone.upper().replace('Z', '+00:00')}")
        if not EARLIEST <= at <= LATEST:
            raise ValueError(text)
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ContractError(
            f"{name} must be an RFC 3339 time with zone between 2000 and 2100, "
            "for example 2026-03-02T08:00:00+08:00"
        ) from None


def parameter(at: datetime) -> str:
    """A time as ClickHouse reads a DateTime64(3, 'UTC') parameter."""
    return aware(at).strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}"
