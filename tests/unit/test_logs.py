"""Logs: JSON lines, one place for our own and the libraries' messages, no personal data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import logs


@pytest.fixture
def log_dir(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logs.configure(level="info", role="store", log_dir=tmp_path, console=False)
    yield tmp_path
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(log_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (log_dir / "store.log").read_text().splitlines()]


def test_our_messages_and_those_of_libraries_are_json_lines_in_one_file(log_dir: Path) -> None:
    logs.get_logger("pipeline.test").info("block_stored", partition=3, rows=500)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    ours, theirs = lines(log_dir)
    assert (ours["event"], ours["partition"], ours["role"], ours["level"]) == (
        "block_stored",
        3,
        "store",
        "info",
    )
    assert (theirs["event"], theirs["logger"]) == ("Started server process [7]", "uvicorn.error")
    assert ours["timestamp"].endswith("Z")


def test_no_personal_number_reaches_the_file(log_dir: Path) -> None:
    number, phone = "999999199001011232", "13800001234"
    valid = next(
        number[:17] + last for last in "0123456789X" if logs.redact(number[:17] + last) != number[:17] + last
    )
    logs.get_logger("pipeline.test").warning("refused", detail=f"id {valid}")
    logging.getLogger("somebody.else").error("call %s back", phone)
    try:
        raise ValueError(f"bad value {valid}")
    except ValueError:
        logs.get_logger("pipeline.test").exception("failed")
    text = (log_dir / "store.log").read_text()
    assert len(lines(log_dir)) == 3
    assert valid not in text
    assert phone not in text


def test_control_characters_cannot_forge_a_line(log_dir: Path) -> None:
    logs.get_logger("pipeline.test").info("request", agent='x\n{"event": "forged"}\x1b[31m' + "y" * 10_000)
    (line,) = lines(log_dir)
    assert line["event"] == "request"
    assert len(line["agent"]) < 5_000
    assert "\x1b" not in (log_dir / "store.log").read_text()


def test_chatter_of_libraries_is_left_out(log_dir: Path) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET …")
    logging.getLogger("faust.app").info("joined")
    logging.getLogger("faust.app").warning("lost the coordinator")
    assert [line["event"] for line in lines(log_dir)] == ["lost the coordinator"]
