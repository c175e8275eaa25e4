"""Quotas: requests and bytes per address, requests, bytes and events per source, in windows of some seconds.

A request costs a few look-ups whatever the number of its events: the address is charged before anything else
is done for it, the sources once their events are counted. The request that crosses the end of a window is
still served, and what comes after it in the window is refused before it is worked on; but of a key for
several sources the events must be read to tell whose they are.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Final

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline import metrics
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.settings import Settings

#: Counters kept; beyond it the one that was not used for longest is forgotten.
_MOST_COUNTERS: Final = 65_536
#: A network that one customer gets: addresses within are one caller.
_IPV6_PREFIX_BITS: Final = 64
#: Wrong credentials under one key id (on listeners for metrics: in all) that an address may show in
#: `_WRONG_SECONDS`.
_MOST_WRONG: Final = 100
_WRONG_SECONDS: Final = 60

Clock = Callable[[], float]


class BoundedCounters(Storage):
    """Counters with an end, for the strategies of `limits`; bounded in number, no thread, no lock.

    Used from one event loop only. The library's own storage walks through all counters at every call.
    """

    STORAGE_SCHEME: list[str] | None = None  # not to be made from an address

    def __init__(self, clock: Clock = time.time, most: int = _MOST_COUNTERS) -> None:
        super().__init__()
        self._clock = clock
        self._most = most
        self._counters: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        now = self._clock()
        count, end = self._counters.pop(key, (0, 0.0))
        if end <= now:
            count, end = 0, now + expiry
        self._counters[key] = (count + amount, end)
        if len(self._counters) > self._most:
            self._counters.popitem(last=False)
        return count + amount

    def get(self, key: str) -> int:
        count, end = self._counters.get(key, (0, 0.0))
        return count if end > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """When the counter's window ends, unix seconds; now where there is none."""
        return max(self._counters.get(key, (0, 0.0))[1], self._clock())

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        count = len(self._counters)
        self._counters.clear()
        return count

    def clear(self, key: str) -> None:
        self._counters.pop(key, None)

    def __len__(self) -> int:
        return len(self._counters)


class Quotas:
    """The counters of one process. Every limit is an average over `quota_window_seconds`; 0 lifts it.

    Callers on a loopback address are exempt unless `quota_loopback`: they are this machine's own programs.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = time.time,
        *,
        address_requests_per_second: int | None = None,
    ) -> None:
        """address_requests_per_second : instead of the setting's."""
        window = settings.quota_window_seconds
        self._clock = clock
        self._counters = BoundedCounters(clock)
        self._limiter = FixedWindowRateLimiter(self._counters)
        self._loopback = settings.quota_loopback
        self._window = window

        def item(per_second: int) -> RateLimitItem | None:
            return RateLimitItemPerSecond(per_second * window, window) if per_second else None

        if address_requests_per_second is None:
            address_requests_per_second = settings.quota_address_requests_per_second
        self._address_requests = item(address_requests_per_second)
        self._address_bytes = item(settings.quota_address_bytes_per_second)
        self._source_requests = item(settings.quota_source_requests_per_second)
        self._source_bytes = item(settings.quota_source_bytes_per_second)
        self._source_events = item(settings.quota_source_events_per_second)
        self._wrong = RateLimitItemPerSecond(_MOST_WRONG, _WRONG_SECONDS)
        self._counted: frozenset[str] = frozenset()

    # --- addresses

    def admit_address(self, address: str) -> None:
        """Charge a request to an address. Raises ProblemError 429."""
        if self._exempt(address):
            return
        name = caller(address)
        if self._address_requests is not None and not self._limiter.hit(self._address_requests, "a", name):
            raise self._refusal(
                self._address_requests, "requests", ("a", name), "too many requests from this address"
            )
        if self._address_bytes is not None and not self._limiter.test(self._address_bytes, "b", name):
            raise self._refusal(
                self._address_bytes, "bytes", ("b", name), "too much data from this address; send slower"
            )

    def charge_bytes(self, address: str, sources: frozenset[str], size: int) -> None:
        """Charge what a request brought, bytes as sent, to its address and to each of its key's sources, none
        where no key was right."""
        if size <= 0 or self._exempt(address):
            return
        if self._address_bytes is not None:
            self._limiter.hit(self._address_bytes, "b", caller(address), cost=size)
        if self._source_bytes is not None:
            for source in sources:
                self._limiter.hit(self._source_bytes, "d", source, cost=size)

    # --- sources

    def admit_sources(self, address: str, sources: frozenset[str]) -> None:
        """Charge a request to a key's sources. Raises ProblemError 429 when none has anything left."""
        if not sources <= self._counted:  # from zero on: a counter's first increase is seen by no alert
            for source in sources:
                metrics.gateway_quota_refusals.labels(source)
            self._counted |= sources
        if self._exempt(address):
            return
        if self._source_requests is not None:
            left = [self._limiter.hit(self._source_requests, "r", source) for source in sources]
            if not any(left):
                raise self._source_refusal(
                    self._source_requests,
                    "requests",
                    ("r", min(sources)),
                    "too many requests of this source; send larger batches",
                )
        for item, unit, name, what in (
            (self._source_bytes, "bytes", "d", "too much data of this source; send slower"),
            (self._source_events, "events", "e", "too many events of this source; send slower"),
        ):
            if item is not None and not any(self._limiter.test(item, name, source) for source in sources):
                raise self._source_refusal(item, unit, (name, min(sources)), what)

    def admit_events(self, address: str, sources: Iterable[str]) -> None:
        """Once the events are read: raises ProblemError 429 when one of their sources has nothing left. A key
        for several sources came this far with what another one has left."""
        events = self._source_events
        if events is None or self._exempt(address):
            return
        for source in sorted(sources):
            if not self._limiter.test(events, "e", source):
                raise self._source_refusal(
                    events, "events", ("e", source), f"too many events of the source {source}; send slower"
                )

    def charge_events(self, address: str, counts: Mapping[str, int]) -> None:
        """Charge counted events to their sources. A source may overdraw its window by one request."""
        if self._source_events is not None and not self._exempt(address):
            for source, count in counts.items():
                self._limiter.hit(self._source_events, "e", source, cost=count)

    def headers(self, address: str, sources: frozenset[str]) -> dict[str, str]:
        """RateLimit-* of the source with the least events left; none for who is exempt."""
        if self._source_events is None or self._exempt(address):
            return {}
        return min(
            (self._state(self._source_events, "events", ("e", source)) for source in sources),
            key=lambda state: int(state["RateLimit-Remaining"]),
        )

    # --- wrong credentials

    def wrong_credential(self, address: str, key_id: str | None) -> None:
        """Count a refused credential. Raises ProblemError 429 after `_MOST_WRONG` in a minute.

        key_id : counted per address and key id: an attacker locks out nobody but itself; None: per address.
        A right credential is never looked up here, so that the real source goes on even from behind the same
        address.
        """
        if self._exempt(address):
            return
        name = (caller(address),) if key_id is None else (caller(address), key_id)
        if not self._limiter.hit(self._wrong, "w", *name):
            raise self._refusal(
                self._wrong, "requests", ("w", *name), "too many refused credentials from this address"
            )

    # ---

    def _exempt(self, address: str) -> bool:
        return not self._loopback and is_loopback_address(address)

    def _state(self, item: RateLimitItem, unit: str, name: tuple[str, ...]) -> dict[str, str]:
        ends_at, remaining = self._limiter.get_window_stats(item, *name)
        return {
            "RateLimit-Limit": str(item.amount),
            "RateLimit-Remaining": str(max(0, remaining)),
            "RateLimit-Reset": str(max(0, math.ceil(ends_at - self._clock()))),
            "RateLimit-Policy": f'"{unit}";q={item.amount};w={item.get_expiry()}',
        }

    def _source_refusal(
        self, item: RateLimitItem, unit: str, name: tuple[str, str], message: str
    ) -> ProblemError:
        metrics.gateway_quota_refusals.labels(name[1]).inc()
        return self._refusal(item, unit, name, message)

    def _refusal(self, item: RateLimitItem, unit: str, name: tuple[str, ...], message: str) -> ProblemError:
        state = self._state(item, unit, name)
        wait = max(1, int(state["RateLimit-Reset"]))
        return ProblemError(429, "too_many_requests", message, retry_after=wait, headers=state)


class AddressQuota:
    """ASGI wrapper: charges each request to its address before what lies behind it is looked at: on the
    public listener credentials, route and body.

    free : beginnings of paths that are neither charged nor refused.
    """

    def __init__(self, app: ASGIApp, quotas: Quotas, *, free: tuple[str, ...] = ()) -> None:
        self._app = app
        self._quotas = quotas
        self._free = free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and (client := scope.get("client")) is not None
            and not scope["path"].startswith(self._free)
        ):
            try:
                self._quotas.admit_address(client[0])
            except ProblemError as problem:
                await problem_response(problem, request_id_of(None))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def caller(address: str) -> str:
    """The address as one caller: an IPv6 network of 64 bits, an IPv4 address; mapped IPv4 as IPv4."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        host_bits = 128 - _IPV6_PREFIX_BITS
        return f"{IPv6Address(int(parsed) >> host_bits << host_bits)}/{_IPV6_PREFIX_BITS}"
    return str(parsed)


def is_loopback_address(address: str) -> bool:
    if address == "127.0.0.1":
        return True
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback
