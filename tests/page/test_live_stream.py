"""The stream on a real store: one set of queries for all who watch, none while nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import structlog
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from prometheus_client import generate_latest
from starlette.applications import Starlette

from pipeline import metrics
from pipeline.errors import UnavailableError
from pipeline.ingest.durability import Replicated
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.producer import KafkaProducer
from pipeline.page.board import Board, Table
from pipeline.page.figures import read_families
from pipeline.page.history import HOUR, LONGEST_DELAY, History
from pipeline.page.live import Live, rest_after
from pipeline.page.routes import live_routes
from pipeline.page.search import search
from pipeline.read.gauges import refresh
from pipeline.read.kpi import kpi, kpi_together
from pipeline.read.reader import Reader
from pipeline.read.times import instant
from pipeline.runtime.broker import free_port
from pipeline.settings import Settings
from pipeline.store.kpi_views import TOGETHER
from tests.integration.case_world import Event, KpiNames, World, at
from tests.integration.read_world import http_over, reader_over, store_block
from tests.integration.test_gateway_kafka import Broker
from tests.unit.gateway_world import event, make_world


@pytest.fixture
def reader(clickhouse: Client, tmp_path: Path) -> Reader:
    store_block(clickhouse, tmp_path)
    return reader_over(lambda: clickhouse)


class Counted:
    """Counts what a reader was asked."""

    def __init__(self, reader: Reader) -> None:
        self.asked = 0
        original = reader.run

        async def run(work: Callable[[Client], Any]) -> Any:
            self.asked += 1
            return await original(work)

        reader.run = run  # type: ignore[method-assign]


async def no_metrics() -> tuple[bytes, bytes | None]:
    return b"", None


async def read_until(stream: AsyncIterator[bytes], topics: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with asyncio.timeout(60):
        async for chunk in stream:
            for message in chunk.decode().split("\n\n"):
                if message.startswith("event: "):
                    head, data = message.split("\n", 1)
                    found[head.removeprefix("event: ")] = orjson.loads(data.removeprefix("data: "))
            if topics <= found.keys():
                return found
    raise AssertionError(found.keys())


TOPICS = {"figures", "city", "district", "rejected", "store"}


async def test_ten_viewers_cost_one_set_of_queries(reader: Reader) -> None:
    counted = Counted(reader)
    live = Live(Board(reader), no_metrics)
    running = asyncio.create_task(live.run())
    streams = [live.stream() for _ in range(10)]
    answers = await asyncio.gather(*(read_until(stream, TOPICS) for stream in streams))
    assert live.viewers == 10
    assert {answer["city"]["as_of"] for answer in answers} == {answers[0]["city"]["as_of"]}
    row = answers[0]["city"]["rows"][0]
    assert row["parts"]["closure_rate"] == [row["closed"], row["cases"]]
    assert [r["reason"] for r in answers[0]["rejected"]["reasons"]] == ["UNKNOWN_MATTER"]
    # the first point of the trend, a mark, three tables; and at most a few marks and past points since
    assert counted.asked < 20
    live.close()
    for stream in streams:
        async for _ in stream:
            pass
    assert live.viewers == 0
    running.cancel()


async def test_what_did_not_change_is_not_sent_again(reader: Reader) -> None:
    live = Live(Board(reader), no_metrics)
    stream = live.stream()
    assert await anext(stream) == b"retry: 2000\n\n"
    live._publish("rejected", {"reasons": []})
    assert await anext(stream) == b'event: rejected\ndata: {"reasons":[]}\n\n'
    live._publish("rejected", {"reasons": []})
    live._publish("store", {"available": True})
    assert await anext(stream) == b'event: store\ndata: {"available":true}\n\n'
    live.close()


async def test_who_comes_after_a_pause_is_not_told_the_alarm_and_modes_of_the_last_watch(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a second, nor while the store is away, which may last; then what was so is told again."""

    class Away:
        is_away = False

        def __init__(self) -> None:
            original = reader.run

            async def run(work: Callable[[Client], Any]) -> Any:
                if self.is_away:
                    raise UnavailableError("no answer")
                return await original(work)

            reader.run = run  # type: ignore[method-assign]

    monkeypatch.setattr("pipeline.page.board.STALE_SECONDS", 3600.0)  # however slow this machine is
    store = Away()
    live = Live(Board(reader), no_metrics)
    running = asyncio.create_task(live.run())
    first = live.stream()
    known = await read_until(first, {"rejected", "modes", "current"})
    store.is_away = True
    await first.aclose()
    assert live.viewers == 0
    second = live.stream()
    begun = await read_until(second, {"store", "city"})
    assert not {"rejected", "modes", "current"} & begun.keys()
    store.is_away = False
    # nothing was stored meanwhile: the board still holds the same tables
    again = await read_until(second, {"rejected", "modes", "current"})
    assert (again["rejected"], again["modes"]) == (known["rejected"], known["modes"])
    await second.aclose()
    running.cancel()


async def test_nothing_is_asked_while_nobody_watches(reader: Reader) -> None:
    counted = Counted(reader)
    running = asyncio.create_task(Live(Board(reader), no_metrics).run())
    await asyncio.sleep(4)
    assert counted.asked <= 2  # one row for the trend, and the mark before it
    running.cancel()


async def test_a_table_is_shared_until_something_is_stored(
    reader: Reader, clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.page.board.STALE_SECONDS", 3600.0)  # however slow this machine is
    board = Board(reader)
    first, second = await asyncio.gather(board.kpi("village"), board.kpi("village"))
    assert first is second
    assert await board.kpi("village") is first
    clickhouse.command("INSERT INTO quarantine (reason) VALUES ('MALFORMED')")
    assert await board.kpi("village", every=60) is first
    second = await board.kpi("village")
    assert second is not first
    clickhouse.command("INSERT INTO quarantine (reason) VALUES ('ID_CONFLICT')")
    mark = await board.mark()
    clickhouse.command("OPTIMIZE TABLE quarantine FINAL")
    assert await board.mark() == mark  # parts that merge hold nothing new
    assert await board.kpi("village") is not second


async def test_areas_are_no_older_than_the_districts_beside_them(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.page.board.STALE_SECONDS", 3600.0)
    board = Board(reader)
    held = await board.kpi("village")
    now = reader.clock() + timedelta(seconds=1)
    reader.clock = lambda: now
    await board.overview()
    assert await board.kpi("village", every=60) is held  # for a while, whatever came
    newer = await board.kpi("village")
    assert newer.answer["as_of"] > held.answer["as_of"]
    assert await board.kpi("village") is newer


async def test_the_tables_that_a_page_opens_with_cost_one_reading(reader: Reader) -> None:
    """Of one instant: the towns add up to the districts above them."""
    board = Board(reader)
    counted = Counted(reader)
    tables = await asyncio.gather(*(board.kpi(by, every=60) for by in TOGETHER))
    assert counted.asked == 2  # the mark, and the reading
    assert len({table.answer["as_of"] for table in tables}) == 1
    live = Live(board, no_metrics)
    live._show_overview(await board.overview(every=60))
    assert sorted(live.known([*TOGETHER, "kpi"])) == ["city", "district"]  # the larger ones are asked for
    assert counted.asked == 2


async def test_a_table_that_may_still_be_shown_does_not_wait_for_the_next_one(reader: Reader) -> None:
    board = Board(reader)
    held = await board.overview()
    original, asked, told = board.reader.run, asyncio.Event(), asyncio.Event()

    async def slow(ask: Any) -> Any:
        asked.set()
        await told.wait()
        return await original(ask)

    board.reader.run = slow  # type: ignore[method-assign]
    reading = asyncio.create_task(board.overview(mark="another"))
    await asked.wait()
    assert (await asyncio.wait_for(board.kpi("town", every=60), 5)).answer is held.answer["town"]
    told.set()
    assert (await reading) is not held


def test_a_table_that_is_read_slowly_is_kept_for_twice_as_long_as_that_took() -> None:
    now = time.monotonic()
    assert Table({}, "", now, took=0.1).kept_for(2.0) == pytest.approx(2.0, abs=0.5)
    assert Table({}, "", now, took=30.0).kept_for(2.0) == pytest.approx(60.0, abs=0.5)
    assert Table({}, "", now - 10, took=0.1).kept_for(2.0) < 0


def test_percentiles_are_read_as_often_as_a_fifth_of_the_time_allows() -> None:
    for took, kept in ((0.01, 1.0), (0.2, 1.0), (0.8, 4.0), (2.0, 10.0), (3.0, 10.0), (6.0, 12.0)):
        table = Table({}, "", time.monotonic(), took)
        assert table.kept_for(1.0, most=10.0) == pytest.approx(kept, abs=0.5)


async def test_a_page_may_ask_for_percentiles_again_as_soon_as_they_are_cheap_enough(
    reader: Reader, tmp_path: Path
) -> None:
    """They were ten seconds old however quickly they were read."""
    board = Board(reader)
    routes = live_routes(Live(board, no_metrics), KeyStore(tmp_path / "keys"), reader)
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/v1/live/tables/matter")
        took = board._tables["kpi:matter"].took
        assert answer.json()["again_in_seconds"] <= max(1.0, 5 * took), took


async def test_what_may_concern_life_and_limb_is_an_alarm_for_an_hour(
    reader: Reader, clickhouse: Client
) -> None:
    at = reader.clock()

    def reject(number: int, minutes: int, *, life_safety: bool) -> None:
        row = {"id_hi": number, "id_lo": number, "source": "local", "event_id": f"e{number}"}
        row |= {"event_type": "REPORTED", "life_safety": life_safety}
        row |= {"ingested_at": at - timedelta(minutes=minutes)}
        clickhouse.insert("rejections", [list(row.values())], column_names=list(row))

    async def alarms() -> Any:
        return (await Board(reader).rejected()).answer["life_safety"]

    assert await alarms() == {"reports": 0, "newest": None}
    reject(101, 61, life_safety=True)
    reject(102, 1, life_safety=False)
    assert (await alarms())["reports"] == 0
    reject(103, 20, life_safety=True)
    reject(104, 30, life_safety=True)
    reject(103, 20, life_safety=True)  # its block came again
    assert await alarms() == {"reports": 2, "newest": {"source": "local", "event_id": "e103"}}


async def test_the_list_of_life_safety_holds_what_the_alarm_counts(
    reader: Reader, clickhouse: Client
) -> None:
    now = reader.clock()
    for number, (kind, life_safety, minutes) in enumerate(
        [("REPORTED", True, 30), ("REPORTED", True, 20), ("REPORTED", False, 10), ("CLOSED", True, 5)]
    ):
        row: dict[str, Any] = {"id_hi": number, "id_lo": number, "_off": 9_000 + number, "source": "local"}
        row |= {"event_id": f"s{number}", "event_type": kind, "life_safety": life_safety}
        row |= {"ingested_at": now - timedelta(minutes=minutes)}
        clickhouse.insert("rejections", [list(row.values())], column_names=list(row))
    async with http_over(reader) as http:
        answer = await http.get("/v1/rejections", params={"life_safety": "true"})
        listed = [row["event_id"] for row in answer.json()["rows"]]
        assert listed == ["s1", "s0"]
        assert (await Board(reader).rejected()).answer["life_safety"]["reports"] == len(listed)
        since = {"from": (now - timedelta(minutes=25)).isoformat()}
        answer = await http.get("/v1/rejections", params={"life_safety": "true", **since})
        assert [row["event_id"] for row in answer.json()["rows"]] == ["s1"]


async def test_a_rejection_about_life_and_limb_is_told_from_the_table_for_an_hour(
    reader: Reader, clickhouse: Client
) -> None:
    """A worker that dies between its insert and its commit has counted nothing; its row is there."""

    def told(reason: str) -> float | None:
        name = "gridpipe_life_safety_rejections_last_hour_reports"
        return metrics.REGISTRY.get_sample_value(name, {"reason": reason})

    def reject(number: int, minutes: int, reasons: list[str]) -> None:
        row = {"id_hi": number, "id_lo": number, "source": "local", "event_id": f"e{number}"}
        row |= {"event_type": "REPORTED", "life_safety": True, "reasons": reasons}
        row |= {"ingested_at": reader.clock() - timedelta(minutes=minutes)}
        clickhouse.insert("rejections", [list(row.values())], column_names=list(row))

    await refresh(reader)
    assert (told("GRID_UNKNOWN"), told("other")) == (0, 0)
    for number, minutes in ((101, 61), (102, 20), (103, 10), (103, 10)):  # the last one's block came again
        reject(number, minutes, ["GRID_UNKNOWN", "TOO_OLD"])
    reject(104, 5, ["A_REASON_OF_OLD"])
    await refresh(reader)
    assert (told("GRID_UNKNOWN"), told("TOO_OLD"), told("other")) == (2, 0, 1)
    now = reader.clock() + timedelta(hours=1)
    reader.clock = lambda: now
    await refresh(reader)
    assert told("GRID_UNKNOWN") == 0


async def test_the_gauges_take_what_the_page_has_just_read(reader: Reader) -> None:
    def closure() -> float | None:
        return metrics.REGISTRY.get_sample_value("gridpipe_closure_ratio", {"district": "440704"})

    await refresh(reader)
    told, at = closure(), metrics.REGISTRY.get_sample_value("gridpipe_business_as_of_timestamp_seconds")
    metrics.closure_ratio.clear()
    board = Board(reader)
    await board.overview()
    counted = Counted(reader)
    await refresh(reader, partial(board.districts, every=60))
    assert counted.asked == 1  # breaches and disks
    assert closure() == told is not None
    assert metrics.REGISTRY.get_sample_value("gridpipe_business_as_of_timestamp_seconds") == at


async def test_while_nobody_watches_the_gauges_read_their_own_tables_alone(
    reader: Reader, clickhouse: Client
) -> None:
    board = Board(reader)
    await board.districts(every=5)
    assert set(board._tables) == {"kpi:city_and_district"}
    shown = await board.overview()
    board._tables["kpi:overview"] = replace(shown, asked_at=shown.asked_at - 10)  # no longer as they ask for
    counted = Counted(reader)
    assert await board.districts(every=5) is shown.answer["district"]  # nothing was stored since
    assert counted.asked == 1  # the mark
    clickhouse.command("INSERT INTO quarantine (reason) VALUES ('MALFORMED')")
    assert await board.districts(every=1e-6) is not shown.answer["district"]


def test_a_quick_store_is_asked_seldom_and_a_slow_one_has_a_rest() -> None:
    for took in (0.01, 0.2, 0.4, 0.69):
        # what is stored right after the question is on the page after the rest and the next reading
        assert took + rest_after(took) + took == pytest.approx(1.75)
    assert rest_after(0.8) == pytest.approx(0.4)
    assert rest_after(30) == 1.0


async def test_the_modes_in_force_are_told(reader: Reader, clickhouse: Client) -> None:
    now = reader.clock()

    for mode, area, version, level, begin, end in (
        ("flood", "440704", 1, "II", -5, None),
        ("typhoon", "4407", 1, "III", -5, 2),
        ("typhoon", "4407", 2, "I", -5, 2),  # raised
        ("heat", "4407", 1, "II", -9, -1),
        ("epidemic", "440703", 1, "II", 1, None),
        ("epidemic", "440704", 1, "II", -2, None),
        ("epidemic", "440704", 2, "II", -2, 0),  # ended now
    ):
        row: dict[str, Any] = {"mode": mode, "area_code": area, "version": version, "level": level}
        row |= {"valid_from": now + timedelta(hours=begin), "authority": "a"}
        row |= {"valid_to": None if end is None else now + timedelta(hours=end)}
        clickhouse.insert("ref_modes", [list(row.values())], column_names=list(row))
    live = Live(Board(reader), no_metrics)
    running = asyncio.create_task(live.run())
    told = (await read_until(live.stream(), {"modes"}))["modes"]["modes"]
    assert told == [
        {"mode": "typhoon", "level": "I", "area_code": "4407"},
        {"mode": "flood", "level": "II", "area_code": "440704"},
    ]
    running.cancel()


def test_answers_together_are_the_answers_apart(clickhouse: Client) -> None:
    world = World(clickhouse)
    report, rejected = Event("a", "REPORTED", at(0)), Event("b", "REPORTED", at(1), outcome="rejected")
    elsewhere = Event("d", "REPORTED", at(2), attributes={"grid_code": "440703002001001"})
    nowhere = Event("e", "REPORTED", at(2), attributes={"grid_code": "990101001001001"})
    resend = Event("c", "REPORTED", at(2), outcome="resent", attributes={"primary_case_id": "a"})
    orphan = Event("f", "SIGNED", at(3))
    closed = [Event("d", kind, at(3 + n)) for n, kind in enumerate(("ACCEPTED", "DISPATCHED", "SIGNED"))]
    unknown = Event("g", "REPORTED", at(1), outcome="rejected", attributes={"matter_code": None})
    world.write(report, rejected, elsewhere, nowhere, resend, orphan, unknown, *closed)
    world.redeliver(report, rejected)
    for as_of in (at(48), at(2.5)):
        asked: dict[str, Any] = {"from_": at(0), "to": at(48), "as_of": as_of, "names": KpiNames()}
        together = kpi_together(clickhouse, **asked)
        of_areas = kpi_together(clickhouse, ("city", "district"), **asked)
        assert of_areas == {by: together[by] for by in of_areas}
        assert together == {by: kpi(clickhouse, by=by, view="cohort", parts=True, **asked) for by in TOGETHER}
        reports = {by: sum(row["reports"] for row in found["rows"]) for by, found in together.items()}
        assert reports["city"] == reports["town"] > reports["district"]  # one lies in none of the seven
        assert reports["city"] == reports["department"] + 1  # its matter is not known
        assert sum(row["orphans"] for row in together["town"]["rows"]) == int(as_of == at(48))


@pytest.mark.parametrize("error", [UnavailableError("no answer"), ValueError("no such column")])
async def test_the_last_hour_is_read_back_again_after_the_store_failed(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("pipeline.page.live._PAST_AGAIN_SECONDS", 0.0)
    board = Board(reader)
    original, failed, again = board.kpi_at, asyncio.Event(), asyncio.Event()

    async def once_gone(at: datetime) -> dict[str, Any]:
        if not failed.is_set():
            failed.set()
            raise error
        again.set()
        return await original(at)

    monkeypatch.setattr(board, "kpi_at", once_gone)
    live = Live(board, no_metrics)
    running = asyncio.create_task(live.run())
    reading = asyncio.create_task(read_until(live.stream(), {"never"}))
    async with asyncio.timeout(60):
        await again.wait()
    reading.cancel()
    running.cancel()


async def test_metrics_that_fail_once_are_read_again_and_said_once(reader: Reader) -> None:
    """Without this the stream went on, with nothing but heartbeats of them."""
    asked = []

    async def failing() -> tuple[bytes, bytes | None]:
        asked.append(1)
        if len(asked) in {2, 3}:
            raise ValueError("not a metric")
        return b"gridpipe_events_total 1", None

    live = Live(Board(reader), failing)
    started = time.monotonic()
    with structlog.testing.capture_logs() as lines:
        await live._read_metrics(started)
        assert "figures" in live.known(["figures"])
        for second in (1, 2):
            await live._read_metrics(started + second)
            assert live.known(["figures"]) == {}, "who comes now would take it for the present"
        live._keep_gap(started)
        assert live._history.points()[-1]["events_per_second"] is None
        await live._read_metrics(started + 3)
    assert "figures" in live.known(["figures"])
    assert [line["event"] for line in lines] == ["live_page_without_figures"]


async def test_the_stream_says_when_the_store_is_gone(reader: Reader) -> None:
    def gone() -> Client:
        raise OSError("connection refused")

    live = Live(Board(reader_over(gone)), no_metrics)
    running = asyncio.create_task(live.run())
    found = await read_until(live.stream(), {"store"})
    assert found["store"]["available"] is False
    running.cancel()


def test_the_trend_keeps_an_hour_in_order_and_knows_what_is_missing() -> None:
    history = History()
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert len(history.past_instants(now)) == 10
    history.add(now, {"closure_rate": 0.5}, None)
    history.add(now - timedelta(minutes=12), {"closure_rate": 0.25}, None)
    assert [point["closure_rate"] for point in history.points()] == [0.25, 0.5]
    assert history.past_instants(now)[0] == now - timedelta(minutes=18)
    history.add(now + HOUR, {"closure_rate": 1.0}, None)
    assert [point["closure_rate"] for point in history.points()] == [0.5, 1.0]


def test_the_hour_that_is_read_back_goes_on_from_the_oldest_point_without_a_gap() -> None:
    """The page breaks its line where two points lie more than seven minutes apart."""
    history = History()
    start = datetime(2026, 3, 2, 12, tzinfo=UTC)
    history.add(start, {"closure_rate": 0.5}, None)
    past = history.past_instants(start + timedelta(minutes=2, seconds=59))
    assert past[0] == start - timedelta(minutes=6)
    assert len(past) == 9


async def test_what_was_stored_each_second_before_the_start_is_read_back(
    reader: Reader, clickhouse: Client
) -> None:
    """It was known only since the process began. A second apart, two minutes until the first point."""
    at = reader.clock() - timedelta(minutes=6)
    clickhouse.command(
        "INSERT INTO quarantine (_off, reason, ingested_at, stored_at) SELECT number, 'MALFORMED', "
        "{at:DateTime64(3, 'UTC')}, {at:DateTime64(3, 'UTC')} - toIntervalSecond(number) FROM numbers(120)",
        parameters={"at": at.strftime("%Y-%m-%d %H:%M:%S.000")},
    )
    for table in ("events", "rejections", "duplicates", "quarantine"):  # canaries, which nobody counts
        clickhouse.command(
            f"INSERT INTO {table} (_off, source, ingested_at, stored_at) SELECT 1000 + number, "
            "'gridpipe-canary', {at:DateTime64(3, 'UTC')}, {at:DateTime64(3, 'UTC')} FROM numbers(12)",
            parameters={"at": at.strftime("%Y-%m-%d %H:%M:%S.000")},
        )
    # an api by itself, to which nobody tells what is stored, has no such tile either
    for has_worker, rates in ((True, [1.0, 0.0]), (False, [None, None])):
        live = Live(Board(reader), no_metrics, has_worker=has_worker)
        running = asyncio.create_task(live.run())
        stream = live.stream()
        found: list[dict[str, Any]] = []
        while len(found) < 2:  # the first point, and the first that is read back
            found = (await read_until(stream, {"trend"}))["trend"]["points"]
        # of the first point, too: the line would be interrupted between the past and the present
        assert [point["events_per_second"] for point in found] == rates
        assert found[0]["at"] == instant(at)
        await stream.aclose()
        running.cancel()


def test_a_delay_above_the_last_bound_stays_in_the_trend() -> None:
    history = History()
    now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    history.add(now, None, {"events_per_second": 3.0, "delay_seconds": {"p50": 9.0, "p99": None, "count": 5}})
    history.add(now + timedelta(minutes=1), None, {"events_per_second": 0.0, "delay_seconds": None})
    assert [point["delay_seconds"] for point in history.points()] == [LONGEST_DELAY, None]
    metrics.ingest_delay_seconds.observe(LONGEST_DELAY + 1)
    bounds = read_families(generate_latest(metrics.REGISTRY))["ingest_delay_seconds_bucket"]
    assert sorted(float(bound) for bound in bounds)[-2] == LONGEST_DELAY


async def test_the_trend_goes_on_while_the_store_is_away(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, live_since = Board(reader), reader.clock()
    live = Live(board, no_metrics)
    original, away = board.overview, True

    async def now_and_then(**how: Any) -> Table:
        if away:
            raise UnavailableError("ClickHouse does not answer")
        return await original(**how)

    monkeypatch.setattr(board, "overview", now_and_then)
    started = time.monotonic()
    for second in range(4):
        await live._read_store(started + second)
    (gap,) = live._history.points()  # one a minute, as otherwise
    assert (gap["at"], gap["closure_rate"]) == (instant(live_since), None)
    away = False
    await live._read_store(started + 5)
    assert live._history.points()[-1]["closure_rate"] is not None  # and then at once
    assert orjson.loads(live.known(["trend"])["trend"])["points"] == live._history.points()


def test_search_finds_events_cases_and_quarantined_ones(reader: Reader, clickhouse: Client) -> None:
    by_event = search(clickhouse, "e1")["events"]
    assert [(hit["event_id"], hit["outcome"]) for hit in by_event] == [("e1", "admitted")]
    assert search(clickhouse, "c1")["cases"] == ["c1"]
    assert [hit["outcome"] for hit in search(clickhouse, "e4")["events"]] == ["duplicate"]
    nothing = search(clickhouse, "nothing")
    assert (nothing["events"], nothing["cases"], nothing["complete"]) == ([], [], True)


def test_search_by_submission_gives_up_rather_than_keep_the_store_busy(
    reader: Reader, clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = clickhouse.query

    def slow(query: str, **given: Any) -> Any:
        if "submission_id = " in query:
            raise DatabaseError("Timeout exceeded", code=159)
        return original(query, **given)

    monkeypatch.setattr(clickhouse, "query", slow)
    found = search(clickhouse, "e1")
    assert [hit["event_id"] for hit in found["events"]] == ["e1"]
    assert found["complete"] is False


async def test_the_stream_says_when_the_log_is_gone(tmp_path: Path, reader: Reader) -> None:
    """What is sent then is refused before it is counted: no rate would show it."""
    broker = Broker(free_port())
    broker.start(Settings().topic)
    world = make_world(tmp_path / "gateway", durability=Replicated())
    world.connect(producer=KafkaProducer(world.gateway.settings, broker.bootstrap, idempotent=False))
    live = Live(Board(reader), no_metrics, log_answers=world.gateway.log_answers)
    running = asyncio.create_task(live.run())

    async def told(answers: bool) -> None:
        async with asyncio.timeout(60):
            async for chunk in live.stream():
                if b'"log_answers":%b' % (b"true" if answers else b"false") in chunk:
                    return

    try:
        assert (await world.post(event(1))).status_code == 202
        await told(True)
        broker.stop()
        await told(False)
        assert (await world.post(event(2))).status_code == 503
        await world.gateway.gate.close()  # the log is replaced: callers wait, which is no outage
        assert world.gateway.log_answers()
        world.gateway.gate.open()
        broker.start(Settings().topic)
        await told(True)
    finally:
        running.cancel()
        await world.gateway.close()
        broker.stop()


async def test_where_no_gateway_runs_nothing_is_said_of_its_log(reader: Reader) -> None:
    live = Live(Board(reader), no_metrics)
    running = asyncio.create_task(live.run())
    figures = (await read_until(live.stream(), {"figures"}))["figures"]
    assert (figures["gateway"], figures["log_answers"]) == (False, None)
    running.cancel()
