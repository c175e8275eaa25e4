"""Accepted events as records of the topic: Arrow IPC blocks, one per partition or more where it is large."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
from polars._typing import IpcCompression

from pipeline.contract.event import EARLIEST, LATEST, SCHEMA_VERSION
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
_VILLAGE_DIGITS: Final = 12
_COMPRESSED_ROWS: Final = 256
#: A block has many small columns: handing them to a pool of threads costs more than reading them.
_ONE_THREAD: Final = pa.ipc.IpcReadOptions(use_threads=False)


@dataclass(frozen=True, slots=True)
class Block:
    """One record to be. rows : positions in the encoded frame; key : village code of the first row."""

    partition: int
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    payload: bytes
    key: bytes


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (seed 0x9747b28c), a signed 32-bit integer like `Utils.murmur2` of its Java client."""
    mask = 0xFFFFFFFF
    magic = 0x5BD1E995
    length = len(data)
    value = (0x9747B28C ^ length) & mask
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
    """`partition_of` over a column, hashed once per village; `UInt16`."""
    villages = grid_codes.str.head(_VILLAGE_DIGITS)
    known = villages.unique()
    numbers = [partition_of(village, partitions) for village in known]
    return villages.replace_strict(known, pl.Series(numbers, dtype=pl.UInt16), return_dtype=pl.UInt16)


def encode_blocks(frame: pl.DataFrame, *, partitions: int, max_bytes: int) -> list[Block]:
    """Rows of `frames.EVENT` as blocks, ordered by partition; rows keep their order within one.

    A block that would exceed `max_bytes` is halved until it fits; a single row is never split.
    Raises ContractError if the frame is not `frames.EVENT`.
    """
    frame = expect(frame, EVENT, "events to send")
    if frame.is_empty():
        return []
    home = partitions_of(frame["grid_code"], partitions).to_numpy()
    blocks: list[Block] = []
    for partition in np.unique(home):
        blocks += _encode(frame, np.flatnonzero(home == partition), int(partition), max_bytes)
    return blocks


def _encode(
    frame: pl.DataFrame, rows: np.ndarray[tuple[int], np.dtype[np.int64]], partition: int, max_bytes: int
) -> list[Block]:
    part = frame if len(rows) == frame.height else frame[rows]
    payload = encode_frame(part)
    if len(payload) <= max_bytes or len(rows) == 1:
        return [Block(partition, rows, payload, part["grid_code"][0][:_VILLAGE_DIGITS].encode())]
    middle = len(rows) // 2
    return _encode(frame, rows[:middle], partition, max_bytes) + _encode(
        frame, rows[middle:], partition, max_bytes
    )


def encode_frame(frame: pl.DataFrame) -> bytes:
    """One block as an Arrow IPC stream.

    Compression works column by column: it shrinks a large block to a third, but a small block's columns are
    a few bytes each, and unpacking them took six times as long as reading them.
    """
    compression: IpcCompression = "lz4" if frame.height >= _COMPRESSED_ROWS else "uncompressed"
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer, compression=compression, compat_level=pl.CompatLevel.oldest())
    return buffer.getvalue()


def read_batches(payload: bytes) -> list[pa.RecordBatch]:
    """The checked record batches of one block. Raises ContractError if the bytes are no sound Arrow stream.

    pyarrow reads and checks the stream: polars ends the process where a damaged length asks for more memory
    than there is, and anybody who may write to the topic could send such bytes.
    """
    try:
        if _unpacked_bytes(payload) > MOST_UNPACKED_BYTES:
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


def _unpacked_bytes(payload: bytes) -> int:
    """What the buffers of a stream say they unpack to. pyarrow believes them, and has no limit of its own.

    A packed buffer begins with its unpacked length. Where the buffers lie stands in each message's head, a
    flatbuffer that pyarrow has checked: Message.header -> RecordBatch.buffers, or DictionaryBatch.data of
    such (Arrow's Message.fbs).
    """
    total = 0
    for message in pa.ipc.MessageReader.open_stream(payload):
        if message.type not in {"record batch", "dictionary"}:
            continue
        head = memoryview(message.metadata)
        batch = _table(head, _at(head, 0), _HEADER)
        if message.type == "dictionary":
            batch = _table(head, batch, _DICTIONARY_DATA)
        if _slot(head, batch, _COMPRESSION) is None:
            continue  # what is not packed takes no more room than the payload
        vector = _slot(head, batch, _BUFFERS)
        if vector is None:
            continue
        vector = _at(head, vector)
        (count,) = struct.unpack_from("<I", head, vector)
        places = np.frombuffer(head, "<i8", 2 * count, vector + 4).reshape(-1, 2)
        body = memoryview(message.body)
        for offset in places[places[:, 1] > _LENGTH_BYTES, 0].tolist():
            total += max(struct.unpack_from("<q", body, offset)[0], 0)  # -1: left as it was
    return total


#: Slots of the fields in Arrow's flatbuffers.
_HEADER: Final = 2
_DICTIONARY_DATA: Final = 1
_BUFFERS: Final = 2
_COMPRESSION: Final = 3
_LENGTH_BYTES: Final = 8


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


def frame_of(batches: Sequence[pa.RecordBatch]) -> pl.DataFrame:
    """Rows of `frames.EVENT` from checked batches, of one block or of many: a frame costs a fixed time, so
    the blocks of a round are turned into one. Raises ContractError if types or times are wrong."""
    if not any(batch.num_rows for batch in batches):
        raise ContractError("the Arrow stream holds no rows")
    try:
        # joined before the conversion, which costs a fixed time per batch and column
        frame = pl.DataFrame(pl.from_arrow(pa.concat_batches(batches)))
    except (pa.ArrowException, pl.exceptions.PolarsError, ValueError, OverflowError) as error:
        raise ContractError(f"not an Arrow stream: {type(error).__name__}") from error
    except (pl.exceptions.PanicException, MemoryError) as error:
        raise ContractError(f"not a sound Arrow stream: {type(error).__name__}") from error
    frame = expect(frame, EVENT, "Arrow block")
    # The worker judges the required times row by row; no store holds the year 100,000 in the others.
    for times in (frame["due_at"], frame["photos"].explode(empty_as_null=False).struct.field("taken_at")):
        if not times.drop_nulls().is_between(EARLIEST, LATEST, closed="left").all():
            raise ContractError("the Arrow stream holds a time outside 2000–2100")
    return frame


def decode_block(payload: bytes) -> pl.DataFrame:
    """Rows of `frames.EVENT` of one block. Raises ContractError if the bytes are no Arrow stream or hold
    other columns."""
    return frame_of(read_batches(payload))
