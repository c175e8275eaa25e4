"""Coverage-guided fuzzing of the decoders, by atheris; `make test-fuzz` installs it where it can be had.

The corpus is kept in var/fuzz, so that every run begins with what the ones before it found.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest
import zstandard

from tests.fault import raw_batches as raw
from tests.hostile.test_decode_fuzz import BLOCKS, LINES
from tests.hostile.world import patience

#: Seconds of each target.
SECONDS: Final = int(os.environ.get("ATHERIS_SECONDS") or (60 if "FUZZ" in os.environ else 5))
_ROOT: Final = Path(__file__).parents[2]
_CORPUS: Final = _ROOT / "var" / "fuzz"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="needs atheris, which is no part of the pinned environment: make test-fuzz",
    ),
    pytest.mark.timeout(SECONDS + 300),
]

#: Inputs that are played again for their memory, for each minute of fuzzing: some 15 s of each.
REPLAYED: Final = {"body": 40_000, "compressed": 40_000, "record": 2_000, "batch": 80_000}

SEEDS: Final = {
    "body": (LINES, LINES.split(b"\n")[0], b"[" + LINES.replace(b"\n", b",") + b"]"),
    "compressed": (gzip.compress(LINES), zstandard.compress(LINES), gzip.compress(bytes(2_000_000))),
    "record": (*(b"A" + block for block in BLOCKS), b"J" + LINES, b"J" + LINES.split(b"\n")[0]),
    "batch": (
        raw.batch(raw.record(b"abc") + raw.record(b"abc", delta=1), 2),
        raw.batch(raw.packed(raw.GZIP, [raw.record(b"abc" * 300)]), 1, codec=raw.GZIP),
        raw.batch(raw.packed(raw.ZSTD, [raw.record(b"abc" * 300)]), 1, codec=raw.ZSTD),
        raw.batch(raw.packed(raw.SNAPPY, [raw.record(b"abc" * 300)]), 1, codec=raw.SNAPPY),
        raw.batch(raw.packed(raw.LZ4, [raw.record(b"abc" * 300)]), 1, codec=raw.LZ4),
    ),
}


@pytest.mark.parametrize("target", SEEDS)
def test_nothing_unexpected_comes_of_any_bytes(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = _CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[target]:
        (corpus / sha256(seed).hexdigest()[:20]).write_bytes(seed)
    crashes = _CORPUS / f"{target}-crashes"
    crashes.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.hostile.atheris_decode", target, str(corpus)]
    # its time-out goes by the clock, for what never ends; what was used is looked at within
    waiting = math.ceil(patience())
    command += [f"-max_total_time={SECONDS}", "-max_len=8192", f"-timeout={waiting}", "-rss_limit_mb=4096"]
    command += ["-print_final_stats=1", f"-artifact_prefix={crashes}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
    tried = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    assert done.returncode == 0, done.stdout[-1_000:] + done.stderr[-3_000:]
    assert tried is not None, done.stderr[-1_000:]
    covered = re.findall(r"cov: (\d+)", done.stderr)
    inputs = str(REPLAYED[target] * SECONDS // 60)
    again = subprocess.run(
        command[:5],
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
        env=os.environ | {"REPLAY": inputs},
    )
    assert again.returncode == 0, again.stdout[-1_000:] + again.stderr[-3_000:]
    told = re.search(r"(grown -?[\d.]+ MB)", again.stdout)
    assert told is not None, again.stdout[-1_000:]
    with capsys.disabled():
        print(
            f"\natheris {target}: inputs tried {int(tried[1]):,} in {SECONDS} s, {covered[-1]} branches "
            f"covered, corpus {len(list(corpus.iterdir()))}, crashes 0; {inputs} again, {told[1]}",
            file=sys.stderr,
        )
    assert int(tried[1]) > 100
