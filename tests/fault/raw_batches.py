"""Kafka batches that no client library writes, put into the log by a produce request of our own."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Iterator, Sequence

import cramjam
import zstandard
from aiokafka.record.util import calc_crc32c, encode_varint

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
#: Bit of a batch's attributes: its times are the broker's, the last one in the batch's head.
BROKERS_TIME = 1 << 3
_PRODUCE, _VERSION = 0, 7
_CHUNK = bytes(1 << 20)


def record(
    value: bytes | None,
    *,
    delta: int = 0,
    headers: Sequence[tuple[bytes, bytes]] = (),
    length: int | None = None,
) -> bytes:
    """One record of a batch. length : what it says of its value's length (default: the truth)."""
    return (
        head(len(value or b"") if length is None else length, delta=delta, headers=headers)
        + (value or b"")
        + (tail(headers))
    )


def head(size: int, *, delta: int = 0, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """What stands before a value of `size` bytes, the record's length included."""
    before = b"\x00" + varint(0) + varint(delta) + varint(-1) + varint(size)
    return varint(len(before) + size + len(tail(headers))) + before


def tail(headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    made = varint(len(headers))
    for key, value in headers:
        made += varint(len(key)) + key + varint(len(value)) + value
    return made


def varint(value: int) -> bytes:
    made = bytearray()
    encode_varint(value, made.append)
    return bytes(made)


def batch(
    records: bytes,
    count: int,
    *,
    codec: int = 0,
    last_delta: int | None = None,
    crc: int | None = None,
    written_ms: int | None = None,
) -> bytes:
    """A batch of `count` records, whatever `records` holds, packed already if `codec` says so.

    last_delta : offset of the last record after the first. crc : the checksum (default: the right one).
    written_ms : the writer's time, where the broker put its own in its place (LogAppendTime).
    """
    now = int(time.time() * 1000)
    first, attributes = (now, codec) if written_ms is None else (written_ms, codec | BROKERS_TIME)
    last = count - 1 if last_delta is None else last_delta
    body = struct.pack(">hiqqqhii", attributes, last, first, now, -1, -1, -1, count) + records
    crc = calc_crc32c(body) if crc is None else crc
    return struct.pack(">qiibI", 0, len(body) + 9, -1, 2, crc) + body


def time_of(made: bytes) -> int:
    """The time that a batch bears, in ms."""
    return int.from_bytes(made[35:43], "big")


def bomb(codec: int, size: int) -> bytes:
    """One record whose value is `size` zeros, packed."""
    return packed(codec, _long_record(size))


def _long_record(size: int) -> Iterator[bytes]:
    assert size % len(_CHUNK) == 0
    yield head(size)
    for _ in range(size // len(_CHUNK)):
        yield _CHUNK
    yield tail()


def packed(codec: int, parts: Iterator[bytes] | Sequence[bytes]) -> bytes:
    if codec == GZIP:
        gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
        return b"".join(gzip.compress(part) for part in parts) + gzip.flush()
    if codec == ZSTD:
        zstd = zstandard.ZstdCompressor(level=3).compressobj()
        return b"".join(zstd.compress(part) for part in parts) + zstd.flush()
    if codec == LZ4:
        lz4 = cramjam.lz4.Compressor(level=9, content_checksum=False, block_linked=False)
        for part in parts:
            lz4.compress(part)
        return bytes(lz4.finish())
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


def produce(address: str, topic: str, partition: int, made: bytes, *, seconds: float = 60) -> int:
    """Send to the broker at `address`, which must lead the partition. Returns its error code, 0: taken,
    -1: it broke the connection."""
    host, port = address.split(":")
    name = topic.encode()
    body = struct.pack(">hhih", _PRODUCE, _VERSION, 7, 3) + b"raw"
    body += struct.pack(">hhi", -1, -1, int(seconds * 1000))
    body += struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, partition, len(made)) + made
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = b""
        while len(answer) < 4 or len(answer) < 4 + struct.unpack(">i", answer[:4])[0]:
            more = connection.recv(65_536)
            if not more:
                return -1
            answer += more
    # length, correlation, topics, name, partitions, partition, error
    at = 4 + 4 + 4 + 2 + len(name) + 4 + 4
    return int(struct.unpack(">h", answer[at : at + 2])[0])
