"""The life of a request: parse, check sources, pseudonymise, split into blocks, write, confirm, answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import polars as pl
import structlog

from pipeline import metrics
from pipeline.clock import Clock, utc_now
from pipeline.contract.canary import CANARY_SOURCE
from pipeline.contract.cloudevents import parse_cloudevents
from pipeline.contract.explain import Fault
from pipeline.contract.parse import DocumentError, EventError, Ids, Parsed, parse_document, parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.errors import UnavailableError
from pipeline.ingest.balance import Balance
from pipeline.ingest.body import decompress
from pipeline.ingest.budget import Budget
from pipeline.ingest.durability import Durability
from pipeline.ingest.gate import Gate
from pipeline.ingest.groups import SAFE, UNCONFIRMED, UNWRITTEN, GroupWriter
from pipeline.ingest.keys import Credential, KeyStore
from pipeline.ingest.problem import ProblemError
from pipeline.ingest.producer import BlockProducer
from pipeline.ingest.quota import Quotas
from pipeline.ingest.signing import Signatures
from pipeline.pool import BoundedPool
from pipeline.settings import Settings

log = structlog.get_logger(__name__)
T = TypeVar("T")

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CLOUDEVENT: Final = "application/cloudevents+json"
CLOUDEVENTS: Final = "application/cloudevents-batch+json"
CONTENT_TYPES: Final = (JSON, NDJSON, CLOUDEVENT, CLOUDEVENTS)

#: Bodies above this are handled on a thread, so that the loop goes on serving others.
_THREAD_BYTES: Final = 16_384
#: Decisions wait for the store: calls that ask it at once, and calls that wait for these.
_DECIDING: Final = 4
_UNDECIDED: Final = 16
#: A producer finds a broker that is back within a second or two.
_RENEWED_SECONDS: Final = 20.0


#: Events that a log line about refused ones names.
_SHOWN_IDS: Final = 5

#: Labels are looked up once: it takes as long as counting.
_ACCEPTED: Final = metrics.gateway_events.labels("accepted")

_NOT_SAFE: Final = {
    UNCONFIRMED: Fault("not_confirmed", "", "sent but not confirmed in time; send it again with the same id"),
    UNWRITTEN: Fault("not_written", "", "its partition cannot be written now; send it again"),
}


class Validator(Protocol):
    """Tells what admission would decide."""

    def decide(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        """One report per row of `frames.EVENT`, in order. UnavailableError: no store."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request whose headers are in order.

    content_type : one of `CONTENT_TYPES`; encoding : "", identity, gzip or zstd; grow : told, on any thread,
    the bytes that the body unpacks to, and may refuse them; address : the caller's.
    """

    body: bytes
    content_type: str
    encoding: str
    credential: Credential
    request_id: str
    grow: Callable[[int], None]
    address: str = "127.0.0.1"


@dataclass(slots=True)
class Outcome:
    """What became of a request's events."""

    count: int
    errors: list[EventError]
    size: int = 0  # bytes of the events, decompressed
    accepted: list[int] = field(default_factory=list)

    def members(self, request_id: str) -> dict[str, Any]:
        self.errors.sort(key=lambda error: error.index)
        return {
            "accepted": len(self.accepted),
            "rejected": self.count - len(self.accepted),
            "errors": [error.answer() for error in self.errors],
            "request_id": request_id,
        }


class Waiting:
    """When the body of each request that is not answered yet had come."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._begun = 0
        metrics.gateway_oldest_request_seconds.set_function(self.oldest_seconds)

    def begin(self) -> int:
        """The body of a request has come. Returns what `end` is told."""
        self._begun += 1
        self._since[self._begun] = time.monotonic()
        return self._begun

    def end(self, request: int) -> None:
        """Its answer is known."""
        del self._since[request]

    def oldest_seconds(self) -> float:
        """From any thread; 0 when none waits."""
        since = list(self._since.values())  # at once: the event loop goes on meanwhile
        return time.monotonic() - since[0] if since else 0.0


class Gateway:
    """The gateway's parts and the life of a request. One per process, used from its event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        keys: KeyStore,
        privacy: Privacy,
        producer: BlockProducer,
        durability: Durability,
        validator: Validator | None = None,
        quotas: Quotas | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.privacy = privacy
        self.producer = producer
        self.durability = durability
        self.validator = validator
        self.clock = clock
        self.budget = Budget(settings.in_flight_limit_bytes)
        self.waiting = Waiting()
        self.gate = Gate(settings.durability_timeout_seconds)
        self.quotas = quotas or Quotas(settings)
        self.signatures = Signatures(keys, settings.nonces_path, clock=lambda: clock().timestamp())
        self.writer = GroupWriter(
            privacy=privacy,
            producer=producer,
            durability=durability,
            gate=self.gate,
            max_block_bytes=settings.max_block_bytes,
        )
        self.balance = Balance(clock)
        self.draining = False
        #: False while nobody would say of any event that it is durable: callers need not wait for that.
        self.confirms = True
        self._deciding = BoundedPool("decide", threads=_DECIDING, queue=_UNDECIDED)

    def available(self) -> bool:
        """Whether requests are worth sending here: for readiness."""
        return not self.draining and self.confirms and self.log_answers()

    def log_answers(self) -> bool:
        """Whether events can be written. Before a closed gate callers wait for the log that comes."""
        return not self.gate.is_open or self.producer.available()

    async def renewed(self) -> None:
        """The log is another one: let the callers on, once it can be reached."""
        async with asyncio.timeout(_RENEWED_SECONDS):
            while not self.producer.available():  # noqa: ASYNC110  the producer has no event to wait for
                await asyncio.sleep(0.02)
        self.gate.open()

    async def close(self) -> None:
        """Refuse new requests, then let what is under way end."""
        self.draining = True
        self._deciding.close()
        await self.producer.close()
        await self.durability.close()
        await self.writer.close()
        self.signatures.close()

    # --- the two calls

    async def take(self, call: Call) -> dict[str, Any]:
        """Write a request's events and answer when they are durable: the members of the 202.

        Raises ProblemError, with the same members where events were looked at.
        """
        if self.draining or not self.log_answers():
            raise _away("the log does not answer; nothing was taken")
        if not self.confirms:
            raise _away("nothing is stored yet; nothing was taken")
        try:
            await self.producer.partitions()
        except UnavailableError as error:
            raise _away(str(error)) from error
        outcome, good = await _run(call, self._read)
        self._charge(call, outcome, good)
        self._refuse_if_none_good(call, outcome, good)
        await self._write(call, outcome, good)
        members = {**outcome.members(call.request_id), "durability": self.durability.name}
        _ACCEPTED.inc(len(outcome.accepted))
        self._tell_refusals(call, outcome)
        if not outcome.accepted:
            members["durability"] = None
            raise ProblemError(
                503, "not_written", "no event could be made durable; send again", members=members
            )
        return members

    async def validate(self, call: Call) -> dict[str, Any]:
        """The report of `take` and, per good event, what admission would decide. Writes nothing."""
        if self.validator is None:
            raise ProblemError(503, "no_validator", "reference data is not connected here")
        outcome, good, frame = await _run(call, self._frame)
        self._charge(call, outcome, good)
        self._refuse_if_none_good(call, outcome, good)
        try:
            reports = await self._deciding.run(self.validator.decide, frame)
        except UnavailableError as error:
            raise _away(str(error)) from error
        outcome.accepted = list(good.indexes)
        decisions = [
            {"index": index, "event_id": event.event_id, **report}
            for index, event, report in zip(good.indexes, good.events, reports, strict=True)
        ]
        members = {**outcome.members(call.request_id), "durability": None, "decisions": decisions}
        self._tell_refusals(call, outcome)
        return members

    # --- steps

    def _read(self, call: Call) -> tuple[Outcome, Parsed]:
        """The good events, and what is wrong with the others."""
        body = decompress(
            call.body,
            call.encoding,
            self.settings.max_decompressed_bytes,
            free=self.settings.max_body_bytes,
            grow=call.grow,
        )
        parsed = self._parse(body, call.content_type)
        outcome = Outcome(parsed.count, parsed.errors, len(body))
        return outcome, _allowed(parsed, call.credential)

    def _frame(self, call: Call) -> tuple[Outcome, Parsed, pl.DataFrame]:
        """`_read`, and the good events as rows of `frames.EVENT`."""
        outcome, good = self._read(call)
        frame = to_frame(
            good.events,
            ingested_at=self.clock(),
            request_id=call.request_id,
            backfill=call.credential.backfill,
            privacy=self.privacy,
        )
        return outcome, good, frame

    def _parse(self, body: bytes, content_type: str) -> Parsed:
        depth, most = self.settings.max_json_depth, self.settings.max_events_per_request
        try:
            if content_type == NDJSON:
                return parse_ndjson(body, max_depth=depth, max_events=most)
            if content_type == JSON:
                return parse_document(body, max_depth=depth, max_events=most)
            return parse_cloudevents(
                body, batch=content_type == CLOUDEVENTS, max_depth=depth, max_events=most
            )
        except DocumentError as error:
            raise ProblemError(error.status, error.code, error.message) from None

    async def _write(self, call: Call, outcome: Outcome, good: Parsed) -> None:
        """Write the good events, wait until they are durable; what is not becomes retryable errors."""
        received_at = self.clock()
        try:
            states = await self.writer.write(
                good.events,
                size=outcome.size,
                ingested_at=received_at,
                request_id=call.request_id,
                backfill=call.credential.backfill,
            )
        except UnavailableError as error:
            raise _away(str(error)) from error
        sound = good.events
        if not np.count_nonzero(states):  # SAFE is 0
            outcome.accepted = good.indexes
        else:
            sound = []
            for index, event, state in zip(good.indexes, good.events, states.tolist(), strict=True):
                if state == SAFE:
                    outcome.accepted.append(index)
                    sound.append(event)
                else:
                    outcome.errors.append(
                        EventError.of(index, Ids(event.event_id, event.case_id), _NOT_SAFE[state])
                    )
        self.balance.answered(sound, received_at)

    def _charge(self, call: Call, outcome: Outcome, good: Parsed) -> None:
        """Events to their sources; those that cannot be read or are foreign to the first of the key's own.

        Raises ProblemError 429 when one of several sources has nothing left."""
        sources = call.credential.sources
        if len(sources) == 1:
            counts: dict[str, int] = dict.fromkeys(sources, outcome.count)
        else:
            counts = Counter(event.source for event in good.events)
            if foreign := outcome.count - len(good.events):
                counts[min(sources)] += foreign
            self.quotas.admit_events(call.address, counts)
        self.quotas.charge_events(call.address, counts)

    def _refuse_if_none_good(self, call: Call, outcome: Outcome, good: Parsed) -> None:
        if good.events:
            return
        members = {**outcome.members(call.request_id), "durability": None}
        self._tell_refusals(call, outcome)
        if all(error.code == "source_not_allowed" for error in outcome.errors):
            raise ProblemError(
                403,
                "source_not_allowed",
                "the key does not cover the source of these events",
                members=members,
            )
        raise ProblemError(422, "all_refused", "every event breaks the contract; see errors", members=members)

    @staticmethod
    def _tell_refusals(call: Call, outcome: Outcome) -> None:
        """Count what is refused, and leave one line for it; which events all were is in the answer."""
        if not outcome.errors:
            return
        codes = Counter(error.code for error in outcome.errors)
        shown = outcome.errors[:_SHOWN_IDS]
        log.info(
            "events_refused",
            request_id=call.request_id,
            # The limiter of the log counts by source: under no name, one mad sender would silence them all.
            source=min(call.credential.sources, default=""),
            codes=dict(codes),
            event_ids=[error.event_id for error in shown],
            case_ids=[error.case_id for error in shown],
        )
        for code, number in codes.items():
            metrics.gateway_refusals.labels(code).inc(number)
        unwritten = codes["not_written"] + codes["not_confirmed"]
        metrics.gateway_events.labels("not_written").inc(unwritten)
        metrics.gateway_events.labels("refused").inc(len(outcome.errors) - unwritten)


async def _run(call: Call, function: Callable[[Call], T]) -> T:
    """`function` of the call, here if its body is small, else on a thread.

    A compressed body may be of any size: of equal bytes a kilobyte holds twenty million.
    """
    if len(call.body) <= _THREAD_BYTES and call.encoding in ("", "identity"):
        return function(call)
    return await asyncio.to_thread(function, call)


def _allowed(parsed: Parsed, credential: Credential) -> Parsed:
    """The events whose source the credential covers; the others become errors of `parsed`."""
    # The canary's source is the pipeline's own, whatever a key file says.
    foreign = {event.source for event in parsed.events} - (credential.sources - {CANARY_SOURCE})
    if not foreign:
        return parsed
    good = Parsed(errors=parsed.errors, raw=parsed.raw)
    for index, event in zip(parsed.indexes, parsed.events, strict=True):
        if event.source in foreign:
            found = Fault("source_not_allowed", "source", "the key does not cover this source")
            parsed.errors.append(EventError.of(index, Ids(event.event_id, event.case_id), found))
            parsed.raw.append(b"")
        else:
            good.events.append(event)
            good.indexes.append(index)
    return good


def _away(message: str) -> ProblemError:
    return ProblemError(503, "unavailable", message)
