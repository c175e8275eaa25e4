"""The whole service on one command: ready, an event in and found, killed in parts, stopped, started again."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.service import Service, gridpipe, wait_gone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GRID = "440704001001003"
LON, LAT = 113.10, 22.58
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "data"


@pytest.fixture(scope="module")
def service(data_dir: Path) -> Iterator[Service]:
    running = Service(data_dir, "--no-simulate", "--http", "127.0.0.1:0")
    yield running
    if running.process.poll() is None:
        running.stop()
    running.kill()


def report(number: int, **changes: Any) -> dict[str, Any]:
    """A grid worker's report that the tiny reference set admits."""
    at = AN_HOUR_AGO
    return {
        "event_id": f"report-{number}",
        "source": "local",
        "event_type": "REPORTED",
        "case_id": f"case-{number}",
        "occurred_at": at.isoformat(),
        "channel": "grid_patrol",
        "matter_code": "SA-07",
        "grid_code": GRID,
        "actor": {"type": "full_time", "key": "GW-0001"},
        "location": {"lon": LON, "lat": LAT, "crs": "wgs84"},
        "photos": [{"sha256": f"{number:064x}", "taken_at": at.isoformat()}],
        "description": f"阳台铁皮松动，第 {number} 处",
    } | changes


def follow_up(number: int, kind: str, minutes: int) -> dict[str, Any]:
    at = AN_HOUR_AGO + timedelta(minutes=minutes)
    return {
        "event_id": f"{kind.lower()}-{number}",
        "source": "local",
        "event_type": kind,
        "case_id": f"case-{number}",
        "occurred_at": at.isoformat(),
        "channel": "grid_patrol",
        "grid_code": GRID,
        "actor": {"type": "clerk"},
    }


def write_reference(directory: Path) -> None:
    directory.mkdir()
    edge = 0.01
    ring = [
        (LON - edge, LAT - edge),
        (LON + edge, LAT - edge),
        (LON + edge, LAT + edge),
        (LON - edge, LAT + edge),
    ]
    wkt = ", ".join(f"{lon} {lat}" for lon, lat in [*ring, ring[0]])
    since = "2020-01-01T00:00:00+08:00"
    common = {"updated_at": since, "source_system": "test"}
    grid = {
        "grid_code": GRID,
        "version": 1,
        "valid_from": since,
        "grid_name": "江南一格",
        "grid_type": "residential",
    }
    grid |= {
        "village_kind": "community",
        "boundary": f"POLYGON (({wkt}))",
        "centroid_lon": LON,
        "centroid_lat": LAT,
    }
    worker = {"worker_key": "GW-0001", "kind": "full_time", "name_masked": "陈**", "grid_code": GRID}
    worker |= {"district_code": GRID[:6], "active_from": since}
    pl.DataFrame([grid | {"status": "active"} | common]).write_csv(directory / "grids.csv")
    pl.DataFrame([worker | common]).write_csv(directory / "staff.csv")


def sample(service: Service, name: str) -> dict[tuple[str, ...], float]:
    page = service.client.get("/metrics").text
    found = {}
    for family in text_string_to_metric_families(page):
        for item in family.samples:
            if item.name == name:
                found[tuple(item.labels.values())] = item.value
    return found


def stored_ids(service: Service) -> set[str]:
    from pipeline.settings import load_settings
    from pipeline.store.client import connect

    client = connect(load_settings(data_dir=service.data_dir))
    rows = client.query("SELECT event_id FROM events FINAL").result_rows
    client.close()
    assert len(rows) == len({row[0] for row in rows}), "an event is stored twice"
    return {row[0] for row in rows}


def test_it_says_where_it_is_and_keeps_the_key_to_its_user(service: Service) -> None:
    text = "".join(service.output)
    assert service.url in text
    assert service.key in text  # shown once, at the first start
    assert (service.data_dir / "local.key").stat().st_mode & 0o077 == 0
    assert service.data_dir.stat().st_mode & 0o077 == 0
    assert set(service.children()) == {"tansu", "store", "http"}
    ready = service.get("/health/ready")
    assert ready["status"] == "ready"
    assert set(ready["checks"]) == {"broker", "store", "catalogue", "keys", "worker", "process"}


def test_the_embedded_broker_sees_neither_the_environment_nor_the_directory_of_the_start(
    service: Service,
) -> None:
    """It would report to the collector that either names (`tests/security/test_nothing_leaves.py`)."""
    broker = service.children()["tansu"]
    assert broker.environ() == {"TZ": "UTC"}
    assert broker.cwd() == "/"


def test_it_sets_the_retention_of_its_tables(service: Service) -> None:
    lines = (service.data_dir / "log" / "store.log").read_text().splitlines()
    (told,) = [line for line in map(json.loads, lines) if line["event"] == "retention_set"]
    assert told["tables"] == ["events", "rejections", "duplicates", "quarantine"]


def test_without_reference_data_a_report_is_taken_and_rejected_with_reasons(service: Service) -> None:
    answer = service.send(report(1))
    assert (answer["accepted"], answer["durability"]) == (1, "stored")
    found = service.get("/v1/events/local/report-1")
    assert found["outcome"] == "rejected"
    assert "GRID_UNKNOWN" in found["reasons"]


def test_an_event_becomes_a_case_and_a_closure_rate(service: Service, tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    loaded = gridpipe(
        "reference",
        "load",
        str(tmp_path / "reference"),
        "--data-dir",
        str(service.data_dir),
        "--url",
        service.url,
    )
    assert loaded.returncode == 0, loaded.stderr + loaded.stdout
    number = 10
    deadline = time.monotonic() + 60
    while True:  # workers look for new reference data every few seconds
        service.send(report(number))
        outcome = service.get(f"/v1/events/local/report-{number}")
        if outcome["outcome"] == "admitted":
            break
        assert time.monotonic() < deadline, outcome["reasons"]
        number += 1
        time.sleep(0.5)
    for minutes, kind in enumerate(("ACCEPTED", "DISPATCHED", "SIGNED", "HANDLING", "RESOLVED", "CLOSED"), 1):
        service.send(follow_up(number, kind, minutes))
    service.send(report(number + 1))
    (city,) = service.get("/v1/kpi", by="city")["rows"]
    assert (city["cases"], city["closed"], city["closure_rate"]) == (2, 1, 0.5)
    assert city["response_seconds"]["p50"] == 180
    case = service.get(f"/v1/cases/case-{number}")
    assert case["state"] == "CLOSED"
    deadline = time.monotonic() + 60
    while sample(service, "gridpipe_held_cases")[()] < 2:  # the api answers from what it holds
        assert time.monotonic() < deadline, "the api holds no case"
        time.sleep(0.5)


def test_metrics_of_all_roles_are_on_one_page_and_add_up(service: Service) -> None:
    outcomes = sample(service, "gridpipe_events_total")
    received = sample(service, "gridpipe_events_received_total")
    accepted = sample(service, "gridpipe_gateway_events_total")
    assert sum(outcomes.values()) == sum(received.values()) == accepted["accepted",] > 8
    assert sample(service, "gridpipe_process_up") == {("store",): 1}


def test_figures_are_said_to_be_of_what_is_sent_and_what_is_to_be_loaded_first(service: Service) -> None:
    deadline = time.monotonic() + 10
    while "reference load" not in (text := "".join(service.output)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "no simulated city: figures are of the events that are sent" in text
    assert f"run `gridpipe reference load DIR --data-dir {service.data_dir}`" in text


def test_doctor_and_config_on_a_running_service(service: Service) -> None:
    address = service.url.removeprefix("http://")
    found = gridpipe("doctor", "--json", "--data-dir", str(service.data_dir), "--http", address)
    findings = {finding["check"]: finding for finding in json.loads(found.stdout)}
    assert found.returncode == 0, found.stdout
    assert findings["service"]["level"] == "ok"
    assert findings["deduplication windows"]["level"] == "ok"
    assert findings["reference data"]["level"] == "ok"


def test_a_second_start_on_the_same_directory_is_refused_in_one_line(service: Service) -> None:
    refused = gridpipe("up", "--no-simulate", "--data-dir", str(service.data_dir), "--http", "127.0.0.1:0")
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.strip().splitlines()
    assert f"is used by gridpipe pid {service.process.pid}" in line
    assert "--data-dir" in line


def test_an_address_in_use_is_refused_in_one_line(service: Service, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = gridpipe("up", "--no-simulate", "--data-dir", str(tmp_path / "other"), "--http", address)
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert f"address {address} is in use" in line
    assert "--http" in line


@pytest.mark.parametrize("victim", ["store", "tansu", "http"])
def test_kill_nine_of_a_child_loses_nothing_that_was_answered(service: Service, victim: str) -> None:
    stop = threading.Event()
    answered: list[str] = []
    first = {"store": 1000, "tansu": 2000, "http": 3000}[victim]
    failures: list[BaseException] = []

    def feed() -> None:
        number = first
        while not stop.is_set():
            batch = [report(n) for n in range(number, number + 5)]
            try:
                service.send(*batch, seconds=90)
            except BaseException as error:
                failures.append(error)
                return
            answered.extend(event["event_id"] for event in batch)
            number += 5

    feeder = threading.Thread(target=feed)
    feeder.start()
    deadline = time.monotonic() + 60
    while len(answered) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    before = len(answered)
    assert before >= 10
    killed = service.children()[victim]
    killed.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 90
    while len(answered) < before + 10 and not failures and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    feeder.join(120)
    assert not failures, failures[0]
    assert len(answered) >= before + 10, service.log("up") + service.log("store")
    assert not killed.is_running()
    service.get("/health/ready")
    assert set(answered) <= stored_ids(service)
    assert set(service.children()) == {"tansu", "store", "http"}


def test_sigterm_ends_it_cleanly_with_nothing_left(service: Service) -> None:
    children = list(service.children().values())
    began = time.monotonic()
    assert service.stop(signal.SIGTERM) == 0, service.log("up")
    assert time.monotonic() - began < 25
    assert wait_gone(children, 1) == []
    assert not (service.data_dir / "run" / "bridge.json").exists()


def test_the_next_start_has_everything_and_its_children_die_with_it(service: Service) -> None:
    again = Service(
        service.data_dir, "--http", "127.0.0.1:0"
    )  # a real city is never mixed with a simulated one
    try:
        assert "no simulated city (reference data of your own are loaded" in "".join(again.output)
        assert again.key == service.key
        assert again.key not in "".join(again.output)
        assert again.get("/v1/events/local/report-1")["outcome"] == "rejected"
        assert again.send(report(5000))["accepted"] == 1
        assert again.get("/v1/events/local/report-5000")["outcome"] == "admitted"
        children = list(again.children().values())
        assert len(children) == 3
        again.process.kill()
        again.process.wait()
        assert wait_gone(children, 5) == []
        # The promise is 15 s on a machine that has nothing else to do; a busy one gets its share more.
        assert min(start.ready_seconds / start.busy for start in (service, again)) < 15
    finally:
        again.kill()
