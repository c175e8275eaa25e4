"""What the stages are measured on: a partition that knows as much as one does after a while."""

from __future__ import annotations

import numpy as np

from benchmarks import stages_bench
from pipeline.settings import load_settings


def test_stages_look_up_among_what_a_partition_knows() -> None:
    state = stages_bench.known_state(load_settings(), ids=60_000)
    assert len(state.seen) == 60_000
    assert len(state.anchors) == 60_000 / stages_bench.CASE_EVENTS
    other = np.random.default_rng(2).integers(1, 2**63, (2, 1_000), dtype=np.uint64)
    assert (state.seen.find(*other) < 0).all()
