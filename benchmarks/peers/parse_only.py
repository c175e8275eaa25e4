"""Floors: the same lines parsed and nothing else: the top-level texts of the common work, by polars into
columns, by msgspec into typed objects. Runs in the project's environment, which has polars.

python -m benchmarks.peers.parse_only polars|msgspec NDJSON
"""

from __future__ import annotations

import gc
import io
import os
import sys
import time
from pathlib import Path

import msgspec
import polars as pl

from benchmarks.peers.common import DECODER, peak_mb

_TEXTS = (
    "event_id", "source", "event_type", "case_id", "occurred_at", "channel", "matter_code", "grid_code",
    "description",
)  # fmt: skip
_BLOCK_BYTES = 2_000_000


def main() -> None:
    how, path = sys.argv[1:]
    text = Path(path).read_bytes()
    blocks, at = [], 0
    while at < len(text):
        end = text.find(b"\n", at + _BLOCK_BYTES)
        end = len(text) if end < 0 else end + 1
        blocks.append(text[at:end])
        at = end
    # the first use of either starts threads and builds tables: not part of the floor
    schema = pl.Schema(dict.fromkeys(_TEXTS, pl.String()))
    pl.read_ndjson(io.BytesIO(blocks[0]), schema=schema)
    DECODER.decode_lines(blocks[0])
    gc.freeze()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    if how == "polars":
        taken = sum(pl.read_ndjson(io.BytesIO(block), schema=schema).height for block in blocks)
    else:
        taken = sum(len(DECODER.decode_lines(block)) for block in blocks)
    took = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
    sys.stdout.buffer.write(
        msgspec.json.encode({**took, "counts": {"taken": taken}, "peak_mb": peak_mb()}) + b"\n"
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
