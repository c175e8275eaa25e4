"""What a child of the supervisor is told of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runtime.process import Child, receive_order
from pipeline.settings import load_settings


def test_a_child_knows_which_settings_somebody_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention leaves alone what nobody set; a child for which everything is set would set the defaults."""
    monkeypatch.setenv("GRIDPIPE_PERSON_LINK_DAYS", "400")
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:1")
    settings.run_dir.mkdir(parents=True)
    settings.log_dir.mkdir()
    child = Child("told", "tests.unit.test_child_settings", settings, {})
    assert child.process.wait(60) == 0, child.log_path.read_text()
    told = json.loads(child.log_path.read_text().splitlines()[-1])
    assert set(told["set"]) == settings.model_fields_set == {"data_dir", "http", "person_link_days"}
    assert told["all"] == settings.model_dump(mode="json")


def main() -> None:
    order = receive_order()
    told = {"set": sorted(order.settings.model_fields_set), "all": order.settings.model_dump(mode="json")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
