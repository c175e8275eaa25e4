"""Memory beside a load: what grew, and that a short run says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.memory import Memory
from benchmarks.together import growth_text


@pytest.mark.parametrize(
    ("megabytes", "grown"),
    [
        ([100.0] * 3 + [200.0] * 3 + [220.0] * 3, pytest.approx(0.1)),
        ([100.0] * 8, None),
        ([], None),
    ],
)
def test_growth_is_told_from_nine_samples_on(megabytes: list[float], grown: Any) -> None:
    memory = Memory(None)  # type: ignore[arg-type]  # not started
    memory.samples = [(2.0 * at, {"store": value}) for at, value in enumerate(megabytes)]
    assert memory.growth("store") == grown


def test_what_is_not_known_is_not_called_zero() -> None:
    assert growth_text({"store": 0.031, "http": None}) == "store +3.1%, http unknown"
