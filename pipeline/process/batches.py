"""Kafka batches, read with mistrust: in place of aiokafka's own reader, whose errors end the whole worker.

A batch that cannot be read, or that unpacks to gigabytes, would meet every worker that gets its partition.
It becomes one record that the stages quarantine, so that its partition goes on. A batch whose checksum is
wrong is another matter: it was damaged on its way or on the broker's disk, and another copy may be sound,
so that nothing may be passed over; the partition stops (see `Damage`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import cramjam
import pyarrow as pa
import structlog
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import ConsumerRecord

log = structlog.get_logger(__name__)

#: What a batch may unpack to; client libraries bound a batch before they pack it, by a megabyte or so. Also
#: what is unpacked of one fetch before the next one begins.
MAX_UNPACKED_BYTES: Final = 32_000_000
#: In a batch; each becomes an object.
MAX_RECORDS: Final = 1_000_000
#: Content type of the record that stands for a batch that cannot be read: none that `decode` knows.
UNREADABLE_BATCH: Final = b"application/x-unreadable-batch"

_LENGTH: Final = struct.Struct(">qi")  # first offset, bytes that follow
_MAGIC_AT: Final = 16
_ATTRIBUTES_AT: Final = 21
_COUNT_AT: Final = 57
_HEADER_BYTES: Final = 61
_CODEC_MASK: Final = 0x07
_SNAPPY: Final = 2
_STREAMS: Final = {1: "gzip", 3: "lz4", 4: "zstd"}
_CHUNK_BYTES: Final = 1 << 20
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16


class Damage(bytes):
    """Value of a record that tells of damage. What comes over the wire is bytes, never this."""


class UnreadableBatchError(Exception):
    """Why a batch with a right checksum cannot be read."""


class Fetched:
    """The bytes that a fetch brought of one partition; in place of aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        return len(self.data) > 0

    def size_in_bytes(self) -> int:
        return len(self.data)


class CheckedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Records of a fetch, in offset order; in place of aiokafka's `PartitionRecords`.

    A batch that cannot be read gives the records before its fault and one at its last offset that tells why.
    """

    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        data: bytes = self._records.data
        at = unpacked = 0
        while at < len(data) and unpacked < MAX_UNPACKED_BYTES:
            if len(data) - at < _HEADER_BYTES:
                if at == 0:
                    yield self._damage("the fetch ends within a batch")
                return  # brokers may cut the last batch off: it begins the next fetch
            base, length = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data) and at > 0:
                return
            if end < at + _HEADER_BYTES or end > len(data):
                yield self._damage(f"the batch at offset {base} has an impossible length")
                return
            raw = data[at:end]
            at = end
            if raw[_MAGIC_AT] < 2:
                if base < self.next_fetch_offset:
                    continue
                yield self._unreadable(base, base, "a message of a format before Kafka 0.11", 0)
                continue
            batch = DefaultRecordBatch(raw)
            if self._check_crcs and not batch.validate_crc():
                yield self._damage(f"the batch at offset {base} has a wrong checksum")
                return
            last = max(base, batch.next_offset - 1)
            if last < self.next_fetch_offset:
                continue
            if batch.is_control_batch:
                self.next_fetch_offset = last + 1
                continue
            try:
                if batch.compression_type:
                    raw = unpacked_batch(raw)
                    unpacked += len(raw)
                    batch = DefaultRecordBatch(raw)
                if _count(raw) > MAX_RECORDS:
                    raise UnreadableBatchError(f"{_count(raw)} records")
                yield from self._records_of(batch, base, last)
            except Exception as error:  # whatever bytes can make the libraries raise
                if isinstance(error, MemoryError) and (batch.compression_type or not _asks_for_too_much(raw)):
                    raise  # memory is short, perhaps for unpacking: it may be sound, and is read again
                if self.next_fetch_offset <= last:
                    why = f"{type(error).__name__}: {error}"
                    yield self._unreadable(base, last, why, batch.max_timestamp)
            self.next_fetch_offset = max(self.next_fetch_offset, last + 1)

    def _records_of(self, batch: Any, base: int, last: int) -> Iterator[ConsumerRecord]:
        before = base - 1
        for record in batch:
            # an offset beyond the batch would make the worker pass over the records that really stand there
            if not before < record.offset <= last:
                raise UnreadableBatchError(f"a record at offset {record.offset}")
            before = record.offset
            if record.offset >= self.next_fetch_offset:
                self.next_fetch_offset = record.offset + 1
                yield self._consumer_record(self._tp, record)

    def _unreadable(self, base: int, last: int, why: str, timestamp_ms: int) -> ConsumerRecord:
        log.error("unreadable_batch", partition=self._tp.partition, lo=base, hi=last, reason=why[:200])
        self.next_fetch_offset = max(self.next_fetch_offset, last + 1)
        told = f"the Kafka batch of offsets {base} to {last} cannot be read: {why[:200]}"
        return self._told(last, told.encode(), (("content-type", UNREADABLE_BATCH),), timestamp_ms)

    def _damage(self, why: str) -> ConsumerRecord:
        """The position stays: what comes now is not the log."""
        return self._told(self.next_fetch_offset, Damage(why.encode()), ())

    def _told(
        self, offset: int, value: bytes, headers: tuple[tuple[str, bytes], ...], timestamp_ms: int = 0
    ) -> ConsumerRecord:
        at = self._tp.topic, self._tp.partition, offset, timestamp_ms
        return ConsumerRecord(*at, 0, None, value, None, -1, len(value), headers)


def _asks_for_too_much(raw: bytes) -> bool:
    """Whether an unpacked batch cannot be read though there is memory for all that it can hold: a text may
    claim to be so long that aiokafka's own look at its end overflows. Raises MemoryError."""
    bytearray(len(raw))  # no text of it is longer
    try:
        for _ in DefaultRecordBatch(raw):
            pass
    except Exception:
        return True
    return False


def _count(raw: bytes) -> int:
    return int.from_bytes(raw[_COUNT_AT:_HEADER_BYTES], "big", signed=True)


def unpacked_batch(raw: bytes) -> bytes:
    """The same batch with its records unpacked; its checksum is no longer right.

    Raises UnreadableBatchError, or what the decompressor raises.
    """
    attributes = int.from_bytes(raw[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 2], "big")
    records = _unpack(attributes & _CODEC_MASK, raw[_HEADER_BYTES:])
    base = raw[: _LENGTH.size - 4]
    length = _HEADER_BYTES - _LENGTH.size + len(records)
    plain = (attributes & ~_CODEC_MASK).to_bytes(2, "big")
    rest = raw[_LENGTH.size : _ATTRIBUTES_AT] + plain + raw[_ATTRIBUTES_AT + 2 : _HEADER_BYTES]
    return base + length.to_bytes(4, "big") + rest + records


def _unpack(codec: int, packed: bytes) -> bytes:
    if codec == _SNAPPY:
        return _unsnappy(packed)
    if codec not in _STREAMS:
        raise UnreadableBatchError(f"compression {codec} is unknown")
    parts: list[pa.Buffer] = []
    size = 0
    with pa.CompressedInputStream(pa.BufferReader(packed), _STREAMS[codec]) as stream:
        # not `read`: when that fails, the bytes it had made for what it reads are never freed
        while (part := stream.read_buffer(_CHUNK_BYTES)).size:
            parts.append(part)
            size += part.size
            _bound(size)
    return b"".join(parts)


def _unsnappy(packed: bytes) -> bytes:
    """Snappy as Java writes it, in blocks, or plain; both say beforehand what they unpack to."""
    if not packed.startswith(_XERIAL):
        _bound(cramjam.snappy.decompress_raw_len(packed))
        return bytes(cramjam.snappy.decompress_raw(packed))
    parts: list[bytes] = []
    at, size = _XERIAL_HEADER_BYTES, 0
    while at < len(packed):
        length = int.from_bytes(packed[at : at + 4], "big")
        block = packed[at + 4 : at + 4 + length]
        if not length or len(block) < length:
            raise UnreadableBatchError("a block of snappy is cut off")
        size += cramjam.snappy.decompress_raw_len(block)
        _bound(size)
        parts.append(bytes(cramjam.snappy.decompress_raw(block)))
        at += 4 + length
    return b"".join(parts)


def _bound(size: int) -> None:
    if size > MAX_UNPACKED_BYTES:
        raise UnreadableBatchError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")


def install() -> None:
    """From now on the Kafka consumers of this process read batches with these classes."""
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = CheckedRecords
