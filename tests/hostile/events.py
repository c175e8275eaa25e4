"""Hostile documents, fields, bodies and batches that need a look at what was stored."""

from __future__ import annotations

import gzip
import time
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson

from tests.hostile import files
from tests.hostile.world import EVENTS, HANG_SECONDS, SOURCE, Document, World, patience


def truncated_json(world: World) -> None:
    body = orjson.dumps([world.event(), world.event()])
    for end in (1, 7, len(body) // 2, len(body) - 1):
        answer = world.post(body[:end])
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json"), answer.text
        assert f"({end} bytes)" in answer.json()["message"], answer.text
    for place in (1, body.index(b"},{") + 1, len(body) - 1):  # where a value, a comma, an end must stand
        answer = world.post(body[:place] + b"!" + body[place:])
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json"), answer.text
        assert f"(byte {place})" in answer.json()["message"], answer.text


def deep_nesting(world: World) -> None:
    """Refused in 10 ms, on a machine that has nothing else to do: the quickest of twenty, for the rest of the
    time of the others is not the refusal's, and without what the smallest refusal takes on this machine."""

    def quickest(body: bytes, code: str) -> float:
        least = patience()
        for _ in range(20):
            began = time.perf_counter()
            answer = world.post(body)
            least = min(least, time.perf_counter() - began)
            assert (answer.status_code, answer.json()["code"]) == (400, code), answer.text
        return least

    smallest = quickest(b"]", "malformed_json")
    for deep in (b"[" * 100_000, b'{"a":' * 100_000):
        took = quickest(deep, "too_deep") - smallest
        assert took < 0.010 * patience() / HANG_SECONDS, f"{took * 1000:.1f} ms beside {smallest * 1000:.1f}"


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
    """A report is what it says, however its letters are composed, by whatever way it comes and under whatever
    id: it is counted once. A report of other letters is one of its own."""
    patrol = files.patrol_grid(world)
    text, place = "Caf\u00e9 \u1ed0 路灯坏了 12号", "Caf\u00e9巷 \u1ed0 12号"
    common = patrol | {"occurred_at": _ago(5)}

    def report(form: Literal["NFC", "NFD"], wording: str = text, **changes: Any) -> Document:
        """`wording` and the address of the place, composed in `form`."""
        written, address = unicodedata.normalize(form, wording), unicodedata.normalize(form, place)
        at = common["location"] | {"address": address}
        return world.event(**common | {"title": written, "description": written, "location": at} | changes)

    composed = report("NFC")
    world.take(composed)
    assert world.outcome(composed["event_id"])["outcome"] == "admitted", "no anchor: nothing below would show"
    # under ids of their own: decomposed, in another width, decomposed and past the gateway
    apart, wide, direct = report("NFD"), report("NFD", text.replace("12", "\uff11\uff12")), report("NFD")
    # under the same id, by both ways: the event again, no other one
    again = report("NFD", event_id=composed["event_id"], case_id=composed["case_id"])
    assert apart["description"] != composed["description"] != wide["description"]
    # letters that a comparison without accents takes for the same; and a text that was never composed
    other, alone = report("NFC", text.replace("\u00e9", "e")), report("NFD", f"{text} b")
    answer = world.post([apart, wide, again])
    assert (answer.status_code, answer.json()["accepted"]) == (202, 3), answer.text
    headers, key = {"content-type": b"application/x-ndjson"}, patrol["grid_code"][:12].encode()
    world.produce([(orjson.dumps(event), headers, key) for event in (direct, again)])
    world.wait_for(direct["event_id"])
    world.take(other, alone)

    resends = (apart, wide, direct)
    ids = [event["event_id"] for event in (composed, other, alone, *resends)]
    for event in resends:
        found = world.outcome(event["event_id"])
        assert (found["outcome"], found.get("level")) == ("duplicate", "L2"), found
    stored = world.rows(
        "SELECT event_id, title, description, address FROM events FINAL "
        "WHERE event_id IN {ids:Array(String)}",
        ids=ids,
    )
    address = unicodedata.normalize("NFC", place)
    texts = {
        event["event_id"]: unicodedata.normalize("NFC", event["title"]) for event in (composed, other, alone)
    }
    assert sorted(stored) == sorted((name, words, words, address) for name, words in texts.items())
    copies = world.rows(
        "SELECT event_id, level, original_event_id, original_case_id FROM duplicates FINAL "
        "WHERE event_id IN {ids:Array(String)}",
        ids=ids,
    )
    original = (composed["event_id"], composed["case_id"])
    expected = [(event["event_id"], "L2", *original) for event in resends]
    assert sorted(copies) == sorted([*expected, *[(composed["event_id"], "L1", *original)] * 2])
    refused = "SELECT reason FROM quarantine WHERE event_id IN {ids:Array(String)}"
    assert world.rows(refused, ids=ids) == []
    assert world.rows("SELECT event_id FROM rejections WHERE event_id IN {ids:Array(String)}", ids=ids) == []


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
    assert not world.traces() & {event["event_id"] for event in batch}


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
