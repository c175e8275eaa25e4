"""The read calls, over rows that the worker's own code wrote into a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.errors import UnavailableError
from pipeline.process.flow import Block, PartitionState, process_block
from pipeline.read.explain import _STORED_COLUMNS, _content, explain
from pipeline.read.gauges import business_gauges, refresh
from pipeline.read.kpi import BY, VIEWS
from pipeline.read.routes import OPENAPI_PATHS, read_routes
from pipeline.reference.load import load_directory
from pipeline.settings import Settings
from pipeline.sink.tables import Extent, Sink
from pipeline.store.migrate import migrate
from tests.conftest import new_client
from tests.integration.read_world import CITIZEN, INC, NOW, PARTITION, http_over, reader_over, store_block
from tests.integration.worker_world import (
    GRID,
    NOON,
    PRIVACY,
    catalogues,
    event,
    load_reference,
    record,
    rules_of,
)
from tests.security.fakes import fake_id

DATABASE = "test_read_routes"
WINDOW = {"from": "2026-05-01T00:00:00+08:00", "to": "2026-05-02T00:00:00+08:00"}


@pytest.fixture(scope="module")
def factory(
    open_client: Client, engine_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Client]]:
    """Clients on a database that holds one block."""
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    store_block(open_client, tmp_path_factory.mktemp("reference"))
    open_client.database = "default"

    def connect() -> Client:
        return new_client(engine_path, DATABASE)

    yield connect
    open_client.command(f"DROP DATABASE {DATABASE}")


@pytest.fixture
async def http(factory: Callable[[], Client]) -> AsyncIterator[httpx.AsyncClient]:
    reader = reader_over(factory)
    async with http_over(reader) as client:
        yield client
    reader.close()


async def found(http: httpx.AsyncClient, path: str, **parameters: str) -> Any:
    answer = await http.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"]
    return answer.json()


async def refusal(http: httpx.AsyncClient, path: str, status: int, **parameters: str) -> dict[str, Any]:
    answer = await http.get(path, params=parameters, headers={"X-Request-Id": "asked-1"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = dict(answer.json())
    assert body["status"] == status
    assert body["request_id"] == "asked-1"
    return body


async def test_an_admitted_event_shows_rules_enrichment_and_position(http: httpx.AsyncClient) -> None:
    event = await found(http, "/v1/events/handset/e1")
    assert event["outcome"] == "admitted"
    assert [rule["number"] for rule in event["rules"]] == list(range(1, 14))
    assert {rule["result"] for rule in event["rules"]} <= {"true", "unknown"}
    assert event["enrichment"]["grid"]["name"] == "江南一格"
    assert event["enrichment"]["staff"]["in_grid"] is True
    assert event["position"] | {"rules": ""} == {
        "incarnation": INC, "partition": PARTITION, "offset": 0, "index": 0, "block": [0, 10], "rules": "",
    }  # fmt: skip
    assert [copy["position"]["offset"] for copy in event["copies"]] == [2]
    assert [conflict["reason"] for conflict in event["conflicts"]] == ["ID_CONFLICT"]


async def test_what_came_in_is_told_and_withheld_where_it_is_about_people(http: httpx.AsyncClient) -> None:
    told = await found(http, "/v1/events/handset/e1")
    content = told["content"]
    assert (content["withheld"], content["crs"], content["rating"]) == (False, "wgs84", None)
    assert (content["lon"], content["lat"]) == (round(content["lon"], 3), round(content["lat"], 3))
    assert content["photos"] == len(content["photo_hashes"]) == len(content["photo_taken_at"]) > 0
    assert {len(digest) for digest in content["photo_hashes"]} == {8}
    assert told["matter"]["effective_from"] == "2022-03-31T16:00:00.000Z"
    assert told["channel"] in told["matter"]["allowed_channels"]
    hidden = (await found(http, "/v1/events/handset/e6"))["content"]
    assert hidden["withheld"]
    withheld = (
        "title",
        "description",
        "address",
        "lon",
        "lat",
        "void_reason",
        "photo_hashes",
        "photo_taken_at",
    )
    assert {name: hidden[name] for name in withheld} == dict.fromkeys(withheld)
    assert (await found(http, "/v1/events/handset/e2"))["matter"] is None


def test_why_a_case_about_people_was_voided_is_withheld_too() -> None:
    row = dict.fromkeys(_STORED_COLUMNS.replace(",", " ").split()) | {
        "occurred_at": NOW, "photos": [], "void_reason": "he moved to his son", "title": "t", "level": "his",
    }  # fmt: skip
    words = ("void_reason", "title", "level")
    told = _content(row, withheld=False)
    assert [told[name] for name in words] == [row[name] for name in words]
    hidden = _content(row, withheld=True)
    assert [hidden[name] for name in ("withheld", *words)] == [True, None, None, None]


async def test_a_rejected_event_names_the_rules_that_failed(http: httpx.AsyncClient) -> None:
    event = await found(http, "/v1/events/handset/e2")
    assert (event["outcome"], event["reasons"]) == ("rejected", ["UNKNOWN_MATTER", "GRID_UNKNOWN"])
    failed = [rule["number"] for rule in event["rules"] if rule["result"] == "false"]
    assert failed == [3, 8]
    unknown = [rule["number"] for rule in event["rules"] if rule["result"] == "unknown"]
    assert {4, 5, 6, 9, 10, 12} <= set(unknown)


async def test_other_outcomes(http: httpx.AsyncClient) -> None:
    recorded = await found(http, "/v1/events/handset/e3")
    assert (recorded["outcome"], recorded["rules"]) == ("recorded", [])
    resend = await found(http, "/v1/events/handset/e4")
    assert (resend["outcome"], resend["level"]) == ("duplicate", "L2")
    assert resend["duplicate_of"] == {"source": "handset", "event_id": "e1", "case_id": "c1"}
    (of_case,) = (await found(http, "/v1/cases/c4"))["events"]
    assert (of_case["verdict"], of_case["level"]) == ("resend", None), "no case was raised to a level"


async def test_keys_are_shortened_and_protected_reporters_never_shown(http: httpx.AsyncClient) -> None:
    worker = await found(http, "/v1/events/handset/e1")
    assert worker["actor"]["key"] == "w-00…"
    for event_id in ("e6", "e7"):  # the report, and the reporter's feedback, which names no matter
        answer = await http.get(f"/v1/events/handset/{event_id}")
        assert answer.status_code == 200
        assert answer.json()["actor"] == {
            "type": None, "key": None, "name": None, "phone": None, "protected": True,
        }  # fmt: skip
        assert "abab" not in answer.text
        assert "陈" not in answer.text


SUBJECT = fake_id(1)
NOBODY = {"type": None, "key": None, "name": None, "phone": None, "protected": True}
HOTLINE: dict[str, Any] = {"channel": "hotline_12345", "actor": CITIZEN}
WORDS: dict[str, Any] = {"title": "病人", "description": "他家住某街"}


def shown(client: Client, number: int | str) -> dict[str, Any]:
    found = explain(
        client, "handset", f"e{number}", catalogues=catalogues(), now=NOW, retention=timedelta(days=90)
    )
    assert found
    return found


def stored(client: Client, directory: Path, *blocks: list[dict[str, Any]]) -> None:
    load_reference(client, directory / "places")
    (directory / "persons").mkdir()
    line = json.dumps({"id_number": SUBJECT, "home_grid_code": GRID})
    (directory / "persons" / "persons.ndjson").write_text(line + "\n")
    load_directory(client, directory / "persons", PRIVACY)
    state, rules = PartitionState.empty(Settings()), rules_of(client)
    for offset, documents in enumerate(blocks):
        block = Block(PARTITION, [record(offset, *documents)])
        result = process_block(block, state, rules)
        extents = [Extent(PARTITION, block.lo, block.hi)]
        Sink(client, "grid.events").write(result, inc=INC, blocks=extents, rules=rules.digest)


@pytest.mark.parametrize("matter", ["DM-02", "PO-01"])
def test_a_protected_reporter_is_not_shown_by_what_follows_a_resend(
    clickhouse: Client, tmp_path: Path, matter: str
) -> None:
    """The resend's case has no report of its own: `duplicates` alone tells what it is about."""
    about = {**HOTLINE, "matter_code": matter, "persons": [{"id_number": SUBJECT, "role": "subject"}]}
    report = event(1, **about)
    resend = event(2, minutes=1, **about) | {"description": report["description"]}
    after = event(3, event_type="FEEDBACK", case_id="c2", matter_code=None, minutes=6, **HOTLINE)
    stored(clickhouse, tmp_path, [report, resend, after])
    assert shown(clickhouse, 2)["outcome"] == "duplicate"
    told = shown(clickhouse, 3)
    assert (told["actor"], told["content"]["withheld"]) == (NOBODY, True)


@pytest.mark.parametrize("asked", [1, 3, 4])
def test_a_submission_that_is_sent_again_under_a_protected_matter_hides_its_reporter(
    clickhouse: Client, tmp_path: Path, asked: int
) -> None:
    """One submission id makes a resend whatever its matter, and the resend's answer names the report."""
    once: dict[str, Any] = {**HOTLINE, "submission_id": "s-1"}
    report = event(1, matter_code="SA-07", **once)
    resend = event(2, minutes=1, matter_code="PO-01", **once)
    after = [
        event(number, event_type="FEEDBACK", case_id=case, matter_code=None, minutes=6, **HOTLINE)
        for number, case in ((3, "c1"), (4, "c2"))
    ]
    stored(clickhouse, tmp_path, [report, resend, *after])
    assert shown(clickhouse, 2)["outcome"] == "duplicate"
    assert shown(clickhouse, asked)["actor"] == NOBODY


def test_what_comes_before_its_report_shows_nobody(clickhouse: Client, tmp_path: Path) -> None:
    """Its own matter is no proof: the case may be about another."""
    early = [
        event(number, event_type="HANDLING", case_id=case, matter_code=code, minutes=6, **HOTLINE)
        for number, case, code in ((1, "c9", None), (2, "c9", "SA-07"), (3, "c8", None))
    ]
    stored(clickhouse, tmp_path, early)
    for number in (1, 2, 3):
        told = shown(clickhouse, number)
        assert (told["actor"], told["content"]["withheld"]) == (NOBODY, True)
    reports = [event(8, matter_code="SA-07", **HOTLINE), event(9, matter_code="DM-02", **HOTLINE)]
    stored(clickhouse, tmp_path / "again", early, reports)
    assert (shown(clickhouse, 2)["actor"], shown(clickhouse, 1)["actor"]) == (NOBODY, NOBODY)
    told = shown(clickhouse, 3)
    assert (told["actor"]["protected"], told["content"]["withheld"]) == (False, False)


@pytest.mark.parametrize(
    ("matter", "occurred_at"),
    [
        ("PS-02", "2021-03-01T12:00:00+08:00"),  # before the list was in force
        ("PS-02", "2001-03-01T12:00:00+08:00"),
        ("TMP-2022-EPI-01", NOON.isoformat()),  # after it expired
    ],
)
def test_words_about_people_are_withheld_whenever_it_happened(
    clickhouse: Client, tmp_path: Path, matter: str, occurred_at: str
) -> None:
    about = {**HOTLINE, **WORDS, "matter_code": matter}
    report = record(0, event(1, **about) | {"occurred_at": occurred_at}, received=NOON)
    later = {**about, "matter_code": None, "event_type": "HANDLING", "case_id": "c1"}
    follow = record(1, event(2, **later) | {"occurred_at": occurred_at}, received=NOON)
    load_reference(clickhouse, tmp_path)
    rules, block = rules_of(clickhouse), Block(PARTITION, [report, follow])
    result = process_block(block, PartitionState.empty(rules.settings), rules)
    Sink(clickhouse, "grid.events").write(
        result, inc=INC, blocks=[Extent(PARTITION, block.lo, block.hi)], rules=rules.digest
    )
    for number in (1, 2):
        content = shown(clickhouse, number)["content"]
        assert content["withheld"], number
        assert [content[name] for name in ("title", "description", "lon", "lat")] == [None] * 4


async def test_an_unknown_event_is_404_and_one_past_its_retention_410(
    http: httpx.AsyncClient, factory: Callable[[], Client]
) -> None:
    assert (await refusal(http, "/v1/events/handset/none", 404))["code"] == "event_not_found"
    assert (await refusal(http, "/v1/events/h/" + "x" * 65, 404))["code"] == "not_found"
    later = reader_over(factory, now=NOW + timedelta(days=91))
    async with http_over(later) as old:
        assert (await refusal(old, "/v1/events/handset/e1", 410))["code"] == "past_retention"
    later.close()


async def test_a_case(http: httpx.AsyncClient) -> None:
    case = await found(http, "/v1/cases/c1")
    assert case["state"] == "SIGNED"
    assert [event["event_type"] for event in case["events"]] == [
        "REPORTED",
        "ACCEPTED",
        "DISPATCHED",
        "SIGNED",
    ]
    assert (await refusal(http, "/v1/cases/none", 404))["code"] == "case_not_found"


async def test_kpi_counts_what_was_received(http: httpx.AsyncClient) -> None:
    (city,) = (await found(http, "/v1/kpi", **WINDOW))["rows"]
    # e1, e6 admitted, e2 rejected, e1 again, e4 a resend of e1
    assert (city["reports"], city["admitted_reports"], city["rejected_reports"]) == (5, 2, 1)
    assert city["duplicates"] == {"L1": 1, "L2": 1, "L3": 0}
    assert (city["cases"], city["closed"], city["closure_rate"]) == (2, 0, 0.0)
    assert city["response_seconds"] == {"p50": 480, "p90": 480, "p99": 480}
    assert city["name_zh"] == "江门市"


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("view", ["cohort", "flow"])
async def test_every_dimension_names_its_keys(http: httpx.AsyncClient, by: str, view: str) -> None:
    answer = await found(http, "/v1/kpi", by=by, view=view, **WINDOW)
    named = {row["key"]: row["name_zh"] for row in answer["rows"] if row["cases"]}
    assert sum(row["cases"] for row in answer["rows"]) == 2
    nameless = {"village"}  # the test's one grid says nothing about its village
    assert by in nameless or all(named.values())
    if by == "district":
        assert len(answer["rows"]) == 7


async def test_kpi_defaults_to_the_last_thirty_days_as_of_now(http: httpx.AsyncClient) -> None:
    answer = await found(http, "/v1/kpi")
    assert (answer["from"], answer["to"]) == ("2026-04-01T04:30:00.000Z", "2026-05-01T04:30:00.000Z")
    assert (answer["as_of"], answer["view"]) == (answer["to"], "cohort")
    earlier = await found(http, "/v1/kpi", as_of="2026-05-01T12:06:00+08:00")
    assert earlier["to"] == "2026-05-01T04:06:00.000Z"
    assert earlier["rows"][0]["responded"] == 0


@pytest.mark.parametrize("view", VIEWS)
async def test_a_window_that_ends_where_it_begins_holds_nothing(http: httpx.AsyncClient, view: str) -> None:
    """[from, to): a report at that very instant is not in it."""
    window = {"from": "2026-05-01T12:00:00+08:00", "to": "2026-05-01T12:00:00+08:00"}
    answer = await found(http, "/v1/kpi", by="district", view=view, **window)
    assert answer["from"] == answer["to"] == "2026-05-01T04:00:00.000Z"
    assert len(answer["rows"]) == 7
    assert {(row["reports"], row["cases"], row["closed"], row["closure_rate"]) for row in answer["rows"]} == {
        (0, 0, 0, None)
    }
    assert (await found(http, "/v1/kpi", by="grid", view=view, **window))["rows"] == []


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("/v1/kpi", {"by": "person"}),
        ("/v1/kpi", {"view": "both"}),
        ("/v1/kpi", {"from": "2026-05-01"}),
        ("/v1/kpi", {"from": "2026-05-01T00:00:00"}),
        ("/v1/kpi", {"to": "2026-13-01T00:00:00Z"}),
        ("/v1/kpi", {"as_of": "0001-01-01T00:00:00+23:59"}),
        ("/v1/kpi", {"as_of": "9999-12-31T23:59:59Z"}),
        ("/v1/kpi", {"from": "2026-05-02T00:00:00Z", "to": "2026-05-01T00:00:00Z"}),
        ("/v1/kpi", {"by": "city'; DROP TABLE events; --"}),
        ("/v1/kpi", {"group": "city"}),
        ("/v1/rejections", {"limit": "0"}),
        ("/v1/rejections", {"limit": "1001"}),
        ("/v1/rejections", {"limit": "000010000"}),
        ("/v1/rejections", {"limit": "ten"}),
        ("/v1/rejections", {"reason": "too old"}),
        ("/v1/rejections", {"life_safety": "1"}),
        ("/v1/rejections", {"life_safety": "false"}),
        ("/v1/rejections", {"life_safety": ""}),
        ("/v1/matters", {"at": "yesterday"}),
    ],
)
async def test_a_bad_parameter_is_told_by_name(
    http: httpx.AsyncClient, path: str, parameters: dict[str, str]
) -> None:
    body = await refusal(http, path, 400, **parameters)
    assert body["code"] in {"bad_parameter", "unknown_parameter"}
    assert body["message"]


async def test_a_parameter_given_twice_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/kpi?by=city&by=grid")
    assert (answer.status_code, answer.json()["code"]) == (400, "repeated_parameter")


async def test_a_plus_that_was_not_encoded_is_understood(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/kpi?as_of=2026-05-01T12:06:00+08:00")
    assert answer.json()["as_of"] == "2026-05-01T04:06:00.000Z"


async def test_rejections_by_reason_and_time(http: httpx.AsyncClient) -> None:
    (row,) = (await found(http, "/v1/rejections"))["rows"]
    assert (row["event_id"], row["primary_reason"]) == ("e2", "UNKNOWN_MATTER")
    assert not {"actor_key", "actor_name", "actor_phone"} & row.keys()
    assert len((await found(http, "/v1/rejections", reason="GRID_UNKNOWN"))["rows"]) == 1
    assert (await found(http, "/v1/rejections", reason="TOO_OLD"))["rows"] == []
    assert (await found(http, "/v1/rejections", **{"from": "2026-05-01T12:03:00.001+08:00"}))["rows"] == []
    assert len((await found(http, "/v1/rejections", **{"from": "2026-05-01T12:03:00+08:00"}))["rows"]) == 1


async def test_matters_in_force(http: httpx.AsyncClient) -> None:
    answer = await found(http, "/v1/matters")
    assert len([matter for matter in answer["matters"] if not matter["temporary"]]) == 65
    assert answer["status"] == "reference_not_official"
    assert (await found(http, "/v1/matters", at="2020-01-01T00:00:00Z"))["matters"] == []


async def test_a_store_that_does_not_answer_is_503_with_retry_after(factory: Callable[[], Client]) -> None:
    def refuse() -> Client:
        raise UnavailableError("the store process does not answer")

    reader = reader_over(refuse)
    with structlog.testing.capture_logs() as lines:
        async with http_over(reader) as http:
            answer = await http.get("/v1/kpi")
            await http.get("/v1/cases/c-1")
            await http.get("/v1/events/12345/13800001234")
    reader.close()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["code"] == "store_unavailable"
    told = [line for line in lines if line["event"] == "read_unavailable"]
    assert told[0]["request_id"] == answer.headers["x-request-id"]
    assert told[1]["case_id"] == "c-1"
    assert (told[2]["source"], told[2]["event_id"]) == ("12345", "this id"), "it looks like a phone's number"


async def test_a_lost_connection_is_not_used_again(factory: Callable[[], Client]) -> None:
    opened: list[Client] = []

    def connect() -> Client:
        opened.append(factory())
        return opened[-1]

    def lose(_: Client) -> None:
        raise ConnectionResetError

    reader = reader_over(connect)
    assert await reader.run(lambda client: client.command("SELECT 1")) == 1
    with pytest.raises(UnavailableError):
        await reader.run(lose)
    assert await reader.run(lambda client: client.command("SELECT 1")) == 1
    reader.close()
    assert len(opened) == 2


async def test_concurrent_calls_use_clients_of_their_own(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(http.get("/v1/kpi", params={"by": by, **WINDOW}) for by in BY))
    assert [answer.status_code for answer in answers] == [200] * len(BY)


async def test_gauges_show_the_defaults_by_district(factory: Callable[[], Client]) -> None:
    reader = reader_over(factory)

    def value(name: str, **labels: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(name, {"district": "440704", **labels})

    metrics.closure_ratio.labels("440705").set(0.5)  # left from when it had cases
    await refresh(reader)
    reader.close()
    assert value("gridpipe_open_cases") == 2
    assert value("gridpipe_closure_ratio") == 0
    # one of two was answered; in time were all that had to be by now
    assert value("gridpipe_response_ratio") == 0.5
    assert value("gridpipe_overdue_cases") == 0
    assert value("gridpipe_response_seconds", quantile="0.9") == 480
    # no case, no ratio: a false zero would look like a district that closes nothing
    assert metrics.REGISTRY.get_sample_value("gridpipe_closure_ratio", {"district": "440705"}) is None
    reader = reader_over(factory, now=NOW + timedelta(days=25))  # one was responded to, neither is closed
    await refresh(reader)
    reader.close()
    assert value("gridpipe_overdue_cases") == 2


MILLISECOND = timedelta(milliseconds=1)


async def test_a_breach_is_counted_for_the_hour_after_its_limit(factory: Callable[[], Client]) -> None:
    client = factory()
    [[due, answered]] = client.query(
        "SELECT response_due_at, first_response_at FROM cases FINAL WHERE case_id = 'c6'"
    ).result_rows
    client.close()
    due = due.replace(tzinfo=UTC)
    assert answered is None
    found = []
    for now in (due - MILLISECOND, due, due + timedelta(hours=1) - MILLISECOND, due + timedelta(hours=1)):
        reader = reader_over(factory, now=now)
        await refresh(reader)
        reader.close()
        name = "gridpipe_response_breaches_last_hour_cases"
        found.append(metrics.REGISTRY.get_sample_value(name, {"district": "440704"}))
        assert metrics.REGISTRY.get_sample_value(name, {"district": "440705"}) == 0
    # c1 has the same limit and was answered in time
    assert found == [0, 1, 1, 0]


async def test_gauges_keep_refreshing_through_an_outage(factory: Callable[[], Client]) -> None:
    attempts: list[bool] = []
    recovered = asyncio.Event()

    def connect() -> Client:
        attempts.append(True)
        if len(attempts) == 1:
            raise UnavailableError("not yet")
        asyncio.run_coroutine_threadsafe(_set(recovered), loop)
        return factory()

    loop = asyncio.get_running_loop()
    reader = reader_over(connect)
    with business_gauges(reader, interval_seconds=0.01):
        await asyncio.wait_for(recovered.wait(), 30)
    await asyncio.to_thread(reader.close)
    assert len(attempts) >= 2


async def _set(event: asyncio.Event) -> None:
    event.set()


def test_the_openapi_document_has_every_route(factory: Callable[[], Client]) -> None:
    reader = reader_over(factory)
    paths = {route.path for route in read_routes(reader)}  # type: ignore[attr-defined]
    reader.close()
    assert paths == set(OPENAPI_PATHS)
