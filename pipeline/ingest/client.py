"""A feeding system's side: NDJSON lines to the gateway in batches, patient with a busy or absent one."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import zstandard

from pipeline.errors import ConfigurationError, PermanentError, UnavailableError
from pipeline.ingest.signing import auth_for

#: Bytes of lines in one request at most; the gateway takes 20 MB decompressed.
MAX_BATCH_BYTES: Final = 4_000_000
#: Longest wait that a server may ask for, and of our own backing off, seconds.
_LONGEST_WAIT: Final = 30.0
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

    patience_seconds : how long to go on trying while nobody answers or nothing can be written.
    verify : of `pipeline.tls.verify_for`.
    sleep, on_wait : for tests and progress lines; `on_wait` is told why and how long it waits.
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
        on_wait: Callable[[str, float], None] | None = None,
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

        Raises UnavailableError when patience ends, ConfigurationError for a wrong key or address.
        """
        answer = Answer()
        waiting = list(batch)
        started = time.monotonic()
        attempt = 0
        while waiting:
            attempt += 1
            response = self._post("/v1/events", waiting, started, attempt)
            if response.status_code == 413 and len(waiting) > 1:
                middle = len(waiting) // 2
                for part in (waiting[:middle], waiting[middle:]):
                    half = self.send(part)
                    answer.accepted += half.accepted
                    answer.refused += half.refused
                return answer
            report = _report(response)
            if "errors" not in report:
                waiting = self._judge(response, report, waiting, answer)
            else:
                answer.accepted += report["accepted"]
                answer.refused += [
                    (waiting[error["index"]].number, error)
                    for error in report["errors"]
                    if not error["retryable"]
                ]
                waiting = [waiting[error["index"]] for error in report["errors"] if error["retryable"]]
            if waiting:
                self._wait(response, report, started, attempt)
        return answer

    def validate(self, batch: Sequence[Line]) -> dict[str, Any]:
        """The gateway's report on a batch without writing it. Raises as `send` does."""
        started = time.monotonic()
        for attempt in range(1, _MOST_RESENDS):
            response = self._post("/v1/events:validate", batch, started, attempt)
            report = _report(response)
            if "errors" in report:
                return report
            if response.status_code not in (409, 429, 503):
                break
            self._wait(response, report, started, attempt)
        self._judge(response, report, list(batch), Answer())
        raise PermanentError(f"the service answered {response.status_code}: {report.get('message', '')}")

    # --- one request

    def _post(self, path: str, lines: Sequence[Line], started: float, attempt: int) -> httpx.Response:
        body = self._compress(b"\n".join(line.text for line in lines))
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "zstd"}
        while True:
            try:
                return self._http.post(path, content=body, headers=headers)
            except httpx.UnsupportedProtocol as error:
                raise ConfigurationError(f"--url {self._http.base_url}: {error}") from error
            except httpx.TransportError as error:
                if time.monotonic() - started >= self._patience:
                    raise UnavailableError(
                        f"{self._http.base_url} does not answer ({type(error).__name__}); run `gridpipe up`."
                    ) from error
                attempt += 1
                self._pause("no answer", attempt)

    def _judge(
        self, response: httpx.Response, report: dict[str, Any], waiting: list[Line], answer: Answer
    ) -> list[Line]:
        """What is left to send after an answer about the request as a whole."""
        message = report.get("message", response.reason_phrase)
        if response.status_code in _AGAIN:
            return waiting
        if response.status_code in (401, 404, 405, 415, 421):
            raise ConfigurationError(f"{self._http.base_url} answered {response.status_code}: {message}")
        error = {
            "index": 0,
            "event_id": None,
            "code": report.get("code", "refused"),
            "field": "",
            "message": message,
            "retryable": False,
        }
        answer.refused += [(line.number, error) for line in waiting]
        return []

    def _wait(self, response: httpx.Response, report: dict[str, Any], started: float, attempt: int) -> None:
        reason = report.get("message") or "some events could not be made durable"
        if time.monotonic() - started >= self._patience or attempt >= _MOST_RESENDS:
            raise UnavailableError(f"{self._http.base_url} answers {response.status_code}: {reason}")
        asked = response.headers.get("retry-after", "")
        self._pause(reason, attempt, float(asked) if asked.isdigit() else 0.0)

    def _pause(self, reason: str, attempt: int, asked: float = 0.0) -> None:
        """At least what was asked for; beyond that, exponential with full jitter."""
        own = random.uniform(0, min(0.2 * 2**attempt, _LONGEST_WAIT))  # noqa: S311 (spread, not secrecy)
        seconds = min(max(asked, own), _LONGEST_WAIT)
        self._on_wait(reason, seconds)
        self._sleep(seconds)


def _report(response: httpx.Response) -> dict[str, Any]:
    try:
        report = response.json()
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}
