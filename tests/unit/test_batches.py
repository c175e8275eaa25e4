"""Kafka batches are read with mistrust: what no producer should write costs nobody else an event."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import cramjam
import psutil
import pyarrow as pa
import pytest
import zstandard
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from pipeline.process import batches
from pipeline.process.batches import CheckedRecords, Damage, Fetched
from tests.fault import raw_batches as raw

Seen = list[tuple[int, bytes]]


def placed(made: bytes, base: int) -> bytes:
    """The batch where the broker would put it; the checksum does not cover its offset."""
    return base.to_bytes(8, "big") + made[8:]


def reader(data: bytes, at: int = 0) -> CheckedRecords:
    return CheckedRecords(TopicPartition("t", 0), Fetched(data), None, at, None, None, True, 0)


def read(data: bytes, at: int = 0) -> Seen:
    return [(record.offset, record.value) for record in reader(data, at)]


def sound(codec: int, base: int, *values: bytes) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1_000, None, value, [("content-type", b"text")])
    return placed(bytes(builder.build()), base)


def claiming(size: int) -> bytes:
    """A second record of sound length, whose value says that it has so many bytes."""
    record = b"\x00" + raw.varint(0) + raw.varint(1) + raw.varint(-1) + raw.varint(size) + b"b"
    return raw.varint(len(record)) + record


@pytest.mark.parametrize("codec", [0, raw.GZIP, raw.SNAPPY, raw.LZ4, raw.ZSTD])
def test_sound_batches_are_read_as_the_library_reads_them(codec: int) -> None:
    values = [b"x" * 5_000, b"", b"z"]
    data = sound(codec, 5, *values) + sound(codec, 8, b"later")
    assert read(data, 5) == [(5, values[0]), (6, b""), (7, b"z"), (8, b"later")]
    assert read(data, 7) == [(7, b"z"), (8, b"later")], "a fetch may begin within a batch"
    first = next(iter(reader(data, 5)))
    assert (first.headers, first.timestamp) == ((("content-type", b"text"),), 1_000)


@pytest.mark.parametrize("codec", [0, raw.ZSTD])
def test_records_bear_the_brokers_time_where_the_topic_says_so(codec: int) -> None:
    """However old their writer says they are: packed ones too, whose times the broker does not touch."""
    records = raw.record(b"a") + raw.record(b"b", delta=1)
    records = zstandard.compress(records) if codec else records
    made = raw.batch(records, 2, codec=codec, written_ms=1_000)
    assert [(record.value, record.timestamp) for record in reader(made)] == [
        (b"a", raw.time_of(made)),
        (b"b", raw.time_of(made)),
    ]
    assert raw.time_of(made) > 1_700_000_000_000


@pytest.mark.parametrize("magic", [0, 1, 2])
def test_what_stands_before_the_fetch_is_passed_over(magic: int) -> None:
    """Whatever its format, and also at an offset that no log has: found by atheris."""
    made = bytearray(sound(0, -(1 << 48) & (1 << 64) - 1, b"early"))
    made[16] = magic
    assert read(bytes(made) + sound(0, 3, b"a"), 3) == [(3, b"a")]


def test_snappy_without_javas_blocks_is_read_too() -> None:
    records = raw.record(b"a" * 5_000)
    assert read(raw.batch(bytes(cramjam.snappy.compress_raw(records)), 1, codec=raw.SNAPPY)) == [
        (0, b"a" * 5_000)
    ]


@pytest.mark.parametrize(
    ("made", "before"),
    [
        (raw.batch(b"\x80\xff" * 40, 3), 0),
        (raw.batch(raw.record(b"a"), 3), 1),
        (raw.batch(raw.record(b"a") + raw.record(b"b", length=100, delta=1), 3), 1),
        (raw.batch(raw.record(b"a") + claiming((1 << 63) - 50), 3), 1),
        (raw.batch(raw.record(b"a") + claiming((1 << 63) - 1), 3), 1),
        (raw.batch(raw.record(b"a", headers=[(b"\xff\xfe", b"x")]), 3), 0),
        (raw.batch(raw.record(b"a", delta=1_000) + raw.record(b"b", delta=1_001), 2, last_delta=2), 0),
        (raw.batch(raw.record(b"a") + raw.record(b"b"), 2, last_delta=2), 1),
        (raw.batch(b"none", 3, codec=raw.GZIP), 0),
        (raw.batch(b"none", 3, codec=raw.SNAPPY), 0),
        (raw.batch(b"\x82SNAPPY\x00" + bytes(8) + b"\xff\xff\xff\xf0abc", 3, codec=raw.SNAPPY), 0),
        (raw.batch(b"none", 3, codec=raw.LZ4), 0),
        (raw.batch(b"none", 3, codec=raw.ZSTD), 0),
        (raw.batch(b"none", 3, codec=6), 0),
        (raw.batch(b"none", 2_000_000, last_delta=2), 0),
    ],
    ids=[  # a batch holds its time: the same name in every process
        "no records",
        "fewer than told",
        "length beyond the end",
        "length that no memory has",
        "length that no text has",
        "header no text",
        "offset outside",
        "one too many",
        "no gzip",
        "no snappy",
        "snappy of gigabytes",
        "no lz4",
        "no zstd",
        "unknown codec",
        "millions told",
    ],
)
def test_an_unreadable_batch_gives_one_record_and_the_next_batch_follows(made: bytes, before: int) -> None:
    seen = list(reader(sound(0, 5, b"good") + placed(made, 6) + sound(0, 9, b"next"), 5))
    assert [record.offset for record in seen] == [5, *([6] * before), 8, 9]
    told = seen[-2]
    assert b"of offsets 6 to 8 cannot be read" in told.value
    assert told.headers == (("content-type", batches.UNREADABLE_BATCH),)
    assert told.timestamp == raw.time_of(made), "its row is dated by it"
    # read again from within, as after a restart, it gives the same record
    assert [record.offset for record in reader(placed(made, 6) + sound(0, 9, b"next"), 7)] == [8, 9]


def test_where_memory_is_short_a_sound_batch_is_no_damaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends and reads it again; in quarantine its events would be lost."""
    read_on = CheckedRecords._records_of

    def short(self: CheckedRecords, batch: Any, base: int, last: int) -> Iterator[Any]:
        yield from itertools.islice(read_on(self, batch, base, last), 1)
        raise MemoryError

    monkeypatch.setattr(CheckedRecords, "_records_of", short)
    records = iter(reader(sound(0, 5, b"a", b"b")))
    assert next(records).offset == 5
    with pytest.raises(MemoryError):
        next(records)


def test_where_memory_is_short_for_unpacking_nothing_is_read_a_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiokafka unpacks without a bound, and what it then lacked would cost a sound batch."""

    def short(*_: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr(batches, "unpacked_batch", short)
    with pytest.raises(MemoryError):
        read(raw.batch(b"none", 3, codec=raw.ZSTD))


@pytest.mark.parametrize("codec", [raw.GZIP, raw.LZ4, raw.ZSTD, raw.SNAPPY])
def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, codec: int) -> None:
    monkeypatch.setattr(batches, "MAX_UNPACKED_BYTES", 1_500_000)
    small, large = raw.bomb(codec, 1 << 20), raw.bomb(codec, 8 << 20)
    assert [len(value) for _, value in read(raw.batch(small, 1, codec=codec))] == [1 << 20]
    [(offset, told)] = read(raw.batch(large, 1, codec=codec))
    assert (offset, b"unpacks to more than" in told) == (0, True)


def test_a_fetch_of_many_packed_batches_is_unpacked_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_UNPACKED_BYTES", 1_500_000)
    one = raw.batch(raw.bomb(raw.ZSTD, 1 << 20), 1, codec=raw.ZSTD)
    data = b"".join(placed(one, offset) for offset in range(5))
    first = reader(data)
    assert [record.offset for record in first] == [0, 1]
    assert first.next_fetch_offset == 2, "the next fetch begins where this one ended"


def test_damage_is_told_and_nothing_is_passed_over() -> None:
    for bad in (
        placed(raw.batch(raw.record(b"a"), 1, crc=1), 6),
        b"\x00" * 8 + b"\xff\xff\xff\xf0" + b"\x00" * 60,
        b"\x00" * 8 + b"\x00\x00\x00\x05" + b"\x00" * 60,
    ):
        checked = reader(sound(0, 5, b"good") + bad, 5)
        good, damage = list(checked)
        assert (good.value, damage.offset, isinstance(damage.value, Damage)) == (b"good", 6, True)
        assert checked.next_fetch_offset == 6
    cut = sound(0, 5, b"good") + sound(0, 6, b"next")[:-3]
    assert read(cut, 5) == [(5, b"good")], "brokers cut the last batch off; it begins the next fetch"
    assert isinstance(read(cut[:70], 5)[0][1], Damage), "but not the first one"


def test_a_record_that_the_batch_hides_moves_no_position_backward() -> None:
    """The embedded broker takes batches whose last offset lies before the first."""
    checked = reader(placed(raw.batch(raw.record(b"a"), 1, last_delta=-10), 6) + sound(0, 7, b"next"), 6)
    assert [record.offset for record in checked] == [6, 7]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_breaks_off_leaves_nothing_in_memory(codec: str) -> None:
    """pyarrow's `read` keeps the megabyte for good that it had made for what could not be read."""
    words = random.Random(7).randbytes(900_000)
    packed = pa.compress(words + bytes(3_000_000), codec=codec, asbytes=True)
    number = {"gzip": 1, "lz4": 3, "zstd": 4}[codec]
    broken = packed[:850_000]

    def left() -> int:
        for _ in range(40):
            with pytest.raises(OSError, match=r"\S"):
                batches._unpack(number, broken)
        return psutil.Process().memory_info().rss

    before = left()
    assert left() - before < 10_000_000
