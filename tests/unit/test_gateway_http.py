"""The gateway over HTTP: every corner of the interface, hostile bodies included, on an in-memory log."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import zstandard
from prometheus_client import REGISTRY as DEFAULT_REGISTRY

from pipeline import metrics
from pipeline.contract.event import CODES
from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import partition_of
from pipeline.ingest.budget import Budget, Hold
from pipeline.ingest.durability import Replicated
from pipeline.ingest.openapi import OPENAPI_PATHS
from pipeline.ingest.problem import ProblemError
from pipeline.ingest.producer import Written
from tests.unit.gateway_world import WhereKeysAreMade, World, cloudevent, event, make_world

NDJSON = "application/x-ndjson"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def metric(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


# --- good requests


async def test_one_event_is_taken_and_the_answer_says_how_durable(world: World) -> None:
    response = await world.post(event(1), x_request_id="call-7")
    assert response.status_code == 202
    assert response.json() == {
        "accepted": 1,
        "rejected": 0,
        "errors": [],
        "request_id": "call-7",
        "durability": "replicated",
    }
    (row,) = world.stored().to_dicts()
    assert (row["event_id"], row["request_id"], row["backfill"]) == ("e-1", "call-7", False)


@pytest.mark.parametrize("count", [1, 40, 700])
@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "zstd"])
@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", NDJSON, "application/cloudevents-batch+json"]
)
async def test_every_content_type_and_encoding(world: World, kind: str, encoding: str, count: int) -> None:
    if kind == NDJSON:
        body = b"\n".join(orjson.dumps(event(number)) for number in range(count)) + b"\n"
    elif "cloudevents" in kind:
        body = orjson.dumps([cloudevent(number) for number in range(count)])
    else:
        body = orjson.dumps([event(number) for number in range(count)])
    packed = {"gzip": gzip.compress, "zstd": zstandard.compress}.get(encoding, bytes)(body)
    headers = {"Content_Encoding": encoding} if encoding else {}
    response = await world.post(packed, kind, **headers)
    assert response.status_code == 202, response.text
    assert response.json()["accepted"] == count
    assert sorted(world.stored()["event_id"]) == sorted(f"e-{number}" for number in range(count))


async def test_structured_cloudevent(world: World) -> None:
    response = await world.post(cloudevent(3), "application/cloudevents+json")
    assert response.status_code == 202
    assert world.stored()["case_id"].to_list() == ["c-3"]


async def test_events_lie_in_the_partition_of_their_village(world: World) -> None:
    await world.post([event(number) for number in range(60)])
    for partition, records in enumerate(world.log.records):
        for row in (
            pl.concat([pl.read_ipc_stream(record) for record in records]).to_dicts() if records else []
        ):
            assert partition_of(row["grid_code"], 12) == partition


async def test_same_id_twice_is_accepted_twice(world: World) -> None:
    assert (await world.post([event(1), event(1)])).json()["accepted"] == 2
    assert world.stored().height == 2


async def test_backfill_comes_from_the_key(world: World) -> None:
    key = world.keys.create("12345", backfill=True)
    async with world.client(key) as client:
        await client.post("/v1/events", json=event(1))
    assert world.stored()["backfill"].to_list() == [True]


async def test_unknown_matter_grid_and_future_time_are_for_admission(world: World) -> None:
    odd = event(1, matter_code="ZZ-99", grid_code="0" * 15, occurred_at="2099-12-31T00:00:00Z")
    assert (await world.post(odd)).status_code == 202


# --- refusals of events


async def test_good_events_are_kept_and_errors_are_in_order(world: World) -> None:
    batch = [event(number) for number in range(6)]
    batch[1]["grid_code"] = "x"
    batch[3]["source"] = "other"
    batch[4]["surprise"] = 1
    response = await world.post(batch)
    body = response.json()
    assert (response.status_code, body["accepted"], body["rejected"]) == (202, 3, 3)
    assert [(error["index"], error["code"], error["event_id"]) for error in body["errors"]] == [
        (1, "bad_pattern", "e-1"),
        (3, "source_not_allowed", "e-3"),
        (4, "unknown_field", "e-4"),
    ]
    assert sorted(world.stored()["event_id"]) == ["e-0", "e-2", "e-5"]


async def test_all_refused_is_422_with_the_members_of_the_202(world: World) -> None:
    response = await world.post([event(1, grid_code="x"), event(2, source="other")])
    body = response.json()
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["accepted"], body["rejected"], len(body["errors"]), body["status"]) == (0, 2, 2, 422)
    assert world.stored().is_empty()


async def test_only_foreign_sources_is_403(world: World) -> None:
    response = await world.post([event(1, source="other"), event(2, source="another")])
    assert response.status_code == 403
    assert {error["code"] for error in response.json()["errors"]} == {"source_not_allowed"}


async def test_partition_that_cannot_be_written_loses_only_its_events(world: World) -> None:
    home = partition_of(event(1)["grid_code"], 12)
    world.log.refused = {home}
    batch = [event(number) for number in range(30)]
    body = (await world.post(batch)).json()
    lost = [number for number in range(30) if partition_of(batch[number]["grid_code"], 12) == home]
    assert [error["index"] for error in body["errors"]] == lost
    assert all(error["retryable"] and error["code"] == "not_written" for error in body["errors"])
    assert body["accepted"] == 30 - len(lost) == world.stored().height
    world.log.refused = set(range(12))
    refused = await world.post(batch)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert len(refused.json()["errors"]) == 30


async def test_broker_down_is_503_with_retry_after(world: World) -> None:
    world.log.down = True
    response = await world.post(event(1))
    assert response.status_code == 503
    assert response.headers["retry-after"].isdigit()


# --- hostile requests


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"[]", 400, "empty_batch"),
        (b"null", 400, "not_an_object"),
        (b"{", 400, "malformed_json"),
        (b'{"a": NaN}', 400, "malformed_json"),
        (b"\xef\xbb\xbf{}", 400, "malformed_json"),
        (b'{"a": "\xff"}', 400, "bad_encoding"),
        (b"[" * 100_000 + b"]" * 100_000, 400, "too_deep"),
        (orjson.dumps([event(1)] * 5_001), 413, "too_many_events"),
        (b"x" * 5_000_001, 413, "body_too_large"),
    ],
)
async def test_unreadable_document(world: World, body: bytes, status: int, code: str) -> None:
    response = await world.post(body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert world.stored().is_empty()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/plain"}, "unknown_content_type"),
        ({"Content-Type": "application/xml"}, "unknown_content_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "unknown_content_type"),
        ({}, "unknown_content_type"),
        ({"Content-Type": "application/json; charset=gbk"}, "unknown_charset"),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, "unknown_encoding"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"}, "unknown_encoding"),
    ],
)
async def test_unknown_media_is_415(world: World, headers: dict[str, str], code: str) -> None:
    async with world.client() as client:
        response = await client.post("/v1/events", content=orjson.dumps(event(1)), headers=headers)
    assert (response.status_code, response.json()["code"]) == (415, code)


def _bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b" " * 1_000_000) for _ in range(size // 1_000_000)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("gzip", _bomb(300_000_000), 413, "body_too_large"),
        ("zstd", zstandard.compress(b" " * 300_000_000), 413, "body_too_large"),
        (
            "gzip",
            gzip.compress(b"[" + b" " * 15_000_000) + gzip.compress(b" " * 15_000_000),
            413,
            "body_too_large",
        ),
        ("gzip", gzip.compress(orjson.dumps(event(1)))[:-9], 400, "bad_compression"),
        ("gzip", gzip.compress(orjson.dumps(event(1))) + b"tail", 400, "bad_compression"),
        ("gzip", b"not gzip", 400, "bad_compression"),
        ("zstd", b"not zstd", 400, "bad_compression"),
        ("zstd", zstandard.compress(orjson.dumps(event(1)))[:-3], 400, "bad_compression"),
        ("zstd", bytes.fromhex("28b52ffd00a8") + b"\x00" * 20, 400, "bad_compression"),
        ("gzip", gzip.compress(gzip.compress(orjson.dumps(event(1)))), 400, "bad_encoding"),
        ("gzip", b"", 400, "empty_body"),
    ],
)
async def test_hostile_compression(world: World, encoding: str, body: bytes, status: int, code: str) -> None:
    response = await world.post(body, Content_Encoding=encoding)
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("application/json", b"[" + b"0," * 4_000_000 + b"0]", 413, "too_many_events"),
        ("application/json", b"[" + b"{}," * 4_000_000 + b"{}]", 413, "too_many_events"),
        (NDJSON, b"\n" * 10_000_000, 413, "too_many_events"),
        ("application/cloudevents-batch+json", b"[" + b"0," * 4_000_000 + b"0]", 413, "too_many_events"),
        (
            "application/cloudevents+json",
            orjson.dumps(cloudevent(1)).replace(b'"hotline_12345"', b"[" + b"[]," * 3_000_000 + b"[]]"),
            422,
            "all_refused",
        ),
    ],
)
async def test_what_a_kilobyte_unpacks_to_is_counted_before_it_is_built(
    tmp_path: Path, kind: str, body: bytes, status: int, code: str
) -> None:
    world = make_world(tmp_path, max_body_bytes=20_000_000)  # so that it may unpack to as much
    packed = zstandard.compress(body)
    assert len(packed) < 3_000
    tracemalloc.start()
    try:
        response = await world.post(packed, kind, Content_Encoding="zstd")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert peak < 14 * len(body), f"{peak / len(body):.1f} times the text"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_several_compressed_parts_are_one_body(
    world: World, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    first, second = pack(orjson.dumps(event(1)) + b"\n"), pack(orjson.dumps(event(2)))
    response = await world.post(first + second, NDJSON, Content_Encoding=encoding)
    assert response.json()["accepted"] == 2


PACKERS = [("gzip", gzip.compress), ("zstd", zstandard.compress)]


@pytest.mark.parametrize(("encoding", "pack"), PACKERS)
async def test_what_may_be_sent_plain_may_be_packed_however_small_and_beyond_it_fiftyfold_is_the_end(
    world: World, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    text = orjson.dumps(event(1))
    small = await world.post(pack(text.ljust(4_900_000)), Content_Encoding=encoding)
    assert small.status_code == 202, small.text
    large = await world.post(pack(text.ljust(5_100_000)), Content_Encoding=encoding)
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
    assert "50 times" in large.json()["message"]


@pytest.mark.parametrize(
    ("encoding", "empty"),
    [("gzip", gzip.compress(b"", mtime=0)), ("zstd", zstandard.compress(b""))],
    ids=["gzip", "zstd"],
)
async def test_a_body_has_a_bounded_number_of_compressed_parts(
    world: World, encoding: str, empty: bytes
) -> None:
    body = {"gzip": gzip.compress, "zstd": zstandard.compress}[encoding](orjson.dumps(event(1)))
    many = await world.post(empty * 9_000 + body, Content_Encoding=encoding)
    assert many.status_code == 202, many.text
    more = await world.post(empty * 10_000 + body, Content_Encoding=encoding)
    assert (more.status_code, more.json()["code"]) == (400, "bad_compression")


class Held(Replicated):
    """Nothing is confirmed before it may be."""

    def __init__(self) -> None:
        self.may, self.asked = asyncio.Event(), 0

    async def confirm(self, written: Sequence[Written], *, since: float | None = None) -> list[bool]:
        self.asked += 1
        await self.may.wait()
        return await super().confirm(written)


async def test_what_a_body_unpacks_to_is_held_until_its_answer(tmp_path: Path) -> None:
    log = Held()
    world = make_world(tmp_path, durability=log, in_flight_limit_bytes=10_000_000)
    used = lambda: world.gateway.budget._used  # noqa: E731
    plain = orjson.dumps(event(1)).ljust(4_000_000)
    packed = zstandard.compress(plain)
    async with asyncio.timeout(60):
        first = asyncio.create_task(world.post(packed, Content_Encoding="zstd"))
        while not log.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert used() == len(packed) + len(plain)
        assert (await world.post(packed, Content_Encoding="zstd")).status_code == 429
        key = world.keys.create("12345")
        async with world.client(key) as other:
            head = {"Content-Type": "application/json", "Content-Encoding": "zstd"}
            second = asyncio.create_task(other.post("/v1/events", content=packed, headers=head))
            while log.asked < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            third = world.keys.create("12345")
            async with world.client(third) as full:
                answer = await full.post("/v1/events", content=packed, headers=head)
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
            assert used() == 2 * (len(packed) + len(plain))
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
        assert used() == len(packed) + len(plain)
        log.may.set()
        assert (await first).status_code == 202
    assert used() == 0


@pytest.mark.parametrize(
    "body",
    [
        zstandard.compress(b" " * 300_000_000),
        zstandard.compress(orjson.dumps(event(1)) * 100_000)[:-9],
        zstandard.compress(b"no json".ljust(100_000)),
    ],
    ids=["too large", "damaged", "unreadable"],
)
async def test_a_refused_body_holds_nothing_of_what_it_unpacked_to(world: World, body: bytes) -> None:
    assert (await world.post(body, Content_Encoding="zstd")).status_code in (400, 413)
    assert world.gateway.budget._used == 0


async def test_the_quota_in_bytes_is_of_bodies_as_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[int] = []
    monkeypatch.setattr(
        world.gateway.quotas, "charge_bytes", lambda _address, _sources, size: charged.append(size)
    )
    packed = zstandard.compress(orjson.dumps(event(1)).ljust(1_000_000))
    await world.post(packed, Content_Encoding="zstd")
    assert charged == [len(packed)]


def test_a_request_that_has_ended_can_hold_nothing_more() -> None:
    """Its thread goes on unpacking."""
    budget = Budget(1_000)
    hold = Hold(budget, "a", 100, verified=True)
    hold.grow(800)  # alone, more than half
    with pytest.raises(ProblemError) as caught:
        hold.grow(200)
    assert caught.value.status == 503
    hold.give_back()
    with pytest.raises(ProblemError):
        hold.grow(1)
    assert budget._used == 0
    assert not budget._by_key


async def test_declared_length_over_the_limit_is_refused_before_reading(world: World) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with world.client() as client:
        response = await client.post(
            "/v1/events",
            content=never(),
            headers={"Content-Type": "application/json", "Content-Length": "5000001"},
        )
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


async def test_chunked_body_over_the_limit_is_cut_off(world: World) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 500_000
            yield b" " * 500_000

    async with world.client() as client:
        response = await client.post(
            "/v1/events", content=endless(), headers={"Content-Type": "application/json"}
        )
    assert response.status_code == 413
    assert world.gateway.budget._used == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic Z3A6eA=="},
        {"Authorization": "Bearer gp_000000000000_" + "A" * 43},
    ],
)
async def test_without_a_key_nothing_is_said_about_it(world: World, headers: dict[str, str]) -> None:
    async with world.client("") as client:
        response = await client.post("/v1/events", json=event(1), headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthorised"


async def test_key_in_the_address_is_refused_even_beside_a_good_header(world: World) -> None:
    async with world.client() as client:
        response = await client.post(f"/v1/events?key={world.key}", json=event(1))
    assert (response.status_code, response.json()["code"]) == (401, "key_in_address")
    assert world.key not in response.text


async def test_revoked_key_stops(world: World) -> None:
    world.keys.revoke(world.key.split("_")[1])
    assert (await world.post(event(1))).status_code == 401


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 65, "a\u00e9", "<script>", "req-13800001234", "99999919900101018X"]
)
async def test_request_id_of_another_form_is_replaced(world: World, given: str) -> None:
    async with world.client() as client:
        response = await client.post(
            "/v1/events", json=event(1), headers=[(b"X-Request-Id", given.encode("latin-1"))]
        )
    assert response.status_code == 202
    assert response.json()["request_id"] != given
    assert len(response.json()["request_id"]) == 32


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_405(world: World, method: str) -> None:
    async with world.client() as client:
        assert (await client.request(method, "/v1/events")).status_code == 405


async def test_stopping_gateway_refuses_new_requests(world: World) -> None:
    await world.gateway.close()
    response = await world.post(event(1))
    assert (response.status_code, response.json()["code"]) == (503, "stopping")


async def test_failure_of_ours_is_500_without_details(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.log, "send", broken)
    response = await world.post(event(1))
    assert response.status_code == 500
    assert "secret detail" not in response.text


def test_one_key_cannot_take_the_whole_budget() -> None:
    budget = Budget(1_000)
    budget.take("a", 400)
    with pytest.raises(ProblemError) as caught:
        budget.take("a", 200)
    assert (caught.value.status, caught.value.retry_after) == (429, 1)
    budget.take("b", 450)
    with pytest.raises(ProblemError) as caught:
        budget.take("c", 200)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)
    budget.give_back("a", 400)
    budget.give_back("b", 450)
    budget.take("c", 1_000)


async def test_slow_body_is_408(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.body.READ_SECONDS", 0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with world.client() as client:
        response = await client.post(
            "/v1/events", content=slow(), headers={"Content-Type": "application/json"}
        )
    assert response.status_code == 408
    assert world.gateway.budget._used == 0


# --- personal data, metrics, documentation


async def test_personal_data_is_in_no_payload_and_no_answer(world: World) -> None:
    number, phone = "99999919900101018X", "13800001234"
    private = event(
        1,
        actor={"type": "citizen", "id_number": number, "phone": phone, "name": "陈大文"},
        persons=[{"role": "subject", "key": number}],
        description=f"{number} {phone} 粤J12345",
    )
    wrong = event(2, event_id=number, actor={"type": phone})
    response = await world.post([private, wrong])
    stored = repr(world.stored().to_dicts())
    for value in (number, phone, "陈大文", "粤J12345"):
        assert value not in stored
        assert value not in response.text
    assert "[身份证号]" in stored


async def test_metrics_count_a_request_once_with_labels_from_closed_sets(world: World) -> None:
    def counts() -> list[float]:
        return [
            metric("gridpipe_http_requests_total", route="/v1/events", status="202"),
            metric("gridpipe_gateway_events_total", answer="accepted"),
            metric("gridpipe_gateway_events_total", answer="refused"),
            metric("gridpipe_gateway_refusals_total", code="bad_pattern"),
            metric("gridpipe_http_seconds_count", route="/v1/events"),
        ]

    before = counts()
    await world.post([event(1), event(2), event(3, grid_code="x")])
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 2, 1, 1, 1]
    assert DEFAULT_REGISTRY is not metrics.REGISTRY


def test_openapi_names_both_calls_and_every_error_code() -> None:
    assert set(OPENAPI_PATHS) == {"/v1/events", "/v1/events:validate"}
    responses = OPENAPI_PATHS["/v1/events"]["post"]["responses"]
    errors = responses["202"]["content"]["application/json"]["schema"]["properties"]["errors"]
    assert errors["items"]["properties"]["code"]["enum"] == list(CODES)
    assert {"400", "401", "403", "408", "413", "415", "422", "429", "503"} <= set(responses)


# --- validate


class Decides:
    """A validator that admits everything, or has no store."""

    down = False

    def decide(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        if self.down:
            raise UnavailableError("clickhouse does not answer")
        return [{"outcome": "admitted", "reasons": []} for _ in range(frame.height)]


async def test_validate_reports_decisions_and_writes_nothing(tmp_path: Path) -> None:
    validator = Decides()
    world = make_world(tmp_path, validator=validator)
    async with world.client() as client:
        response = await client.post(
            "/v1/events:validate", json=[event(1), event(2, grid_code="x"), event(3)]
        )
        body = response.json()
        assert response.status_code == 200
        assert (body["accepted"], body["rejected"], body["durability"]) == (2, 1, None)
        assert [(item["index"], item["event_id"], item["outcome"]) for item in body["decisions"]] == [
            (0, "e-1", "admitted"),
            (2, "e-3", "admitted"),
        ]
        assert (await client.post("/v1/events:validate", json=[event(1, grid_code="x")])).status_code == 422
        validator.down = True
        assert (await client.post("/v1/events:validate", json=event(1))).status_code == 503
    assert world.stored().is_empty()


class Waits(Decides):
    """A store that says nothing."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def decide(self, frame: pl.DataFrame) -> list[dict[str, Any]]:
        self.answers.wait(60)
        return super().decide(frame)


async def test_a_store_that_says_nothing_keeps_up_no_event_and_no_more_than_some_checks(
    tmp_path: Path,
) -> None:
    validator = Waits()
    world = make_world(tmp_path, validator=validator)
    async with world.client() as client, asyncio.timeout(60):
        try:
            checks = [
                asyncio.create_task(client.post("/v1/events:validate", json=event(number)))
                for number in range(30)
            ]
            for check in islice(asyncio.as_completed(checks), 10):
                answer = await check
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            packed = gzip.compress(orjson.dumps(event(1)))
            async with asyncio.timeout(20):
                assert (await world.post(packed, Content_Encoding="gzip")).status_code == 202
        finally:
            validator.answers.set()
        statuses = [(await check).status_code for check in checks]
    assert statuses.count(200) == 20


async def test_a_compressed_body_leaves_the_loop_whatever_its_size(tmp_path: Path) -> None:
    world = make_world(tmp_path, validator=Decides())
    world.gateway.privacy = privacy = WhereKeysAreMade()
    async with world.client() as client:
        assert (await client.post("/v1/events:validate", json=event(1))).status_code == 200
        assert privacy.threads == {threading.get_ident()}
        privacy.threads.clear()
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        packed = gzip.compress(orjson.dumps(event(1)))
        answer = await client.post("/v1/events:validate", content=packed, headers=headers)
    assert answer.status_code == 200
    assert privacy.threads
    assert threading.get_ident() not in privacy.threads
