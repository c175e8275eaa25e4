"""Coverage-guided fuzzing of what reads strangers' bytes: `python -m tests.hostile.atheris_decode TARGET …`.

Further arguments are libFuzzer's: a corpus directory, `-max_total_time=60`, `-seed=1`. Whatever a target does
not expect is a crash, as is an input that takes too long, and libFuzzer leaves the bytes that made it. With
REPLAY in the environment the corpus is played, each input bent a little, without libFuzzer and without what
atheris puts into our code, which leaves some of what it passes in memory: nothing else may be left there.
`test_atheris.py` runs each target, both ways.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import atheris
import psutil
from aiokafka.structs import TopicPartition

_REPLAY: Final = int(os.environ.get("REPLAY", "0"))
_ours = ["pipeline.contract", "pipeline.ingest", "pipeline.process"]
with contextlib.nullcontext() if _REPLAY else atheris.instrument_imports(include=_ours):
    from pipeline.contract.cloudevents import parse_cloudevents
    from pipeline.contract.event import CODES
    from pipeline.contract.parse import DocumentError, parse_document, parse_ndjson
    from pipeline.errors import ContractError
    from pipeline.ingest.blocks import ARROW, decode_block
    from pipeline.ingest.body import decompress
    from pipeline.ingest.problem import ProblemError
    from pipeline.process.batches import CheckedRecords, Damage, Fetched
    from pipeline.process.decode import decode
    from pipeline.process.records import Record
    from tests.hostile.quick import quick
    from tests.integration.worker_world import PRIVACY, event, record

#: What all inputs of a replay but the first tenth, which load and keep what they need, may leave in memory.
MOST_GROWTH_BYTES: Final = 20_000_000
_LIMIT: Final = 1_000_000
_FIRST, _LAST = record(0, event("first")), record(2, event("last"))


def body(value: bytes) -> None:
    """A request's body: taken, or refused with a code of the contract."""
    single, batch = partial(parse_cloudevents, batch=False), partial(parse_cloudevents, batch=True)
    for parse in (parse_document, parse_ndjson, single, batch):
        try:
            parsed = parse(value)
        except DocumentError as error:
            assert error.code in CODES, error.code
            assert error.status in {400, 413}, error.status
        else:
            assert all(error.code in CODES for error in parsed.errors)


def compressed(value: bytes) -> None:
    """A compressed body: never more than the limit comes out of it."""
    for encoding in ("gzip", "zstd"):
        try:
            assert len(decompress(value, encoding, _LIMIT, free=_LIMIT, grow=int)) <= _LIMIT
        except ProblemError as error:
            assert error.status in {400, 413}, error.status


def kafka_record(value: bytes) -> None:
    """A record of anybody: its neighbours are kept, and it leaves a row of its own. The first byte says what
    it claims to be."""
    kind = ARROW if value[:1] == b"A" else None
    if kind:
        with contextlib.suppress(ContractError):
            decode_block(value[1:])
    hostile = Record(1, 1_767_225_600_000, kind, value[1:], "1")
    found = decode([(0, [_FIRST, hostile, _LAST])], privacy=PRIVACY)
    assert {"efirst", "elast"} <= set(found.events["event_id"])
    assert 1 in found.events["_off"].to_list() + found.quarantined["_off"].to_list()


def kafka_batch(value: bytes) -> None:
    """A fetch as it comes off the wire, its checksums believed: offsets rise, and reading ends."""
    reader = CheckedRecords(TopicPartition("t", 0), Fetched(value), None, 0, None, None, False, 0)
    before = -1
    for found in reader:
        assert isinstance(found.value, Damage) or found.offset > before, (found.offset, before)
        before = found.offset


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "body": body,
    "compressed": compressed,
    "record": kafka_record,
    "batch": kafka_batch,
}


def replay(target: Callable[[bytes], None], corpus: Path, inputs: int) -> None:
    """Bytes of the corpus, up to four of each changed; all of them together may leave nothing in memory."""
    kept = [path.read_bytes() for path in sorted(corpus.iterdir())]
    rng, process, before = random.Random(1), psutil.Process(), 0
    for number in range(inputs):
        if number == inputs // 10:
            before = process.memory_info().rss
        value = bytearray(rng.choice(kept))
        for _ in range(rng.randint(0, 4) if value else 0):
            value[rng.randrange(len(value))] = rng.randrange(256)
        target(bytes(value))
    grown = process.memory_info().rss - before
    print(f"grown {grown / 1e6:.1f} MB")
    assert grown < MOST_GROWTH_BYTES, f"grew by {grown / 1e6:.0f} MB in {inputs:,} inputs"


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def watched(value: bytes) -> None:
        with quick():
            target(value)

    if _REPLAY:
        replay(watched, Path(sys.argv[1]), _REPLAY)
        return
    atheris.Setup(sys.argv, watched)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
