"""Posts batches of simulated events to the service and reads its answers; waits where it asks to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx
import orjson

from pipeline.errors import ConfigurationError, ContractError, UnavailableError

_CONNECT_SECONDS: Final = 5.0
_RETRY_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
#: Answers that stay as they are: no key, not the right one, another listener.
_NOT_SHOWN: Final = frozenset({401, 403, 404, 421})
_LONGEST_WAIT_SECONDS: Final = 5.0
_ROWS: Final = re.compile(r'^gridpipe_reference_rows\{kind="(\w+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    taken : whether it was answered 2xx or 422, so that every event not in `again` is settled.
    again : positions of events that were not written and can be sent again.
    refused : positions and codes of events that break the contract.
    wait_seconds : how long the service asks to wait before the next try.
    """

    taken: bool
    again: tuple[int, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    wait_seconds: float = 0.0


class Sender:
    """One keep-alive connection to `POST /v1/events`. timeout_seconds : longest wait for one answer."""

    def __init__(self, url: str, key: str, *, timeout_seconds: float = 60.0) -> None:
        self._url = url.rstrip("/")
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            trust_env=False,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/x-ndjson"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def post(self, texts: Sequence[str]) -> Answer:
        """Send events, one JSON text each. Never raises for a service that is away: `taken` is False then.

        Raises ContractError if the service refuses the request for good (credential, size, media type).
        """
        try:
            response = self._client.post(f"{self._url}/v1/events", content="\n".join(texts).encode())
        except httpx.HTTPError:
            return Answer(taken=False, wait_seconds=0.5)
        if response.status_code in _RETRY_STATUS:
            return Answer(taken=False, wait_seconds=_wait(response))
        if response.status_code not in {202, 422}:
            raise ContractError(
                f"the service refused a request with status {response.status_code}: {_title(response)}"
            )
        errors: list[dict[str, Any]] = orjson.loads(response.content).get("errors", [])
        return Answer(
            taken=True,
            again=tuple(error["index"] for error in errors if error["retryable"]),
            refused=tuple((error["index"], error["code"]) for error in errors if not error["retryable"]),
            wait_seconds=0.5 if any(error["retryable"] for error in errors) else 0.0,
        )


def _wait(response: httpx.Response) -> float:
    """Seconds of Retry-After, bounded: a demo must not sleep for minutes."""
    try:
        return min(max(float(response.headers.get("Retry-After", "1")), 0.1), _LONGEST_WAIT_SECONDS)
    except ValueError:
        return 1.0


def _title(response: httpx.Response) -> str:
    try:
        problem = orjson.loads(response.content)
        return str(problem.get("detail") or problem.get("title"))[:200]
    except (orjson.JSONDecodeError, AttributeError):
        return response.text[:200]


def wait_for_reference(
    url: str,
    rows: dict[str, int],
    *,
    seconds: float,
    stopped: Callable[[], bool] = lambda: False,
    key: str | None = None,
) -> None:
    """Return once the worker holds `rows` of each kind of reference data, as its metrics say.

    Loading is done when the tables hold the rows, but a worker picks them up a moment later; events sent
    before that would be rejected. key : shown to `/metrics`, where it needs one. Raises UnavailableError when
    time is up, ConfigurationError where `/metrics` is not shown.
    """
    deadline = time.monotonic() + seconds
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    while not stopped():
        try:
            page = httpx.get(f"{url}/metrics", headers=headers, timeout=5.0, trust_env=False)
            if page.status_code in _NOT_SHOWN:
                raise ConfigurationError(f"{url}/metrics answers {page.status_code}: {_title(page)}")
            held = {kind: float(count) for kind, count in _ROWS.findall(page.text)}
            if all(held.get(kind, 0) >= count for kind, count in rows.items()):
                return
        except httpx.HTTPError:
            held = {}
        if time.monotonic() > deadline:
            lacking = ", ".join(kind for kind, count in rows.items() if held.get(kind, 0) < count)
            raise UnavailableError(f"the worker did not pick up reference data in {seconds:g} s: {lacking}")
        time.sleep(0.2)


class Pace:
    """Lets through `per_second` items a second on average; 0: as many as there are."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._next = time.monotonic()

    def take(self, count: int, stop: threading.Event) -> bool:
        """Wait until `count` items may go. Returns False if `stop` was set meanwhile."""
        if self._per_second <= 0:
            return not stop.is_set()
        self._next = max(self._next, time.monotonic() - 1.0)
        wait = self._next - time.monotonic()
        self._next += count / self._per_second
        return not stop.wait(max(wait, 0.0))
