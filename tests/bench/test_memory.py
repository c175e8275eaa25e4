"""Memory beside a load: what grew, and that a short run says nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.memory import ID_BYTES, Memory
from benchmarks.together import growth_text
from pipeline.process.deduplicate import Entry, SeenIds


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


def sampled(
    role: str,
    *thirds: float,
    held: tuple[float, ...] = (0.0, 0.0, 0.0),
    figures: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> Memory:
    memory = Memory(None)  # type: ignore[arg-type]  # not started
    memory.samples = [(2.0 * at, {role: value}) for at, value in enumerate(np.repeat(thirds, 3).tolist())]
    memory.held = list(zip(np.repeat(held, 3).tolist(), np.repeat(figures, 3).tolist(), strict=True))
    return memory


def test_log_of_the_embedded_broker_is_told_and_not_judged() -> None:
    text, flat = sampled("broker", 100.0, 200.0, 300.0).verdict("broker")
    assert flat
    assert text.startswith("memory of broker: +50.0% (+100 MB)")
    assert "not judged: the embedded broker keeps every event" in text


def test_memory_of_more_ids_is_no_leak() -> None:
    ids = 2**20
    text, flat = sampled("store", 900.0, 1_000.0, 1_092.0, held=(0.0, ids, 2.0 * ids)).verdict("store")
    assert flat
    assert text.startswith("memory of store: +9.2% (+92 MB)")
    assert "1,048,576 more ids and contents are held" in text
    assert text.endswith("at least 50 MB: +4.2% without them")
    # what they could take beyond that excuses nothing
    assert not sampled("store", 900.0, 1_000.0, 1_102.0, held=(0.0, ids, 2.0 * ids)).verdict("store")[1]
    assert not sampled("store", 900.0, 1_000.0, 1_100.0, held=(ids, ids, ids)).verdict("store")[1]
    assert not sampled("http", 900.0, 1_000.0, 1_100.0, held=(0.0, ids, 2.0 * ids)).verdict("http")[1]


def test_cases_that_are_held_to_answer_from_are_no_leak() -> None:
    size = 100.0 * 2**20
    text, flat = sampled("http", 200.0, 300.0, 400.0, figures=(0.0, size, 2 * size)).verdict("http")
    assert flat
    assert text.endswith("100 MB more of cases and reports are held to answer from: +0.0% without them")
    assert not sampled("http", 200.0, 300.0, 416.0, figures=(0.0, size, 2 * size)).verdict("http")[1]
    assert not sampled("store", 200.0, 300.0, 400.0, figures=(0.0, size, 2 * size)).verdict("store")[1]


def test_what_was_never_asked_takes_nothing_off() -> None:
    never = (float("nan"),) * 3
    assert not sampled("http", 100.0, 100.0, 106.0, held=never, figures=never).verdict("http")[1]
    text, flat = sampled("store", 100.0, 100.0, 104.0, held=never).verdict("store")
    assert (text, flat) == ("memory of store: +4.0% (+4 MB) from the second to the last third", True)


def test_what_is_held_stands_beside_the_memory(tmp_path: Path) -> None:
    sampled("store", 1.0, 2.0, 3.0, held=(10.0, 20.0, 30.0)).write(tmp_path / "memory.csv")
    rows = (tmp_path / "memory.csv").read_text().splitlines()
    assert (rows[0], rows[1], rows[-1]) == (
        "second,store,ids_held,figures_held_bytes",
        "0,1.0,10,0",
        "16,3.0,30,0",
    )


def test_an_id_takes_as_much_as_is_taken_off_for_it() -> None:
    """Of what is touched: what the arrays hold in reserve of uninitialised memory is not resident."""
    seen = SeenIds(timedelta(days=7))
    rng = np.random.default_rng(1)
    for _ in range(20):
        hi, lo = (rng.integers(0, 2**63, 10_000, dtype=np.uint64) for _ in range(2))
        at = np.arange(10_000)
        seen.remember(hi, lo, Entry(at, at, hi, np.ones(10_000, np.uint16)))
        reserve = 16 * (len(seen._index._hi) - len(seen)) + 26 * (len(seen._held.position) - len(seen))
        assert ID_BYTES <= (seen.nbytes - reserve) / len(seen) <= 58 + 4 * 1024 / len(seen)
