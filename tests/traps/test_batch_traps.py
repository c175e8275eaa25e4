"""What aiokafka does with Kafka batches that no producer should write; ours: `tests/unit/test_batches.py`,
`tests/fault/test_hostile_batches.py`. `CheckedRecords` can go when these no longer hold."""

from __future__ import annotations

import pytest
from aiokafka.record.memory_records import MemoryRecords

from tests.fault import raw_batches as raw


def offsets_and_sizes(made: bytes) -> list[tuple[int, int]]:
    """As aiokafka's own fetcher reads it."""
    batch = MemoryRecords(made).next_batch()
    assert batch is not None
    assert batch.validate_crc()
    return [(record.offset, len(record.value or b"")) for record in batch]


def test_the_name_of_a_header_ends_the_read() -> None:
    """Kafka takes such a record too; the error would come again at every fetch."""
    with pytest.raises(UnicodeDecodeError):
        offsets_and_sizes(raw.batch(raw.record(b"abc", headers=[(b"\xff\xfe", b"x")]), 1))


def test_offsets_are_believed_beyond_the_end_of_the_batch() -> None:
    """Kafka takes such a record too; the events that really stand there would be taken for old ones."""
    assert offsets_and_sizes(raw.batch(raw.record(b"abc", delta=1_000), 1)) == [(1_000, 3)]


@pytest.mark.parametrize("codec", [raw.GZIP, raw.LZ4, raw.ZSTD])
def test_what_a_batch_unpacks_to_has_no_bound(codec: int) -> None:
    """A megabyte of zstd is twenty gigabytes of zeros."""
    made = raw.batch(raw.bomb(codec, 64 << 20), 1, codec=codec)
    assert len(made) < 1 << 20
    assert offsets_and_sizes(made) == [(0, 64 << 20)]
