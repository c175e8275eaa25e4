"""A refused event leaves a line with the ids that let somebody find it, and nothing personal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import logs
from pipeline.logs_limit import BURST
from tests.unit.gateway_world import event, make_world

PHONE = "13800001234"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure(level="info", role="http", log_dir=tmp_path / "log", console=False)
    yield tmp_path / "log" / "http.log"
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def refusals(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text_of(path).splitlines()]
    return [line for line in lines if line["event"] == "events_refused"]


async def test_a_request_with_refused_events_leaves_one_line(tmp_path: Path, log_file: Path) -> None:
    world = make_world(tmp_path)
    bad = [event(number, event_type="NONSENSE") for number in range(2, 12)]
    bad[1]["case_id"] = f"c-{PHONE}"
    del bad[2]["case_id"]
    named = event(20, event_id=f"p-{PHONE}", description=f"请回电 {PHONE}")
    answer = await world.post([event(1), *bad, named], X_Request_Id="req-7")
    assert answer.status_code == 202
    (line,) = refusals(log_file)
    assert (line["request_id"], line["source"], line["role"]) == ("req-7", "12345", "http")
    assert line["codes"] == {"unknown_value": 10, "personal_data_in_id": 1}
    assert line["event_ids"] == [f"e-{number}" for number in range(2, 7)]
    assert line["case_ids"] == ["c-2", None, None, "c-5", "c-6"]
    assert not any("case_id" in error for error in answer.json()["errors"]), "as the contract has it"
    assert PHONE not in text_of(log_file)


async def test_a_request_of_nothing_but_refused_events_leaves_one_too(tmp_path: Path, log_file: Path) -> None:
    world = make_world(tmp_path)
    answer = await world.post([event(1, event_id=f"p-{PHONE}")], X_Request_Id="req-8")
    assert answer.status_code == 422
    (line,) = refusals(log_file)
    assert (line["request_id"], line["source"]) == ("req-8", "12345")
    assert line["codes"] == {"personal_data_in_id": 1}
    assert (line["event_ids"], line["case_ids"]) == ([None], ["c-1"])
    assert PHONE not in text_of(log_file)


async def test_the_line_names_the_case_that_an_envelope_is_about(tmp_path: Path, log_file: Path) -> None:
    world = make_world(tmp_path)
    envelope = {
        "specversion": "1.0", "source": "12345", "type": "cn.jiangmen.grid.accepted.v1",
        "time": event(1)["occurred_at"], "data": {},
    }  # fmt: skip
    subjects = ["c-1", f"c-{PHONE}"]
    body = [{**envelope, "id": f"e-{number}", "subject": case} for number, case in enumerate(subjects)]
    answer = await world.post(body, Content_Type="application/cloudevents-batch+json")
    assert answer.status_code == 422
    (line,) = refusals(log_file)
    assert (line["event_ids"], line["case_ids"]) == (["e-0", "e-1"], ["c-1", None])
    assert PHONE not in text_of(log_file)


async def test_refusals_bear_the_source_of_the_key_whatever_refuses_all_events(
    tmp_path: Path, log_file: Path
) -> None:
    world = make_world(tmp_path)
    assert (await world.post([event(1, source="another")])).status_code == 403
    world.log.refused = set(range(12))
    assert (await world.post([event(2)])).status_code == 503
    told = [(line["source"], line["codes"]) for line in refusals(log_file)]
    assert told == [("12345", {"source_not_allowed": 1}), ("12345", {"not_written": 1})]


async def test_a_source_that_only_sends_nonsense_silences_no_other(tmp_path: Path, log_file: Path) -> None:
    world = make_world(tmp_path)
    for number in range(2 * BURST):
        await world.post([event(number, grid_code="x")])
    assert len(refusals(log_file)) < 2 * BURST
    world.key = world.keys.create("hotline")
    await world.post([event(1, source="hotline", grid_code="x")])
    assert refusals(log_file)[-1]["source"] == "hotline"


async def test_a_request_without_refusals_leaves_none(tmp_path: Path, log_file: Path) -> None:
    world = make_world(tmp_path)
    assert (await world.post([event(1)])).status_code == 202
    assert refusals(log_file) == []
