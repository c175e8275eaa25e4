"""Bytes that nobody meant as events: every decoder answers, nothing crashes, their neighbours are kept.

`make test-fuzz` repeats this with FUZZ times as many inputs.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
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
from tests.integration.worker_world import PRIVACY, event, record

pytestmark = pytest.mark.timeout(3_600 if "FUZZ" in os.environ else 180)

FUZZ: Final = int(os.environ.get("FUZZ", "1"))
LIMIT: Final = 1_000_000
#: What a run may leave in memory: the caches of the libraries, no input.
MOST_GROWTH_BYTES: Final = 100_000_000

tried: Counter[str] = Counter()


def some(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples * FUZZ,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """What was tried, how many tests failed on it, and that memory does not grow with it."""
    failed, process = request.session.testsfailed, psutil.Process()
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


@some(400)
@given(value=mutated(BLOCKS) | st.binary(max_size=400))
def test_damaged_arrow_blocks(value: bytes) -> None:
    tried["arrow"] += 1
    with contextlib.suppress(ContractError):
        decode_block(value)
    _survives(value, ARROW)


@some(400)
@given(
    value=mutated((LINES, LINES.split(b"\n")[0], b"[" + LINES.replace(b"\n", b",") + b"]"))
    | st.binary(max_size=400)
)
def test_damaged_json_records(value: bytes) -> None:
    tried["json records"] += 1
    _survives(value, None)


@some(1_000)
@given(value=mutated((LINES, b"[" + LINES.replace(b"\n", b",") + b"]")) | st.binary(max_size=400))
def test_damaged_json_bodies(value: bytes) -> None:
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


@some(400)
@given(
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
def test_damaged_and_bursting_compression(value: bytes, encoding: str) -> None:
    tried["compressed bodies"] += 1
    try:
        assert len(decompress(value, encoding, LIMIT, free=LIMIT, grow=int)) <= LIMIT
    except ProblemError as error:
        assert error.status in {400, 413}
