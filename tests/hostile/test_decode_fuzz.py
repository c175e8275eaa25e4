"""Bytes that nobody meant as events: every decoder answers, nothing crashes, their neighbours are kept.

`make test-fuzz` repeats this with FUZZ times as many inputs.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
import polars as pl
import psutil
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.contract.event import CODES
from pipeline.contract.parse import DocumentError, parse_document, parse_ndjson
from pipeline.errors import ContractError
from pipeline.frames import EVENT
from pipeline.ingest.blocks import ARROW, decode_block, encode_frame
from pipeline.ingest.body import decompress
from pipeline.ingest.problem import ProblemError
from pipeline.process.decode import decode
from pipeline.process.records import Record
from tests.hostile.quick import quick
from tests.integration.worker_world import PRIVACY, event, record

pytestmark = pytest.mark.timeout(3_600 if "FUZZ" in os.environ else 180)

FUZZ: Final = int(os.environ.get("FUZZ", "1"))
LIMIT: Final = 1_000_000
#: What a run may leave in memory: what pytest and hypothesis note of each test, no input.
MOST_GROWTH_BYTES: Final = 100_000_000

tried: Counter[str] = Counter()


def some(examples: int, **inputs: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """As many inputs, FUZZ times, each of them `quick`. Each time anew: hypothesis remembers all that it
    tried, and that memory would pass for the decoders'."""
    limits = settings(
        max_examples=examples,
        deadline=None,  # of the clock, which others keep waiting: `quick` looks at what was used
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def timed(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def each(*arguments: Any, **inputs: Any) -> None:
            with quick():
                test(*arguments, **inputs)

        return each

    return lambda test: pytest.mark.parametrize("time", range(FUZZ))(limits(given(**inputs)(timed(test))))


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """What was tried, how many tests failed on it, and that memory does not grow with it."""
    failed, process = request.session.testsfailed, psutil.Process()
    _warm_up()
    before = process.memory_info().rss
    yield
    grown = process.memory_info().rss - before
    crashes = request.session.testsfailed - failed
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        told = f"\nfuzz: inputs tried {dict(tried)}, crashes {crashes}, memory {grown / 1e6:+.0f} MB"
        print(told, file=sys.stderr)  # the other stream of a test process beside others is lost
    assert grown < MOST_GROWTH_BYTES


def _block(count: int) -> bytes:
    rows = decode([(0, [record(0, *(event(n) for n in range(count)))])], privacy=PRIVACY)
    return encode_frame(rows.events.select(list(EVENT)))


BLOCKS: Final = tuple(_block(count) for count in (1, 3, 40))
LINES: Final = b"\n".join(orjson.dumps(event(n)) for n in range(3))


def _warm_up() -> None:
    """What the libraries load and keep when they are first used is no growth."""
    rng = random.Random(0)
    for original, content_type in (*((block, ARROW) for block in BLOCKS), (LINES, None)):
        for _ in range(50):
            value = bytearray(original)
            value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
            _survives(bytes(value), content_type)
    decompress(gzip.compress(LINES), "gzip", LIMIT, free=LIMIT, grow=int)
    decompress(zstandard.compress(LINES), "zstd", LIMIT, free=LIMIT, grow=int)


@st.composite
def mutated(draw: st.DrawFn, originals: tuple[bytes, ...]) -> bytes:
    """One of `originals` with bytes changed, cut out, repeated or put in."""
    body = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        if not body:
            break
        at = draw(st.integers(0, len(body) - 1))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("flip", "set", "cut", "repeat", "insert", "huge", "end"))):
            case "flip":
                body[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                body[at] = draw(st.sampled_from((0x00, 0xFF, 0x7F, 0x80)))
            case "cut":
                del body[at : at + length]
            case "repeat":
                body[at:at] = body[at : at + length]
            case "insert":
                body[at:at] = draw(st.binary(max_size=64))
            case "huge":  # a length or offset that asks for more than there is
                body[at : at + 8] = draw(
                    st.sampled_from((b"\xff" * 7 + b"\x7f", b"\xff" * 8, b"\x00\x00\x00\x40" * 2))
                )
            case "end":
                del body[at:]
    return bytes(body)


def _survives(value: bytes, content_type: str | None) -> None:
    """The record's neighbours are kept, and it leaves at least one row of its own."""
    first, last = event("first"), event("last")
    hostile = Record(1, 1_767_225_600_000, content_type, value, "1")
    found = decode([(0, [record(0, first), hostile, record(2, last)])], privacy=PRIVACY)
    ids = set(found.events["event_id"])
    assert {"efirst", "elast"} <= ids
    rows = found.events["_off"].to_list() + found.quarantined["_off"].to_list()
    assert rows.count(1) >= 1


@some(400, value=mutated(BLOCKS) | st.binary(max_size=400))
def test_damaged_arrow_blocks(time: int, value: bytes) -> None:
    tried["arrow"] += 1
    with contextlib.suppress(ContractError):
        decode_block(value)
    _survives(value, ARROW)


#: Of a column's type (of times, milliseconds): the ends of its range, and what lies beyond any calendar.
_TEXTS: Final = ("", " ", "\x00", "\u202e", "𠮷" * 300, "x" * 5_000, "NaN", "-1")
_MILLISECONDS: Final = (0, -1, 10**13, 10**15, -(10**15), 10**16, 2**62, -(2**62), 2**63 - 1, -(2**63))
_FLOATS: Final = (float("nan"), float("inf"), float("-inf"), 1.8e308, -0.0, 5e-324)


@st.composite
def extreme(draw: st.DrawFn) -> bytes:
    """A sound block of three events, in whose second one to four columns hold what nobody would write."""
    frame = decode_block(_block(3))
    plain = [name for name, dtype in EVENT.items() if not dtype.is_nested()]
    for name in draw(st.lists(st.sampled_from(plain), min_size=1, max_size=4, unique=True)):
        dtype = EVENT[name]
        column = frame[name].to_physical() if dtype.is_temporal() else frame[name]
        if dtype.is_temporal():
            choices: tuple[Any, ...] = _MILLISECONDS
        elif dtype.is_float():
            choices = _FLOATS
        elif dtype.is_integer():
            bounds = pl.select(low=dtype.min(), high=dtype.max())
            choices = bounds.row(0)
        else:
            choices = (True, False) if dtype == pl.Boolean else _TEXTS
        given_values = column.to_list()
        given_values[1] = draw(st.sampled_from((None, *choices)))
        frame = frame.with_columns(pl.Series(name, given_values, column.dtype).cast(dtype))
    return encode_frame(frame)


@some(400, value=extreme())
def test_blocks_of_values_that_nobody_would_write(time: int, value: bytes) -> None:
    """Damaged bytes seldom make a sound block of absurd values. The rows beside them may only be refused with
    the whole block."""
    tried["arrow values"] += 1
    found = decode([(0, [Record(1, 1_767_225_600_000, ARROW, value, "1")])], privacy=PRIVACY)
    kept, refused = (frame["_idx"].to_list() for frame in (found.events, found.quarantined))
    assert sorted(kept + refused) == [0, 1, 2] or (kept, refused) == ([], [0])
    assert {0, 2} <= set(kept) or not kept


@some(
    400,
    value=mutated((LINES, LINES.split(b"\n")[0], b"[" + LINES.replace(b"\n", b",") + b"]"))
    | st.binary(max_size=400),
)
def test_damaged_json_records(time: int, value: bytes) -> None:
    tried["json records"] += 1
    _survives(value, None)


@some(1_000, value=mutated((LINES, b"[" + LINES.replace(b"\n", b",") + b"]")) | st.binary(max_size=400))
def test_damaged_json_bodies(time: int, value: bytes) -> None:
    tried["json bodies"] += 1
    for parse in (parse_document, parse_ndjson):
        try:
            parsed = parse(value)
        except DocumentError as error:
            assert error.code in CODES
            assert error.status in {400, 413}
        else:
            assert parsed.count > 0
            assert all(error.code in CODES for error in parsed.errors)


@some(
    400,
    value=mutated(
        (
            gzip.compress(LINES),
            gzip.compress(bytes(3 * LIMIT)),
            gzip.compress(LINES) * 3,
            zstandard.compress(LINES),
            zstandard.compress(bytes(3 * LIMIT)),
            zstandard.compress(random.Random(1).randbytes(5_000)) * 2,
        )
    )
    | st.binary(max_size=200),
    encoding=st.sampled_from(("gzip", "zstd")),
)
def test_damaged_and_bursting_compression(time: int, value: bytes, encoding: str) -> None:
    tried["compressed bodies"] += 1
    try:
        assert len(decompress(value, encoding, LIMIT, free=LIMIT, grow=int)) <= LIMIT
    except ProblemError as error:
        assert error.status in {400, 413}
