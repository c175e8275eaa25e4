"""Blocks: the right partition, small enough, and the same rows when read back."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars._typing import IpcCompression

from pipeline.contract.parse import parse_document
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.errors import ContractError
from pipeline.frames import EVENT, expect
from pipeline.ingest.blocks import (
    MOST_UNPACKED_BYTES,
    _sizes,
    _stream,
    decode_block,
    encode_blocks,
    encode_frame,
    encode_sorted,
    murmur2,
    partition_of,
    partitions_of,
    rows_in,
)
from pipeline.settings import Settings
from tests.unit.gateway_world import NOW, SECRET, event


def frame_of(numbers: Sequence[int], **changes: object) -> pl.DataFrame:
    parsed = parse_document(orjson.dumps([event(number, **changes) for number in numbers]))
    assert not parsed.errors
    return to_frame(parsed.events, ingested_at=NOW, request_id="r-1", backfill=False, privacy=Privacy(SECRET))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_tests(text: bytes, expected: int) -> None:
    assert murmur2(text) == expected


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[0-9]{15}", fullmatch=True), min_size=1), st.integers(1, 64))
def test_column_of_partitions_agrees_and_a_village_stays_together(codes: list[str], partitions: int) -> None:
    found = partitions_of(pl.Series(codes), partitions).to_list()
    assert found == [partition_of(code, partitions) for code in codes]
    assert found == [partition_of(code[:12] + "999", partitions) for code in codes]
    assert all(0 <= number < partitions for number in found)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(1, 16), st.sampled_from([7_000, 20_000, 900_000]))
def test_every_row_is_in_one_block_and_comes_back_as_it_was(count: int, partitions: int, limit: int) -> None:
    frame = frame_of(range(count))
    blocks = encode_blocks(frame, partitions=partitions, max_bytes=limit)
    assert sorted(np.concatenate([block.rows for block in blocks])) == list(range(count))
    for block in blocks:
        assert len(block.payload) <= limit or len(block.rows) == 1
        assert rows_in(block.payload) == len(block.rows)
        back = decode_block(block.payload)
        assert back.equals(frame[block.rows], null_equal=True)
        assert set(partitions_of(back["grid_code"], partitions)) == {block.partition}
        assert list(block.rows) == sorted(block.rows)


@pytest.mark.parametrize("sizes", [[1], [3, 1, 40], [300], [2, 300, 5], [300, 1], [1, 300], [256, 255]])
def test_blocks_written_together_are_the_streams_that_each_would_be_alone(sizes: Sequence[int]) -> None:
    numbers = [place + 20 * at for place, size in enumerate(sizes) for at in range(size)]  # a village each
    batch = frame_of(numbers).to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()[0]
    home = np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)
    blocks = encode_sorted(batch, home, np.arange(len(home)), 900_000)
    assert [len(block.rows) for block in blocks] == list(sizes)
    for block in blocks:
        assert block.payload == _stream(batch.slice(block.rows[0], len(block.rows)))


def test_a_row_holds_what_the_event_said() -> None:
    frame = frame_of(
        [1],
        grid_code="440704001001003-U014",
        actor={"type": "full_time", "key": "W-1", "name": "陈大文", "phone": "13800001234"},
        occurred_at="2026-03-01T15:59:00.1239Z",
        location={"lon": 113.1, "lat": 22.5, "crs": "gcj02", "address": "江华路12号"},
        photos=[{"sha256": "AB" * 32, "taken_at": "2026-03-01T15:00:00+08:00"}],
        description="Cafe\u0301",
        organisation={"code": "91", "name": "某公司"},
        attributes={"b": 1, "a": "x", "department": "health", "level": 2, "self_handled": True, "rating": 4},
    )
    row = expect(frame, EVENT, "row").to_dicts()[0]
    assert (row["grid_code"], row["unit_code"]) == ("440704001001003", "440704001001003-U014")
    assert (row["actor_key"], row["actor_name"], row["actor_phone"]) == ("W-1", "陈**", "138****1234")
    assert row["occurred_at"].isoformat() == "2026-03-01T15:59:00.123000+00:00"
    assert row["ingested_at"] == NOW
    assert row["photos"][0]["sha256"] == "ab" * 32
    assert row["photos"][0]["taken_at"].isoformat() == "2026-03-01T07:00:00+00:00"
    assert row["persons"] == []
    assert row["description"] == "Caf\u00e9"
    assert (row["department"], row["level"], row["self_handled"], row["rating"]) == ("health", "2", True, 4)
    assert row["attributes"] == (
        '{"a":"x","b":1,"department":"health","level":2,"rating":4,"self_handled":true}'
    )


def test_empty_frame_gives_no_block() -> None:
    frame = to_frame([], ingested_at=NOW, request_id=None, backfill=False, privacy=Privacy(SECRET))
    assert encode_blocks(frame, partitions=3, max_bytes=10_000) == []


@pytest.mark.parametrize("payload", [b"", b"x", b"\xff\xff\xff\xff\x10\x00\x00\x00", b"{}", b"ARROW1" * 100])
def test_bytes_that_are_no_block_are_refused(payload: bytes) -> None:
    assert rows_in(payload) == 1
    with pytest.raises(ContractError):
        decode_block(payload)


def test_damaged_block_is_refused_or_read_but_never_ends_the_process() -> None:
    payload = encode_frame(frame_of(range(20)))
    chance = random.Random(20221001)
    refused = 0
    for _ in range(300):
        damaged = bytearray(payload[: chance.choice([len(payload), chance.randrange(len(payload))])])
        for _ in range(chance.randint(1, 4) if damaged else 0):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 127, 128, 255])
        assert rows_in(bytes(damaged)) >= 1
        try:
            decode_block(bytes(damaged))
        except ContractError:
            refused += 1
    assert refused > 100


def test_rows_of_every_batch_of_a_block_are_counted() -> None:
    frame = frame_of(range(600))
    for options in (pa.ipc.IpcWriteOptions(), pa.ipc.IpcWriteOptions(compression="lz4")):
        sink = pa.BufferOutputStream()
        batches = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).to_batches(max_chunksize=250)
        with pa.ipc.new_stream(sink, batches[0].schema, options=options) as stream:
            for batch in [*batches, batches[0].slice(0, 0)]:
                stream.write_batch(batch)
        assert rows_in(sink.getvalue().to_pybytes()) == 600


def test_block_of_other_columns_is_refused() -> None:
    buffer = io.BytesIO()
    frame_of([1]).with_columns(pl.col("rating").cast(pl.Int64)).write_ipc_stream(buffer)
    with pytest.raises(ContractError, match="rating is Int64, must be Int8"):
        decode_block(buffer.getvalue())


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_block_that_would_fill_the_memory_is_refused_before_it_is_unpacked(codec: IpcCompression) -> None:
    """Sixty kilobytes that say the same letter 400 million times: pyarrow alone would write them all down."""
    row = frame_of([1])
    bomb = pl.concat([row.with_columns(description=pl.lit("a" * 200_000))] * 800)
    buffer = io.BytesIO()
    bomb.write_ipc_stream(buffer, compression=codec, compat_level=pl.CompatLevel.oldest())
    assert len(buffer.getvalue()) < 1_000_000
    assert _sizes(buffer.getvalue())[1] > MOST_UNPACKED_BYTES
    with pytest.raises(ContractError, match="would unpack to more"):
        decode_block(buffer.getvalue())
    # one below the limit is read: alone in its block, not among all that the buffer holds
    bomb = bomb[:600]
    buffer = io.BytesIO()
    bomb.write_ipc_stream(buffer, compression=codec, compat_level=pl.CompatLevel.oldest())
    assert rows_in(buffer.getvalue()) > Settings().block_max_rows


def test_largest_request_of_the_gateway_is_far_from_the_limit() -> None:
    """5,000 events of 4,000 characters are the 20 MB that a body may unpack to."""
    rows = pl.concat([frame_of([1]).with_columns(description=pl.lit("事" * 1_333))] * 5_000)
    payload = encode_frame(rows)
    assert 0 < _sizes(payload)[1] < MOST_UNPACKED_BYTES / 4
    assert decode_block(payload).height == 5_000
