"""Logs: JSON lines, one place for our own and the libraries' messages, no personal data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pipeline import logs, logs_limit
from pipeline.logs_limit import BURST, KIND_BURST, KIND_PER_SECOND, LimitedHandler


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


@pytest.mark.parametrize("before", ["", "999999195003120018," * 20])
@pytest.mark.parametrize("kept", [7, 17, 18])
def test_a_number_across_the_cut_is_not_left_in_half(log_dir: Path, before: str, kept: int) -> None:
    number = "999999195003120018"
    text = f"{before}{'x' * (logs.MAX_TEXT - len(before) - kept)}{number} and more"
    logs.get_logger("pipeline.test").info("long", detail=text, within={text: [text]})
    (line,) = lines(log_dir)
    assert line["detail"].endswith(f"… ({len(text)} characters)")
    assert "999999" not in (log_dir / "store.log").read_text()


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


def test_personal_numbers_are_found_in_lists_and_mappings_and_numbers(log_dir: Path) -> None:
    phone = "13800001234"
    logs.get_logger("pipeline.test").info(
        "events_refused",
        event_ids=["a-1", f"p-{phone}"],
        details={"note": [f"call {phone}"]},
        number=int(phone),
    )
    (line,) = lines(log_dir)
    assert line["event_ids"][0] == "a-1"
    assert phone not in (log_dir / "store.log").read_text()


def test_ids_of_events_cases_and_requests_stay_readable(log_dir: Path) -> None:
    ids = {"event_id": "evt-20261122-000123", "case_id": "case-77", "request_id": "0f3c9a2e-1b"}
    logs.get_logger("pipeline.test").info("event_quarantined", source="handset", **ids)
    (line,) = lines(log_dir)
    assert ids.items() <= line.items()


def limited() -> LimitedHandler:
    """The handler of `logs.configure`; pytest has its own beside it."""
    (found,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, LimitedHandler)]
    return found


def flood(source: str, count: int) -> None:
    log = logs.get_logger("pipeline.test")
    for number in range(count):
        log.warning("event_quarantined", source=source, event_id=f"e-{number}")


def test_a_mad_source_is_cut_short_and_others_are_still_heard(log_dir: Path) -> None:
    flood("mad", 5_000)
    flood("calm", 3)
    logs.get_logger("pipeline.test").warning("something_else", source="mad")
    handler = limited()
    handler.summarise()
    found = lines(log_dir)
    mad = [line for line in found if line.get("source") == "mad" and line["event"] == "event_quarantined"]
    assert BURST <= len(mad) < BURST + 20  # a slow machine earns a few more while it writes
    assert sum(line.get("source") == "calm" for line in found) == 3
    assert sum(line["event"] == "something_else" for line in found) == 1
    (told,) = [line for line in found if "suppressed" in line]
    assert told["suppressed"] == {"of": "event_quarantined", "source": "mad", "lines": 5_000 - len(mad)}
    assert told["level"] == "warning"


def test_what_was_left_out_is_told_once_and_at_the_end_too(log_dir: Path) -> None:
    flood("mad", 100)
    handler = limited()
    handler.summarise()
    handler.summarise()
    flood("mad", 30)
    handler.close()
    told = [line["suppressed"]["lines"] for line in lines(log_dir) if "suppressed" in line]
    assert len(told) == 2
    assert sum(told) + sum(line["event"] == "event_quarantined" for line in lines(log_dir)) == 130


def test_a_libraries_repeated_message_is_one_kind_whatever_its_arguments(log_dir: Path) -> None:
    for number in range(300):
        logging.getLogger("somebody.else").warning("cannot reach %s", f"broker-{number}")
    assert BURST <= len(lines(log_dir)) < 100


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record)

    def told(self) -> list[str]:
        """What was said of lines left out."""
        texts = [record.getMessage() for record in self.seen]
        return [text for text in texts if text.startswith("lines_suppressed")]


def ours(source: str, event: str = "x") -> logging.LogRecord:
    fields = {"event": event, "source": source}
    return logging.LogRecord("n", logging.INFO, "", 0, fields, None, None)  # type: ignore[arg-type]


@pytest.fixture
def told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out is not told meanwhile, however long a busy machine takes."""
    monkeypatch.setattr(logs_limit, "SUMMARY_SECONDS", 3_600.0)


@pytest.mark.usefixtures("told_at_the_end")
def test_tokens_come_back_with_time_and_invented_sources_cost_no_memory() -> None:
    kept, now = Kept(), 0.0
    handler = LimitedHandler([kept], burst=2, per_second=0.5, clock=lambda: now)
    for _ in range(5):
        handler.handle(ours("a"))
    assert len(kept.seen) == 2
    now = 2.0
    handler.handle(ours("a"))
    handler.handle(ours("a"))
    assert len(kept.seen) == 3
    for number in range(10_000):
        handler.handle(ours(f"invented-{number}", "y"))
    assert len(handler._buckets) <= 2_000
    handler.close()
    assert kept.told() == [
        "lines_suppressed: 4 of 'x' from 'a'",
        f"lines_suppressed: {10_000 - KIND_BURST} of 'y' from others",
    ]


@pytest.mark.usefixtures("told_at_the_end")
@pytest.mark.parametrize(("sources", "each"), [(20_000, 1), (2_500, 60)])
def test_a_sender_that_invents_sources_is_cut_short_as_one(sources: int, each: int) -> None:
    """One line of each source passes every limit of sources, sixty fill the summaries."""
    kept, now = Kept(), 0.0
    handler = LimitedHandler([kept], clock=lambda: now)

    def passed() -> int:
        return len(kept.seen) - len(kept.told())

    for number in range(sources):
        for _ in range(each):
            handler.handle(ours(f"invented-{number}"))
    assert passed() == KIND_BURST
    now = 1.0
    for number in range(1_000):
        handler.handle(ours(f"later-{number}"))
    handler.handle(ours("calm", "another"))
    assert passed() == KIND_BURST + KIND_PER_SECOND + 1
    handler.close()
    left_out = sum(int(text.split()[1]) for text in kept.told())
    assert left_out + passed() == sources * each + 1_001
    assert len(kept.told()) < 20


@pytest.mark.usefixtures("told_at_the_end")
def test_numbers_and_names_in_a_librarys_messages_make_no_flood_of_kinds() -> None:
    kept = Kept()
    handler = LimitedHandler([kept], clock=lambda: 0.0)
    for number in range(5_000):
        handler.handle(logging.LogRecord("lib", logging.WARNING, "", 0, f"port {number}", None, None))
    assert len(kept.seen) == BURST
    words = [
        format(number, "x").translate(str.maketrans("0123456789", "ghijklmnop")) for number in range(5_000)
    ]
    for word in words:
        handler.handle(logging.LogRecord("lib", logging.WARNING, "", 0, f"topic {word}", None, None))
    assert len(kept.seen) == KIND_BURST
    handler.close()
    assert kept.told() == [f"lines_suppressed: {10_000 - KIND_BURST} of 'lib' from others"]
