"""Accepted events as records of the topic: Arrow IPC blocks, one per partition or more where it is large."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.event import EARLIEST, LATEST, SCHEMA_VERSION
from pipeline.contract.rows import EVENT_ARROW
from pipeline.errors import ContractError
from pipeline.frames import EVENT, expect

ARROW: Final = "application/vnd.apache.arrow.stream"
NDJSON: Final = "application/x-ndjson"
HEADERS: Final[Mapping[str, bytes]] = {
    "content-type": ARROW.encode(),
    "schema-version": str(SCHEMA_VERSION).encode(),
    # the embedded log is replaced only while no record comes from anybody else
    "via": b"gateway",
}

#: What a block may unpack to, bytes. The gateway's own stay below a tenth of it; a record of a megabyte could
#: ask for a thousand times its size.
MOST_UNPACKED_BYTES: Final = 128_000_000
#: Of an event that is packed: several times what an ordinary one unpacks to.
_UNPACKED_ROW_BYTES: Final = 2_000
_VILLAGE_DIGITS: Final = 12
_COMPRESSED_ROWS: Final = 256
_MAGIC: Final = np.uint32(0x5BD1E995)
_SEED: Final = np.uint32(0x9747B28C)
#: Threads cost more than they save: a block's columns are small.
_PLAIN: Final = pa.ipc.IpcWriteOptions(use_threads=False)
_PACKED: Final = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
#: A block has many small columns: handing them to a pool of threads costs more than reading them.
_ONE_THREAD: Final = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True)
class Block:
    """One record to be. rows : positions in the encoded frame; key : village code of the first row."""

    partition: int
    rows: NDArray[np.int64]
    payload: bytes
    key: bytes


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (seed 0x9747b28c), a signed 32-bit integer like `Utils.murmur2` of its Java client."""
    mask = 0xFFFFFFFF
    magic = int(_MAGIC)
    length = len(data)
    value = (int(_SEED) ^ length) & mask
    whole = length // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * magic & mask
        word ^= word >> 24
        value = (value * magic & mask) ^ (word * magic & mask)
    if rest := data[whole:]:
        value = ((value ^ int.from_bytes(rest, "little")) * magic) & mask
    value ^= value >> 13
    value = value * magic & mask
    value ^= value >> 15
    return value - (1 << 32) if value & 0x80000000 else value


def partition_of(grid_code: str, partitions: int) -> int:
    """Partition of a grid code: Kafka's default partitioner over the village code (first 12 digits)."""
    return (murmur2(grid_code[:_VILLAGE_DIGITS].encode()) & 0x7FFFFFFF) % partitions


def partitions_of(grid_codes: pl.Series, partitions: int) -> pl.Series:
    """`partition_of` over a column; `UInt16`."""
    return pl.Series(grid_codes.name, homes(grid_codes.to_list(), partitions), dtype=pl.UInt16)


def homes(grid_codes: Sequence[str], partitions: int) -> NDArray[np.uint16]:
    """`partition_of` each code, (n,): all at once where each is plain ASCII of 12 digits or more."""
    villages = "".join([code[:_VILLAGE_DIGITS] for code in grid_codes]).encode()
    if len(villages) != _VILLAGE_DIGITS * len(grid_codes) or not villages.isdigit():
        return np.array([partition_of(code, partitions) for code in grid_codes], np.uint16)
    words = np.frombuffer(villages, "<u4").reshape(-1, _VILLAGE_DIGITS // 4) * _MAGIC
    words ^= words >> 24
    words *= _MAGIC
    value = np.full(len(words), _SEED ^ np.uint32(_VILLAGE_DIGITS), np.uint32)
    for word in words.T:
        value *= _MAGIC
        value ^= word
    value ^= value >> 13
    value *= _MAGIC
    value ^= value >> 15
    return ((value & 0x7FFFFFFF) % partitions).astype(np.uint16)


def encode_blocks(frame: pl.DataFrame, *, partitions: int, max_bytes: int) -> list[Block]:
    """Rows of `frames.EVENT` as blocks, ordered by partition; rows keep their order within one.

    A block that would exceed `max_bytes` is halved until it fits; a single row is never split.
    Raises ContractError if the frame is not `frames.EVENT`.
    """
    frame = expect(frame, EVENT, "events to send")
    if frame.is_empty():
        return []
    home = homes(frame["grid_code"].to_list(), partitions)
    order = np.argsort(home, kind="stable")
    return encode_sorted(_arrow(frame[order]), home[order], order, max_bytes)


def encode_sorted(
    batch: pa.RecordBatch, home: NDArray[np.uint16], rows: NDArray[np.int64], max_bytes: int
) -> list[Block]:
    """`encode_blocks` of rows that are in the order of their partitions already.

    batch : rows of `EVENT_ARROW`; home : (n,) partition of each, ascending; rows : (n,) positions to be told
    in `Block.rows`.
    """
    cuts = [0, *(np.flatnonzero(np.diff(home)) + 1).tolist(), len(home)]
    spans = [(begin, end) for begin, end in pairwise(cuts) if begin < end]
    parts = [batch.slice(begin, end - begin) for begin, end in spans]
    blocks: list[Block] = []
    for (begin, end), part, payload in zip(spans, parts, _streams(parts), strict=True):
        blocks += _fitting(part, rows[begin:end], int(home[begin]), payload, max_bytes)
    return blocks


def _fitting(
    batch: pa.RecordBatch, rows: NDArray[np.int64], partition: int, payload: bytes, max_bytes: int
) -> list[Block]:
    """The block of these rows, or of their halves where it would be too large. payload : of `batch`."""
    if len(payload) <= max_bytes or len(rows) == 1:
        return [Block(partition, rows, payload, batch["grid_code"][0].as_py()[:_VILLAGE_DIGITS].encode())]
    middle = len(rows) // 2
    first, second = batch.slice(0, middle), batch.slice(middle)
    return _fitting(first, rows[:middle], partition, _stream(first), max_bytes) + _fitting(
        second, rows[middle:], partition, _stream(second), max_bytes
    )


def encode_frame(frame: pl.DataFrame) -> bytes:
    """One block as an Arrow IPC stream."""
    return _stream(_arrow(frame))


def _arrow(frame: pl.DataFrame) -> pa.RecordBatch:
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _streams(batches: Sequence[pa.RecordBatch]) -> list[bytes]:
    """`_stream` of each, all of `EVENT_ARROW`. Small ones are written by one writer and cut apart: a block of
    three rows takes 18 µs instead of 33."""
    small = [batch for batch in batches if batch.num_rows < _COMPRESSED_ROWS]
    if len(small) < 2:
        return [_stream(batch) for batch in batches]
    sink = pa.BufferOutputStream()
    ends = [len(_BEGIN)]
    with pa.ipc.new_stream(sink, EVENT_ARROW, options=_PLAIN) as stream:
        for batch in small:
            stream.write_batch(batch)
            ends.append(sink.tell())
    written = memoryview(sink.getvalue())
    cut = iter([b"".join((_BEGIN, written[first:last], _END)) for first, last in pairwise(ends)])
    return [next(cut) if batch.num_rows < _COMPRESSED_ROWS else _stream(batch) for batch in batches]


def _stream(batch: pa.RecordBatch) -> bytes:
    """An Arrow IPC stream of one batch.

    Compression works column by column: it shrinks a large block to a third, but a small block's columns are
    a few bytes each, and unpacking them took six times as long as reading them.
    """
    sink = pa.BufferOutputStream()
    options = _PACKED if batch.num_rows >= _COMPRESSED_ROWS else _PLAIN
    with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def _stream_of_nothing() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EVENT_ARROW, options=_PLAIN):
        pass
    nothing: bytes = sink.getvalue().to_pybytes()
    return nothing


def is_single(payload: bytes) -> bool:
    """Whether the bytes are our schema, one record batch that is not packed, and the end of a stream: what
    the gateway makes of small requests. Nothing is said of what the batch holds."""
    return _rows_of_single(payload) is not None


def read_together(payloads: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int]]:
    """The checked rows of blocks that are `is_single`, as one batch, and how many are of each block.

    As one stream: pyarrow lets other threads of Python run at each of a dozen calls per block, and then waits
    for its turn. A round of 960 blocks beside one busy thread took 22 to 50 µs an event to decode, alone 7.
    Raises ContractError where any of them is unsound; `read_batches` tells which.
    """
    bodies = [memoryview(payload)[len(_BEGIN) : -len(_END)] for payload in payloads]
    try:
        with pa.ipc.open_stream(b"".join([_BEGIN, *bodies, _END]), options=_ONE_THREAD) as stream:
            table = stream.read_all()
        table.validate(full=True)
        heights = [len(chunk) for chunk in table.column(0).chunks]
        if len(heights) != len(payloads):
            raise ContractError("not one record batch in each of the Arrow streams")
        return table.combine_chunks().to_batches()[0], heights
    except (pa.ArrowException, OSError, ValueError, OverflowError, IndexError) as error:
        raise ContractError(f"not an Arrow stream: {type(error).__name__}") from error
    except MemoryError as error:
        raise ContractError("not a sound Arrow stream: MemoryError") from error


def read_batches(payload: bytes) -> list[pa.RecordBatch]:
    """The checked record batches of one block. Raises ContractError if the bytes are no sound Arrow stream.

    pyarrow reads and checks the stream: polars ends the process where a damaged length asks for more memory
    than there is, and anybody who may write to the topic could send such bytes.
    """
    try:
        if _sizes(payload)[1] > MOST_UNPACKED_BYTES:
            raise ContractError("the Arrow stream would unpack to more than a block may hold")
        with pa.ipc.open_stream(payload, options=_ONE_THREAD) as stream:
            if stream.schema.names != list(EVENT):
                raise ContractError("the Arrow stream does not hold the columns of an event")
            batches = list(stream)
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError, struct.error) as error:
        raise ContractError(f"not an Arrow stream: {type(error).__name__}") from error
    except MemoryError as error:
        raise ContractError("not a sound Arrow stream: MemoryError") from error
    return batches


def rows_in(payload: bytes) -> int:
    """Events of a block, without reading its columns: what the heads of its record batches say, which is what
    pyarrow reads; or more, where it is packed and would unpack to more than so many events take: a round of
    such records would fill the memory. 1 where the bytes are no Arrow stream: such a record becomes one row
    of `quarantine`."""
    single = _rows_of_single(payload)
    if single is not None:
        return max(single, 1)
    try:
        rows, unpacked = _sizes(payload)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, struct.error):
        return 1
    return max(rows, unpacked // _UNPACKED_ROW_BYTES, 1)


def _rows_of_single(payload: bytes) -> int | None:
    """Rows of a block that is `is_single`, as its head says; else None."""
    if not (payload.startswith(_BEGIN) and payload.endswith(_END)):
        return None
    begin = len(_BEGIN)
    try:
        mark, size = struct.unpack_from("<Ii", payload, begin)
        head = memoryview(payload)[begin + 8 : begin + 8 + max(size, 0)]
        message = _at(head, 0)
        kind, body = _slot(head, message, _HEADER_TYPE), _slot(head, message, _BODY_LENGTH)
        batch = _table(head, message, _HEADER)
        length = _slot(head, batch, _LENGTH)
        if kind is None or body is None or length is None or _slot(head, batch, _COMPRESSION) is not None:
            return None
        body_bytes = struct.unpack_from("<q", head, body)[0]
        if mark != _CONTINUATION or head[kind] != _RECORD_BATCH or _overlaps(head, batch, body_bytes):
            return None
        if begin + 8 + size + body_bytes + len(_END) != len(payload):
            return None
        rows = int(struct.unpack_from("<q", head, length)[0])
    except (struct.error, ValueError, IndexError):
        return None
    return rows if rows >= 0 else None


def _sizes(payload: bytes) -> tuple[int, int]:
    """The rows of a stream's record batches, and what its buffers say they unpack to. pyarrow believes these,
    and has no limit of its own.

    A packed buffer begins with its unpacked length. Where the buffers lie stands in each message's head, a
    flatbuffer that pyarrow has checked: Message.header -> RecordBatch.buffers, or DictionaryBatch.data of
    such (Arrow's Message.fbs).
    """
    rows = total = 0
    for message in pa.ipc.MessageReader.open_stream(payload):
        kind = message.type
        if kind not in {"record batch", "dictionary"}:
            continue
        head = memoryview(message.metadata)
        batch = _table(head, _at(head, 0), _HEADER)
        if kind == "dictionary":
            batch = _table(head, batch, _DICTIONARY_DATA)
        else:
            length = _slot(head, batch, _LENGTH)
            rows += 0 if length is None else max(struct.unpack_from("<q", head, length)[0], 0)
        if _slot(head, batch, _COMPRESSION) is None:
            if _overlaps(head, batch, message.body.size):
                raise ValueError("buffers that lie over one another")
            continue  # what is not packed takes no more room than the payload
        places = _places(head, batch)
        body = memoryview(message.body)
        for offset in places[places[:, 1] > _LENGTH_BYTES, 0].tolist():
            total += max(struct.unpack_from("<q", body, offset)[0], 0)  # -1: left as it was
    return rows, total


def _overlaps(head: memoryview, batch: int, body_bytes: int) -> bool:
    """Whether the buffers of a batch that is not packed are longer than what they lie in: columns that share
    bytes are sound to pyarrow, and take the payload's room once for each of them where they are joined to
    others."""
    named: int = sum(_places(head, batch)[:, 1].clip(0).tolist())
    return named > body_bytes


def _places(head: memoryview, batch: int) -> NDArray[np.int64]:
    """(n, 2) offset and length of a record batch's buffers in its body."""
    vector = _slot(head, batch, _BUFFERS)
    if vector is None:
        return np.empty((0, 2), np.int64)
    vector = _at(head, vector)
    (count,) = struct.unpack_from("<I", head, vector)
    return np.frombuffer(head, "<i8", 2 * count, vector + 4).reshape(-1, 2)


#: Slots of the fields in Arrow's flatbuffers.
_HEADER_TYPE: Final = 1
_HEADER: Final = 2
_BODY_LENGTH: Final = 3
_LENGTH: Final = 0
_DICTIONARY_DATA: Final = 1
_BUFFERS: Final = 2
_COMPRESSION: Final = 3
_LENGTH_BYTES: Final = 8
#: What stands before each message, and which kind of it a record batch is.
_CONTINUATION: Final = 0xFFFFFFFF
_RECORD_BATCH: Final = 3
#: The stream of no rows: its schema message, and its end.
_END: Final = struct.pack("<II", _CONTINUATION, 0)
_BEGIN: Final = _stream_of_nothing().removesuffix(_END)


def _at(head: memoryview, place: int) -> int:
    """Where the offset that stands at `place` leads."""
    return place + int(struct.unpack_from("<I", head, place)[0])


def _slot(head: memoryview, table: int, field: int) -> int | None:
    """Where a field of a flatbuffer table stands, None if it is absent."""
    vtable = table - struct.unpack_from("<i", head, table)[0]
    if 4 + 2 * field >= struct.unpack_from("<H", head, vtable)[0]:
        return None
    (relative,) = struct.unpack_from("<H", head, vtable + 4 + 2 * field)
    return table + relative if relative else None


def _table(head: memoryview, table: int, field: int) -> int:
    """The table that a field of a table holds. Raises ValueError where it is absent."""
    place = _slot(head, table, field)
    if place is None:
        raise ValueError("a message without its batch")
    return _at(head, place)


#: The worker judges the required times row by row; no store holds the year 100,000 in the others.
_TIMES_HOLD: Final = pl.all_horizontal(
    times.is_between(EARLIEST, LATEST, closed="left").all()
    for times in (pl.col("due_at"), pl.col("photos").explode(empty_as_null=False).struct.field("taken_at"))
)


def frame_of(batches: Sequence[pa.RecordBatch]) -> pl.DataFrame:
    """Rows of `frames.EVENT` from checked batches, of one block or of many: a frame costs a fixed time, so
    the blocks of a round are turned into one. Raises ContractError if types or times are wrong."""
    if not any(batch.num_rows for batch in batches):
        raise ContractError("the Arrow stream holds no rows")
    try:
        # joined before the conversion, which costs a fixed time per batch and column
        joined = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        frame = pl.DataFrame(pl.from_arrow(joined))
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, OverflowError) as error:
        raise ContractError(f"not an Arrow stream: {type(error).__name__}") from error
    except (pl.exceptions.PanicException, MemoryError) as error:
        raise ContractError(f"not a sound Arrow stream: {type(error).__name__}") from error
    frame = expect(frame, EVENT, "Arrow block")
    if not frame.select(_TIMES_HOLD).item():
        raise ContractError("the Arrow stream holds a time outside 2000–2100")
    return frame


def decode_block(payload: bytes) -> pl.DataFrame:
    """Rows of `frames.EVENT` of one block. Raises ContractError if the bytes are no Arrow stream or hold
    other columns."""
    return frame_of(read_batches(payload))
