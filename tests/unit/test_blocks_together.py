"""Small Arrow blocks are read as one stream; whatever one of them holds, the rows are those of each alone."""

from __future__ import annotations

import struct
from collections.abc import Callable

import polars as pl
import pyarrow as pa
import pytest

from pipeline.contract.rows import EVENT_ARROW
from pipeline.errors import ContractError
from pipeline.ingest import blocks
from pipeline.ingest.blocks import encode_frame, is_single, read_batches, read_together, rows_in
from pipeline.process import decode as module
from pipeline.process.decode import Decoded, decode
from pipeline.process.records import ARROW, Record
from tests.integration.worker_world import PRIVACY, event, record

ROWS = decode([(0, [record(0, *(event(number) for number in range(40)))])], privacy=PRIVACY).events.select(
    EVENT_ARROW.names
)
SMALL = encode_frame(ROWS[:3])


def stream(*batches: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EVENT_ARROW) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def batch_of(rows: pl.DataFrame) -> pa.RecordBatch:
    return read_batches(encode_frame(rows))[0]


def told(payloads: list[bytes], first: int = 0) -> Decoded:
    records = [Record(first + number, 0, ARROW, payload, "1") for number, payload in enumerate(payloads)]
    return decode([(5, records)], privacy=PRIVACY)


def damaged(at: int) -> bytes:
    return SMALL[:at] + bytes([SMALL[at] ^ 0xFF]) + SMALL[at + 1 :]


def test_what_the_gateway_makes_of_small_requests_is_single() -> None:
    assert is_single(SMALL)
    assert rows_in(SMALL) == 3
    batch, heights = read_together([SMALL, encode_frame(ROWS[3:10])])
    assert heights == [3, 7]
    assert pl.DataFrame(pl.from_arrow(batch)).equals(ROWS[:10])


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(stream(), id="no batch"),
        pytest.param(stream(batch_of(ROWS[:2]), batch_of(ROWS[2:4])), id="two batches"),
        pytest.param(SMALL[:-8], id="no end"),
        pytest.param(SMALL + SMALL[-8:], id="two ends"),
        pytest.param(encode_frame(pl.concat([ROWS] * 10)), id="packed"),
        pytest.param(SMALL[:-8] + b"\0" * 8 + SMALL[-8:], id="more than its body"),
        pytest.param(b"ARROW1\0\0" + SMALL, id="a file"),
    ],
)
def test_anything_else_is_read_alone(payload: bytes) -> None:
    assert not is_single(payload)


@pytest.mark.parametrize("value", [-1, 1 << 31, (1 << 63) - 1])
def test_heads_that_lie_are_no_single_blocks(value: int) -> None:
    """Of every length in the head, anything else: nothing is raised, and nothing is believed that differs."""
    begin = len(blocks._BEGIN)
    size = struct.unpack_from("<i", SMALL, begin + 4)[0]
    for at in range(begin + 8, begin + 8 + size - 8, 4):
        payload = SMALL[:at] + struct.pack("<q", value) + SMALL[at + 8 :]
        if is_single(payload):
            with_one = told([payload])
            assert with_one.events.height + with_one.quarantined.height >= 1
            both = told([SMALL, payload])
            assert both.events.filter(pl.col("_off") == 0).height == 3
            assert both.events.height - 3 == with_one.events.height


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[bytes]], Decoded]:
    """What comes of blocks that are read one by one, each without the others."""

    def decoded(payloads: list[bytes]) -> Decoded:
        with monkeypatch.context() as patch:
            patch.setattr(module, "is_single", lambda _: False)
            each = [told([payload], offset) for offset, payload in enumerate(payloads)]
        return Decoded(pl.concat([one.events for one in each]), pl.concat([one.quarantined for one in each]))

    return decoded


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param([SMALL, SMALL, SMALL], id="sound ones"),
        pytest.param([SMALL, encode_frame(pl.concat([ROWS] * 10)), SMALL], id="a packed one between"),
        pytest.param([SMALL, stream(), stream(batch_of(ROWS[:2]), batch_of(ROWS[2:4])), SMALL], id="0 and 2"),
        pytest.param([SMALL, stream(batch_of(ROWS[:1]).slice(0, 0)), SMALL], id="a batch of no rows"),
        pytest.param([SMALL, damaged(len(SMALL) // 2), SMALL], id="a damaged body"),
        pytest.param([SMALL, SMALL[:-60] + SMALL[-8:], SMALL], id="cut off"),
        pytest.param([SMALL, b"\xff" * 400, SMALL], id="no stream at all"),
    ],
)
def test_together_they_give_what_each_gives_alone(
    alone: Callable[[list[bytes]], Decoded], payloads: list[bytes]
) -> None:
    expected, found = alone(payloads), told(payloads)
    assert found.events.equals(expected.events)
    assert found.quarantined.equals(expected.quarantined)
    assert found.events.height >= 6


def test_every_damaged_byte_gives_what_it_gives_alone(alone: Callable[[list[bytes]], Decoded]) -> None:
    for at in range(0, len(SMALL), 61):
        payloads = [SMALL, damaged(at), SMALL]
        expected, found = alone(payloads), told(payloads)
        assert found.events.equals(expected.events), at
        assert found.quarantined.equals(expected.quarantined), at


def overlapping() -> bytes:
    """Descriptions that lie over the titles: every value is sound, and the body shorter than what it is read
    as."""
    long = ROWS[:3].with_columns(
        title=pl.Series(["题" * 400, "a" * 900, "b" * 900]), description=pl.Series(["x", "y", "z"])
    )
    batch, payload = batch_of(long), bytearray(encode_frame(long))
    first = {}
    for number, name in enumerate(EVENT_ARROW.names):
        first[name] = sum(len(column.buffers()) for column in batch.columns[:number])
    begin = len(blocks._BEGIN)
    head = memoryview(payload)[begin + 8 : begin + 8 + struct.unpack_from("<i", payload, begin + 4)[0]]
    table = blocks._table(head, blocks._at(head, 0), blocks._HEADER)
    slot = blocks._slot(head, table, blocks._BUFFERS)
    assert slot is not None
    vector = blocks._at(head, slot) + 4
    for buffer in (1, 2):  # offsets and bytes
        title, text = (vector + 16 * (first[name] + buffer) for name in ("title", "description"))
        head[text : text + 16] = head[title : title + 16]
    head.release()
    return bytes(payload)


def test_columns_that_share_bytes_are_refused() -> None:
    """They are sound to pyarrow. Joined to others each takes its room: a megabyte became twenty-five."""
    payload = overlapping()
    with pa.ipc.open_stream(payload) as reader:
        read = reader.read_all()
    read.validate(full=True)
    assert read["description"].equals(read["title"])
    assert not is_single(payload)
    assert rows_in(payload) == 1
    with pytest.raises(ContractError):
        read_batches(payload)
    found = told([SMALL, payload, SMALL])
    assert found.events["_off"].to_list() == [0, 0, 0, 2, 2, 2]
    assert found.quarantined["_off"].to_list() == [1]


def test_an_unsound_one_is_told_by_nobody_but_the_reader_of_each() -> None:
    with pytest.raises(ContractError):
        read_together([SMALL, stream()])
