"""The rows that reads are measured on: made slice by slice, they are as those that are made at once."""

from __future__ import annotations

import polars as pl
import pytest

from benchmarks import kpi_speed


def test_slices_share_no_case_and_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[pl.DataFrame] = []
    monkeypatch.setattr(kpi_speed, "SLICE_CASES", 20)
    monkeypatch.setattr(kpi_speed, "load", lambda _, part, __: parts.append(part))
    monkeypatch.setattr(kpi_speed.CaseMemory, "know", lambda *_: None)
    events = kpi_speed.load_cases(None, 50)  # type: ignore[arg-type]  # nothing is loaded
    assert [part["case_id"].n_unique() for part in parts] == [20, 20, 10]
    whole = pl.concat(parts)
    assert whole["case_id"].n_unique() == 50
    assert whole["id_hi"].n_unique() == events == len(whole)
    assert whole["_off"].to_list() == list(range(events))
    # one case in ten is still open
    assert len(whole) == 45 * 8 + 5 * 4
