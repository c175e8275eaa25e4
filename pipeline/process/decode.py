"""Records to rows: Arrow blocks of the gateway and JSON of direct producers become the same frame.

Nothing that a record holds can stop its partition: what cannot be read becomes a row of `quarantined` with
its position. Every record gives at least one row, so that what was received can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress
from typing import Final, NamedTuple, get_args

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.canary import CANARY_SOURCE
from pipeline.contract.clean import cleaned
from pipeline.contract.event import (
    CODE,
    GRID,
    HIGHEST_RATING,
    ID,
    KEY,
    LOWEST_RATING,
    ORGANISATION_CODE,
    REQUIRED_ATTRIBUTE,
    SHA256,
    ActorType,
    Crs,
    Event,
    Form,
    PersonRole,
)
from pipeline.contract.parse import DocumentError, EventError, Parsed, parse_document, parse_record
from pipeline.contract.privacy import CUT_MARGIN, Privacy, cut_address, holds_personal_number, redact_head
from pipeline.contract.rows import to_batch
from pipeline.errors import ContractError
from pipeline.frames import (
    DECODED,
    EVENT,
    EVENT_TYPES,
    NO_QUARANTINED,
    PIPELINE_EVENT_TYPES,
    POSITION,
    QUARANTINED,
    expect,
    null_counts,
)
from pipeline.ingest.blocks import frame_of, is_single, read_batches, read_together
from pipeline.process.hashes import event_hashes
from pipeline.process.records import JSON_TYPES, MAX_EVENTS_PER_RECORD, SCHEMA_VERSION, Record
from pipeline.reference.keys import is_given

MALFORMED: Final = "MALFORMED"
UNSUPPORTED_VERSION: Final = "UNSUPPORTED_VERSION"

#: Characters of a refused payload that are kept.
PAYLOAD_CHARACTERS: Final = 16_384
#: Characters that are read beyond these: marks and stars are shorter than what they replace.
_MORE_CHARACTERS: Final = 2_048
#: Values of these JSON fields are personal whatever they look like.
_PERSONAL_FIELDS: Final = re.compile(
    r"""((["'])(?:id_number|phone|name|key|姓名|电话|手机|身份证号?)\2\s*:\s*(?:\[\s*)?)"""
    r"""(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)(?:\s*,\s*"(?:[^"\\]|\\.)*"(?=\s*[,\]]))*""",
    re.DOTALL,
)
_ADDRESSES: Final = re.compile(
    r"""(["'](?:address|地址|住址)["']\s*:\s*)("(?:[^"\\]|\\.)*|'(?:[^'\\]|\\.)*)""", re.DOTALL
)
#: Here nothing stays of what follows a building.
_BUILDING: Final = re.compile(r"(栋|幢|棟|座|号楼|號樓).*", re.DOTALL)
#: Between the characters of a number they hide it; no store shows them.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Quotes and backslashes stay escaped, for the text would end there. Looked for only where a run of
#: backslashes begins: a look at each of them would cost the square of their number.
_ESCAPE: Final = re.compile(r"(?<!\\)\\+u(?!00(?:22|27|5[cC]))([0-9a-fA-F]{4})")
#: So many Arrow blocks are read as one.
_FEW_BLOCKS: Final = 2
#: Events of JSON that are parsed, and turned into columns, at once: few enough for their objects to stay in
#: the processor's cache.
_EVENTS_AT_ONCE: Final = 500

_REQUIRED: Final = (
    "event_id", "source", "event_type", "case_id", "occurred_at", "ingested_at", "channel", "grid_code",
    "actor_type", "key_version",
)  # fmt: skip
_ID_PATTERN: Final = f"^{ID.expression}$"
#: Columns that need not be given.
_FORMS: Final = {
    "submission_id": ID, "unit_code": GRID, "actor_key": KEY, "organisation_code": ORGANISATION_CODE,
    "primary_case_id": ID, "request_id": ID, "channel": CODE, "matter_code": CODE, "department": CODE,
}  # fmt: skip
_CLOSED: Final = {"actor_type": get_args(ActorType), "crs": get_args(Crs)}
#: The columns of attributes that have another name there.
_COLUMN_OF: Final = {"reason": "void_reason"}
_CLIENT_TYPES: Final = [name for name in EVENT_TYPES if name not in PIPELINE_EVENT_TYPES]
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)
#: Those that Python has, in any time zone.
_FIRST_DAY, _LAST_DAY = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
_EARLIEST_MS: Final = int(_EARLIEST.timestamp() * 1000)
_LATEST_MS: Final = int(_LATEST.timestamp() * 1000)

#: Errors that bytes or values can cause; a Rust panic of polars is no Exception.
DATA_ERRORS: Final = (Exception, pl.exceptions.PanicException)


@dataclass(frozen=True)
class Decoded:
    """events : DECODED, in position order; quarantined : QUARANTINED, in position order."""

    events: pl.DataFrame
    quarantined: pl.DataFrame


class _Source(NamedTuple):
    partition: int
    record: Record


class _Named(msgspec.Struct):
    """All that is read of a refused event; the rest is passed over, so that it costs no memory."""

    source: object = None


_NAMED: Final = msgspec.json.Decoder(_Named)


@dataclass
class _Collected:
    """Events and refusals of a round, gathered before the frames are built.

    backfill_sources : see decode. batches : rows of events that came as JSON, in places: (n, 4) partition,
    offset, index and timestamp of each.
    """

    privacy: Privacy
    backfill_sources: frozenset[str]
    frames: list[pl.DataFrame] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    places: list[NDArray[np.int64]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    positions: list[tuple[int, int, int, int]] = field(default_factory=list)
    refused: list[dict[str, object]] = field(default_factory=list)

    def take(self, source: _Source, index: int, event: Event) -> None:
        self.events.append(event)
        self.positions.append((source.partition, source.record.offset, index, source.record.timestamp_ms))
        if len(self.events) >= _EVENTS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Turn the events that were taken into rows."""
        if not self.events:
            return
        exempt = self.backfill_sources
        self.batches.append(
            to_batch(
                self.events,
                ingested_at=_EARLIEST,  # of all: the records' times follow as a column
                request_id=None,
                backfill=[event.source in exempt for event in self.events] if exempt else False,
                privacy=self.privacy,
            )
        )
        self.places.append(np.array(self.positions, np.int64))
        self.events, self.positions = [], []

    def refuse(
        self,
        source: _Source,
        index: int,
        detail: str,
        *,
        payload: bytes | None = None,
        reason: str = MALFORMED,
        source_name: object = None,
        event_id: str | None = None,
    ) -> None:
        """source_name, event_id : as the sender gave them; kept where they are ids that may be shown."""
        record = source.record
        raw = (record.value or b"") if payload is None else payload
        self.refused.append(
            {
                "_part": source.partition,
                "_off": record.offset,
                "_idx": index,
                "reason": reason,
                "detail": redact_head(detail, 500),
                # the pipeline's own source is nobody's who breaks the contract
                "source": None if source_name == CANARY_SOURCE else _shown(source_name),
                "event_id": _shown(event_id),
                "content_type": redact_head(record.content_type or "", 100) or None,
                "payload": redacted_payload(raw),
                "payload_bytes": min(len(raw), 2**32 - 1),
                "ingested_at": _instant(record.timestamp_ms),
            }
        )


def decode(
    blocks: Iterable[tuple[int, Sequence[Record]]],
    *,
    privacy: Privacy,
    backfill_sources: Iterable[str] = (),
) -> Decoded:
    """Rows of the records of one or more blocks, which are read together: a frame costs a fixed time.

    blocks : partition and records in offset order; partitions ascending.
    backfill_sources : sources of direct records that are exempt from TOO_OLD and the late flags.

    `ingested_at` is the gateway's receipt (Arrow block) or the record's timestamp (direct records), so that a
    replay gives the same rows. `_idx` is the row in an Arrow block, the element of an array or the line.
    """
    collected = _Collected(privacy, frozenset(backfill_sources))
    single: list[tuple[_Source, bytes]] = []
    arrow: list[_Source] = []
    for source in (_Source(partition, record) for partition, records in blocks for record in records):
        record = source.record
        problem = _unreadable(record)
        if problem is not None:
            collected.refuse(source, 0, problem[1], reason=problem[0])
        elif record.is_arrow:
            arrow.append(source)
        else:
            body = (record.value or b"").strip()
            if body.startswith(b"{") and b"\n" not in body and b"\r" not in body:
                single.append((source, body))
            else:
                _take_parsed(source, _parse(record, body), collected)
    small = [is_single(source.record.value or b"") for source in arrow]
    if _take_together(list(compress(arrow, small)), collected):
        arrow = [source for source, taken in zip(arrow, small, strict=True) if not taken]
    _take_arrow(arrow, collected)
    for start in range(0, len(single), _EVENTS_AT_ONCE):
        _take_lines(single[start : start + _EVENTS_AT_ONCE], collected)
    collected.flush()
    return _frames(collected)


def redacted_payload(raw: bytes) -> str:
    """Readable, redacted and cut form of refused bytes: a clerk may read it, nobody is named in it."""
    head = raw[: 4 * (PAYLOAD_CHARACTERS + CUT_MARGIN)]
    text = head.decode(_encoding(head), "replace")
    # halves of surrogate pairs become one sign that cannot be stored otherwise
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).encode("utf-8", "replace").decode()
    begin = text[: PAYLOAD_CHARACTERS + _MORE_CHARACTERS]
    cut = len(head) < len(raw) or len(begin) < len(text)
    text = _CONTROLS.sub("\ufffd", begin)
    text = _ADDRESSES.sub(_without_room, _PERSONAL_FIELDS.sub(r'\1"***"', text))
    return redact_head(text, PAYLOAD_CHARACTERS, cut=cut)


def _without_room(found: re.Match[str]) -> str:
    return found[1] + _BUILDING.sub(r"\1", cut_address(found[2]))


def _encoding(head: bytes) -> str:
    """UTF-16 where a mark or a NUL in every other byte says so."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 > len(head) and min(even, odd) * 8 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _shown(given: object) -> str | None:
    """An id that may be shown, else None."""
    if not isinstance(given, str) or re.fullmatch(_ID_PATTERN, given) is None:
        return None
    return None if holds_personal_number(given) else given


def _source_in(raw: bytes) -> object:
    """What the text of one event gives as its source; None where it is no JSON object."""
    try:
        return _NAMED.decode(raw).source
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _unreadable(record: Record) -> tuple[str, str] | None:
    """(reason, detail) of a record that cannot be read at all."""
    if record.value is None:
        return MALFORMED, "tombstone: the record has no value"
    if not record.value.strip():
        return MALFORMED, "the record is empty"
    if record.schema_version is not None and record.schema_version != SCHEMA_VERSION:
        if record.schema_version.isdigit():
            return (
                UNSUPPORTED_VERSION,
                f"schema-version {redact_head(record.schema_version, 20)}; this build reads 1",
            )
        return MALFORMED, "the schema-version header is no number"
    if record.content_type is not None and not record.is_arrow and record.content_type not in JSON_TYPES:
        return MALFORMED, "the content-type header is none of Arrow stream, JSON, NDJSON"
    return None


def _take_together(sources: Sequence[_Source], collected: _Collected) -> bool:
    """Small Arrow blocks, read as one; False where any of them is at fault: they must be read one by one."""
    if len(sources) < _FEW_BLOCKS:
        return False
    try:
        batch, rows = read_together([source.record.value or b"" for source in sources])
        block = frame_of([batch])
    except DATA_ERRORS:
        return False
    if not all(0 < height < MAX_EVENTS_PER_RECORD for height in rows):
        return False
    _take_rows(sources, rows, block, collected)
    return True


def _take_arrow(sources: Sequence[_Source], collected: _Collected) -> None:
    """Arrow blocks, all turned into one frame; one by one only where one of them is at fault."""
    sound: list[tuple[_Source, list[pa.RecordBatch]]] = []
    rows: list[int] = []
    for source in sources:
        try:
            batches = read_batches(source.record.value or b"")
        except ContractError:
            collected.refuse(source, 0, "unreadable Arrow block")
            continue
        height = sum(batch.num_rows for batch in batches)
        if not 0 < height < MAX_EVENTS_PER_RECORD:
            collected.refuse(source, 0, f"an Arrow block of {height} events")
            continue
        sound.append((source, batches))
        rows.append(height)
    if not sound:
        return
    try:
        block = frame_of([batch for _, batches in sound for batch in batches])
    except DATA_ERRORS as error:
        if len(sound) == 1:
            collected.refuse(sound[0][0], 0, f"unreadable Arrow block: {type(error).__name__}")
        else:
            for source, _ in sound:
                _take_arrow([source], collected)
        return
    _take_rows([source for source, _ in sound], rows, block, collected)


def _take_rows(
    sources: Sequence[_Source], rows: Sequence[int], block: pl.DataFrame, collected: _Collected
) -> None:
    """Rows of Arrow blocks, which lie behind one another. rows : of each block."""
    heights = np.array(rows, np.int64)
    starts = np.repeat(np.cumsum(heights) - heights, heights)
    block = block.hstack(
        [
            pl.Series("_part", np.repeat(np.array([at.partition for at in sources], np.uint16), heights)),
            pl.Series("_off", np.repeat(np.array([at.record.offset for at in sources], np.uint64), heights)),
            pl.Series("_idx", (np.arange(block.height) - starts).astype(np.uint32)),
        ]
    )
    block, in_clear = cleaned(block, collected.privacy)
    good = _well_formed(block) & ~in_clear
    if not good.all():
        by_position = {(at.partition, at.record.offset): at for at in sources}
        for row in _legible(block[np.flatnonzero(~good)]).iter_rows(named=True):
            collected.refuse(
                by_position[row["_part"], row["_off"]],
                row["_idx"],
                "a row breaks the contract",
                payload=repr(row).encode(),
                source_name=row["source"],
                event_id=row["event_id"],
            )
        block = block[np.flatnonzero(good)]
    collected.frames.append(block)


def _legible(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the times that a row is judged by as text, or as milliseconds where no calendar has them:
    turned into one of Python's, such a time ends polars' call with a panic."""
    return rows.with_columns(
        pl.coalesce(
            pl.when(pl.col(name).is_between(_FIRST_DAY, _LAST_DAY))
            .then(pl.col(name))
            .dt.to_string("iso:strict"),
            pl.col(name).to_physical().cast(pl.String),
        ).alias(name)
        for name in ("occurred_at", "ingested_at")
    )


def _well_formed(block: pl.DataFrame) -> NDArray[np.bool_]:
    """(n,) True where a row of an Arrow block holds what the gateway guarantees.

    Forms, closed lists, relations and ranges are those of the contract, which a direct producer's rows did
    not pass. One query answers all, with a column each: joined to one expression it took four times as long.
    """
    nulls = null_counts(block)
    items = [name for name in _ITEMS if nulls[name] < block.height]
    looks = block.select(
        *_FORMED,
        *(look for name, look in _DEMANDED if nulls[name]),
        # most columns are empty in a usual block
        *(look for name, look in _OPTIONAL.items() if nulls[name] < block.height),
        *(_ALL_ITEMS[name] for name in items),
    )
    sound = np.ones(block.height, bool)
    for name in _REQUIRED:
        sound &= is_given(block[name])
    for look in looks.get_columns():
        if look.name not in items:
            sound &= (look.fill_null(True) if look.null_count() else look).to_numpy()
    for name in items:
        if not looks[name].item(0):
            sound &= block.select(_EACH_ITEM[name]).to_series().to_numpy()
    return sound


def _has(text: pl.Expr, form: Form) -> pl.Expr:
    return text.str.contains(f"^{form.expression}$")


#: Of required columns, null where they are.
_FORMED: Final = (
    *(_has(pl.col(name), ID) for name in ("event_id", "source", "case_id")),
    pl.col("event_type").is_in(_CLIENT_TYPES),
    pl.col("occurred_at").is_between(_EARLIEST, _LATEST),
    pl.col("ingested_at").is_between(_EARLIEST, _LATEST),
    pl.col("grid_code").str.contains(r"^[0-9]{15}$"),
)
#: (column, look): what an event type demands of another column.
_DEMANDED: Final = tuple(
    (name, (pl.col("event_type").ne_missing(event_type) | pl.col(name).is_not_null()).alias(event_type))
    for event_type, name in (
        ("REPORTED", "matter_code"),
        *((event_type, _COLUMN_OF.get(name, name)) for event_type, name in REQUIRED_ATTRIBUTE.items()),
    )
)
#: The form and range of what need not be given.
_OPTIONAL: Final = {
    name: look.fill_null(True).alias(name)
    for name, look in {
        **{name: _has(pl.col(name), form) for name, form in _FORMS.items()},
        **{name: pl.col(name).is_in(words) for name, words in _CLOSED.items()},
        "rating": pl.col("rating").is_between(LOWEST_RATING, HIGHEST_RATING),
        "void_reason": pl.col("void_reason").str.contains(r"\S") | (pl.col("event_type") != "VOIDED"),
        "lon": pl.col("lon").is_between(-180, 180),
        "lat": pl.col("lat").is_between(-90, 90),
    }.items()
}
#: What the items of lists hold, from their fields.
_ITEMS: Final[dict[str, Callable[[Callable[[str], pl.Expr]], pl.Expr]]] = {
    "persons": lambda field: (
        field("role").is_in(get_args(PersonRole)).fill_null(False) & _has(field("key"), KEY).fill_null(True)
    ),
    "photos": lambda field: _has(field("sha256"), SHA256).fill_null(False),
}
#: One look at the items of all lists together, and one at each row where that finds an unsound one.
_ALL_ITEMS: Final = {
    name: sound(pl.col(name).explode(empty_as_null=False).struct.field).all().alias(name)
    for name, sound in _ITEMS.items()
}
_EACH_ITEM: Final = {
    name: pl.col(name).list.eval(sound(pl.element().struct.field)).list.all().fill_null(True)
    for name, sound in _ITEMS.items()
}


def _take_lines(lines: Sequence[tuple[_Source, bytes]], collected: _Collected) -> None:
    """Records of one event each, parsed as one text: a call per record costs more than the parsing."""
    parsed = parse_record(b"\n".join(body for _, body in lines))
    answered = np.zeros(len(lines), np.int64)
    indexes = [*parsed.indexes, *(error.index for error in parsed.errors)]
    if all(0 <= index < len(lines) for index in indexes):
        np.add.at(answered, indexes, 1)
    if not (answered == 1).all():  # the joined text hides where a record ends: take them one by one
        for source, body in lines:
            _take_parsed(source, _parse(source.record, body), collected)
        return
    for event, index in zip(parsed.events, parsed.indexes, strict=True):
        collected.take(lines[index][0], 0, event)
    for error in parsed.errors:
        source, body = lines[error.index]
        collected.refuse(
            source, 0, _detail(error), payload=body, source_name=_source_in(body), event_id=error.event_id
        )


def _take_parsed(source: _Source, parsed: Parsed, collected: _Collected) -> None:
    if not 0 < parsed.count < MAX_EVENTS_PER_RECORD:
        collected.refuse(source, 0, f"the record holds {parsed.count} events")
        return
    for event, index in zip(parsed.events, parsed.indexes, strict=True):
        collected.take(source, index, event)
    for error, raw in zip(parsed.errors, parsed.raw, strict=True):
        collected.refuse(
            source,
            error.index,
            _detail(error),
            payload=raw,
            source_name=_source_in(raw),
            event_id=error.event_id,
        )


def _parse(record: Record, body: bytes) -> Parsed:
    """A list or one object over several lines is a document; everything else is one event per line."""
    if not body.startswith(b"[") and record.content_type != "application/json":
        return parse_record(body)
    try:
        return parse_document(body, max_events=MAX_EVENTS_PER_RECORD)
    except DocumentError as error:
        found = EventError(0, None, error.code, "", error.message)
        return Parsed(errors=[found], raw=[body])


def _detail(error: EventError) -> str:
    return (
        f"{error.code}: {error.field}: {error.message}" if error.field else f"{error.code}: {error.message}"
    )


def _frames(collected: _Collected) -> Decoded:
    frames = list(collected.frames)
    if collected.batches:
        frames.append(_rows_of(collected))
    events = pl.concat(frames) if frames else pl.DataFrame(schema={**EVENT, **POSITION})
    # lines were parsed behind documents, small Arrow blocks read before the others
    if (collected.batches or len(frames) > 1) and not (len(frames) == 1 and _in_order(events)):
        events = events.sort("_part", "_off", "_idx", maintain_order=True)
    events = events.hstack(event_hashes(events))
    quarantined = NO_QUARANTINED
    if collected.refused:
        quarantined = pl.DataFrame(collected.refused, schema=QUARANTINED).sort(list(POSITION))
    return Decoded(expect(events, DECODED, "decoded"), quarantined)


def _in_order(rows: pl.DataFrame) -> bool:
    """Whether rows lie by position, which sorting would cost them a copy of every column to learn."""
    rises = np.zeros(max(rows.height - 1, 0), bool)
    for name in ("_idx", "_off", "_part"):
        values = rows[name].to_numpy()
        rises = (values[1:] > values[:-1]) | ((values[1:] == values[:-1]) & rises)
    return bool(rises.all())


def _rows_of(collected: _Collected) -> pl.DataFrame:
    rows = pl.DataFrame(pl.from_arrow(pa.concat_batches(collected.batches)))
    places = np.concatenate(collected.places)
    received = np.clip(places[:, 3], _EARLIEST_MS, _LATEST_MS)
    return expect(rows, EVENT, "parsed events").with_columns(
        pl.Series("ingested_at", received).cast(EVENT["ingested_at"]),
        *(pl.Series(name, places[:, column]).cast(POSITION[name]) for column, name in enumerate(POSITION)),
    )


def _instant(timestamp_ms: int) -> datetime:
    """The record's timestamp, held to the range that every store can keep."""
    return datetime.fromtimestamp(min(max(timestamp_ms, _EARLIEST_MS), _LATEST_MS) / 1000, UTC)
