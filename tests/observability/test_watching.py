"""A running service watched as in production: a real Prometheus scrapes it, canaries go through it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from playwright.sync_api import Page

from infra.grafana.kpi import cohort
from pipeline.contract.canary import CANARY_SOURCE
from pipeline.settings import load_settings
from pipeline.store.client import connect
from tests.e2e.service import Service, gridpipe
from tests.observability.grafana import CLICKHOUSE, PROMETHEUS, PanelQuery, expand, panels, promql
from tests.observability.prometheus import Prometheus, alerts, branches, promtool, records
from tests.observability.world import GRID, OTHER_GRIDS, history, report, write_reference
from tests.page.browser import chromium, percent

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PARTITIONS = 12
METRIC = re.compile(r"\b(?:[a-z]+:)?gridpipe[a-z0-9_:]*\b|\bup\b")
#: Without any late event the ratios of the days before are there all the same.
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIDPIPE_CANARY_INTERVAL_SECONDS", "5")
        running = Service(directory / "data", "--no-simulate", "--http", "127.0.0.1:0")
    try:
        running.send(report(1, NOW))  # no grid is known yet: rejected, for the rejections to be counted
        write_reference(directory / "reference", *OTHER_GRIDS)
        data = str(running.data_dir)
        loaded = gridpipe(
            "reference", "load", str(directory / "reference"), "--data-dir", data, "--url", running.url
        )
        assert loaded.returncode == 0, loaded.stderr + loaded.stdout
        _wait_for_reference(running)
        running.send(*history(100, 40, NOW))
        for number, grid in enumerate(OTHER_GRIDS, 2):
            there = {"grid": grid, "worker": f"GW-{number:04}", "open_of": 3 + number}
            running.send(*history(200 * number, 16, NOW, **there))
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
        running.kill()


def _wait_for_reference(service: Service) -> None:
    """Workers look for new reference data every few seconds."""
    for number in range(10, 200):
        service.send(report(number, NOW))
        if service.get(f"/v1/events/local/reported-{number}")["outcome"] == "admitted":
            return
        time.sleep(0.5)
    raise AssertionError("no report was admitted")


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus") / "run", service.url.removeprefix("http://"))
    try:
        running.wait_for('up{job="gridpipe"} == 1')
        service.send(*history(200, 5, NOW))  # something to see in a rate
        running.wait_for("increase(gridpipe_events_received_total[1m]) > 0")
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    """ClickHouse as Grafana sees it."""
    found = connect(load_settings(data_dir=service.data_dir))
    yield found
    found.close()


def metrics_page(service: Service) -> str:
    return str(service.client.get("/metrics").text)


def test_the_metrics_page_is_sound(service: Service) -> None:
    page = metrics_page(service)
    names = re.findall(r"^# TYPE (\S+)", page, flags=re.MULTILINE)
    assert len(names) == len(set(names))
    assert "gridpipe_canary_delay_seconds" in names
    assert "gridpipe_worker_memory_bytes" in names
    checked = promtool("check", "metrics", text=page)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", records())
def test_every_recorded_figure_has_data(prometheus: Prometheus, name: str) -> None:
    prometheus.wait_for(records()[name])
    assert prometheus.wait_for(name)


#: A comparison and what it drops; a look into a past that this run has not.
COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)(?!=)(?= )")
PAST = re.compile(r" offset \d+[mhd]\b")


def undecided(expression: str) -> str:
    """The alert's expression where every comparison answers 0 or 1 instead of leaving out what it does not
    hold for, and yesterday is today: what is left empty then reads something that is not there."""
    without_labels = re.split(r"({[^}]*})", PAST.sub("", expression))
    return "".join(
        part if part.startswith("{") else COMPARISON.sub(r"\1 bool", part) for part in without_labels
    )


#: Branches of expressions that have data only while nothing is scraped.
ONLY_WHEN_DOWN = {'absent(up{job="gridpipe"})'}


@pytest.mark.parametrize("name", alerts())
def test_every_branch_of_every_alert_returns_data(prometheus: Prometheus, name: str) -> None:
    expression = alerts()[name]["expr"]
    prometheus.query(expression)
    used = set(METRIC.findall(re.sub(r"{[^}]*}", "", expression)))
    assert used
    for metric in used:
        assert prometheus.wait_for(metric), metric
    for branch in branches(expression):
        if branch.strip() in ONLY_WHEN_DOWN:
            assert prometheus.query(branch) == []
            continue
        for sample in prometheus.wait_for(undecided(branch)):
            assert math.isfinite(float(sample["value"][1])), sample


def test_prometheus_evaluates_every_rule_and_a_healthy_service_raises_no_alarm(
    prometheus: Prometheus,
) -> None:
    prometheus.wait_for("gridpipe:consumer_lag_records:sum")
    rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(records()) + len(alerts())
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    critical = 'ALERTS{alertstate="firing", severity="critical"}'
    # Hardly anything is fresh or has memory left on a machine that runs everything at once.
    firing = {sample["metric"]["alertname"] for sample in prometheus.query(critical)}
    assert firing <= {"GridpipeFreshnessFastBurn"}


def test_a_canary_of_every_partition_came_out_lately(prometheus: Prometheus) -> None:
    seen = "count(time() - gridpipe_canary_last_seen_timestamp_seconds < 60)"
    assert int(prometheus.wait_for(f"{seen} == {PARTITIONS}")[0]["value"][1]) == PARTITIONS
    delays = [float(sample["value"][1]) for sample in prometheus.wait_for("gridpipe_canary_delay_seconds")]
    assert len(delays) == PARTITIONS
    assert all(0 < delay < 60 for delay in delays)
    assert prometheus.query("sum(gridpipe_canary_sent_total) > 0")


def test_canaries_are_explained_but_counted_nowhere(service: Service, client: Client) -> None:
    found = client.query(
        f"SELECT event_id, grid_code FROM events WHERE source = '{CANARY_SOURCE}'"
    ).result_rows
    assert len(found) >= PARTITIONS
    explained = service.get(f"/v1/events/{CANARY_SOURCE}/{found[0][0]}")
    assert explained["outcome"] == "recorded"
    for table in ("case_events", "cases"):
        assert client.query(f"SELECT count() FROM {table} WHERE case_id LIKE 'canary-%'").result_rows == [
            (0,)
        ]
    for view in ("cohort", "flow"):
        (city,) = service.get("/v1/kpi", by="city", view=view)["rows"]
        assert city["orphans"] == 0
    # The page is read in one go, but its two halves count at different moments: compare when all is still.
    deadline = time.monotonic() + 30
    while True:
        page = metrics_page(service)
        received, outcomes, accepted = (
            total(page, name)
            for name in (
                "gridpipe_events_received_total{",
                "gridpipe_events_total{",
                'gridpipe_gateway_events_total{answer="accepted"',
            )
        )
        if received == outcomes == accepted > 0:
            break
        assert time.monotonic() < deadline, (received, outcomes, accepted)
        time.sleep(0.5)
    assert CANARY_SOURCE not in page


def total(page: str, begin: str) -> float:
    """Sum of the samples whose line begins so."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(begin))


def test_a_client_cannot_send_as_the_canary(service: Service) -> None:
    forged = report(9000, NOW, source=CANARY_SOURCE)
    answer = service.client.post("/v1/events", json=[forged])
    assert answer.status_code == 403
    assert answer.json()["errors"][0]["code"] == "source_not_allowed"


def closure_rates(service: Service, client: Client, end: datetime) -> dict[str, float]:
    """By district as of `end`, for the 30 days before, as API, command line and Grafana's SQL agree on."""
    begin = end - timedelta(days=30)
    window = {"from": begin.isoformat(), "to": end.isoformat(), "as_of": end.isoformat()}
    answer = service.get("/v1/kpi", by="district", **window)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in window.items()]
    told = gridpipe("kpi", "--by", "district", "--json", "--url", service.url, *flags)
    assert told.returncode == 0, told.stderr
    panel = next(panel for panel in panels(CLICKHOUSE) if "District：指标" in panel.title)
    shown = client.query(expand(panel.text, begin, end))
    keys = {row["name_zh"]: row["key"] for row in answer["rows"]}
    column = shown.column_names.index("办结率 Closure")
    grafana = {keys[row[0].split()[0]]: row[column] for row in shown.result_rows if row[column] is not None}
    assert rates(answer) == rates(json.loads(told.stdout)) == grafana
    assert grafana.keys() == {grid[:6] for grid in (GRID, *OTHER_GRIDS)}
    assert len({0.0, 1.0, *grafana.values()}) == 2 + len(grafana), "no rate may pass for another's"
    return grafana


def gauges(prometheus: Prometheus) -> tuple[datetime, dict[str, float]]:
    """Closure rates by district, and the instant that the gauges say they hold for."""
    both = '{__name__=~"gridpipe_closure_ratio|gridpipe_business_as_of_timestamp_seconds"}'
    samples = prometheus.query(both)
    (as_of,) = [
        datetime.fromtimestamp(round(float(sample["value"][1]), 3), UTC)
        for sample in samples
        if sample["metric"]["__name__"] != "gridpipe_closure_ratio"
    ]
    return as_of, {
        sample["metric"]["district"]: float(sample["value"][1])
        for sample in samples
        if sample["metric"]["__name__"] == "gridpipe_closure_ratio"
    }


def test_api_command_prometheus_and_grafana_give_the_same_closure_rates(
    service: Service, prometheus: Prometheus, client: Client
) -> None:
    # figures made after the last event came
    prometheus.wait_for(f"gridpipe_business_as_of_timestamp_seconds > {time.time():.3f}")
    end, measured = gauges(prometheus)
    assert measured == closure_rates(service, client, end)
    breached = prometheus.query(f'gridpipe_response_breached_cases{{district="{GRID[:6]}"}}')
    owed, in_time = client.query(
        expand(
            cohort("district", {"response_owed": "owed", "responded_in_time": "in time"}),
            end - timedelta(days=30),
            end,
        ).replace("WHERE listed", f"WHERE key = '{GRID[:6]}'")
    ).result_rows[0][1:]
    assert float(breached[0]["value"][1]) == owed - in_time > 0


#: What the page shows by district and of the city, and the instant that it names.
SHOWN = """() => ({
    ...Object.fromEntries([...document.querySelectorAll('tr[data-key]')].map((row) =>
        [row.dataset.key, row.querySelectorAll('td')[4].innerText])),
    tile: document.querySelector('[data-testid=tile-closure_rate] .value').innerText,
    at: document.querySelector('[data-testid=as-of]').dateTime,
})"""


def shown_and_measured(
    page: Page, prometheus: Prometheus
) -> tuple[datetime, dict[str, str], dict[str, float]]:
    """What page and Prometheus say of one instant. The gauges take every other answer that the page has, so
    that what the page showed is kept until a scrape names its instant."""
    seen: dict[datetime, dict[str, str]] = {}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        shown: dict[str, str] = page.evaluate(SHOWN)
        if (at := shown.pop("at")) and shown["tile"] != "—":
            seen[datetime.fromisoformat(at)] = shown
        as_of, measured = gauges(prometheus)
        if as_of in seen:
            return as_of, seen[as_of], measured
        page.wait_for_timeout(200)
    raise AssertionError(f"Prometheus told none of the page's instants: {sorted(seen)}")


def test_page_api_command_prometheus_and_grafana_give_the_same_closure_rates_for_one_instant(
    service: Service, prometheus: Prometheus, client: Client
) -> None:
    noise: list[str] = []
    with chromium() as browser:
        page = browser.new_page(locale="zh-CN")
        page.set_default_timeout(90_000)
        page.on(
            "console", lambda said: noise.append(said.text) if said.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.goto(service.url)
        page.wait_for_selector("tr.total")
        end, seen, measured = shown_and_measured(page, prometheus)
    assert noise == []
    told = closure_rates(service, client, end)
    assert measured == told
    window = {"from": (end - timedelta(days=30)).isoformat(), "to": end.isoformat(), "as_of": end.isoformat()}
    (city,) = service.get("/v1/kpi", **window)["rows"]
    assert seen.pop("tile") == percent(city["closure_rate"])
    assert seen.pop("4407") == percent(city["closure_rate"], 1)
    assert len(seen) == 7
    assert {key: text for key, text in seen.items() if text != "—"} == {
        key: percent(rate, 1) for key, rate in told.items()
    }


def rates(answer: dict[str, Any]) -> dict[str, float]:
    return {row["key"]: row["closure_rate"] for row in answer["rows"] if row["closure_rate"] is not None}


@pytest.mark.parametrize("panel", panels(PROMETHEUS), ids=str)
def test_every_panel_of_prometheus_has_data(prometheus: Prometheus, panel: PanelQuery) -> None:
    found = prometheus.wait_for(promql(panel.text, 15))
    assert any(math.isfinite(float(sample["value"][1])) for sample in found), found
    if panel.curve:  # as Grafana asks, for a quarter of an hour and for a week
        for seconds, step in ((900, 15), (7 * 86400, 600)):
            lines = prometheus.curves(promql(panel.text, step), seconds=seconds, step=step)
            points = [float(value) for line in lines for _, value in line["values"]]
            assert any(map(math.isfinite, points)), (step, points)


@pytest.mark.parametrize("panel", panels(CLICKHOUSE), ids=str)
def test_every_panel_of_clickhouse_has_data(client: Client, panel: PanelQuery) -> None:
    now = datetime.now(UTC)
    found = client.query(expand(panel.text, now - timedelta(days=30), now))
    assert found.result_rows, panel.text
    for name, column in zip(found.column_names, zip(*found.result_rows, strict=True), strict=True):
        assert any(value is not None for value in column), f"{name} is empty"


def test_every_line_of_every_log_is_json_with_its_role(service: Service) -> None:
    found = 0
    for role in ("up", "http", "store"):
        for text in (service.data_dir / "log" / f"{role}.log").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            assert {"event", "level", "timestamp", "logger"} <= line.keys()
            assert line["role"] == role
            found += 1
    assert found > 10
