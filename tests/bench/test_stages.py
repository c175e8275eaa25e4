"""What the stages are measured on: a partition that knows as much as one does after a while."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from benchmarks import stages_bench
from benchmarks.cache import ROOT
from benchmarks.harness import python
from pipeline.settings import load_settings


def test_stages_look_up_among_what_a_partition_knows() -> None:
    state = stages_bench.known_state(load_settings(), ids=60_000)
    assert len(state.seen) == 60_000
    assert len(state.anchors) == 60_000 / stages_bench.CASE_EVENTS
    other = np.random.default_rng(2).integers(1, 2**63, (2, 1_000), dtype=np.uint64)
    assert (state.seen.find(*other) < 0).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_can_be_measured() -> None:
    """Nothing else calls these functions: what a change broke would show hours into a series."""
    done = subprocess.run(
        python("-m", "benchmarks", "stages", "--quick"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert "case_events" in done.stdout
