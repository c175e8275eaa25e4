"""`make audit`: what a report of pip-audit comes to, and that unknown is never taken for safe."""

from __future__ import annotations

from typing import Any

import pytest

from infra.security import audit

SAFE = {"name": "orjson", "version": "3.13.0", "vulns": []}
BAD = {
    "name": "aiohttp", "version": "3.13.0",
    "vulns": [{"id": "CVE-2026-22815", "fix_versions": ["3.13.4"]}, {"id": "CVE-1", "fix_versions": []}],
}  # fmt: skip
UNKNOWN = {"name": "limits", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SAFE], 0, "1 packages audited, 0 known"),
        ([SAFE, BAD], 1, "aiohttp 3.13.0: CVE-2026-22815, fixed in 3.13.4"),
        ([SAFE, UNKNOWN], 3, "not audited, for the service does not know them: limits"),
        ([BAD, UNKNOWN], 1, "1 packages audited, 2 known"),
    ],
)
def test_reports(packages: list[dict[str, Any]], code: int, said: str) -> None:
    found, lines = audit.judge({"dependencies": packages})
    assert found == code
    assert said in "\n".join(lines)


def test_out_of_reach_is_said_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in (None, {"dependencies": [UNKNOWN]}):
        monkeypatch.setattr(audit, "ask", lambda *_, answer=answer: answer)
        assert audit.main() == 3
        assert "cannot be reached from here (pypi, osv)" in capsys.readouterr().out
    monkeypatch.setattr(audit, "ask", lambda *_: {"dependencies": [SAFE]})
    assert audit.main() == 0
