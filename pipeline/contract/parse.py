"""JSON text to events: the whole list at once, and event by event only where something is wrong.

The same functions serve the gateway (documents and NDJSON over HTTP) and the worker (records of direct
producers). An unreadable document raises DocumentError; what is wrong with one event is an EventError beside
the good ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.contract.columns import Columns, columns_of
from pipeline.contract.event import CODES, ID_PATTERN, RETRYABLE_CODES, Event
from pipeline.contract.exact import ExactDecoder
from pipeline.contract.explain import Fault, explain
from pipeline.contract.faults import fault, suspects
from pipeline.contract.forms import forms_hold
from pipeline.contract.privacy import holds_personal_number
from pipeline.errors import ContractError

MAX_DEPTH: Final = 32
MAX_EVENTS: Final = 5_000
#: An event of the contract has 461 members at most. One with many more is refused before anything is built of
#: it: a million keys in one object took 130 MB.
MAX_MEMBERS: Final = 20_000
#: So much of a text is looked at at a time, where nothing is built of it.
_PIECE_BYTES: Final = 64 * 1024
#: Text with more colons than 5,000 ordinary events have is taken event by event.
_MANY_COLONS: Final = 300_000
#: A refused event larger than this is not decoded again to be described: a million keys take a second.
LARGE_EVENT_BYTES: Final = 256 * 1024
#: Lines per event that may be sent, blank ones included: each costs memory before it is seen to be blank.
_LINES_PER_EVENT: Final = 20

_EVENT: Final = msgspec.json.Decoder(Event)
_EXACT: Final = ExactDecoder(Event)
_EVENTS: Final = msgspec.json.Decoder(list[Event])
_RAW: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ONE_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_ANY: Final = msgspec.json.Decoder()

_ID: Final = re.compile(ID_PATTERN)
#: Times finer than the decoder keeps would be rounded, not cut: their digits beyond microseconds go first.
#: The first look is for the dot: it is rare, and searched for at the speed of memory.
_FINE: Final = re.compile(rb"\.\d{7}")
_FINE_TIME: Final = re.compile(rb'("\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d\.\d{6})\d+((?:[Zz]|[+-]\d\d:\d\d)")')
_BLANK: Final = b" \t\r"
#: Of each byte of JSON text outside strings, how much deeper it leads; and whether it is that or a comma.
_STEP: Final = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1
_STRUCTURE: Final = _STEP != 0
_STRUCTURE[0x2C] = True


class DocumentError(ContractError):
    """The whole document is refused.

    code : of `CODES`; status : HTTP status that says so.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Ids(NamedTuple):
    """Of a refused event, what may be shown: None where there is none, or it is itself at fault."""

    event_id: str | None = None
    case_id: str | None = None


class EventError(msgspec.Struct, frozen=True):
    """Why the event at `index` (position in the request) is refused."""

    index: int
    event_id: str | None
    code: str
    field: str
    message: str
    retryable: bool = False
    case_id: str | None = None  # for the log; no answer holds it

    @classmethod
    def of(cls, index: int, ids: Ids, found: Fault) -> EventError:
        retryable = found.code in RETRYABLE_CODES
        return cls(index, ids.event_id, found.code, found.field, found.message, retryable, ids.case_id)

    def answer(self) -> dict[str, Any]:
        """As the sender is told."""
        return {
            "index": self.index,
            "event_id": self.event_id,
            "code": self.code,
            "field": self.field,
            "message": self.message,
            "retryable": self.retryable,
        }


@dataclass(slots=True)
class Parsed:
    """What a request or record holds.

    events : the good ones, in order; indexes : the position of each; errors : the others, in order of index.
    raw : of each error, the bytes that were refused (same length as `errors`).
    """

    events: list[Event] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    errors: list[EventError] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.events) + len(self.errors)


# --- whole documents


def parse_document(body: bytes, *, max_depth: int = MAX_DEPTH, max_events: int = MAX_EVENTS) -> Parsed:
    """An event, or a list of events.

    Raises DocumentError: unreadable, too deep, empty, not an object or list of them (400), too many (413).
    """
    body = cut_fine_times(body)
    first = body.lstrip(b" \t\r\n")[:1]
    if not first:
        raise DocumentError("empty_body", "the body is empty; send an event or a list of events")
    if has_many_colons(body) if first == b"[" else body.count(b":") > MAX_MEMBERS:
        return _parse_slowly(body, max_depth, max_events)
    if first != b"[":
        return _parse_one(body, max_depth)
    try:
        events = _EVENTS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _parse_slowly(body, max_depth, max_events)
    columns = columns_of(Event, events)
    if not forms_hold(columns):
        return _parse_slowly(body, max_depth, max_events)
    _check_count(len(events), max_events)
    return check(events, columns, body)


def _parse_one(body: bytes, max_depth: int) -> Parsed:
    """One event: columns of one row would take twice as long as the exact decoder."""
    try:
        event = _EXACT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _parse_slowly(body, max_depth, 1)
    found = fault(event, body)
    if found is not None:
        return Parsed(errors=[EventError.of(0, ids_beside(event, found), found)], raw=[body])
    return Parsed(events=[event], indexes=[0])


def _check_count(count: int, max_events: int) -> None:
    if count == 0:
        raise DocumentError("empty_batch", "the list holds no event")
    if count > max_events:
        raise _too_many(f"{count} events", max_events)


def _too_many(what: str, max_events: int) -> DocumentError:
    message = f"{what} in one request; send at most {max_events} events"
    return DocumentError("too_many_events", message, status=413)


def split_document(body: bytes, max_depth: int, max_events: int) -> list[bytes]:
    """The raw text of each element of a JSON list, or of the one object. Raises DocumentError."""
    first = body.lstrip(b" \t\r\n")[:1]
    if not first:
        raise DocumentError("empty_body", "the body is empty; send an event or a list of events")
    if deeper_than(max_depth, body):
        raise DocumentError("too_deep", f"the document is nested deeper than {max_depth} levels")
    try:
        body.decode("utf-8")
        if first != b"[":
            _ONE_RAW.decode(body)
            parts = [body]
        else:
            if body.count(b",") >= max_events:  # of two bytes each, elements take fifty times as much
                _check_count(elements_of(body), max_events)
            parts = [bytes(raw) for raw in _RAW.decode(body)]
            _check_count(len(parts), max_events)
    except UnicodeDecodeError as error:
        raise DocumentError("bad_encoding", f"the body is not UTF-8 (byte {error.start})") from None
    except msgspec.MsgspecError as error:
        raise DocumentError("malformed_json", malformed(body, error)) from None
    if first not in b"[{":
        raise DocumentError("not_an_object", "the body must be an event or a list of events")
    return parts


def _parse_slowly(body: bytes, max_depth: int, max_events: int) -> Parsed:
    parsed = Parsed()
    for index, raw in enumerate(split_document(body, max_depth, max_events)):
        _take(parsed, index, raw)
    return parsed


def malformed(body: bytes, error: Exception) -> str:
    """What is wrong with text that is not JSON, with the byte where it was noticed."""
    if body.startswith(b"\xef\xbb\xbf"):
        return "the text begins with a byte order mark; send UTF-8 without it"
    detail = str(error).removeprefix("JSON is malformed: ")
    if "truncated" in detail:
        detail = f"the text ends too early or holds a broken escape ({len(body)} bytes)"
    return f"the text is not one JSON document: {detail}"


# --- lines


def parse_ndjson(body: bytes, *, max_depth: int = MAX_DEPTH, max_events: int | None = MAX_EVENTS) -> Parsed:
    """One event per line; blank lines do not count. A line that is not JSON is that line's error.

    Raises DocumentError: no line at all (400), too many (413).
    """
    body = cut_fine_times(body)
    if max_events is not None and (count := body.count(b"\n")) > _LINES_PER_EVENT * max_events:
        raise _too_many(f"{count} lines", max_events)
    lines = [line for line in filter(None, body.split(b"\n")) if not line.isspace() or line.strip(_BLANK)]
    if not lines:
        raise DocumentError("empty_body", "the body is empty; send one event per line")
    if max_events is not None:
        _check_count(len(lines), max_events)
    if has_many_colons(body):
        return _parse_lines_slowly(lines, max_depth)
    try:
        events = list(map(_EVENT.decode, lines))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _parse_lines_slowly(lines, max_depth)
    columns = columns_of(Event, events)
    if not forms_hold(columns):
        return _parse_lines_slowly(lines, max_depth)
    return check(events, columns, body, lines)


def _parse_lines_slowly(lines: Sequence[bytes], max_depth: int) -> Parsed:
    parsed = Parsed()
    for index, line in enumerate(lines):
        if deeper_than(max_depth, line):
            found = Fault("too_deep", "", f"the line is nested deeper than {max_depth} levels")
            _refuse(parsed, index, line, Ids(), found)
        else:
            _take(parsed, index, line)
    return parsed


def parse_record(value: bytes | None, *, max_depth: int = MAX_DEPTH) -> Parsed:
    """A direct record of the topic: NDJSON of one or many events. Never raises: unreadable is an error."""
    try:
        return parse_ndjson(value or b"", max_depth=max_depth, max_events=None)
    except DocumentError as error:
        found = Fault(error.code, "", error.message)
        return Parsed(errors=[EventError.of(0, Ids(), found)], raw=[value or b""])


# --- one event


def _take(parsed: Parsed, index: int, raw: bytes) -> None:
    """Decode one event exactly and add it, or what is wrong with it, to `parsed`."""
    if (crowd := crowded(raw)) is not None:
        _refuse(parsed, index, raw, Ids(), crowd)
        return
    try:
        event = _EXACT.decode(raw)
    except UnicodeDecodeError as error:
        _refuse(parsed, index, raw, Ids(), Fault("bad_encoding", "", f"not UTF-8 (byte {error.start})"))
    except msgspec.ValidationError as error:
        document, worse = untyped(raw) if len(raw) <= LARGE_EVENT_BYTES else (None, None)
        if worse is None:
            _refuse(parsed, index, raw, shown_ids(document), explain(error, document))
        else:
            _refuse(parsed, index, raw, Ids(), Fault("malformed_json", "", malformed(raw, worse)))
    except (msgspec.DecodeError, RecursionError) as error:
        _refuse(parsed, index, raw, Ids(), Fault("malformed_json", "", malformed(raw, error)))
    else:
        found = fault(event, raw)
        if found is None:
            parsed.events.append(event)
            parsed.indexes.append(index)
        else:
            _refuse(parsed, index, raw, ids_beside(event, found), found)


def untyped(raw: bytes) -> tuple[Any, Exception | None]:
    """(document, None), or (None, why it is not JSON). A number out of range leaves the document None."""
    try:
        return _ANY.decode(raw), None
    except msgspec.ValidationError:
        return None, None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return None, error


def _refuse(parsed: Parsed, index: int, raw: bytes, ids: Ids, found: Fault) -> None:
    assert found.code in CODES, found.code
    parsed.errors.append(EventError.of(index, ids, found))
    parsed.raw.append(raw)


def shown_ids(document: Any) -> Ids:
    """The ids of an untyped event, where they may be shown."""
    given = document if isinstance(document, dict) else {}
    return Ids(_shown_id(given.get("event_id")), _shown_id(given.get("case_id")))


def _shown_id(given: object) -> str | None:
    good = isinstance(given, str) and _ID.match(given) and not holds_personal_number(given)
    return str(given) if good else None


def check(
    events: Sequence[Event], columns: Columns, body: bytes, raws: Sequence[bytes] | None = None
) -> Parsed:
    """Split typed events into good ones and errors.

    columns : of `events`; body : the text they came from; raws : the text of each, where it is at hand.
    """
    faults = {at: found for at in suspects(columns, body) if (found := fault(events[at])) is not None}
    parsed = Parsed()
    if not faults:
        parsed.events, parsed.indexes = list(events), list(range(len(events)))
        return parsed
    for at, event in enumerate(events):
        if at not in faults:
            parsed.events.append(event)
            parsed.indexes.append(at)
        else:
            raw = raws[at] if raws is not None else msgspec.json.encode(event)
            _refuse(parsed, at, raw, ids_beside(event, faults[at]), faults[at])
    return parsed


def ids_beside(event: Event, found: Fault) -> Ids:
    """The ids of an event, but what must not be shown."""
    return Ids(*(_beside(name, getattr(event, name), found) for name in Ids._fields))


def _beside(name: str, given: str, found: Fault) -> str | None:
    known = (found.code, found.field) == ("personal_data_in_id", name)
    return None if known or holds_personal_number(given) else given


# --- cheap looks at bytes


def cut_fine_times(body: bytes) -> bytes:
    """`body` with times of more than 6 decimals cut there; anything else untouched."""
    return _FINE_TIME.sub(rb"\1\2", body) if _FINE.search(body) else body


def has_many_colons(body: bytes) -> bool:
    """Whether the text is to be taken event by event."""
    return len(body) > _MANY_COLONS and body.count(b":") > _MANY_COLONS


def deeper_than(limit: int, text: bytes) -> bool:
    """Whether brackets are nested deeper than `limit`; text with fewer brackets is not looked at, and of text
    that is too deep no more than up to there."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    return any(depth > limit for depth in _depths(text))


def depth_of(text: bytes) -> int:
    """Deepest nesting of brackets outside strings; no parsing, so that depth cannot exhaust the stack."""
    return max(_depths(text), default=0)


def _depths(text: bytes) -> Iterator[int]:
    """Deepest nesting in each piece of the text that has brackets."""
    depth = 0
    for codes in _outside_strings(text):
        step = _STEP[codes]
        run = depth + np.cumsum(step[step != 0], dtype=np.int32)
        if run.size:
            depth = int(run[-1])
            yield int(run.max(initial=0))


def elements_of(text: bytes) -> int:
    """Elements of a list, of JSON text that is no deeper than may be; no parsing, so that they cannot exhaust
    the memory."""
    commas, depth = 0, 0
    for codes in _outside_strings(text):
        shape = codes[_STRUCTURE[codes]]
        run = depth + np.cumsum(_STEP[shape], dtype=np.int32)
        commas += int(np.count_nonzero((shape == 0x2C) & (run == 1)))
        depth = int(run[-1]) if run.size else depth
    return commas + 1


def crowded(raw: bytes) -> Fault | None:
    """What is wrong with an event of more members than the contract knows; no parsing, so that they cannot
    exhaust the memory."""
    if raw.count(b":") <= MAX_MEMBERS:
        return None
    if sum(np.count_nonzero(codes == 0x3A) for codes in _outside_strings(raw)) <= MAX_MEMBERS:
        return None
    return Fault("too_long", "", f"the event holds more than {MAX_MEMBERS} members")


def _outside_strings(text: bytes) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of JSON text that stand in no string, and the quotes that end one; a piece of the text at a
    time, for the arrays of a whole body would take eight times its size."""
    start, quoted = 0, np.uint8(0)
    while start < len(text):
        piece = text[start : start + _PIECE_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # it ends within an escape
            piece = text[start : start + _PIECE_BYTES + 1]
        start += len(piece)
        codes = np.frombuffer(piece.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
        inside = quoted ^ np.bitwise_xor.accumulate((codes == 0x22).view(np.uint8))
        if inside.size:
            quoted = inside[-1]
        yield codes[inside == 0]
