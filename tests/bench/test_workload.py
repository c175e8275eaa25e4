"""The benchmarks' workload: the ledger is what the events hold, and the contract takes them all."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import orjson
import polars as pl
import pytest

from benchmarks import cache
from benchmarks.load_bodies import MARK, running_outcomes
from benchmarks.workload import City, Workload, as_dict, expected
from pipeline.contract.parse import parse_ndjson
from pipeline.settings import load_settings
from pipeline.simulate.city import generate_city

EVENTS = 4_000
BASE = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    place: Path = tmp_path_factory.mktemp("city")
    catalogue = load_settings().catalogue_dir
    generate_city(place, catalogue_dir=catalogue, seed=1, persons=5_000)
    return City(place, catalogue)


@pytest.fixture(scope="module")
def frame(city: City) -> pl.DataFrame:
    return Workload(city, base=BASE).chunk(0, EVENTS).frame


def test_contract_takes_every_event(frame: pl.DataFrame) -> None:
    parsed = parse_ndjson("\n".join(frame["json"]).encode())
    assert parsed.errors == []
    assert len(parsed.events) == EVENTS
    assert all(event.occurred_at < BASE for event in parsed.events)


def test_ledger_is_what_the_events_hold(city: City) -> None:
    chunk = Workload(city, base=BASE).chunk(0, EVENTS)
    ledger = expected([chunk.ledger], [chunk.frame.height])
    grids, matters = set(city.grids["grid_code"]), set(city.matters.frame["code"])
    seen: dict[str, str] = {}
    found: Counter[str] = Counter()
    checksum = 0
    for text in chunk.frame["json"]:
        event = orjson.loads(text)
        if event["event_id"] in seen:
            assert seen[event["event_id"]] == text, "a redelivery is the same bytes"
            found["duplicates"] += 1
            continue
        seen[event["event_id"]] = text
        good = event["matter_code"] in matters and event["grid_code"] in grids
        if not good:
            assert event["event_type"] == "REPORTED"
            found["rejected"] += 1
            continue
        checksum += int(event["event_id"][-7:])
        found["admitted" if event["event_type"] == "REPORTED" else "recorded"] += 1
    assert found == {
        "admitted": ledger.admitted,
        "recorded": ledger.recorded,
        "rejected": ledger.rejected,
        "duplicates": ledger.duplicates,
    }
    assert checksum == ledger.stored_checksum
    assert ledger.sent == EVENTS == ledger.stored + ledger.rejected + ledger.duplicates
    assert ledger.duplicates == round(0.05 * EVENTS)
    assert ledger.rejected == round(0.03 * EVENTS)


def test_later_chunks_hear_of_cases_of_earlier_ones(
    city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growth wrote each case within one chunk, so that the cost of old ones did not show."""
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    chunks = [Workload(city, base=BASE, salt=salt).chunk(0, EVENTS) for salt in ("g000.", "g001.")]
    sources = []
    for number, chunk in enumerate(chunks):
        directory = tmp_path / f"events-{number}"
        directory.mkdir()
        chunk.frame.write_parquet(directory / "chunk-000.parquet")
        ledger = expected([chunk.ledger], [chunk.frame.height])
        sources.append(cache.Events(directory, ledger, BASE))
    old = cache.steps(sources[0], 200, seed=1)
    mixed = cache.with_feedback(sources[1], old, "g001.")
    (frame,) = mixed.chunks()
    parsed = parse_ndjson("\n".join(frame["json"]).encode())
    assert parsed.errors == []
    later = [event for event in parsed.events if event.event_type == "FEEDBACK"]
    assert len(later) == 200
    cases = {event["case_id"]: event["grid_code"] for event in map(orjson.loads, old["json"])}
    assert {event.case_id: event.grid_code for event in later} == cases
    assert len({event.event_id for event in parsed.events}) == EVENTS + 200 - sources[1].ledger.duplicates
    places = [at for at, event in enumerate(parsed.events) if event.event_type == "FEEDBACK"]
    assert places[20] < EVENTS / 5 < 4 * EVENTS / 5 < places[-20]  # among the others, not behind them
    assert as_dict(mixed.ledger) == as_dict(sources[1].ledger) | {
        name: getattr(sources[1].ledger, name) + 200 for name in ("sent", "recorded", "stored")
    } | {"stored_checksum": sources[1].ledger.stored_checksum + sum(range(200))}
    assert frame["number"].sum() == chunks[1].frame["number"].sum() + sum(range(200))


def test_a_pass_with_its_own_mark_has_no_report_of_another_pass(city: City) -> None:
    """The mark stands in ids and in texts of reports: the second pass is not the first one's resends."""
    texts = Workload(city, base=BASE, salt=MARK.decode()).chunk(0, EVENTS).frame["json"].unique()
    first, second = (
        parse_ndjson("\n".join(texts).encode().replace(MARK, mark)).events
        for mark in (b"pass00000.", b"pass00001.")
    )
    reports = [
        {event.description for event in each if event.event_type == "REPORTED"} for each in (first, second)
    ]
    assert reports[0]
    assert not reports[0] & reports[1]
    size = texts.str.len_bytes().mean()
    assert isinstance(size, float)
    assert 400 < size < 450


def test_outcomes_are_told_body_by_body(city: City) -> None:
    chunk = Workload(city, base=BASE).chunk(0, EVENTS)
    ledger = expected([chunk.ledger], [chunk.frame.height])
    lines = [text.encode() for text in chunk.frame["json"]]
    running = running_outcomes([lines[:1_000], lines[1_000:]])
    assert running[0] == {"admitted": 0, "recorded": 0, "rejected": 0, "duplicate": 0}
    assert sum(running[1].values()) == 1_000
    assert running[2] == {
        "admitted": ledger.admitted,
        "recorded": ledger.recorded,
        "rejected": ledger.rejected,
        "duplicate": ledger.duplicates,
    }


def test_events_are_as_large_and_as_spread_as_they_should_be(frame: pl.DataFrame, city: City) -> None:
    size = frame["json"].str.len_bytes().mean()
    assert isinstance(size, float)
    assert 400 < size < 450
    codes = Counter(re.findall(r'"matter_code":"([^"]+)"', "\n".join(frame["json"])))
    assert len(set(codes) - {"XX-99"}) == 65
    assert len(city.grids) == 2_756


def test_cases_live_in_order(frame: pl.DataFrame) -> None:
    steps: dict[str, list[str]] = {}
    for text in frame["json"].unique(maintain_order=True):
        event = orjson.loads(text)
        steps.setdefault(event["case_id"], []).append(event["event_type"])
    whole = [types for types in steps.values() if len(types) > 1]
    assert whole
    assert all(
        types == ["REPORTED", "ACCEPTED", "DISPATCHED", "SIGNED", "ARRIVED", "HANDLING", "RESOLVED", "CLOSED"]
        for types in whole
    )


def test_same_seed_gives_same_events_and_chunks_share_no_id(city: City) -> None:
    workload = Workload(city, base=BASE)
    first, again, second = (workload.chunk(number, 1_000).frame for number in (0, 0, 1))
    assert first.equals(again)
    ids = [set(re.findall(r'"event_id":"([^"]+)"', "\n".join(part["json"]))) for part in (first, second)]
    assert not ids[0] & ids[1]


def test_chunk_of_no_or_too_many_events_is_refused(city: City) -> None:
    with pytest.raises(ValueError, match="1 to 1,000,000"):
        Workload(city, base=BASE).chunk(0, 0)
