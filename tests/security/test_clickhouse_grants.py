"""Each user of `access.sql` does its work with what it is granted, and nothing else.

The product's own commands and roles, on an engine that holds its callers to the file (`access_file.py`). A
real server is asked further things where one is named: `test_clickhouse_access.py`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.ingest.keys import KeyStore
from pipeline.runtime import broker
from tests.conftest import embedded_only
from tests.e2e.service import gridpipe
from tests.fault.system import Process, Store
from tests.kafka import embedded_broker
from tests.observability.grafana import CLICKHOUSE, PROVISIONING, expand, panels
from tests.observability.world import history, report, write_reference
from tests.security.access_file import Access, statements, write_configuration
from tests.security.fakes import fake_id
from tests.security.test_clickhouse_access import SENSITIVE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), embedded_only]

NOW = datetime.now(UTC)
#: A grid of another district.
OTHER = "440703001001001"
PERSON = fake_id(9)
START_SECONDS = 120.0
#: Not granted, or kept from changing by the profile.
REFUSED = re.compile(r"Code: (497|452|164|392)\b")
ACCESS = Access.read(statements())


@dataclass
class Site:
    """A data directory, and the store in it for one user after the other."""

    directory: Path

    @property
    def data(self) -> str:
        return str(self.directory / "data")

    @contextmanager
    def store(self, *roles: str) -> Iterator[Store]:
        config = write_configuration(self.directory / "-".join(roles), ACCESS, *roles)
        running = Store(self.directory / "store", config=config)
        try:
            yield running
        finally:
            running.stop()

    @contextmanager
    def client(self, *roles: str) -> Iterator[Client]:
        with self.store(*roles) as running:
            found = running.client("grid")
            yield found
            found.close()

    def run(self, store: Store, *arguments: str, code: int = 0) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRIDPIPE_TOPIC_REPLICATION", "1")
            done = gridpipe(*arguments, "--clickhouse", store.url(), "--data-dir", self.data)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def worker(self, store: Store, kafka: str) -> Iterator[Process]:
        at = f"127.0.0.1:{broker.free_port()}"
        with self.role(
            "worker", at, "--kafka", kafka, "--clickhouse", store.url(), "--admin-http", at
        ) as process:
            yield process

    @contextmanager
    def role(self, name: str, at: str, *arguments: str) -> Iterator[Process]:
        """One of the product's roles, ready; at : the address of its health page."""
        process = Process(
            name,
            ["-m", "pipeline.cli.main", name, *arguments, "--data-dir", self.data],
            {"GRIDPIPE_TOPIC_REPLICATION": "1"},
            self.directory / f"{name}.log",
        )
        deadline = time.monotonic() + START_SECONDS
        try:
            while not _ready(at):
                assert process.running and time.monotonic() < deadline, process.tail()
                time.sleep(0.2)
            yield process
            assert process.running, process.tail()
        finally:
            process.kill()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def roles_of(user: str) -> list[str]:
    assert user in ACCESS.users
    return ACCESS.member[user]


def elsewhere(number: int) -> list[dict[str, Any]]:
    """Events of a case in the other district."""
    actor = {"actor": {"type": "full_time", "key": "GW-0002"}}
    return [
        one | {"grid_code": OTHER} | (actor if one["event_type"] == "REPORTED" else {})
        for one in history(number, 1, NOW)
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Migrated by the administrator, loaded by the loader, filled by the worker: each as itself alone."""
    found = Site(tmp_path_factory.mktemp("granted"))
    with embedded_broker() as kafka:
        with found.store(*roles_of("gridpipe_admin")) as store:
            found.run(store, "migrate", "--kafka", kafka)
        # docs/security.md: a first load comes after a worker has noted the site's key.
        with found.store(*roles_of("gridpipe_worker")) as store, found.worker(store, kafka):
            pass
        write_reference(found.directory / "reference", OTHER)
        person = {"id_number": PERSON, "home_grid_code": OTHER}
        (found.directory / "reference" / "persons.ndjson").write_text(json.dumps(person) + "\n")
        with found.store(*roles_of("gridpipe_loader")) as store:
            found.run(store, "reference", "load", str(found.directory / "reference"))
        with found.store(*roles_of("gridpipe_worker")) as store, found.worker(store, kafka) as worker:
            _fill(found, store, kafka, worker)
    yield found


def _fill(site: Site, store: Store, kafka: str, worker: Process) -> None:
    key = KeyStore(Path(site.data) / "keys.json").create("local")
    at = f"127.0.0.1:{broker.free_port()}"
    with site.role("gateway", at, "--kafka", kafka, "--clickhouse", store.url(), "--http", at):
        subject = {"persons": [{"id_number": PERSON, "role": "subject"}]}
        events = [*history(100, 12, NOW), *elsewhere(200), *elsewhere(201), report(400, NOW, **subject)]
        rejected = [report(1, NOW, matter_code="NO-SUCH"), report(2, NOW, grid_code="440703001001999")]
        copies = events[:1]
        answer = httpx.post(
            f"http://{at}/v1/events",
            json=[*events, *rejected, *copies],
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
        assert (answer.status_code, answer.json()["errors"]) == (202, []), answer.text
    with closing(store.client("grid")) as client:
        deadline = time.monotonic() + START_SECONDS
        asked = f"SELECT {', '.join(f'(SELECT count() FROM {t})' for t in ('events', 'rejections', 'cases'))}"
        while (stored := client.query(asked).result_rows[0]) < (len(events), 2, 15):
            assert worker.running and time.monotonic() < deadline, (stored, worker.tail())
            time.sleep(0.2)


def refused(client: Client, statement: str) -> None:
    with pytest.raises(ClickHouseError) as told:
        client.command(statement)
    assert REFUSED.search(str(told.value)), (statement, told.value)


OUT = "SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a String')"
CHANGES = (
    "DROP TABLE events",
    "TRUNCATE TABLE events",
    "ALTER TABLE events DELETE WHERE 1",
    "ALTER TABLE events UPDATE title = '' WHERE 1",
    "CREATE TABLE x (a Int8) ENGINE = Memory",
    "CREATE USER somebody",
    "GRANT ALL ON *.* TO default",
)


def test_the_worker_writes_outcomes_and_changes_nothing(site: Site) -> None:
    with site.store(*roles_of("gridpipe_worker")) as store:
        with closing(store.client("grid")) as client:
            assert client.query("SELECT count() FROM duplicates").result_rows == [(1,)]
            for statement in (*CHANGES, OUT, "INSERT INTO ref_persons (person_key) VALUES ('a')"):
                refused(client, statement)
        site.run(store, "refold")


def test_the_loader_sees_base_data_alone(site: Site) -> None:
    with site.client(*roles_of("gridpipe_loader")) as client:
        assert client.query("SELECT count() FROM ref_grids").result_rows == [(2,)]
        for table in ("events", "rejections", "cases", "case_events", "quarantine", "duplicates"):
            refused(client, f"SELECT count() FROM {table}")
        for statement in (*CHANGES, OUT, "INSERT INTO pseudonym_keys (version) VALUES (9)"):
            refused(client, statement)


def test_a_command_of_the_wrong_user_says_so_in_a_line(site: Site) -> None:
    with site.store(*roles_of("gridpipe_loader")) as store:
        for command, told in {
            ("refold",): "Not enough privileges",
            ("migrate", "--kafka", "127.0.0.1:1"): "migrate as gridpipe_admin",
        }.items():
            done = gridpipe(*command, "--clickhouse", store.url(), "--data-dir", site.data)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), (command, done.stderr)
            assert told in done.stderr, done.stderr


#: Path → what its answer must hold.
READS = {
    "/v1/kpi": '"closure_rate"',
    "/v1/kpi?by=district&view=flow": "440703",
    "/v1/events/local/reported-101": '"admitted"',
    "/v1/cases/case-101": "CLOSED",
    "/v1/matters": "SA-07",
    "/v1/rejections": "MATTER",
    "/v1/live/tables/district": "440703",
    "/v1/live/search?q=case-101": "case-101",
    "/v1/live/matters": "SA-07",
    "/metrics": "gridpipe_store_disk_free_bytes{",
    "/": "<html",
}


def test_the_api_answers_everything_and_writes_nothing(site: Site) -> None:
    with site.store(*roles_of("gridpipe_api")) as store:
        with closing(store.client("grid")) as client:
            for statement in (*CHANGES, OUT, "INSERT INTO cases (case_id) VALUES ('a')"):
                refused(client, statement)
            refused(client, "SELECT 1 SETTINGS max_execution_time = 61")
            refused(client, "SELECT 1 SETTINGS readonly = 0")
            refused(client, "SELECT 1 SETTINGS allow_ddl = 1")
        at = f"127.0.0.1:{broker.free_port()}"
        with site.role("api", at, "--clickhouse", store.url(), "--http", at) as process:
            for path, holds in READS.items():
                answer = httpx.get(f"http://{at}{path}", timeout=60, trust_env=False)
                assert answer.status_code == 200, (path, answer.text, process.tail())
                assert holds in answer.text, (path, answer.text[:2000])
            with httpx.stream("GET", f"http://{at}/v1/live", timeout=60, trust_env=False) as live:
                told = next(line for line in live.iter_lines() if line.startswith("data:"))
            assert "closure" in told
            site.run(store, "doctor", "--http", at)


def test_the_gateway_validates_as_a_reader(site: Site) -> None:
    key = KeyStore(Path(site.data) / "keys.json").create("handset")
    at = f"127.0.0.1:{broker.free_port()}"
    with (
        embedded_broker() as kafka,
        site.store(*roles_of("gridpipe_admin")) as store,
    ):
        site.run(store, "migrate", "--kafka", kafka)
        store.stop()
        with (
            site.store(*roles_of("gridpipe_api")) as reading,
            site.role("gateway", at, "--kafka", kafka, "--clickhouse", reading.url(), "--http", at),
        ):
            answer = httpx.post(
                f"http://{at}/v1/events:validate",
                json=report(300, NOW, source="handset"),
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
            assert '"admitted"' in answer.text, answer.text


def test_grafana_may_ask_what_its_panels_ask(site: Site) -> None:
    asked = panels(CLICKHOUSE)
    assert len(asked) > 5
    seen = ""
    with site.client(*roles_of("gridpipe_grafana")) as client:
        for panel in asked:
            sql = expand(panel.text, NOW - timedelta(days=30), NOW + timedelta(hours=1))
            # as the plugin sends it
            seen += str(client.query(sql, settings={"max_execution_time": plugin_seconds()}).result_rows)
        # of tables of which it may read nothing it tells the size
        assert all(f"'{table}'" in seen for table in ("ref_staff", "incarnations")), seen
        for statement in (*CHANGES, OUT, "SELECT title FROM events", "SELECT count() FROM ref_persons"):
            refused(client, statement)


def plugin_seconds() -> int:
    """What Grafana's plugin sends as `max_execution_time`: its time-out, to which its driver adds five."""
    known = yaml.safe_load((PROVISIONING / "datasources" / "gridpipe.yml").read_text())["datasources"]
    (source,) = [source for source in known if source["type"] == CLICKHOUSE]
    return int(source["jsonData"].get("queryTimeout", 60)) + 5


def columns(site: Site) -> dict[str, list[str]]:
    with site.client(*roles_of("gridpipe_admin")) as client:
        found: dict[str, list[str]] = {}
        for table, column in client.query(
            "SELECT table, name FROM system.columns WHERE database = 'grid'"
        ).result_rows:
            found.setdefault(table, []).append(column)
    return found


def test_an_analyst_sees_no_person_and_only_the_rows_of_the_district(site: Site) -> None:
    schema = columns(site)
    with site.client("grid_analyst_440703") as client:
        asked = 0
        for table, names in schema.items():
            written = {"level"} if table in {"events", "rejections"} else set()  # of a mode it names nobody
            for name in (SENSITIVE | written) & set(names):
                refused(client, f"SELECT {name} FROM {table}")
                asked += 1
        assert asked > 30, asked
        for table in ("ref_persons", "ref_staff", "quarantine", "ref_erasures", "ref_erased_cases"):
            refused(client, f"SELECT count() FROM {table}")
        for statement in (
            *CHANGES,
            OUT,
            "SELECT * FROM events",
            "SELECT * FROM file('/etc/passwd', CSV, 'a String')",
        ):
            refused(client, statement)
        for table in ("events", "rejections", "cases"):
            codes = client.query(f"SELECT DISTINCT substring(grid_code, 1, 6) FROM {table}").result_rows
            assert codes == [("440703",)], (table, codes)
        assert client.query("SELECT count() FROM duplicates").result_rows == [
            (0,)
        ]  # the copy is of the other
        assert client.query("SELECT uniqExact(case_id) FROM case_events").result_rows == [(3,)]
        for panel in panels(CLICKHOUSE):
            if "system." not in panel.text:
                found = client.query(expand(panel.text, NOW - timedelta(days=30), NOW + timedelta(hours=1)))
                assert "440704" not in str(found.result_rows), panel
                assert "江海" not in str(found.result_rows), panel


def test_a_district_of_nobody_and_an_analyst_without_one_see_no_row(site: Site) -> None:
    for role in ("grid_analyst", "grid_analyst_440785"):
        with site.client(role) as client:
            for table in ACCESS.policies:
                # Not count() alone: where no row may be seen it ends with an error of the engine, which has a
                # `_part` of its own.
                assert client.query(f"SELECT max(case_id) FROM {table} HAVING count() > 0").result_rows == []
            assert client.query("SELECT count() FROM ref_grids").result_rows == [(2,)]


def test_an_eraser_erases(site: Site) -> None:
    numbers = site.directory / "numbers"
    numbers.write_text(PERSON + "\n")
    numbers.chmod(0o600)
    with site.store("grid_eraser") as store:
        text = site.run(store, "person", "erase", "--yes", "--json", "--from", str(numbers))
    told = json.loads(text)
    assert {table: rows for table, rows in told["found"].items() if rows} == {"events": 1, "ref_persons": 1}
    assert not any(told["left"].values()), told
    with site.client("grid_eraser") as client:
        for statement in ("DROP TABLE events", "CREATE TABLE x (a Int8) ENGINE = Memory", OUT):
            refused(client, statement)


def test_a_load_carries_an_erasure_to_a_new_key(site: Site) -> None:
    """It alone has the number; after `test_an_eraser_erases`."""
    with site.store(*roles_of("gridpipe_admin")) as store:
        site.run(store, "pseudonym", "rotate")
    with site.store(*roles_of("gridpipe_loader")) as store:
        site.run(store, "reference", "load", str(site.directory / "reference"))
    with site.client(*roles_of("gridpipe_admin")) as client:
        listed = "SELECT arraySort(groupUniqArray(key_version)) FROM ref_erasures"
        assert client.query(listed).result_rows == [([1, 2],)]
        assert client.query("SELECT count() FROM ref_persons").result_rows == [(0,)]


def test_up_runs_as_the_administrator_alone(site: Site) -> None:
    at = f"127.0.0.1:{broker.free_port()}"
    with (
        site.store(*roles_of("gridpipe_admin")) as store,
        site.role("up", at, "--clickhouse", store.url(), "--http", at, "--no-simulate"),
    ):
        answer = httpx.get(f"http://{at}/v1/cases/case-101", timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
