"""Metrics of gateways and workers that run as processes of their own, for the flow of the api's page.

Asked only when the page computes; one request per address at a time, bounded in time and size.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import httpx
import structlog

from pipeline.contract.secret import load_secret
from pipeline.errors import ConfigurationError
from pipeline.page.figures import Families, read_families
from pipeline.settings import Settings, is_loopback, split_address
from pipeline.tls import verify_for

#: Longest wait for one answer: the page computes each second.
_ASK_SECONDS: Final = 1.5
#: A process whose last answer is older is silent; until then that answer stands, so that one that came late
#: does not make everybody's rates begin anew.
_PATIENCE_SECONDS: Final = 4.0
#: Whoever refused our key is not asked again before: it locks an address out that shows wrong ones often.
_REFUSED_SECONDS: Final = 30.0
#: A page of /metrics is some hundred kilobytes with a thousand partitions.
_MOST_BYTES: Final = 4_000_000

Role = Literal["gateway", "worker"]
Why = Literal["no_answer", "refused", "no_metrics"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Look:
    """What one process told. families : None while it is silent; roles : as it last told, empty before it
    first did; why : it is silent."""

    address: str
    families: Families | None
    roles: frozenset[Role]
    why: Why | None


class _SilentError(Exception):
    def __init__(self, why: Why) -> None:
        self.why: Why = why


class _Watched:
    """One address, and what is known of it."""

    def __init__(self, url: str, address: str) -> None:
        self.url = url
        self.address = address
        self.families: Families | None = None
        self.told_at = float("-inf")
        self.roles: frozenset[Role] = frozenset()
        self.why: Why | None = None
        self.not_before = float("-inf")
        self.silent_for: Why | None = None  # as it was last told


class Watch:
    """Asks every address of `Settings.watch`. One per event loop."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ConfigurationError."""
        self._clock = clock
        self._key_file = settings.watch_key_file
        self._key = _read_key(self._key_file)
        self._watched = [_Watched(url, url.partition("://")[2]) for url in watched_urls(settings)]
        secure = next((one.url for one in self._watched if one.url.startswith("https:")), "")
        self._client = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            timeout=_ASK_SECONDS,
            verify=verify_for(settings, secure),
            trust_env=False,
        )

    async def look(self) -> Sequence[Look]:
        """In the order of the setting; takes as long as one answer may, at most."""
        await asyncio.gather(*(self._ask(one) for one in self._watched))
        now = self._clock()
        return [self._told(one, answers=now - one.told_at <= _PATIENCE_SECONDS) for one in self._watched]

    @staticmethod
    def _told(one: _Watched, *, answers: bool) -> Look:
        why = None if answers else one.why
        if why is not None and why != one.silent_for:
            log.warning("watched_process_silent", address=one.address, why=why)
        one.silent_for = why
        return Look(one.address, one.families if answers else None, one.roles, why)

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, one: _Watched) -> None:
        if self._clock() < one.not_before:
            return
        try:
            families = read_families(await self._read(one.url))
            roles = _roles(families)
            if not roles:
                raise _SilentError("no_metrics")  # somebody else listens there
        except _SilentError as silent:
            one.why = silent.why
            if silent.why == "refused":
                one.told_at = float("-inf")
                one.not_before = self._clock() + _REFUSED_SECONDS
                self._renew_key()
            return
        one.families, one.roles, one.why, one.told_at = families, roles, None, self._clock()

    async def _read(self, url: str) -> bytes:
        """Raises _SilentError."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key is not None else {}
        try:
            async with (
                asyncio.timeout(_ASK_SECONDS),
                self._client.stream("GET", f"{url}/metrics", headers=headers) as answer,
            ):
                if answer.status_code in {401, 403, 429}:
                    raise _SilentError("refused")
                if answer.status_code != 200:
                    raise _SilentError("no_metrics")
                held = bytearray()
                async for part in answer.aiter_raw():
                    held += part
                    if len(held) > _MOST_BYTES:
                        raise _SilentError("no_metrics")
                return bytes(held)
        except (httpx.HTTPError, httpx.StreamError, TimeoutError):
            raise _SilentError("no_answer") from None

    def _renew_key(self) -> None:
        """It may have been exchanged since we began."""
        try:
            self._key = _read_key(self._key_file)
        except ConfigurationError as error:
            log.warning("watch_key_not_read", problem=str(error))


def watched_urls(settings: Settings) -> list[str]:
    """`scheme://host:port` of every process that is watched. Without a scheme it is https where this process
    has a certificate itself, but for loopback: as their `admin_http` with the same settings.

    Raises ConfigurationError.
    """
    found, problems = list[str](), list[str]()
    for item in filter(None, (part.strip() for part in (settings.watch or "").split(","))):
        scheme, _, address = item.rpartition("://")
        try:
            host, _ = split_address(address)
            httpx.URL(f"http://{address}")
        except (ConfigurationError, httpx.InvalidURL):
            host = ""
        if scheme not in {"", "http", "https"} or not host or set(address) & set("/@?#"):
            # not told: somebody may have written a password there
            problems.append("GRIDPIPE_WATCH must be host:port or https://host:port, with commas between them")
            continue
        if not scheme:
            scheme = "https" if settings.tls_cert is not None and not is_loopback(host) else "http"
        found.append(f"{scheme}://{address}")
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))
    return list(dict.fromkeys(found))


def _roles(families: Families) -> frozenset[Role]:
    """By what it counts: all of a `gridpipe up` is in one page."""
    found: set[Role] = set()
    if "events_total" in families:
        found.add("worker")
    if "gateway_events_total" in families:
        found.add("gateway")
    return frozenset(found)


def _read_key(path: Path | None) -> str | None:
    """Raises ConfigurationError."""
    if path is None:
        return None
    try:
        return load_secret(path, create=False).decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError(f"secret {path} holds no key: keys are ASCII") from None
