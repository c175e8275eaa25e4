"""A feeding system's side: NDJSON lines to the gateway in batches, patient with a busy or absent one."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
import zstandard

from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.ingest.signing import auth_for

#: Bytes of lines in one request at most; the gateway takes 20 MB decompressed.
MAX_BATCH_BYTES: Final = 4_000_000
#: Longest wait of our own backing off, and the longest that a service may ask for, seconds.
_LONGEST_WAIT: Final = 30.0
_LONGEST_ASKED: Final = 86_400.0
_MOST_RESENDS: Final = 200
#: Answers that leave open what became of the events. 409: somebody between us sent a signed request twice,
#: and this is the answer to the second copy; the next try is signed anew.
_AGAIN: Final = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a file: its number there, from 1, and its text."""

    number: int
    text: bytes


@dataclass(slots=True)
class Answer:
    """What became of a batch. refused : line number and the gateway's error, for good."""

    accepted: int = 0
    refused: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


@dataclass(slots=True)
class _Effort:
    """Tries of one batch. began : monotonic time of the first, moved on by each wait that the service asked
    for: only the others use up patience."""

    began: float
    tries: int = 0


def batches(lines: Iterable[Line], size: int, max_bytes: int = MAX_BATCH_BYTES) -> Iterator[list[Line]]:
    """Lines that are not blank, at most `size` and about `max_bytes` together."""
    batch: list[Line] = []
    held = 0
    for line in lines:
        if not line.text.strip():
            continue
        if batch and (len(batch) >= size or held + len(line.text) > max_bytes):
            yield batch
            batch, held = [], 0
        batch.append(line)
        held += len(line.text) + 1
    if batch:
        yield batch


class EventClient:
    """Sends batches with one key; a signing key (`gps_…`) signs each request.

    patience_seconds : how long to go on trying while nobody answers or nothing can be written; waits that the
    service asks for (Retry-After) come on top.
    verify : of `pipeline.tls.verify_for`.
    sleep, on_wait : for tests and progress lines; `on_wait` is told why, how many seconds it waits, and
    whether the service asked for it.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        patience_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[str, float, bool], None] | None = None,
    ) -> None:
        self._patience = patience_seconds
        self._sleep = sleep
        self._on_wait = on_wait or (lambda *_: None)
        self._compress = zstandard.ZstdCompressor(level=3).compress
        try:
            self._http = httpx.Client(
                base_url=url,
                auth=auth_for(key),
                timeout=httpx.Timeout(60.0, connect=5.0),
                transport=transport,
                verify=verify,
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"--url {url}: {error}") from error

    def __enter__(self) -> EventClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(self, batch: Sequence[Line]) -> Answer:
        """Send a batch until every event is either taken or refused for good.

        Raises UnavailableError when patience ends, ConfigurationError where the request itself is refused: a
        wrong key, or an address that is no gateway.
        """
        answer = Answer()
        waiting = list(batch)
        effort = _Effort(time.monotonic())
        while waiting:
            response = self._post("/v1/events", waiting, effort)
            report = _report(response)
            if _names_events(report):
                answer.accepted += report["accepted"]
                answer.refused += [
                    (waiting[error["index"]].number, error)
                    for error in report["errors"]
                    if not error["retryable"]
                ]
                waiting = [waiting[error["index"]] for error in report["errors"] if error["retryable"]]
            elif response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                if len(waiting) == 1:
                    answer.refused.append((waiting[0].number, _too_large(report)))
                    return answer
                middle = len(waiting) // 2
                for part in (waiting[:middle], waiting[middle:]):
                    half = self.send(part)
                    answer.accepted += half.accepted
                    answer.refused += half.refused
                return answer
            if waiting:
                self._again(response, report, effort)
        return answer

    def validate(self, batch: Sequence[Line]) -> dict[str, Any]:
        """The gateway's `errors` and `decisions` on a batch, `index` counted in it; nothing is written.

        Raises as `send` does.
        """
        effort = _Effort(time.monotonic())
        while True:
            response = self._post("/v1/events:validate", batch, effort)
            report = _report(response)
            if _names_events(report):
                return report
            if response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                if len(batch) == 1:
                    return {"errors": [_too_large(report)], "decisions": []}
                return self._validate_halves(batch)
            self._again(response, report, effort)

    def _validate_halves(self, batch: Sequence[Line]) -> dict[str, Any]:
        middle = len(batch) // 2
        whole: dict[str, Any] = {"errors": [], "decisions": []}
        for first, part in ((0, batch[:middle]), (middle, batch[middle:])):
            report = self.validate(part)
            for name, listed in whole.items():
                listed += [{**item, "index": first + item["index"]} for item in report.get(name, ())]
        return whole

    # --- one request

    def _post(self, path: str, lines: Sequence[Line], effort: _Effort) -> httpx.Response:
        body = self._compress(b"\n".join(line.text for line in lines))
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "zstd"}
        while True:
            effort.tries += 1
            try:
                return self._http.post(path, content=body, headers=headers)
            except httpx.UnsupportedProtocol as error:
                raise ConfigurationError(f"--url {self._http.base_url}: {error}") from error
            except httpx.TransportError as error:
                if time.monotonic() - effort.began >= self._patience:
                    raise UnavailableError(
                        f"{self._http.base_url} does not answer ({type(error).__name__}); run `gridpipe up`."
                    ) from error
                self._pause("no answer", effort)

    def _again(self, response: httpx.Response, report: dict[str, Any], effort: _Effort) -> None:
        """Wait before the next try. Raises UnavailableError when patience ends, ConfigurationError where the
        answer is about the request as a whole and will not change: no event is refused by it."""
        who = f"{self._http.base_url} answers {response.status_code}"
        if response.status_code not in _AGAIN and not _names_events(report):
            message = report.get("message") or f"{response.reason_phrase}, not as gridpipe does; see --url"
            raise ConfigurationError(f"{who}: {message}")
        reason = str(report.get("message") or "some events could not be made durable")
        if time.monotonic() - effort.began >= self._patience or effort.tries >= _MOST_RESENDS:
            raise UnavailableError(f"{who}: {reason}")
        asked = _retry_after(response)
        if asked > _LONGEST_ASKED:
            raise UnavailableError(f"{who} and asks to wait {asked:,.0f} s: {reason}")
        self._pause(reason, effort, asked)

    def _pause(self, reason: str, effort: _Effort, asked: float = 0.0) -> None:
        """At least what was asked for; beyond that, exponential with full jitter."""
        own = random.uniform(0, min(0.2 * 2**effort.tries, _LONGEST_WAIT))  # noqa: S311 (spread, not secrecy)
        effort.began += asked
        self._on_wait(reason, max(asked, own), own <= asked > 0)
        self._sleep(max(asked, own))


def _report(response: httpx.Response) -> dict[str, Any]:
    try:
        report = response.json()
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _names_events(report: dict[str, Any]) -> bool:
    """Whether this is a gateway's word on each event, not an answer about the request as a whole."""
    return isinstance(report.get("errors"), list) and isinstance(report.get("accepted"), int)


def _too_large(report: dict[str, Any]) -> dict[str, Any]:
    """The error of an event that alone is more than a request may hold."""
    return {
        "index": 0,
        "event_id": None,
        "code": report.get("code", "refused"),
        "field": "",
        "message": report.get("message", "the event is too large for a request"),
        "retryable": False,
    }


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the service asks to wait, 0 where it does not: a number, or a date against its clock."""
    asked = response.headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    then, now = _http_date(asked), _http_date(response.headers.get("date", ""))
    return 0.0 if then is None else max(0.0, (then - (now or utc_now())).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        read = parsedate_to_datetime(text)
    except ValueError:
        return None
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)
