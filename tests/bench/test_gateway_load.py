"""How the benchmarks run their load client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gateway


@pytest.mark.parametrize("seconds", [2.0, 1_800.0])
def test_load_client_gets_more_time_than_it_loads(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def note(_: Any, *, seconds: float) -> dict[str, Any]:
        limits.append(seconds)
        return {}

    monkeypatch.setattr(gateway, "run_program", note)
    monkeypatch.setattr(gateway, "bodies", lambda *_: [b"x"])
    gateway.run_load(tmp_path, "127.0.0.1:1", "k", "ndjson500", persons=1, seconds=seconds)
    assert limits[0] >= seconds + 60
