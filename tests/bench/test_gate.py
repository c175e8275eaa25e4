"""The regression gate: what fails, what passes, and that one bad measurement is taken again."""

from __future__ import annotations

import pytest

from benchmarks import gate


def test_ratio_that_fell_beyond_tolerance_fails() -> None:
    baseline = {"gateway to bare server": 0.10}
    assert gate.failures({"gateway to bare server": 0.086}, baseline) == []
    (problem,) = gate.failures({"gateway to bare server": 0.084}, baseline)
    assert "gateway to bare server" in problem
    assert "16% worse" in problem


def test_more_calls_or_parts_are_worse_and_more_rows_per_insert_are_not() -> None:
    baseline = {"python calls per event": 2.0, "rows per insert": 10_000.0}
    assert gate.failures({"python calls per event": 1.0, "rows per insert": 50_000.0}, baseline) == []
    assert gate.failures({"python calls per event": 2.19, "rows per insert": 8_100.0}, baseline) == []
    problems = gate.failures({"python calls per event": 2.21, "rows per insert": 7_900.0}, baseline)
    assert [problem.split(":")[0] for problem in problems] == ["python calls per event", "rows per insert"]


def test_figure_without_a_baseline_fails() -> None:
    (problem,) = gate.failures({"KPI call to full scan": 1.0}, {})
    assert "--write-baseline" in problem


@pytest.mark.parametrize("measured", [[0.5, 0.95], [0.5, 0.6, 0.95]])
def test_failing_figure_is_measured_again_and_the_best_counts(
    monkeypatch: pytest.MonkeyPatch, measured: list[float]
) -> None:
    values = iter(measured)
    monkeypatch.setitem(gate.MEASURES, "kpi", lambda: {"KPI call to full scan": next(values)})
    found, problems = gate.check("kpi", {"KPI call to full scan": 1.0})
    assert found == {"KPI call to full scan": 0.95}
    assert problems == []


def test_figure_that_fails_three_times_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.4, 0.6])
    monkeypatch.setitem(gate.MEASURES, "kpi", lambda: {"KPI call to full scan": next(values)})
    found, problems = gate.check("kpi", {"KPI call to full scan": 1.0})
    assert found == {"KPI call to full scan": 0.6}
    assert len(problems) == 1


def test_a_count_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow neighbour changes no count: the best of three would let pass what is mostly worse."""
    values = iter([300.0, 100.0])
    monkeypatch.setitem(gate.MEASURES, "counts", lambda: {"parts per million events": next(values)})
    found, problems = gate.check("counts", {"parts per million events": 180.0})
    assert found == {"parts per million events": 300.0}
    assert len(problems) == 1


@pytest.mark.parametrize(
    "name", ["gateway: python calls per event", "gateway: python calls per single request"]
)
def test_more_calls_of_the_gateway_fail(name: str) -> None:
    assert gate.failures({name: 109.0}, {name: 100.0}) == []
    (problem,) = gate.failures({name: 111.0}, {name: 100.0})
    assert "11% worse" in problem
