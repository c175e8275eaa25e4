"""Hostile documents, fields, bodies and batches that need a look at what was stored."""

from __future__ import annotations

import gzip
import re
import time
import unicodedata
from datetime import UTC, datetime, timedelta

import orjson

from tests.hostile.world import EVENTS, SOURCE, World


def truncated_json(world: World) -> None:
    body = orjson.dumps([world.event(), world.event()])
    for end in (1, 7, len(body) // 2, len(body) - 1):
        answer = world.post(body[:end])
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json"), answer.text
        assert re.search(r"\d+", answer.json()["message"]), "no place given"


def duplicate_keys(world: World) -> None:
    first, last = world.event(), world.event()
    text = (
        orjson.dumps(first)[:-1] + b',"event_id":"' + last["event_id"].encode() + b'","title":"\xe4\xba\x8c"}'
    )
    answer = world.post(text)
    assert answer.status_code == 202, answer.text
    world.keep(last)
    assert world.column("title", last["event_id"]) == ["二"]
    assert world.client.get(f"{EVENTS}/{SOURCE}/{first['event_id']}").status_code == 404


def half_pairs(world: World) -> None:
    first, last = world.event(), world.event()
    bads = [
        orjson.dumps(world.event(title="TITLE")).replace(b"TITLE", text)
        for text in (rb"\ud800", rb"\udc00x", rb"\ud800\u0041")
    ]
    answer = world.post(b"\n".join([orjson.dumps(first), *bads, orjson.dumps(last)]), "application/x-ndjson")
    assert answer.status_code == 202, answer.text
    assert [error["index"] for error in answer.json()["errors"]] == [1, 2, 3]
    assert {error["code"] for error in answer.json()["errors"]} <= {
        "malformed_json",
        "bad_encoding",
        "bad_text",
    }
    world.keep(first, last)


# --- fields


def odd_text(world: World) -> None:
    text = "零\u200b宽 \u202e反 \uff11\uff12 \U0001f9ef <b>"
    event = world.event(title=text)
    world.take(event)
    assert world.column("title", event["event_id"]) == [text]


def normal_forms(world: World) -> None:
    text = "Café 路灯坏了 é"
    common = {"actor": {"type": "citizen", "key": "same-reporter"}, "occurred_at": _ago(30)}
    composed = world.event(description=unicodedata.normalize("NFC", text), **common)
    apart = world.event(description=unicodedata.normalize("NFD", text), **common)
    assert composed["description"] != apart["description"]
    world.take(composed)
    answer = world.post([apart])
    assert answer.status_code == 202
    found = world.outcome(apart["event_id"])
    # a rejected report is no anchor: then both are judged alike, which is the same decision
    first = world.outcome(composed["event_id"])["outcome"]
    assert found["outcome"] == ("duplicate" if first == "admitted" else first)
    stored = world.column("description", composed["event_id"], apart["event_id"])
    assert stored == [composed["description"]] * 2


def _ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()


def ids_by_case(world: World) -> None:
    stem = f"Case-{time.time_ns()}"
    upper, lower = world.event(event_id=stem.upper()), world.event(event_id=stem.lower())
    world.take(upper, lower)
    assert world.outcome(stem.upper())["outcome"] == world.outcome(stem.lower())["outcome"] == "rejected"


def far_times(world: World) -> None:
    def partitions() -> set[str]:
        rows = world.rows(
            "SELECT DISTINCT table || ':' || partition FROM system.parts "
            "WHERE active AND database = currentDatabase() AND table IN ('events', 'rejections')"
        )
        return {row[0] for row in rows}

    world.still_well()
    before = partitions()
    far = [
        world.event(occurred_at=text)
        for text in ("2000-01-01T00:00:00Z", "2013-07-01T00:00:00Z", "2099-12-31T00:00:00Z")
    ]
    world.take(*far)
    reasons = [set(world.outcome(event["event_id"])["reasons"]) for event in far]
    assert "TOO_OLD" in reasons[0] & reasons[1]
    assert any("FUTURE" in reason for reason in reasons[2]), reasons[2]
    assert partitions() == before


def unknown_codes(world: World) -> None:
    matter, grid, channel = (
        world.event(matter_code="ZZ-99"),
        world.event(grid_code="9" * 15),
        world.event(channel="carrier_pigeon"),
    )
    world.take(matter, grid, channel)
    assert "UNKNOWN_MATTER" in world.outcome(matter["event_id"])["reasons"]
    assert "GRID_UNKNOWN" in world.outcome(grid["event_id"])["reasons"]
    assert world.outcome(channel["event_id"])["outcome"] == "rejected"
    assert world.column("matter_code", matter["event_id"]) == ["ZZ-99"]


# --- bodies


def gzip_members(world: World) -> None:
    first, last = world.event(), world.event()
    body = b"".join(gzip.compress(orjson.dumps(event) + b"\n") for event in (first, last))
    answer = world.post(body, "application/x-ndjson", headers={"Content-Encoding": "gzip"})
    assert answer.json()["accepted"] == 2, answer.text
    world.keep(first, last)


def upgrade_is_passed_over(world: World) -> None:
    reply = world.talk(
        world.head(
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
            path="/health/live",
            method="GET",
        ),
        seconds=1.0,
    )
    assert 101 not in reply.statuses
    assert set(reply.statuses) <= {200, 400, 426}


# --- batches


def too_many_events(world: World) -> None:
    batch = [world.event() for _ in range(5_001)]
    for content_type, body in (
        ("application/json", orjson.dumps(batch)),
        ("application/x-ndjson", b"\n".join(map(orjson.dumps, batch))),
    ):
        answer = world.post(body, content_type)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_events")
    assert world.client.get(f"{EVENTS}/{SOURCE}/{batch[0]['event_id']}").status_code == 404


def same_id_twice(world: World) -> None:
    event = world.event()
    answer = world.post([event, event])
    assert answer.json()["accepted"] == 2, answer.text
    world.keep(event)
    rows = world.rows(
        "SELECT count() FROM duplicates FINAL WHERE event_id = {id:String} AND level = 'L1'",
        id=event["event_id"],
    )
    assert rows == [(1,)]


def one_bad_among_many(world: World) -> None:
    batch = [world.event() for _ in range(1_000)]
    batch[500]["grid_code"] = "nowhere"
    answer = world.post(batch)
    document = answer.json()
    assert (answer.status_code, document["accepted"]) == (202, 999)
    assert [(error["index"], error["code"]) for error in document["errors"]] == [(500, "bad_pattern")]
    world.keep(*batch[:500], *batch[501:])
